"""Live noise, noise that scales, and noise that shifts a variance."""

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from examples.broken_models import FAULTS, examine
from examples.patients import Net, trained
from tests.auditing.conftest import codes
from vshift import audit
from vshift.auditing import AuditError


class Live(Net):
    def features(self, x):
        x = F.dropout(self.bn1(self.conv1(x)).relu(), 0.5)  # the line that is named
        return self.bn3(self.conv3(self.bn2(self.conv2(x)).relu())).relu()


def test_live_noise_is_named_by_its_line_and_hides_the_shift():
    result = audit(*trained(0, Live()))
    (finding,) = result.findings
    assert finding.code == "noise_live"
    lines = Path(__file__).read_text(encoding="utf-8").splitlines()
    line = next(i for i, text in enumerate(lines, 1) if "# the line that is named" in text)
    assert f"The model (dropout at test_noise.py:{line})" in finding.message
    assert finding.evidence["places"] == [f"test_noise.py:{line}"]
    assert 'It reaches "bn2" in both modes alike: audit again once' in finding.message


def test_live_noise_behind_the_last_batch_norm_hides_nothing():
    (finding,) = examine(FAULTS["noise_live"](0, True)).findings
    assert "audit again" not in finding.message


class TwoWays(Net):
    """Noise that widens what bn2 meets and narrows what bn3 meets."""

    def features(self, x):
        x = self.bn1(self.conv1(x)).relu()
        x = self.bn2(F.dropout(self.conv2(x), 0.5, self.training)).relu()
        x = self.conv3(x)
        return self.bn3(x * (0.5 + 0.1 * torch.rand_like(x)) if self.training else x).relu()


def test_layers_shifted_the_other_way_are_told_apart():
    (finding, *_) = audit(*trained(0, TwoWays())).findings
    assert finding.code == "variance_shift"
    assert "1 other layer is shifted the other way." in finding.message
    assert "likewise" not in finding.message


def test_one_layer_that_inherits_is_in_the_singular(shifted):
    (finding,) = audit(*shifted).findings
    assert '"bn3" only inherits a shift.' in finding.message


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


class Dither(nn.Module):
    """With a mean of its own, on values that are nearly the same."""

    def forward(self, x):
        x = 1 + 0.01 * x
        return x + torch.rand_like(x) if self.training else x


class LogOfDithered(nn.Module):
    def forward(self, x):
        dither = 0.1 * torch.rand_like(x) if self.training else 0.0
        return torch.log(x.square() + dither + 1e-3)


@pytest.mark.parametrize(
    "noise", [Flip, Additive, Dither, LogOfDithered, lambda: nn.AlphaDropout(0.3)]
)
def test_noise_of_which_eval_mode_is_the_mean_or_has_none_is_silent(noise):
    assert "noise_scale" not in codes(audit(*trained(0, Net(after_bn=noise()))))


class AlwaysRandom(nn.Module):
    def forward(self, x):
        return nn.functional.dropout(x, 0.3, True)


def test_allowed_noise_may_be_named_as_it_is_printed_and_a_typo_is_refused():
    model, batches = trained(0, Net(after_bn=AlwaysRandom()))
    (finding,) = audit(model, batches).findings
    assert finding.severity != "info"  # random answers are never nothing
    printed = finding.found.split(":")[0]
    assert printed.startswith('"after_bn" (dropout at')
    assert audit(model, batches, allow_noise=[f"{printed}:9)"]).findings == []
    with pytest.raises(AuditError, match="no module is called 'after_bm'; did you mean `after_bn`"):
        audit(model, batches, allow_noise=["after_bm"])
