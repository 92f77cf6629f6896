"""The findings of an audit: a class each, and the order in which they are looked for."""

from vshift.auditing.findings.base import CandidateFinding, Check, Finding
from vshift.auditing.findings.batches import (
    BatchesNotRandom,
    InputDiffers,
    MomentumHigh,
    SeveralDistributions,
    TinyBatches,
)
from vshift.auditing.findings.buffers import (
    FAR,
    Drift,
    NeverUpdated,
    NonFinite,
    Stale,
    VarianceBelowEps,
)
from vshift.auditing.findings.mixtures import InitialBias, MomentumLow, Polluted
from vshift.auditing.findings.modes import BatchDependent, BNOutOfReach, BNWrongMode
from vshift.auditing.findings.noise import (
    NoiseLive,
    NoiseOutOfReach,
    NoiseScale,
    NoiseWrongMode,
    VarianceShift,
)
from vshift.auditing.findings.non_bn import InstanceNorm, OutputNonFinite, SpectralNorm

# The order decides twice. A layer's running statistics are explained by the first check that claims
# them, so specific causes come before general ones, and `Stale` takes what is left. And repairs are
# tried in this order, each on top of the earlier ones that helped, so a cause comes before what
# follows from it: inputs before buffers, buffers before what noise does to the variance.
CHECKS: tuple[Check, ...] = (
    NonFinite(),
    BNWrongMode(),
    BNOutOfReach(),
    NoiseWrongMode(),
    NoiseOutOfReach(),
    NoiseLive(),
    BatchDependent(),
    InputDiffers(),
    Drift(),
    SeveralDistributions(),
    BatchesNotRandom(),
    NeverUpdated(),
    MomentumHigh(),
    TinyBatches(),
    MomentumLow(),
    InitialBias(),
    Polluted(),
    Stale(at_least=FAR),
    VarianceBelowEps(),
    InstanceNorm(),
    SpectralNorm(),
    NoiseScale(),
    OutputNonFinite(),
    VarianceShift(),
    Stale(at_least=0.0),  # so little off that it counts only for what noise does not explain
)

__all__ = ["CHECKS", "CandidateFinding", "Check", "Finding"]
