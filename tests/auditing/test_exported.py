"""Exported programs: their layers get modes and names again."""

from contextlib import nullcontext

import pytest
import torch
from torch import nn

from vshift import audit
from vshift.auditing import AuditError
from vshift.auditing.exported import load_program


class Net(nn.Module):
    """A batch norm that runs once, one that runs twice, and a dropout."""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Dropout2d(0.3))
        self.shared = nn.BatchNorm1d(8)
        self.fc = nn.Linear(8, 4)

    def forward(self, x):
        x = self.body(x).mean((2, 3))
        return self.fc(self.shared(x) + self.shared(3 * x + 1))


X = torch.randn(96, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def exported(path, model, *, decomposed=False, dynamic=True):
    shapes = ({0: torch.export.Dim("batch", min=2)},) if dynamic else None
    program = torch.export.export(model, (X[:16],), dynamic_shapes=shapes)
    torch.export.save(program.run_decompositions() if decomposed else program, path)
    return load_program(path)


def trained():
    torch.manual_seed(0)
    model = Net()
    with torch.no_grad():
        for x in X.split(16) * 12:
            model(x)
    return model


@pytest.mark.parametrize("mode", ["train", "eval", "eval, decomposed"])
def test_names_and_statistics_are_those_before_the_export(mode, tmp_path):
    model = trained().train(mode == "train")
    program = exported(tmp_path / "p.pt2", model, decomposed="decomposed" in mode)
    names = set(dict(model.named_buffers()))
    assert names <= set(program.state_dict())
    for name, tensor in model.named_buffers():
        assert torch.equal(program.get_buffer(name), tensor), name
    found = audit(program, X.split(16))
    layers = {row["layer"]: row for row in found.layers}
    assert layers["body.1"]["role"] == "ok"
    assert layers["body.1"]["batches_tracked"] == 72
    assert torch.allclose(program.eval()(X[:16]), model.eval()(X[:16]), atol=1e-5)


def test_a_batch_norm_that_runs_twice_stays_one(tmp_path):
    program = exported(tmp_path / "p.pt2", trained())
    found = audit(program, X.split(16))
    assert {row["layer"]: row["calls"] for row in found.layers} == {"body.1": 1, "shared": 2}
    assert "several_distributions" in {f.code for f in found.findings}
    assert [s.layer for s in found.noise.training] == ["body.2"]


def test_a_program_for_one_batch_size_is_audited_at_that_size(tmp_path):
    program = exported(tmp_path / "p.pt2", trained(), dynamic=False)
    assert len(audit(program, X.split(16)).layers) == 2
    # PyTorch before 2.9 checks sizes outside the graph, and this graph takes any.
    checks = any("guard" in name for name, _ in program.named_children())
    with pytest.raises(AssertionError, match="16") if checks else nullcontext():
        audit(program, X.split(12))


def test_the_fixed_state_fits_the_model_that_was_exported(tmp_path):
    model = trained()
    model.body[1].running_var *= 9
    found = audit(program := exported(tmp_path / "p.pt2", model), X.split(16))
    assert "body.1" in found.fixed
    fixed = found.fixed_state(program)
    model.load_state_dict({n: t for n, t in fixed.items() if n in model.state_dict()})
    assert "body.1" not in audit(model, X.split(16)).fixed


def test_what_is_no_program_is_refused(tmp_path):
    (tmp_path / "p.pt2").write_bytes(b"hello")
    with pytest.raises(AuditError, match="holds no exported program"):
        load_program(tmp_path / "p.pt2")
    with pytest.raises(AuditError, match="there is no file"):
        load_program(tmp_path / "q.pt2")
