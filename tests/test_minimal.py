"""examples/minimal.py, in plain PyTorch, and vshift find the same numbers."""

import copy
import re

import pytest
import torch

from examples import minimal
from vshift import VarianceProbe, recalibrate


@pytest.fixture(scope="module")
def trained():
    """A model after an epoch, its training batches, and what each of the two saw of it."""
    torch.manual_seed(0)
    images, labels = minimal.drawn(320, 1).tensors
    batches = list(zip(images.split(64), labels.split(64), strict=True))
    model = minimal.PreResNet8(0.5)
    optimizer = torch.optim.SGD(model.parameters(), 0.05, momentum=0.9)
    with VarianceProbe(model, optimizer) as probe:
        minimal.train_epoch(model, batches, optimizer)  # more than one, so that averages settle
        probe.restart()
        training = minimal.train_epoch(model, batches, optimizer)
        rows = probe.end_epoch(batches).set_index("layer")
    return model, batches, training, rows


def test_the_three_variances_and_their_ratio_are_the_probes(trained):
    model, batches, training, rows = trained
    evaluated = minimal.eval_moments(model, batches)
    for name, layer in minimal.norms(model).items():
        own = {
            "train_variance": training.variance(name).mean(),
            "running_variance": layer.running_var.mean(),
            "eval_variance": evaluated.variance(name).mean(),
            "shift_ratio": minimal.shift_ratio(layer.running_var, evaluated.variance(name)),
        }
        for key, value in own.items():
            assert float(value) == pytest.approx(rows.loc[name, key], rel=2e-5), (name, key)
    assert rows.shift_ratio["blocks.0.bn2"] > 1.5


def test_precise_gives_the_statistics_of_recalibrate(trained):
    model, batches, *_ = trained
    other, before = copy.deepcopy(model), copy.deepcopy(model.state_dict())
    minimal.precise(model, batches)
    recalibrate(other, batches, method="precise")
    for (name, ours), theirs in zip(
        minimal.norms(model).items(), minimal.norms(other).values(), strict=True
    ):
        torch.testing.assert_close(ours.running_mean, theirs.running_mean)
        torch.testing.assert_close(ours.running_var, theirs.running_var)
        assert not torch.equal(ours.running_var, before[f"{name}.running_var"])
    assert not any(layer.training for layer in minimal.norms(model).values())


def test_it_runs_as_it_is_shown(capsys):
    minimal.main(epochs=1)
    printed = capsys.readouterr().out
    assert re.search(
        r"^blocks\.0\.bn2 +0\.\d{3}  \d\.\d{3}  \d\.\d{3}  [1-9]\.\d{3}$", printed, re.M
    )
    assert "% with re-estimated statistics" in printed
