"""Noise by pattern: where it lands, what it computes, and what it leaves alone."""

import copy

import pytest
import torch
from torch import nn
from torchvision.models import resnet18

from tests.configs import make_config
from vshift.config.noise import Dropout as DropoutSection
from vshift.config.noise import Gaussian as GaussianSection
from vshift.errors import ConfigError
from vshift.kernels import fuse
from vshift.networks.build import build
from vshift.networks.hooks import hook_of
from vshift.networks.noise import Dropout, Noise, make_noise
from vshift.networks.placement import place_noise
from vshift.networks.summary import summarise, trace


class Blocks(nn.Module):
    """Containers that iterate over children, a shared module, one that is not called, keywords."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, padding=1)
        self.parts = nn.ModuleList([nn.BatchNorm2d(4), nn.Conv2d(4, 4, 1)])
        self.body = nn.Sequential(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4), nn.ReLU(), nn.Sequential())
        self.relu = nn.ReLU()
        self.unused = nn.Linear(3, 3)
        self.pair = Pair()
        self.fc = nn.Linear(4, 2)

    def forward(self, x):
        x = self.relu(self.stem(input=x))
        for part in self.parts:
            x = part(x)
        x = self.relu(self.body(x))
        return self.fc(self.pair(x)["x"].mean((2, 3)))


class Pair(nn.Module):
    def forward(self, x):
        return {"x": x}


def placed(model, *, size=8, **keys):
    """The model with noise ×3 in training instead of random noise, so that results are exact."""
    noise = DropoutSection(kind="dropout", rate=0.5, **keys)
    place_noise(model, [noise], lambda entry: Triple(), channels=3, size=size)
    return model


class Triple(Noise):
    def forward(self, x):
        return 3 * x if self.training else x


def names(model):
    return {name: hook_of(m).place for name, m in model.named_modules() if hook_of(m)}


def test_a_pattern_matches_the_outermost_names_and_dots_too():
    model = placed(resnet18(num_classes=10), size=32, before="layer*.bn2", after="layer*")
    found = names(model)
    assert found["layer3.1.bn2.noise1"] == "before layer3.1.bn2"
    assert [n for n in found if "bn2" in n] == [
        f"layer{i}.{j}.bn2.noise1" for i in (1, 2, 3, 4) for j in (0, 1)
    ]
    # layer1 to layer4 once each, and not what is inside them; held by their first layer.
    afters = {name: place for name, place in found.items() if place.startswith("after")}
    assert afters == {f"layer{i}.0.conv1.noise1": f"after layer{i}" for i in (1, 2, 3, 4)}


def test_names_of_the_state_dict_stay_and_weights_load_both_ways():
    plain = resnet18(num_classes=10)
    model = placed(resnet18(num_classes=10), size=32, before="*bn*", after=["conv1", "layer?"])
    assert list(model.state_dict()) == list(plain.state_dict())
    model.load_state_dict(plain.state_dict())
    x = torch.randn(2, 3, 32, 32)
    assert torch.equal(model.eval()(x), plain.eval()(x))


@pytest.mark.parametrize(
    ("keys", "by_hand"),
    [
        # ×3 before a linear layer without a bias, or around it, is ×3 of its output.
        ({"before": "parts.1"}, lambda m, x: m.parts[1](3 * m.parts[0](m.relu(m.stem(x))))),
        ({"after": "parts.1"}, lambda m, x: 3 * m.parts[1](m.parts[0](m.relu(m.stem(x))))),
        ({"before": "stem"}, lambda m, x: m.parts[1](m.parts[0](m.relu(m.stem(3 * x))))),
        # The shared ReLU is called twice: once on this path.
        ({"after": "relu"}, lambda m, x: m.parts[1](m.parts[0](3 * m.relu(m.stem(x))))),
    ],
)
def test_noise_changes_what_a_module_reads_or_returns(keys, by_hand):
    torch.manual_seed(0)
    plain = Blocks()
    model = placed(copy.deepcopy(plain), **keys)
    seen = {}
    model.body[0].register_forward_pre_hook(lambda _, args: seen.setdefault("x", args[0]))
    x = torch.randn(4, 3, 8, 8)
    model(x)
    torch.testing.assert_close(seen["x"], by_hand(plain, x))


def test_of_several_results_the_first_is_noisy():
    torch.manual_seed(0)
    attention = nn.ModuleDict({"attend": nn.MultiheadAttention(4, 1, batch_first=True)})
    attention.forward = lambda x: attention["attend"](*[x.flatten(2).mT] * 3)
    plain = attention(x := torch.randn(2, 4, 2, 2))
    noise = DropoutSection(kind="dropout", rate=0.5, after="attend")
    place_noise(attention, [noise], lambda entry: Triple(), channels=4, size=2)
    noisy = attention(x)
    torch.testing.assert_close(noisy[0], 3 * plain[0])
    torch.testing.assert_close(noisy[1], plain[1])


def test_containers_and_functions_of_them_work_with_noise():
    model = Blocks().eval()
    x = torch.randn(2, 3, 8, 8)
    expected = model(x)
    placed(model, before=["body", "parts.0", "body.2"], after=["body", "relu"])
    assert torch.equal(model.eval()(x), expected)
    assert len(model.body) == 4
    assert len(list(model.parts)) == 2
    assert len(names(model)) == 5


def test_a_deep_copy_has_its_own_noise():
    model = placed(Blocks(), before="body", after="stem")
    other = copy.deepcopy(model)
    other.eval()
    for m in model.modules():
        if hook_of(m):
            assert m.training
    x = torch.randn(4, 3, 8, 8)
    own = {id(m) for m in other.modules()}
    called = []
    for m in other.modules():
        if hook_of(m):
            assert id(hook_of(m).noise) in own
            m.register_forward_hook(lambda m, *_: called.append(m))
    other(x)
    assert len(called) == 2


@pytest.mark.parametrize(
    ("keys", "text"),
    [
        ({"before": "layer*.bn2"}, "network.noise.before: no module is called 'layer*.bn2'; the "
         "nearest are "),
        ({"before": "norm*"}, "network.noise.before: no module is called 'norm*'; the nearest are "
         "body.1, parts.0, "),
        ({"after": "bodi"}, "network.noise.after: no module is called 'bodi'; the nearest are "
         "body, "),
        ({"before": "unused"}, "network.noise.before: unused is never called in a forward pass, "
         "and noise there would do nothing; name a module that is"),
        ({"after": "pair"}, "network.noise.after: pair returns a dict, and noise needs a tensor; "
         "name a module inside it, or next to it"),
        ({"before": "body.3"}, "network.noise.before: body.3 is empty, and no noise can be put "
         "there"),
        ({"before": "parts"}, "network.noise.before: parts is never called in a forward pass, and "
         "noise there would do nothing; name a module that is"),
    ],
)  # fmt: skip
def test_what_is_refused(keys, text):
    with pytest.raises(ConfigError) as error:
        placed(Blocks(), **keys)
    assert str(error.value).startswith(text)


def test_the_nearest_names_are_alike_at_both_ends():
    with pytest.raises(ConfigError, match=r"the nearest are layer[1-4]\.[01]\.bn[12], layer"):
        placed(resnet18(num_classes=10), size=32, before="layer*.bn3")


def test_the_entry_of_a_list_is_named():
    entries = [
        DropoutSection(kind="dropout", rate=0.5, before=name) for name in ("stem", "nothing")
    ]
    with pytest.raises(ConfigError, match=r"network\.noise\.1\.before: no module is called"):
        place_noise(Blocks(), entries, make_noise, channels=3, size=8)


def test_building_draws_the_same_weights_and_random_numbers():
    torch.manual_seed(0)
    plain = Blocks()
    expected = torch.rand(3)
    torch.manual_seed(0)
    model = Blocks()
    place_noise(
        model,
        [DropoutSection(kind="dropout", rate=0.5, before="body")],
        make_noise,
        channels=3,
        size=8,
    )
    assert torch.equal(torch.rand(3), expected)
    for name, tensor in plain.state_dict().items():
        assert torch.equal(model.state_dict()[name], tensor)


class Dynamic(nn.Module):
    """Looks at values, and makes tensors: nothing for the meta device."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 1)
        self.bn = nn.BatchNorm2d(4)

    def forward(self, x):
        x = self.conv(x + torch.zeros(1))
        return self.bn(x if float(x.sum()) < 1e9 else -x)


