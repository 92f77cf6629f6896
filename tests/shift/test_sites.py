"""Sites: which there are, which dimension holds their channels, and their values by hand."""

import pytest
import torch
from torch import nn
from torchvision.models.convnext import LayerNorm2d
from torchvision.models.resnet import BasicBlock

from tests.configs import make_config
from vshift.errors import ConfigError
from vshift.networks.build import build
from vshift.networks.norm import BatchNorm
from vshift.runs.schema import SITE_KINDS
from vshift.shift.comparison import compare_passes, run_passes
from vshift.shift.noise_graph import noise_in_front
from vshift.shift.sites import OUTPUT, WORDS, bn_sites, capturing, find_sites
from vshift.shift.stats import TrainingLog, site_stats

IMAGES = torch.zeros(2, 3, 8, 8)


class Mixed(nn.Module):
    """Every kind of norm, tokens at the end, one activation twice, a module that never runs."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 6, 3, padding=1)
        self.bn = BatchNorm(6)
        self.group = nn.GroupNorm(2, 6)
        self.whole = nn.LayerNorm([6, 8, 8])
        self.relu = nn.ReLU()
        self.images = LayerNorm2d(6)
        self.tokens = nn.LayerNorm(6)
        self.rms = nn.RMSNorm(6)
        self.fc = nn.Linear(6, 5)
        self.gelu = nn.GELU()
        self.dropout = nn.Dropout(0.5)
        self.spare = nn.ReLU()
        self.head = nn.Linear(5, 4)

    def forward(self, x):
        x = self.relu(self.bn(self.conv(x)))
        x = self.relu(self.images(self.whole(self.group(x))))
        x = self.rms(self.tokens(x.flatten(2).transpose(1, 2)))
        return self.head(self.dropout(self.gelu(self.fc(x))).mean(1))


def names(model, *wanted):
    return [site.name for site in find_sites(model, wanted, IMAGES)]


def network(seed=0):
    torch.manual_seed(seed)
    return Mixed()


def test_words_stand_for_kinds_in_forward_order_and_bn_is_always_there():
    model = network()
    norms = ["bn", "group", "whole", "images", "tokens", "rms"]
    assert names(model, "norms") == norms
    assert names(model, "activations") == ["bn", "relu", "relu#2", "gelu"]
    assert names(model, "logits") == ["bn", "logits"]
    assert set(names(model, "all")) == {*norms, "relu", "relu#2", "gelu", "logits"}
    assert names(model, "logits", "f*") == ["bn", "fc", "logits"]
    assert names(model, "bn") == ["bn"] == [site.name for site in bn_sites(model)]


def test_kinds_are_those_that_files_and_reports_know():
    kinds = {site.kind for site in find_sites(network(), ["all", "fc"], IMAGES)}
    assert kinds < set(SITE_KINDS) == {*WORDS["all"], OUTPUT}


def test_channels_are_where_the_layer_has_them():
    found = {site.name: site for site in find_sites(network(), ["all", "fc"], IMAGES)}
    dims = {name: (site.channel_dim, site.channels) for name, site in found.items()}
    assert dims == {
        "bn": (1, 6), "group": (1, 6), "whole": (1, 6), "images": (1, 6), "tokens": (2, 6),
        "rms": (2, 6), "relu": (1, 6), "relu#2": (1, 6), "fc": (2, 5), "gelu": (2, 5),
        "logits": (1, 4),
    }  # fmt: skip


@pytest.mark.parametrize(
    ("word", "says"),
    [
        ("haed", "the nearest are head, "),
        ("norm2", "the nearest are bn, "),
        ("spare", "the nearest are "),
        ("activation", "did you mean `activations`? the nearest are "),
    ],
)
def test_a_pattern_without_a_match_is_refused(word, says):
    with pytest.raises(ConfigError, match=r"measure\.sites: no module that runs is called") as e:
        find_sites(network(), [word], IMAGES)
    assert says in str(e.value)


def test_looking_for_sites_changes_nothing():
    model = network().train()
    model.bn.eval()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    random = torch.get_rng_state()
    find_sites(model, ["all"], IMAGES)
    assert model.training
    assert not model.bn.training
    assert torch.equal(random, torch.get_rng_state())
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def batches(count=3, size=6):
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(size, 3, 8, 8, generator=generator) for _ in range(count)]


def by_hand(model, x):
    """Every site's values, channels in the second dimension, written out."""
    values = {}
    values["bn"] = model.conv(x)
    values["relu"] = torch.relu(model.bn(values["bn"]))
    values["group"] = values["relu"]
    values["whole"] = model.group(values["group"])
    values["images"] = model.whole(values["whole"])
    values["relu#2"] = torch.relu(model.images(values["images"]))
    tokens = values["relu#2"].flatten(2).transpose(1, 2)
    values["tokens"] = tokens.transpose(1, 2)
    values["rms"] = model.tokens(tokens).transpose(1, 2)
    gelu = model.gelu(model.fc(model.rms(model.tokens(tokens))))
    values["gelu"] = gelu.transpose(1, 2)
    values["logits"] = model.head(model.dropout(gelu).mean(1))
    return values


def moments(values):
    rows = values.double().transpose(0, 1).flatten(1)
    return rows.mean(1), rows.var(1)


