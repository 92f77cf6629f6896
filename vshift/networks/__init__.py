"""Networks from a config: `build` makes one; `summary` describes it."""

from vshift.networks import others, residual  # noqa: F401 - they register their families
from vshift.networks.build import build, family
from vshift.networks.noise import Noise
from vshift.networks.norm import BatchNorm

__all__ = ["BatchNorm", "Noise", "build", "family"]
