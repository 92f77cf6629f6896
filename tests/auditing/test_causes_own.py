"""Instance norm, spectral norm, parts of one's own, and what is said of what cannot be judged."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from examples.broken_models import FAULTS, examine
from examples.patients import Net, data, trained
from vshift import audit
from vshift.auditing import AuditError


def codes(found):
    return [finding.code for finding in found.findings]


def test_a_negative_running_variance_is_as_bad_as_nan():
    """As task arithmetic or averaging with negative factors leave it."""
    model, batches = trained(0)
    model.bn2.running_var[2] = -1.0
    (finding,) = audit(model, batches).findings
    assert (finding.code, finding.layer, finding.severity) == ("nonfinite", "bn2", "high")


@pytest.mark.parametrize("style", ["hook", "parametrization"])
@pytest.mark.parametrize("owner", ["fc", ""])
def test_both_kinds_of_spectral_norm(style, owner):
    torch.manual_seed(0)
    wrap = {
        "hook": nn.utils.spectral_norm,
        "parametrization": nn.utils.parametrizations.spectral_norm,
    }[style]
    layer = wrap(nn.Linear(12, 6))
    layer.train()
    for _ in range(30):
        layer(torch.randn(4, 12))
    model = layer if not owner else nn.Sequential()
    if owner:
        model.add_module(owner, layer)
    batches = [torch.randn(16, 12) for _ in range(4)]
    assert codes(audit(model, batches)) == []
    with torch.no_grad():  # a buffer u that is orthogonal to the right one
        buffers = dict(model.named_buffers())
        (u,) = (t for n, t in buffers.items() if n.endswith("_u"))
        u.copy_(F.normalize(torch.randn(6) - 0.9 * u, dim=0))
    matrix = (layer.weight_orig if style == "hook" else layer.parametrizations.weight.original).data
    (v,) = (t for n, t in buffers.items() if n.endswith("_v"))
    expected = float(torch.linalg.svdvals(matrix)[0] / (u @ matrix @ v))
    (finding,) = audit(model, batches).findings
    assert (finding.code, finding.layer) == ("spectral_norm", owner)
    assert finding.evidence["true_over_used"][owner] == pytest.approx(expected, rel=0.01)


def test_the_fixed_state_has_right_spectral_vectors():
    patient = FAULTS["spectral_norm"](0, True)
    found = examine(patient)
    patient.model.load_state_dict(found.fixed_state(patient.model))
    assert examine(patient).findings == []


def test_the_scale_of_noise_is_the_keep_rate():
    found = examine(FAULTS["noise_scale"](0, True)).findings[0]
    assert found.evidence["training_over_eval"]["after_bn"] == pytest.approx(0.3, abs=0.02)


class Flip(nn.Module):
    """Augmentation in the model: random and off in eval, but no noise with a mean."""

    def forward(self, x):
        flips = torch.rand(len(x), 1, device=x.device) < 0.5
        return torch.where(flips, x.flip(1), x) if self.training else x


class Additive(nn.Module):
    def forward(self, x):
        return x + torch.randn_like(x) if self.training else x


@pytest.mark.parametrize("noise", [Flip, Additive, lambda: nn.AlphaDropout(0.3)])
def test_noise_of_which_eval_mode_is_the_mean_or_has_none_is_silent(noise):
    assert "noise_scale" not in codes(audit(*trained(0, Net(after_bn=noise()))))


def test_batch_norm_as_a_function_is_said_to_be_unjudged():
    class Functional(nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("mean", torch.zeros(3))
            self.register_buffer("variance", torch.ones(3))

        def forward(self, x):
            return F.batch_norm(x, self.mean, self.variance, training=self.training)

    model = nn.Sequential(Functional(), nn.Flatten(), nn.Linear(192, 4))
    notes = audit(model, data(0, 64)).notes
    assert any("as a function" in note and "in 0:" in note for note in notes)
    norm = nn.Sequential(nn.InstanceNorm2d(3), nn.Flatten(), nn.Linear(192, 4))
    assert not any("as a function" in note for note in audit(norm, data(0, 64)).notes)


def test_inputs_and_outputs_that_are_not_finite_are_told():
    model, batches = trained(0)
    notes = audit(model, [(x * math.nan, y) for x, y in batches]).notes
    assert any("inputs hold inf or NaN" in note for note in notes)
    with torch.no_grad():
        model.fc.weight[0] = math.nan
    notes = audit(model, batches).notes
    assert any("outputs hold inf or NaN in training mode too" in note for note in notes)


def test_single_samples_are_put_together_and_that_is_told():
    model, batches = trained(0)
    images, labels = (torch.cat(parts) for parts in zip(*batches[:2], strict=True))
    notes = audit(model, list(zip(images.split(1), labels.split(1), strict=True))).notes
    assert any("single samples; 8 of them were put together" in note for note in notes)


def test_a_simple_average_over_old_batches_is_told():
    model, batches = trained(0, Net(momentum=None))
    with torch.no_grad():  # as after a long training on other data
        for layer in (model.bn1, model.bn2, model.bn3):
            layer.running_mean += 2 * layer.running_var.sqrt()
            layer.num_batches_tracked.fill_(10_000)
    (finding,) = audit(model, batches).findings
    assert finding.code == "stale"
    assert "over all 10000 batches since the statistics were reset" in finding.message


def test_augmented_training_data_make_a_note_and_no_finding():
    """Statistics of other inputs that do no harm, without a training loader to tell."""
    model, batches = trained(0)
    with torch.no_grad():
        model.fc.weight.zero_()  # nothing does harm
        model.bn1.running_mean += model.bn1.running_var.sqrt()
    result = audit(model, batches)
    assert result.findings == []
    assert any("does no measurable harm" in note for note in result.notes)
    assert codes(audit(model, batches, train_loader=batches)) == ["stale"]


def test_inputs_do_not_explain_a_later_layer_alone():
    """The first layer fits: what the second meets in training is what these inputs show."""
    model, batches = trained(0)
    with torch.no_grad():
        model.fc.weight.zero_()
        model.bn2.running_mean += model.bn2.running_var.sqrt()
    (finding,) = audit(model, batches).findings
    assert (finding.code, finding.layer, finding.severity) == ("stale", "bn2", "info")


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


def test_a_model_that_wants_targets_in_training_is_switched_leaf_by_leaf():
    class WithLoss(Net):
        def forward(self, x):
            return {"loss": super().forward(x).mean()} if self.training else super().forward(x)

    torch.manual_seed(0)
    found = audit(WithLoss(), data(0, 64))
    assert any("one by one" in note for note in found.notes)
    assert [row["layer"] for row in found.layers] == ["bn1", "bn2", "bn3"]
