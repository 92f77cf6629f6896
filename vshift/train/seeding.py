"""Every random number of a run derives from (seed, epoch, purpose)."""

from __future__ import annotations

import hashlib


def derive_seed(seed: int, epoch: int, purpose: str) -> int:
    """A 32-bit seed for one purpose in one epoch; other arguments give an unrelated one.

    32 bits because PyTorch's CPU generator uses no more of a seed.
    """
    digest = hashlib.blake2b(f"{seed}/{epoch}/{purpose}".encode(), digest_size=4).digest()
    return int.from_bytes(digest, "little")
