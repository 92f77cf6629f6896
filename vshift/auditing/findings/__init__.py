"""The findings of an audit: a class each, and the order in which they are looked for."""

from vshift.auditing.findings import batches, buffers, eps, gap, mixtures, modes, noise, non_bn
from vshift.auditing.findings.base import FAR, Check, Finding

# The order decides twice. A layer's running statistics are explained by the first check that claims
# them (`Evidence.claim`; later checks see `Evidence.unexplained` layers only), so specific causes
# come before general ones, and `Stale` takes what is left. And repairs are tried in this order,
# each on top of the earlier ones that helped, so a cause comes before what follows from it: inputs
# before buffers, buffers before what noise does to the variance.
CHECKS: tuple[Check, ...] = (
    modes.ModeSwitchChangesState(),
    modes.MixedModes(),
    buffers.NonFinite(),
    modes.BNWrongMode(),
    modes.BNOutOfReach(),
    modes.BNOnlyInEval(),
    noise.NoiseWrongMode(),
    noise.NoiseOutOfReach(),
    noise.NoiseLive(),
    modes.BatchDependent(),
    batches.InputDiffers(),
    buffers.Drift(),
    eps.VarianceBelowEps(),
    batches.SeveralDistributions(),
    batches.BatchesNotRandom(),
    buffers.NeverUpdated(),
    batches.MomentumHigh(),
    batches.TinyBatches(),
    mixtures.MomentumLow(),
    mixtures.InitialBias(),
    mixtures.Polluted(),
    buffers.Stale(at_least=FAR),
    non_bn.InstanceNorm(),
    non_bn.SpectralNorm(),
    noise.NoiseScale(),
    non_bn.OutputNonFinite(),
    noise.VarianceShift(),
    # These two are looked for after all repairs.
    buffers.Stale(at_least=0.0),
    gap.UnexplainedGap(),
)

__all__ = ["CHECKS", "Check", "Finding"]
