"""The science: what a BN layer saw, remembers and meets. Knows no run folders and no configs."""
