"""The optimizers against PyTorch's, what weight decay reaches, and what is trained."""

import copy
import inspect
from typing import get_args

import pytest
import torch
from torch import nn

from tests.configs import make_config
from tests.soak.harness import differences
from tests.train.test_checkpointer import attempt
from tests.train.test_fast_steps import context_of, equal, trained
from vshift.config.own import with_sources
from vshift.config.training import AdamW as AdamWConfig
from vshift.config.training import TorchName, TorchOptimizer
from vshift.errors import ConfigError
from vshift.networks.build import build
from vshift.train import fast_steps
from vshift.train.captured_step import CapturedStep
from vshift.train.fast_steps import make_train_step
from vshift.train.loop import TrainStep
from vshift.train.optimizer import SGD, AdamW, make_optimizer
from vshift.train.progress import Reporter
from vshift.train.run import train_seeds


@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize("nesterov", [False, True])
def test_sgd_is_pytorchs_bit_for_bit(momentum, nesterov):
    context = context_of()
    options = {"momentum": momentum, "nesterov": nesterov and momentum > 0}
    ours, theirs = context.model, copy.deepcopy(context.model)
    own = SGD([{"params": list(ours.parameters())}], lr=0.1, weight_decay=1e-4, **options)
    other = torch.optim.SGD(theirs.parameters(), 0.1, weight_decay=1e-4, **options)
    for images, labels in context.stream.epoch(0):
        for model, optimizer in ((ours, own), (theirs, other)):
            optimizer.zero_grad()
            context.objective(model(images), images, labels)[0].backward()
            optimizer.step()
    equal(theirs.state_dict(), ours.state_dict())


def adamw(weights, **options):
    defaults = {"lr": 1e-3, "beta1": 0.9, "beta2": 0.999, "eps": 1e-8, "weight_decay": 1e-2}
    return AdamW([{"params": weights}], **{**defaults, "amsgrad": False, **options})


@pytest.mark.parametrize("amsgrad", [False, True])
def test_adamw_is_pytorchs_bit_for_bit(amsgrad):
    """Over 30 steps, and a weight that has no gradient in some of them."""
    generator = torch.Generator().manual_seed(0)
    start = [torch.randn(3, 4, generator=generator), torch.randn(5, generator=generator)]
    ours, theirs = [[nn.Parameter(w.clone()) for w in start] for _ in range(2)]
    own = adamw(ours, amsgrad=amsgrad)
    other = torch.optim.AdamW(theirs, 1e-3, fused=True, amsgrad=amsgrad)
    for step in range(30):
        for index, shape in enumerate(w.shape for w in start):
            gradient = torch.randn(shape, generator=generator)
            for weights in (ours, theirs):
                weights[index].grad = gradient.clone() if index == 0 or step % 3 else None
        for optimizer in (own, other):
            optimizer.param_groups[0]["lr"] = 1e-3 * (1 + step)
            optimizer.step()
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


def test_adamw_against_its_formula():
    """Loshchilov & Hutter 2019, algorithm 2, in float64."""
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(20, dtype=torch.float64, generator=generator)
    parameter = nn.Parameter(weight.clone())
    own = adamw([parameter], lr=1e-2, eps=1e-6, weight_decay=0.1)
    mean = square = torch.zeros_like(weight)
    for step in range(1, 51):
        gradient = torch.randn(20, dtype=torch.float64, generator=generator)
        parameter.grad = gradient.clone()
        own.step()
        mean = 0.9 * mean + 0.1 * gradient
        square = 0.999 * square + 0.001 * gradient**2
        root = (square / (1 - 0.999**step)).sqrt() + 1e-6
        weight = weight - 1e-2 * (mean / (1 - 0.9**step) / root + 0.1 * weight)
    torch.testing.assert_close(parameter.data, weight, rtol=1e-10, atol=1e-12)


def test_adamw_resumes_from_its_state():
    weights = [nn.Parameter(torch.ones(4)), nn.Parameter(torch.ones(2, 2))]
    own = adamw(weights)
    for _ in range(3):
        for weight in weights:
            weight.grad = weight.detach() ** 2
        own.step()
    kept = copy.deepcopy(own.state_dict())
    other = adamw([nn.Parameter(w.detach().clone()) for w in weights])
    places = [tensor.data_ptr() for tensor in other.tensors()]
    other.load_state_dict(kept)
    assert [tensor.data_ptr() for tensor in other.tensors()] == places
    for tensor, saved in zip(other.tensors(), own.tensors(), strict=True):
        assert torch.equal(tensor, saved)
    assert float(own.state_dict()["step"][0]) == 3
    with pytest.raises(LookupError):
        other.load_state_dict({"momenta": []})


def test_adamws_defaults_are_pytorchs():
    theirs = inspect.signature(torch.optim.AdamW).parameters
    ours = AdamWConfig(name="adamw")
    for key in ("eps", "weight_decay", "amsgrad"):
        assert getattr(ours, key) == theirs[key].default
    assert ours.learning_rate == theirs["lr"].default
    assert tuple(ours.betas) == theirs["betas"].default