def test_eval_statistics_are_those_written_out():
    model = network().eval()
    sites = find_sites(model, ["all"], IMAGES)
    with torch.no_grad():
        found = site_stats(model, batches(), sites)
        wanted = [by_hand(model, x) for x in batches()]
    assert set(found) == set(wanted[0])
    for name, stats in found.items():
        mean, variance = zip(*(moments(values[name]) for values in wanted), strict=True)
        pooled, close = stats.pooled(), {"rtol": 1e-4, "atol": 1e-6}
        torch.testing.assert_close(pooled.average_mean, torch.stack(mean).mean(0), **close)
        torch.testing.assert_close(pooled.average_variance, torch.stack(variance).mean(0), **close)


def test_the_training_log_has_every_sites_batches():
    """Each as it was in its step; forwards in eval mode in between are not training."""
    model = network().train()
    log = TrainingLog(model, find_sites(model, ["all"], IMAGES))
    wanted = []
    with torch.no_grad():
        for i, x in enumerate(batches()):
            torch.manual_seed(i)
            model(x)
            log.add()
            model.eval()(x + 5)
            model.train()
            torch.manual_seed(i)
            wanted.append({name: moments(values) for name, values in by_hand(model, x).items()})
    found = log.compute_and_reset()
    assert set(found) == set(wanted[0])
    for name, logged in found.items():
        for got, index in ((logged.mean, 0), (logged.variance, 1)):
            mean = torch.stack([batch[name][index] for batch in wanted]).mean(0)
            torch.testing.assert_close(got, mean, rtol=1e-4, atol=1e-6, msg=name)


def test_a_forward_that_ends_in_its_middle_does_not_confuse_the_calls():
    model, seen = network().eval(), []
    sites = find_sites(model, ["relu"], IMAGES)
    with capturing(model, sites, lambda site, x: seen.append((site.name, float(x.sum())))):
        weight, model.images.weight.data = model.images.weight.data, torch.zeros(7)
        with pytest.raises(RuntimeError):
            model(batches()[0])
        model.images.weight.data = weight
        seen.clear()
        model(batches()[0])
    values = by_hand(model, batches()[0])
    assert [name for name, _ in seen] == ["bn", "relu", "relu#2"]
    assert seen[2][1] == pytest.approx(float(values["relu#2"].detach().sum()), rel=1e-4)


def test_torchvisions_block_uses_one_relu_twice():
    model = nn.Sequential(BasicBlock(3, 3))
    assert names(model, "activations") == ["0.bn1", "0.relu", "0.bn2", "0.relu#2"]
    with torch.no_grad():
        found = site_stats(model, [torch.randn(4, 3, 8, 8)], find_sites(model, ["0.relu"], IMAGES))
    assert set(found) == {"0.bn1", "0.bn2", "0.relu", "0.relu#2"}


def test_sites_without_running_statistics_compare_train_with_eval():
    """Dropout before the mean over tokens: the logits vary more in training."""
    model = nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.Linear(192, 4))
    torch.manual_seed(0)
    data = [torch.randn(64, 3, 8, 8) + 1 for _ in range(8)]
    sites = find_sites(model, ["all"], IMAGES)
    found = compare_passes(sites, run_passes(model, lambda: data, sites, seed=1))["logits"]
    weight = model[2].weight.detach().double()
    with torch.no_grad():
        clean = torch.stack([model.eval()(x).double().var(0) for x in data]).mean(0)
    # Var(train) = Var(eval) + s² Σ w² E[x²], with E[x²] = 2 and s² = 1.
    wanted = float((clean + 2 * weight.square().sum(1)).mean() / clean.mean())
    assert found.ratio.value == pytest.approx(wanted, rel=0.05)
    assert found.cause == "shift"
    assert found.lag_free.value == pytest.approx(found.ratio.value)
    assert found.lag.value != found.lag.value  # NaN: nothing lags
    assert found.mean_shift.value < 0.1


def test_the_lag_of_a_layer_before_is_no_cause_at_a_site_without_lag():
    model = nn.Sequential(nn.Flatten(), nn.BatchNorm1d(192), nn.Linear(192, 4))
    model[1].running_var.fill_(4.0)  # far from the images' variance, 1
    torch.manual_seed(0)
    data = [torch.randn(64, 3, 8, 8) for _ in range(8)]
    sites = find_sites(model, ["all"], IMAGES)
    found = compare_passes(sites, run_passes(model, lambda: data, sites))
    assert found["1"].cause == "lag"
    assert found["logits"].ratio.value == pytest.approx(4, rel=0.1)
    assert found["logits"].cause is None


@pytest.mark.parametrize(
    ("network", "norm", "sites"),
    [
        ({"name": "preresnet", "depth": 8}, "batch", ["stage?.block1"]),
        ({"name": "vit", "depth": 1, "width": 16}, "rms", ["norms", "logits"]),
    ],
)
def test_a_network_whose_sites_are_logged_can_be_traced(network, norm, sites):
    """Hooks of modules that the tracer looks into are called with its stand-ins."""
    config = make_config(network=network, norm={"kind": norm})
    model = build(config, classes=10, channels=3, size=32, seed=0)
    wanted = find_sites(model, sites, torch.zeros(2, 3, 32, 32))
    before = noise_in_front(model)
    TrainingLog(model, wanted)
    assert len(wanted) > len(before)
    assert noise_in_front(model) == before
