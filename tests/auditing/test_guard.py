"""Whatever an audit does, the model and all random states are as before."""

import random

import numpy as np
import pytest
import torch
from torch import nn

from examples.broken_models import FAULTS, examine
from examples.patients import Net, data
from tests.auditing.conftest import everything
from vshift import audit
from vshift.auditing import AuditError


@pytest.mark.parametrize("code", ["variance_shift", "nonfinite", "noise_live", "bn_out_of_reach",
                                  "several_distributions", "batch_dependent"])  # fmt: skip
def test_an_audit_leaves_every_bit_as_it_was(code):
    patient = FAULTS[code](0, True)
    hidden = getattr(patient.model, "extra", [nn.Identity()])[0]
    before, inside = everything(patient.model), everything(hidden)
    examine(patient)
    assert everything(patient.model) == before
    assert everything(hidden) == inside


def test_a_model_that_raises_is_left_as_it_was():
    class Raises(Net):
        calls = 0

        def forward(self, x):
            self.bn1.momentum = 0.5
            Raises.calls += 1
            if Raises.calls == 5:
                raise KeyError("no such thing")
            return super().forward(x)

    model = Raises()
    before = everything(model)
    with pytest.raises(KeyError, match="no such thing"):
        audit(model, data(0))
    assert everything(model) == before


def test_random_states_and_the_loaders_own_generator_are_kept():
    generator = torch.Generator().manual_seed(3)
    images, labels = (torch.cat(parts) for parts in zip(*data(0, 64), strict=True))
    loader = torch.utils.data.DataLoader(
        torch.utils.data.TensorDataset(images, labels), 16, shuffle=True, generator=generator
    )
    model = Net()
    state = (generator.get_state(), torch.get_rng_state(), random.getstate())
    numpy = np.random.get_state()[1].copy()
    audit(model, loader)
    assert torch.equal(generator.get_state(), state[0])
    assert torch.equal(torch.get_rng_state(), state[1])
    assert random.getstate() == state[2]
    assert (np.random.get_state()[1] == numpy).all()


@pytest.mark.parametrize("wrap", ["compile", "ddp", "data_parallel"])
def test_wrapped_models_are_looked_into(wrap, tmp_path, shifted):
    model, batches = shifted
    plain = audit(model, batches).to_dict()
    if wrap == "compile":
        wrapped = torch.compile(model, backend="eager")
        model.eval()
        wrapped(batches[0][0])
        model.train()
        assert audit(wrapped, batches).to_dict() == plain
    elif wrap == "data_parallel":
        assert audit(nn.DataParallel(model), batches).to_dict() == plain
    else:
        torch.distributed.init_process_group(
            "gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1
        )
        try:
            wrapped = nn.parallel.DistributedDataParallel(model)
            assert audit(wrapped, batches).to_dict() == plain
        finally:
            torch.distributed.destroy_process_group()


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: nn.Sequential(nn.LazyLinear(4)), "LazyLinear at 0 has no parameters yet"),
        (lambda: nn.Linear(192, 4, device="meta"), "on the meta device"),
        (lambda: torch.jit.trace(nn.Linear(192, 4), torch.ones(2, 192)), "TorchScript module"),
        (lambda: nn.Sequential(nn.Flatten(), Loss()), "one number for the whole batch"),
    ],
)
@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")
def test_models_that_cannot_be_looked_into_are_refused(make, says):
    with pytest.raises(AuditError, match=says):
        audit(make(), data(0, 64))


class Loss(nn.Module):
    def forward(self, x):
        return x.mean()
