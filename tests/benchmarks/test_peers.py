"""The peers: the same architecture, weights and recipe as vshift, from PyTorch's own layers."""

import multiprocessing
import os
import signal

import pytest
import torch
from torch import nn

from benchmarks import peers, plain_network
from benchmarks.cases import PAPER, Case, check_known, make_config
from benchmarks.plain_network import GaussianNoise, UniformNoise, as_plain, make_peer
from benchmarks.training import Training, random_images
from vshift.errors import ConfigError
from vshift.networks.build import build
from vshift.networks.noise import Noise
from vshift.networks.norm import BatchNorm

CPU = torch.device("cpu")


def make(network="preresnet-8", noise="none"):
    config = make_config(Case(network, 16, noise))
    return build(config, classes=10, channels=3, size=32, seed=0)


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_stop_of_the_whole_group_is_the_parents_to_answer():
    """A worker killed by it would be an error about a DataLoader in the middle of the goodbye."""
    epoch = make_peer("plain", Case("preresnet-8", 8, "none"), random_images(8, 2, CPU))
    epoch.epoch()
    workers = multiprocessing.active_children()
    assert len(workers) == 2
    for worker in workers:
        os.kill(worker.pid, signal.SIGTERM)
    assert epoch.epoch() > 0
    assert all(worker.is_alive() for worker in workers)


def test_the_three_are_there():
    assert tuple(peers.PEERS) == tuple(peers.TITLES) == ("plain", "bf16", "airbench")


@pytest.mark.parametrize("network", [*PAPER, "resnet-18", "resnet-20"])
def test_the_architecture_is_vshifts(network):
    ours, plain = make(network), as_plain(make(network))
    shapes = [{n: p.shape for n, p in m.named_parameters()} for m in (ours, plain)]
    assert shapes[0] == shapes[1]
    kinds = [[type(m) for m in net.modules() if isinstance(m, nn.Conv2d)] for net in (ours, plain)]
    assert kinds[0] == kinds[1]
    assert not any(isinstance(m, BatchNorm | Noise) for m in plain.modules())
    count = sum(isinstance(m, BatchNorm) for m in ours.modules())
    assert sum(type(m) is nn.BatchNorm2d for m in plain.modules()) == count


@pytest.mark.parametrize("network", ["preresnet-8", "resnet-8", "wrn-10-1", "densenet-10-4"])
def test_it_computes_the_same(network):
    ours, plain = make(network).train(), as_plain(make(network)).train()
    images = torch.randn(8, 3, 32, 32)
    assert torch.equal(ours(images), plain(images))
    ours.eval(), plain.eval()
    torch.testing.assert_close(ours(images), plain(images))


@pytest.mark.parametrize(
    ("noise", "layer"),
    [("dropout", nn.Dropout), ("gaussian", GaussianNoise), ("uniform", UniformNoise)],
)
def test_noise_is_as_strong_and_in_the_same_places(noise, layer):
    ours, plain = make(noise=noise), as_plain(make(noise=noise))
    places = [name for name, module in ours.named_modules() if isinstance(module, Noise)]
    assert places == [name for name, module in plain.named_modules() if type(module) is layer]
    module = plain.get_submodule(places[0])
    ones = torch.ones(100_000)
    torch.manual_seed(0)
    noisy = module(ones)
    assert noisy.mean().item() == pytest.approx(1, abs=0.02)
    assert noisy.var().item() == pytest.approx(1, abs=0.03)  # s² of rate 0.5
    module.eval()
    assert torch.equal(module(ones), ones)


def test_a_layer_without_counterpart_is_refused():
    with pytest.raises(TypeError, match="the peers have no BatchNorm like"):
        as_plain(nn.Sequential(BatchNorm(4, ghost=2)))


def test_crop_and_flip_shift_and_mirror():
    """Every crop is one of the windows of its own padded image, mirrored or not."""
    images = torch.arange(3 * 6 * 6).view(3, 6, 6, 1)
    chosen = torch.tensor([2, 0, 1, 1] * 50)
    torch.manual_seed(0)
    found = peers.crop_and_flip(images, chosen, 4)
    assert found.shape == (200, 4, 4, 1)
    seen = set()
    for crop, index in zip(found, chosen, strict=True):
        windows = {
            (top, left, flip): window.flip(1) if flip else window
            for top in range(3)
            for left in range(3)
            for flip in (False, True)
            for window in [images[index, top : top + 4, left : left + 4]]
        }
        matching = [key for key, window in windows.items() if torch.equal(window, crop)]
        assert len(matching) == 1
        seen.add(matching[0])
    assert len(seen) == 18