def test_a_network_that_looks_at_values_is_run_on_zeros_and_nothing_of_it_changes():
    model = placed(Dynamic(), before="bn")
    assert int(model.bn.num_batches_tracked) == 0
    assert bool((model.bn.running_mean == 0).all())
    assert model.training


def ours(**noise):
    network = {"name": "preresnet", "depth": 8, "noise": {"kind": "dropout", "rate": 0.5, **noise}}
    return build(make_config(network=network), classes=10, channels=3, size=16, seed=0)


def test_a_pattern_in_our_own_families_is_the_position_that_it_spells():
    position = ours(position="before_last_bn")
    pattern = ours(before="stage*.bn2")
    assert list(position.state_dict()) == list(pattern.state_dict())
    x = torch.randn(4, 3, 16, 16)
    torch.manual_seed(1)
    expected = position(x)
    torch.manual_seed(1)
    assert torch.equal(pattern(x), expected)


def test_the_fused_layers_keep_every_noise_where_it_is():
    """Between BN and ReLU, after the ReLU: BN and ReLU are then not joined; elsewhere they are."""
    x = torch.randn(4, 3, 16, 16)
    for keys in ({"after": "stage*.bn1"}, {"before": "*relu1"}, {"after": "*relu2"}):
        outputs = []
        for fused in (False, True):
            noise = GaussianSection(kind="gaussian", sigma=0.5, **keys)
            config = make_config(network={"name": "preresnet", "depth": 8})
            model = build(config, classes=10, channels=3, size=16, seed=0)
            place_noise(model, [noise], lambda entry: Triple(), channels=3, size=16)
            if fused:
                fuse(model)
                joined = sum(isinstance(m, nn.Identity) for m in model.stage1.modules())
                assert joined == 3 + 1  # a block has three of its own; one ReLU is joined
            outputs.append(model(x))
        torch.testing.assert_close(*outputs, rtol=1e-4, atol=1e-4)


