"""Training steps behind one interface: `make_step` gives the fastest that works on a device."""

from vshift.step.choose import make_step
from vshift.step.eager import EagerStep, FusedStep, Score, Tally, make_optimizer

__all__ = ["EagerStep", "FusedStep", "Score", "Tally", "make_optimizer", "make_step"]