# Python 3.12 and later warn of any fork in a process that has threads.
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
@pytest.mark.parametrize("name", ["plain", "bf16"])
def test_a_peer_trains_what_vshift_trains(name):
    """From the same weights, on the same images, to a loss close by after two epochs."""
    case = Case("preresnet-8", 16, "none")
    images = random_images(case.batch, 4, CPU)
    ours = Training(case, images, log=False, kind="eager", threads=1)
    theirs = make_peer(name, case, images)
    for _ in range(2):
        losses = [ours.epoch(), theirs.epoch()]
        assert losses[1] == pytest.approx(losses[0], rel=0.1)


@pytest.mark.parametrize("precision", ["bf16", "float32"])
@pytest.mark.parametrize("name", ["bf16", "airbench"])
def test_a_peer_trains_in_the_precision_that_is_asked_for(name, precision, monkeypatch):
    """A convolution's output shows it."""
    case = Case("preresnet-8", 16, "none")
    images = random_images(case.batch, 2, CPU)
    seen = set()

    def look(module, inputs, output):
        seen.add(str(output.dtype))

    handle = nn.modules.module.register_module_forward_hook(
        lambda module, *rest: look(module, *rest) if isinstance(module, nn.Conv2d) else None
    )
    monkeypatch.setattr(torch, "compile", lambda model, **options: model)
    try:
        peer = make_peer(name, case, images, precision)
        peer.epoch()
    finally:
        handle.remove()
    assert peer.precision == precision
    assert seen == {{"bf16": "torch.bfloat16", "float32": "torch.float32"}[precision]}


@pytest.mark.parametrize("faster", ["bf16", "float32"])
def test_the_best_precision_is_the_faster_one(faster, monkeypatch):
    def timed(work, batch):
        assert batch == 16
        for step in work.values():
            step(4)  # works in both
        slow = {name: 1.0 if name.startswith(faster) else 2.0 for name in work}
        return 4, {name: [seconds] * 3 for name, seconds in slow.items()}

    monkeypatch.setattr(plain_network, "measure", timed)
    case = Case("preresnet-8", 16, "dropout")
    assert plain_network.best_precision(case, random_images(16, 2, CPU)) == faster


def test_the_recipe_is_the_cases():
    case = Case("preresnet-8", 16, "none")
    images = random_images(case.batch, 2, CPU)
    work = peers.Work(
        make(), images.train.images, images.train.labels, (0.5,) * 3, (0.3,) * 3, 16, CPU, "bf16"
    )
    (group,) = work.optimizer().param_groups
    config = make_config(case)
    assert group["lr"] == config.optimizer.learning_rate
    assert group["momentum"] == config.optimizer.momentum
    assert group["weight_decay"] == config.optimizer.weight_decay
    assert group["nesterov"] == config.optimizer.nesterov
    assert config.data.augment.crop == peers.CROP
    assert config.data.augment.flip


def test_the_compiled_peer_trains_and_leaves_the_last_batch_uncompiled(monkeypatch):
    """With a stand-in for the compiler, which takes half a minute on a CPU."""
    seen = []

    def compile_(model, **options):
        seen.append(options)

        def forward(images):
            seen.append(len(images))
            return model(images)

        return forward

    monkeypatch.setattr(torch, "compile", compile_)
    case = Case("preresnet-8", 16, "none")
    images = random_images(case.batch, 3, CPU)
    ours = Training(case, images, log=False, kind="eager", threads=1)
    theirs = make_peer("airbench", case, images)
    assert theirs.epoch() == pytest.approx(ours.epoch(), rel=0.1)
    assert seen == [{"mode": "default", "dynamic": False}, 16, 16]


def test_an_unknown_peer():
    with pytest.raises(ConfigError, match="--peer plane: not known; did you mean `plain`"):
        check_known("--peer", ["plane"], peers.PEERS)
