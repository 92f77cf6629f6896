"""What the probe measures, against float64 by hand, and that it leaves no trace."""

import torch
from torch import nn

from vshift.networks.norm import BatchNorm
from vshift.shift.training_log import TrainingLog


def test_training_log_averages_the_unbiased_batch_variances():
    torch.manual_seed(0)
    layer = BatchNorm(5)
    model = nn.Sequential(layer)
    log = TrainingLog(model)
    batches = [torch.randn(size, 5, 4, 4) * (1 + i) + i for i, size in enumerate((8, 8, 3))]
    for batch in batches:
        model(batch)
        log.add()
    seen = log.compute_and_reset()["0"]
    variance = torch.stack([b.double().var((0, 2, 3), correction=1) for b in batches]).mean(0)
    mean = torch.stack([b.double().mean((0, 2, 3)) for b in batches]).mean(0)
    torch.testing.assert_close(seen.variance, variance, rtol=1e-5, atol=0)
    torch.testing.assert_close(seen.mean, mean, rtol=1e-5, atol=1e-6)


def test_training_log_starts_anew_after_take():
    model = nn.Sequential(BatchNorm(5))
    log = TrainingLog(model)
    for scale in (1.0, 3.0):
        x = torch.randn(64, 5) * scale
        model(x)
        log.add()
        seen = log.compute_and_reset()["0"].variance
        torch.testing.assert_close(seen, x.double().var(0), rtol=1e-5, atol=0)
