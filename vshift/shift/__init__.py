"""Input statistics of BN layers: training, running and eval. Independent of run folders."""