def test_torch_compile_sees_the_noise():
    """Gaussian: PyTorch's compiler knows its generator on the CPU."""
    model = resnet18(num_classes=10)
    noise = GaussianSection(kind="gaussian", sigma=0.5, before="layer*.bn2", after="maxpool")
    place_noise(model, [noise], make_noise, channels=3, size=32)
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    x = torch.randn(4, 3, 32, 32)
    torch.manual_seed(0)
    expected = model(x)
    torch.manual_seed(0)
    torch.testing.assert_close(compiled(x), expected)
    torch.manual_seed(1)
    assert not torch.allclose(compiled(x), expected)


def test_the_summary_lists_noise_where_it_is_called():
    model = placed(Blocks(), before="body.1", after=["stem", "body"])
    rows = [row for row in summarise(model, 3, 8)["layers"] if not row["name"].startswith("parts")]
    assert [(row["name"], row.get("place")) for row in rows] == [
        ("stem", None),
        ("stem.noise1", "after stem"),
        ("relu", None),
        ("body.0", None),
        ("body.1.noise1", "before body.1"),
        ("body.1", None),
        ("body.2", None),
        ("body.0.noise1", "after body"),
        ("relu", None),
        ("pair", None),
        ("fc", None),
    ]
    assert sum(layer.macs for layer in trace(model, 3, 8)) == (3 * 9 + 4 + 4) * 4 * 64 + 8


def test_the_summary_says_where_the_noise_of_positions_sits():
    rows = summarise(ours(position=["before_last_bn", "before_pool"]), 3, 16)["layers"]
    blocks = [f"stage{i}.block1.branch" for i in (1, 2, 3)]
    assert {row["name"]: row["place"] for row in rows if "noise" in row["name"]} == {
        **{f"{block}.noise1": f"before {block}.bn2" for block in blocks},
        "head.noise1": "before head.pool1",
    }


def test_dropout_of_the_config_is_what_is_placed():
    model = resnet18(num_classes=10)
    noise = DropoutSection(kind="dropout", rate=0.2, before="fc")
    place_noise(model, [noise], make_noise, channels=3, size=32)
    assert isinstance(model.fc.noise1, Dropout)
    assert model.fc.noise1.rate == pytest.approx(0.2)
