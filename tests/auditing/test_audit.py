"""What an audit measures, says and leaves alone."""

import copy
import json
import math
import random

import numpy as np
import pytest
import torch
from torch import nn

from examples.broken_models import FAULTS, examine
from examples.patients import Net, data, fit, trained
from tests.auditing.conftest import everything
from vshift import audit
from vshift.auditing import AuditError
from vshift.shift.decompose import decompose


@pytest.fixture(scope="module")
def shifted():
    """Dropout before the second of three BN."""
    return trained(0, Net(before_bn2=nn.Dropout(0.5)), epochs=6)


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


def test_two_audits_say_the_same(shifted):
    assert audit(*shifted).to_json() == audit(*shifted).to_json()


def test_the_local_ratio_is_that_of_the_exact_split(shifted):
    """Against `explain`, which takes the noise out of each activation by the traced graph."""
    model, batches = shifted
    found = audit(model, batches).layers[1]
    exact = decompose(model, lambda: (x for x, _ in batches))["bn2"]
    assert found["local_ratio"] == pytest.approx(exact.local.value, rel=0.03)
    assert found["local_ratio"] * found["inherited_ratio"] == pytest.approx(
        exact.total.value, rel=0.03
    )


def test_statistics_of_the_probes_are_those_computed_by_hand(shifted):
    model, batches = shifted
    row = audit(model, batches).layers[0]  # no noise before the first BN: the same in any mode
    x = [model.conv1(images).detach() for images, _ in batches]
    by_hand = torch.stack([t.transpose(0, 1).flatten(1).var(1) for t in x]).mean()
    for key in ("train_variance", "noise_off_variance", "eval_variance"):
        assert row[key] == pytest.approx(float(by_hand), rel=0.02)
    assert row["running_variance"] == pytest.approx(float(model.bn1.running_var.mean().detach()))


def test_the_repair_in_the_report_is_what_recalibrating_gives(shifted):
    from vshift import recalibrate

    model, batches = shifted
    (finding,) = audit(model, batches).findings
    repair = finding.evidence["repair"]
    fixed = recalibrate(model, batches, inplace=False).eval()
    with torch.no_grad():
        loss = nn.functional.cross_entropy(
            torch.cat([fixed(x) for x, _ in batches]), torch.cat([y for _, y in batches])
        )
    assert repair["loss_after"] == pytest.approx(float(loss), rel=0.02)


def test_layers_that_inherit_are_said_to(shifted):
    result = audit(*shifted)
    (finding,) = result.findings
    assert finding.layer == "bn2"
    assert finding.evidence["noise"] == ["before_bn2 (dropout)"]
    roles = {row["layer"]: row["role"] for row in result.layers}
    assert roles["bn1"] == "ok"
    assert roles["bn2"] == "variance_shift"
    assert roles["bn3"] == "inherits"
    assert finding.evidence["inherits"] == ["bn3"]


def test_one_corrupted_layer_is_the_only_culprit():
    model, batches = trained(1)
    model.bn2.running_mean += 2 * model.bn2.running_var.sqrt()
    result = audit(model, batches)
    assert [(f.code, f.layer, f.evidence["layers"]) for f in result.findings] == [
        ("stale", "bn2", ["bn2"])
    ]
    assert result.layers[2]["role"] == "inherits"


def test_a_shift_without_harm_is_info():
    """Severity is what the repair gives back: here nothing, as the head ignores the features."""
    model, batches = trained(0, Net(before_bn2=nn.Dropout(0.5)))
    with torch.no_grad():
        model.fc.weight.zero_()
    (finding,) = audit(model, batches).findings
    assert finding.code == "variance_shift"
    assert finding.severity == "info"
    assert "no measurable gain" in finding.message


def test_without_labels_severity_is_by_the_output():
    patient = FAULTS["never_updated"](0, True)
    (finding,) = audit(patient.model, [x for x, _ in patient.loader]).findings
    assert finding.evidence["repair"]["loss_before"] is None
    assert finding.evidence["repair"]["output_change"] > 0.5
    assert finding.severity == "high"
    notes = audit(patient.model, [x for x, _ in patient.loader]).notes
    assert any("without labels" in note for note in notes)


def test_a_loss_of_ones_own_is_used():
    patient = FAULTS["never_updated"](0, True)
    result = audit(
        patient.model,
        [(x, nn.functional.one_hot(y, 4).float()) for x, y in patient.loader],
        loss=lambda output, target: -(target * output.log_softmax(1)).sum(1),
    )
    assert result.scores["eval mode"]["loss"] > result.scores["eval mode, repaired"]["loss"]
    assert result.scores["eval mode"]["accuracy"] is None


@pytest.mark.parametrize(
    ("loader", "words"),
    [
        ([], "gave 0 batches"),
        (data(0)[:1], "gave 1 batch;"),
        ([("a", 1), ("b", 2)], "no input tensor"),
        ([torch.zeros(1, 3, 8, 8)] * 2, "at least 4"),
    ],
)
def test_loaders_that_cannot_be_judged_are_refused(loader, words):
    with pytest.raises(AuditError, match=words):
        audit(Net(), loader)


