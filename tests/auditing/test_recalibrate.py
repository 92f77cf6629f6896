"""`vshift.recalibrate` on models that nobody here wrote."""

import copy

import pytest
import torch
from torch import nn

from examples.patients import Net, data, trained
from tests.auditing.conftest import everything
from vshift import recalibrate
from vshift.auditing import AuditError


class Twice(nn.Module):
    """One BN object under two names, called twice in a forward on different inputs."""

    def __init__(self):
        super().__init__()
        self.bn = nn.BatchNorm2d(3)
        self.again = self.bn

    def forward(self, x):
        return self.bn(x) + self.again(3 * x + 1)


def test_statistics_are_the_populations():
    model, batches = trained(0, Net(before_bn2=nn.Dropout(0.5)))
    assert recalibrate(model, batches) is model
    x = torch.cat([model.conv1(images) for images, _ in batches]).detach().double()
    values = x.transpose(0, 1).flatten(1)
    assert torch.allclose(model.bn1.running_var.double(), values.var(1), rtol=1e-4)
    assert torch.allclose(model.bn1.running_mean.double(), values.mean(1), atol=1e-4)


def test_a_shared_layer_gets_all_its_inputs():
    model, batches = Twice(), data(0, 64)
    recalibrate(model, batches)
    x = torch.cat([images for images, _ in batches]).double()
    values = torch.cat([x, 3 * x + 1]).transpose(0, 1).flatten(1)
    assert torch.allclose(model.bn.running_mean.double(), values.mean(1), atol=1e-4)
    assert torch.allclose(model.bn.running_var.double(), values.var(1), rtol=1e-4)
    copied = recalibrate(model, batches, inplace=False)
    assert copied.bn is copied.again


def test_only_statistics_change_and_a_copy_changes_nothing():
    model, batches = trained(0)
    before = everything(model)
    copied = recalibrate(model, batches, inplace=False)
    assert everything(model) == before
    assert copied is not model
    recalibrate(model, batches)
    changed = {name for name, value in everything(model).items() if before[name] != value}
    assert changed == {f"bn{i}.running_{kind}" for i in (1, 2, 3) for kind in ("mean", "var")}


def test_a_model_that_deepcopy_refuses():
    model = nn.Sequential(
        nn.utils.spectral_norm(nn.Conv2d(3, 4, 3)),
        nn.BatchNorm2d(4),
        nn.Flatten(),
        nn.Linear(144, 4),
    )
    model(torch.randn(8, 3, 8, 8)).sum().backward()
    with pytest.raises(RuntimeError, match="deepcopy"):
        copy.deepcopy(model)
    found = recalibrate(model, data(0, 64), inplace=False)
    assert not torch.equal(found[1].running_mean, model[1].running_mean)


def test_inputs_by_keyword():
    class Keyword(Net):
        def forward(self, image):
            return super().forward(image)

    torch.manual_seed(0)
    model = Keyword()
    other = copy.deepcopy(model)
    recalibrate(model, [{"image": x, "labels": y} for x, y in data(0, 64)])
    recalibrate(other, data(0, 64))
    assert torch.equal(model.bn3.running_var, other.bn3.running_var)


@pytest.mark.parametrize("kind", ["wrapped", "in place"])
def test_compiled_models(kind):
    model, batches = trained(0, Net(before_bn2=nn.Dropout(0.5)))
    other = copy.deepcopy(model)
    recalibrate(other, batches)
    compiled = torch.compile(model, backend="eager")
    if kind == "in place":
        compiled = model
        model.compile(backend="eager")
    compiled(batches[0][0])
    recalibrate(compiled, batches)
    for layer in ("bn1", "bn2", "bn3"):
        mine, theirs = getattr(model, layer), getattr(other, layer)
        assert torch.equal(mine.running_var, theirs.running_var), layer


@pytest.mark.parametrize("method", ["swap", "layerwise", "dropout_on"])
def test_every_method_runs_and_layerwise_leaves_no_shift(method):
    from vshift import audit

    model, batches = trained(0, Net(before_bn2=nn.Dropout(0.5)))
    recalibrate(model, batches, method)
    ratios = [row["shift_ratio"] for row in audit(model, batches).layers]
    if method == "layerwise":
        assert max(ratios) < 1.02
    else:
        assert max(ratios) > 1.05


def test_what_cannot_be_recalibrated_is_refused():
    with pytest.raises(AuditError, match="no batch norm"):
        recalibrate(nn.Linear(2, 2), [])
    with pytest.raises(AuditError, match="layerwise: BN layer"):
        recalibrate(Twice(), data(0, 64), "layerwise")
    with pytest.raises(AuditError, match="method is one of precise"):
        recalibrate(Net(), data(0, 64), "precisely")
    model = Net()
    before = everything(model)
    with pytest.raises(AuditError, match="no finite statistics"):
        recalibrate(model, [x * float("nan") for x, _ in data(0, 64)])
    assert everything(model) == before