@pytest.mark.parametrize("optimizer", [{"name": "adamw"}, {"name": "adamw", "amsgrad": True}])
def test_a_captured_adamw_step_is_the_eager_one(recorded_graphs, optimizer):
    """But for the learning rate, which is a float32 on the device."""
    results = []
    for make in (lambda context: CapturedStep(context, compile=False), TrainStep):
        context = context_of(network={"name": "mlp", "widths": [16]}, optimizer=optimizer)
        results.append(trained(make(context)))
    losses = [[epoch.loss for epoch in scores] for scores, _, _ in results]
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)
    torch.testing.assert_close(dict(results[0][2]), dict(results[1][2]), rtol=1e-5, atol=1e-6)


def test_every_optimizer_of_torch_has_its_name_or_a_reason():
    """LBFGS needs closures, SparseAdam sparse gradients, Muon matrices."""
    found = {name.lower() for name in torch.optim.__all__ if name[0].isupper()}
    left_out = {"lbfgs", "sparseadam", "muon", "optimizer"}
    assert set(get_args(TorchName)) == found - left_out - {"sgd", "adamw"}


@pytest.mark.parametrize("name", get_args(TorchName))
def test_an_optimizer_of_torch_is_that_class_with_its_defaults(name):
    kind = next(getattr(torch.optim, n) for n in torch.optim.__all__ if n.lower() == name)
    context = context_of(
        network={"name": "mlp", "widths": [16]}, optimizer={"name": name, "args": {"foreach": True}}
    )
    theirs = copy.deepcopy(context.model)
    other = kind(theirs.parameters(), foreach=True)
    lr = inspect.signature(kind).parameters["lr"].default
    assert context.config.optimizer.learning_rate == lr
    step = TrainStep(context)
    for images, labels in list(context.stream.epoch(0))[:3]:
        step(images, labels)
        other.zero_grad()
        context.objective(theirs(images), images, labels)[0].backward()
        other.step()
    equal(theirs.state_dict(), context.model.state_dict())


def test_a_step_that_no_graph_can_repeat_is_one_line_and_a_slower_step(monkeypatch):
    monkeypatch.setitem(fast_steps.AUTO, "cpu", ["captured", "eager"])
    context = context_of(optimizer={"name": "rmsprop"})
    said = []
    assert make_train_step("auto", context, said.append).name == "eager"
    reason = "the optimizer must be sgd or adamw, and it is rmsprop"
    assert said == [f"note: no captured step: {reason}; using a slower one"]


ARGS = [
    ({"momentun": 0.9}, "optimizer.args.momentun: torch.optim.RMSprop has no such option; did you "
     "mean `momentum`? allowed here: alpha, eps, weight_decay, momentum, centered, foreach, "
     "maximize"),
    ({"alpha": -1.0}, "optimizer.args: torch.optim.RMSprop says: Invalid alpha value: -1.0"),
    ({"eps": "small"}, "optimizer.args: torch.optim.RMSprop says: "),
]  # fmt: skip


@pytest.mark.parametrize(("args", "reason"), ARGS)
def test_options_that_pytorch_refuses_leave_nothing_written(tmp_path, args, reason):
    config = make_config(optimizer={"name": "rmsprop", "args": args})
    with pytest.raises(ConfigError) as caught:
        train_seeds(config, tmp_path, False, Reporter(quiet=True))
    assert str(caught.value).startswith(reason)
    assert list(tmp_path.iterdir()) == []


MINE = """
import torch

class Sign(torch.optim.Optimizer):
    def __init__(self, params, lr, beta=0.9):
        super().__init__(params, {"lr": lr, "beta": beta})

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            for weight in group["params"]:
                mean = self.state[weight].setdefault("mean", torch.zeros_like(weight))
                mean.lerp_(weight.grad, 1 - group["beta"])
                weight.sub_(mean.sign(), alpha=group["lr"])

def nothing(params):
    return 3

class Odd(Sign):
    def step(self):
        super().step()
        self.state[self.param_groups[0]["params"][0]]["odd"] = object()

class Groupless(Sign):
    def __init__(self, params):
        super().__init__(params, 1.0)
        del self.param_groups[0]["lr"]
"""


@pytest.fixture
def mine(tmp_path):
    (tmp_path / "mine.py").write_text(MINE)

    def section(name, **args):
        return {"name": f"{tmp_path}/mine.py:{name}", "learning_rate": 0.01, "args": args}

    return section


def test_an_optimizer_of_ones_own_trains(mine):
    context = context_of(network={"name": "mlp", "widths": [8]}, optimizer=mine("Sign", beta=0.5))
    before = copy.deepcopy(context.model.state_dict())
    step = TrainStep(context)
    next(step.epoch(0, [0.25] * context.stream.steps))
    # The first step is as large as the scheduled learning rate, whatever the gradient is.
    moved = context.model.head.fc1.weight - before["head.fc1.weight"]
    torch.testing.assert_close(moved.abs(), torch.full_like(moved, 0.25))
    assert context.optimizer.param_groups[0]["beta"] == 0.5