def test_inputs_by_keyword_and_by_position():
    class Two(Net):
        def forward(self, x, scale):
            return super().forward(x * scale[:, None, None, None])

    torch.manual_seed(0)
    model, batches = Two(), data(0, 64)
    by_name = [{"x": x, "scale": torch.ones(len(x)), "labels": y} for x, y in batches]
    by_place = [((x, torch.ones(len(x))), y) for x, y in batches]
    assert audit(model, by_name).to_dict() == audit(model, by_place).to_dict()


def test_what_loaders_give():
    """Mappings with a name that forward() does not know, and NumPy arrays, are the same inputs."""
    model, batches = trained(0)
    plain = audit(model, batches).to_dict()
    named = [{"image": x, "label": y, "path": ["a"] * len(x)} for x, y in batches]
    assert audit(model, named).to_dict() == plain
    assert audit(model, [(x.numpy(), y.numpy()) for x, y in batches]).to_dict() == plain
    assert audit(model, iter([[x, y, "more"] for x, y in batches])).to_dict() == plain


def test_labels_that_cannot_be_used_are_told():
    model, batches = trained(0)
    result = audit(model, [(x, y + 10) for x, y in batches])
    assert result.scores["eval mode"]["loss"] is None
    assert any("and the model has 4 classes): without labels" in note for note in result.notes)


@pytest.mark.parametrize("precision", [torch.float64, torch.bfloat16])
def test_other_precisions(precision):
    model, batches = trained(0)
    model.to(precision)
    model.bn2.running_mean += 2 * model.bn2.running_var.sqrt()
    found = audit(model, [(x.to(precision), y) for x, y in batches]).findings
    assert [(f.code, f.layer) for f in found] == [("stale", "bn2")]


def test_json_holds_what_the_contract_names():
    patient = FAULTS["nonfinite"](0, True)
    found = json.loads(examine(patient).to_json())
    assert list(found["findings"][0]) == ["code", "layer", "severity", "message", "evidence"]
    assert [row["layer"] for row in found["layers"]] == ["bn1", "bn2", "bn3"]
    assert found["layers"][1]["eval_variance"] is not None


def test_the_frame_has_a_row_for_each_layer(shifted):
    frame = audit(*shifted).frame()
    assert list(frame["layer"]) == ["bn1", "bn2", "bn3"]
    assert (frame["running_variance"] > 0).all()


def test_findings_come_by_harm():
    model, batches = trained(0, Net(before_bn2=nn.Dropout(0.1), after_bn=nn.Dropout(0.1)))
    model.bn3.running_var.fill_(math.nan)
    result = audit(model, batches)
    assert result.findings[0].code == "nonfinite"
    assert result.findings[0].severity == "high"
    assert result.fails("high")
    assert not audit(*trained(0)).fails("info")


def test_the_fixed_state_is_better_and_differs_in_statistics_only():
    patient = FAULTS["never_updated"](0, True)
    result = examine(patient)
    fixed = copy.deepcopy(patient.model)
    fixed.load_state_dict(result.fixed_state(patient.model))
    assert examine(type(patient)(fixed, patient.loader)).findings == []
    changed = {
        name
        for name, old in patient.model.state_dict().items()
        if not torch.equal(old, fixed.state_dict()[name])
    }
    assert changed == {f"bn{i}.running_{k}" for i in (1, 2, 3) for k in ("mean", "var")}


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


def test_lazy_imports():
    import vshift

    assert vshift.audit is audit
    with pytest.raises(AttributeError, match="no attribute 'audits'"):
        _ = vshift.audits


def test_unshuffled_evaluation_data_is_a_note_and_no_finding():
    model, batches = trained(0)
    images, labels = (torch.cat(parts) for parts in zip(*batches, strict=True))
    order = labels.argsort()
    by_class = list(zip(images[order].split(32), labels[order].split(32), strict=True))
    result = audit(model, by_class)
    assert result.findings == []
    assert any("no random samples" in note for note in result.notes)


def test_a_reference_tells_buffers_that_were_never_copied():
    model, batches = trained(0)
    old = copy.deepcopy(model.state_dict())
    fit(model, [(2 * x, y) for x, y in batches])
    model.load_state_dict({k: v for k, v in old.items() if "running" in k}, strict=False)
    result = audit(model, [(2 * x, y) for x, y in batches], reference=old)
    (finding,) = result.findings
    assert finding.code == "stale"
    assert "still hold the reference's buffers" in finding.message


def test_the_passes_are_the_three_probes_and_little_more():
    """Forwards without findings: 3 over all batches, and 8 of single batches."""
    model, batches = trained(0)
    calls = []
    handle = model.register_forward_pre_hook(lambda module, inputs: calls.append(len(inputs[0])))
    assert audit(model, batches).findings == []
    handle.remove()
    assert len(calls) <= 3 * len(batches) + 8
