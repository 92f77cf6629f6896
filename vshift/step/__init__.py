"""Training steps behind one interface: `make_step` gives the fastest that works on a device."""

from vshift.step.choose import STEPS, make_step, works_on
from vshift.step.eager import EagerStep, FusedStep, Score, Tally, make_optimizer
from vshift.step.sgd import SGD

__all__ = [
    "SGD",
    "STEPS",
    "EagerStep",
    "FusedStep",
    "Score",
    "Tally",
    "make_optimizer",
    "make_step",
    "works_on",
]