def test_an_optimizer_of_ones_own_resumes(tmp_path, mine):
    config = make_config(network={"name": "mlp", "widths": [8]}, optimizer=mine("Sign"))
    config = with_sources(config, str)  # as a loaded one has them
    one, status, _ = attempt(tmp_path / "one", config)
    assert status == "done"
    _, status, _ = attempt(tmp_path / "two", config, steps=7)
    assert status == "interrupted"
    two, _, said = attempt(tmp_path / "two", config)
    assert "step 2 of 5" in said[0]
    assert differences(one.path, two.path) == []


@pytest.mark.parametrize(
    ("name", "args", "reason"),
    [
        ("nothing", {}, "mine.py:nothing gave int, which has no param_groups; an optimizer has"),
        ("Groupless", {}, "mine.py:Groupless: the param_groups of its optimizer have no `lr`"),
        ("Sign", {"betta": 1}, "did you mean `beta`"),
        ("Odd", {}, "optimizer.name: state in its state dict is .*, which a checkpoint cannot"),
    ],
)
def test_what_is_no_optimizer_leaves_nothing_written(tmp_path, mine, name, args, reason):
    config = make_config(optimizer=mine(name, **args))
    with pytest.raises(ConfigError, match=reason):
        train_seeds(config, tmp_path / "runs", False, Reporter(quiet=True))
    assert not (tmp_path / "runs").exists()


# ---- what is trained


def test_training_the_norms_only_leaves_all_else_as_it_was():
    """Also the classifier, as in Frankle et al. 2020."""
    for step in ("eager", "fused"):
        context = context_of(optimizer={"name": "sgd", "train": "norm"})
        before = copy.deepcopy(context.model.state_dict())
        trained(make_train_step(step, context, print), epochs=1)
        norms = {
            f"{name}.{key}"
            for name, module in context.model.named_modules()
            if isinstance(module, nn.modules.batchnorm._BatchNorm)
            for key in ("weight", "bias")
        }
        moved = {
            name
            for name, weight in context.model.named_parameters()
            if not torch.equal(weight, before[name])
        }
        assert moved == norms
        assert len(norms) == 14


def test_norms_only_is_the_whole_optimizer_with_gradients_of_the_norms():
    """Two steps: what the norms get does not depend on whether the rest has gradients."""
    context = context_of(optimizer={"name": "sgd", "train": "norm", "learning_rate": 0.05})
    theirs = context_of(optimizer={"name": "sgd", "learning_rate": 0.05}).model
    other = torch.optim.SGD(
        [p for n, p in theirs.named_parameters() if ".bn" in n or "norm" in n or p.ndim == 1],
        0.05,
        momentum=0.9,
        weight_decay=1e-4,
    )
    frozen = {name for name, p in context.model.named_parameters() if not p.requires_grad}
    assert {n for n, p in theirs.named_parameters() if p.ndim > 1} < frozen
    biases = {n for n, p in theirs.named_parameters() if p.ndim == 1} & frozen
    for name in biases:
        theirs.get_parameter(name).requires_grad_(False)
    step = TrainStep(context)
    for images, labels in list(context.stream.epoch(0))[:2]:
        step(images, labels)
        theirs.zero_grad()
        context.objective(theirs(images), images, labels)[0].backward()
        other.step()
    for name, weight in context.model.named_parameters():
        torch.testing.assert_close(weight, theirs.get_parameter(name))


@pytest.mark.parametrize("norm", [{"kind": "none"}, {"kind": "batch", "affine": False}], ids=str)
def test_a_network_without_scale_and_shift_has_nothing_to_train(tmp_path, norm):
    config = make_config(norm=norm, optimizer={"name": "sgd", "train": "norm"})
    with pytest.raises(ConfigError, match=r"optimizer\.train: norm trains nothing here"):
        train_seeds(config, tmp_path, False, Reporter(quiet=True))
    assert list(tmp_path.iterdir()) == []


def test_torch_options_have_no_lr_of_their_own():
    with pytest.raises(ValueError, match="lr is the key learning_rate, beside args"):
        TorchOptimizer(name="adam", args={"lr": 0.1})


def test_weight_decay_can_leave_norms_and_biases_out():
    config = make_config(optimizer={"name": "sgd", "decay_norm_and_bias": False})
    model = build(config, classes=10, channels=3, size=32, seed=0)
    groups = make_optimizer(model, config.optimizer).param_groups
    assert [group["weight_decay"] for group in groups] == [1e-4, 0.0]
    assert all(p.ndim > 1 for p in groups[0]["params"])
    assert all(p.ndim == 1 for p in groups[1]["params"])
    assert sum(len(g["params"]) for g in groups) == len(list(model.parameters()))
