"""Seeds derived from (seed, epoch, purpose)."""

from vshift.train.context import derive_seed


def test_every_argument_matters_and_nothing_else():
    assert derive_seed(0, 1, "data") == derive_seed(0, 1, "data")
    seeds = {derive_seed(s, e, p) for s in range(20) for e in range(20) for p in ("data", "noise")}
    assert len(seeds) == 800
    assert all(0 <= seed < 2**32 for seed in seeds)


def test_seeds_are_pinned():
    """Another value would silently make every old run irreproducible."""
    assert derive_seed(0, 1, "data") == 2396145807
    assert derive_seed(7, 0, "weights") == 134603374
