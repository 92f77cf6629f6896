"""Every step against the eager one."""

import copy
import gc
import subprocess
import sys
import warnings
import weakref
from contextlib import contextmanager

import pytest
import torch

from tests.configs import make_config
from vshift.data import load
from vshift.errors import ConfigError
from vshift.kernels import KernelsMissing
from vshift.shift.modes import noise_modules
from vshift.train import fast_steps
from vshift.train.context import TrainingContext, derive_seed
from vshift.train.fast_steps import (
    STEPS_PER_GRAPH,
    CannotCompile,
    CapturedStep,
    CompiledStep,
    make_train_step,
)
from vshift.train.loop import TrainStep

pytestmark = pytest.mark.usefixtures("one_thread")
NOISE = {"kind": "dropout", "rate": 0.5, "position": "before_last_bn"}
FEW = {"name": "shapes", "train": 77, "test": 20, "batch_size": 8}  # 9 batches and 5
LEFT_OVER = {"name": "shapes", "train": 620, "test": 50, "batch_size": 64}  # 9 batches and 44


def context_of(**sections):
    config = make_config(**sections)
    context = TrainingContext(config, 0, load(config.data, torch.device("cpu")))
    context.model.train()
    return context


def trained(step, epochs=2, skip=0, seed=0):
    """Scores, logged moments and weights after some epochs."""
    scores, context = [], step.context
    for epoch in range(epochs):
        torch.manual_seed(derive_seed(seed, epoch, "noise"))
        rates = [0.01 * (1 + i) for i in range(context.stream.steps)]
        done = list(step.epoch(derive_seed(seed, epoch, "data"), rates, skip))
        assert done[-1] == context.stream.steps
        scores.append(context.metrics.compute_and_reset())
    return scores, context.layer_log.compute_and_reset(), context.model.state_dict()


def equal(a, b):
    torch.testing.assert_close(dict(b), dict(a), rtol=0, atol=0)


PATTERN = {"kind": "dropout", "rate": 0.5, "before": "stage*.bn2", "after": "stem"}


@pytest.mark.parametrize(("skip", "noise"), [(0, NOISE), (3, NOISE), (0, PATTERN)])
def test_what_a_graph_captures_is_the_eager_step_bit_for_bit(recorded_graphs, skip, noise):
    """Replayed without Python: indices, rates, sums and all."""
    sections = {"network": {"name": "preresnet", "depth": 8, "noise": noise}, "data": FEW}
    results = []
    for make in (lambda context: CapturedStep(context, compile=False), TrainStep):
        context = context_of(**sections)
        results.append(trained(make(context), skip=skip))
    (scores, log, weights), (eager_scores, eager_log, eager_weights) = results
    assert scores == eager_scores
    assert scores[0].count == 77 - 8 * skip
    equal(eager_weights, weights)
    for name, moments in eager_log.items():
        assert torch.equal(moments.variance, log[name].variance)


def test_a_captured_epoch_comes_in_few_pieces(recorded_graphs):
    context = context_of(data=FEW)
    step = CapturedStep(context, compile=False)
    assert list(step.epoch(0, [0.01] * 10)) == [STEPS_PER_GRAPH, 9, 10]


def test_capturing_restores_all_that_a_step_changes():
    context = context_of(data=FEW)
    step = CapturedStep(context, compile=False)
    step._send_plan(0, [0.1] * 10, 0)
    kept, random = copy.deepcopy(context.model.state_dict()), torch.get_rng_state()
    with step._restored():
        step._send_plan(1, [0.2] * 10, 3)
        step.advance(8)
        torch.rand(1)
    equal(kept, context.model.state_dict())
    assert torch.equal(random, torch.get_rng_state())
    assert torch.equal(step._plan.order, context.stream.plan(0).order)
    assert step._rates.tolist() == pytest.approx([0.1] * 10)
    assert context.optimizer.tensors()
    assert not any(buffer.any() for buffer in context.optimizer.tensors())
    assert context.metrics.compute_and_reset().count == 0
    assert int(step._first) == 0
    assert int(step._now) == 0


def test_preparing_captures_an_epochs_graphs_and_leaves_no_trace(recorded_graphs):
    """In training mode, whatever the mode before: a graph never asks again."""
    network = {"name": "preresnet", "depth": 8, "noise": NOISE}
    context = context_of(data=FEW, network=network)
    step = CapturedStep(context, compile=False)
    kept, random = copy.deepcopy(context.model.state_dict()), torch.get_rng_state()
    context.model.eval()
    step.prepare()
    assert list(step._graphs) == [(1, 8), (1, 5), (STEPS_PER_GRAPH, 8)]
    drawn = [
        sum(func._schema.name == "aten::random_" for func, *_ in graph.operations)
        for graph in step._graphs.values()
    ]
    assert drawn == [3, 3, 3 * STEPS_PER_GRAPH]  # of dropout, in each block
    equal(kept, context.model.state_dict())
    assert torch.equal(random, torch.get_rng_state())
    assert context.metrics.compute_and_reset().count == 0
    logged = context.layer_log.compute_and_reset().values()
    assert not any(moments.variance.any() for moments in logged)


class BakedRate(CapturedStep):
    def advance(self, size):
        for group in self.context.optimizer.param_groups:
            group["lr"] = 0.01
        super().advance(size)


class LostStepNumber(CapturedStep):
    def advance(self, size):
        super().advance(size)
        self._now -= 1


class NoLog(CapturedStep):
    def advance(self, size):
        log, self.context.layer_log = self.context.layer_log, None
        super().advance(size)
        self.context.layer_log = log


class NoNoise(CapturedStep):
    def advance(self, size):
        for module in noise_modules(self.context.model).values():
            module.eval()
        super().advance(size)
        self.context.model.train()


class OneDrawTooMany(CapturedStep):
    def advance(self, size):
        super().advance(size)
        torch.rand(1, device=self._now.device)


FAULTS = {
    BakedRate: "leave stem.conv1.weight at a distance of",
    LostStepNumber: "leave the step number at a distance of 1 ",
    NoLog: "leave layer log 0 at a distance of",
    NoNoise: "1 captured step with 8 images leave stem.conv1.weight at a distance of",
    OneDrawTooMany: "leave the random generator at a distance of",
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_graph_that_does_something_else_is_not_used(recorded_graphs, fault):
    network = {"name": "preresnet", "depth": 8, "noise": NOISE}
    context = context_of(data=FEW, network=network)
    with pytest.raises(CannotCompile, match=FAULTS[fault]):
        fault(context, compile=False).prepare()


def test_a_fault_of_one_graph_is_found(recorded_graphs, monkeypatch):
    """Each is checked, not the first alone."""
    context = context_of(data=FEW)
    step = CapturedStep(context, compile=False)
    record = torch.cuda.graph

    @contextmanager
    def forgetful(graph, **options):
        with record(graph, **options):
            yield
        if len(graph.operations) > 1000:  # eight steps
            del graph.operations[-1:]

    monkeypatch.setattr(torch.cuda, "graph", forgetful)
    with pytest.raises(CannotCompile, match="8 captured steps with 8 images leave the step numb"):
        step.prepare()


class Reads(torch.nn.Module):
    def forward(self, x):
        return x if float(x.detach().sum()) > -1e9 else -x


def test_a_failed_capture_names_the_first_error_and_its_place(recorded_graphs, monkeypatch):
    """The end of the capture raises another one. Python's collector rests in a capture."""
    context = context_of(network={"name": "mlp", "widths": [16]})
    context.model.append(Reads())
    record, collecting = torch.cuda.graph, []

    @contextmanager
    def ending_badly(graph, **options):
        collecting.append(gc.isenabled())
        try:
            with record(graph, **options):
                yield
        finally:
            raise RuntimeError("operation failed due to a previous error during capture")

    monkeypatch.setattr(torch.cuda, "graph", ending_badly)
    reason = (
        "RuntimeError: aten::_local_scalar_dense waits for the device, and a capture is underway"
    )
    with pytest.raises(CannotCompile, match=rf"^{reason} \(recorded.py, line \d+\)$"):
        CapturedStep(context, compile=False).prepare()
    assert collecting == [False]
    assert gc.isenabled()


def test_an_error_that_pytorch_got_over_is_not_the_reason(monkeypatch):
    """A cache that misses raises KeyError inside PyTorch, and what fails then has it as context."""

    def broken(model):
        def forward(images):
            try:
                torch.testing.assert_close(1, 2)
            except AssertionError as inside:
                inside.__traceback__ = inside.__traceback__.tb_next
                raise ValueError("backend raised:\nOutOfMemory: smem") from None

        return forward

    monkeypatch.setattr("vshift.train.fast_steps.compile_network", broken)
    with pytest.raises(CannotCompile, match=r"^ValueError: backend raised: OutOfMemory: smem \("):
        CompiledStep(context_of()).prepare()


def test_a_step_is_freed_when_the_last_reference_to_it_goes(recorded_graphs):
    """With its graphs; a collection later on might come in the middle of another capture."""
    step = CapturedStep(context_of(data=FEW), compile=False)
    step.prepare()
    alive = [weakref.ref(step), *map(weakref.ref, step._graphs.values())]
    gc.disable()
    try:
        del step
        assert [one() for one in alive] == [None] * 4
    finally:
        gc.enable()


def test_the_compiled_step_agrees_within_rounding():
    """A real compilation, without noise; few steps, so that rounding has not grown."""
    sections = {"network": {"name": "mlp", "widths": [16]}, "data": {**LEFT_OVER, "train": 100}}
    results = []
    for kind in ("compiled", "eager"):
        context = context_of(**sections)
        said = []
        step = make_train_step(kind, context, said.append)
        assert (step.name, said) == (kind, [])
        results.append(trained(step, epochs=1))
    assert results[0][0][0].loss == pytest.approx(results[1][0][0].loss, rel=1e-4)
    for name, moments in results[1][1].items():
        torch.testing.assert_close(
            results[0][1][name].variance, moments.variance, rtol=1e-3, atol=1e-4
        )


def test_making_a_step_changes_nothing(monkeypatch):
    """Compiling runs a batch: weights, buffers, gradients and the random state are put back."""
    monkeypatch.setattr("vshift.train.fast_steps.compile_network", lambda model: model)
    context = context_of(network={"name": "preresnet", "depth": 8, "noise": NOISE})
    kept, random = copy.deepcopy(context.model.state_dict()), torch.get_rng_state()
    make_train_step("compiled", context, print)
    equal(kept, context.model.state_dict())
    assert torch.equal(random, torch.get_rng_state())
    assert all(p.grad is None for p in context.model.parameters())
    assert context.metrics.compute_and_reset().count == 0


def test_the_fused_step_agrees_within_rounding():
    results = []
    for kind in ("auto", "eager"):
        context = context_of(data={**LEFT_OVER, "train": 200})
        step = make_train_step(kind, context, print)
        assert step.name == {"auto": "fused", "eager": "eager"}[kind]
        results.append(trained(step, epochs=1))
    assert results[0][0][0].loss == pytest.approx(results[1][0][0].loss, rel=1e-3)
    torch.testing.assert_close(
        bn_state_of(results[0][2]), bn_state_of(results[1][2]), rtol=2e-2, atol=1e-2
    )


def bn_state_of(weights):
    return {key: value for key, value in weights.items() if "running" in key}


def test_no_compiler_is_one_line_and_a_slower_step(monkeypatch):
    def missing(model, with_relu):
        raise KernelsMissing("no C++ compiler (c++, g++ or clang++)")

    monkeypatch.setattr(fast_steps, "fuse", missing)
    context = context_of()
    said = []
    step = make_train_step("auto", context, said.append)
    assert step.name == "eager"
    assert said == ["no fused step: no C++ compiler (c++, g++ or clang++); using a slower one"]


def test_a_failing_compiler_is_one_line_and_the_eager_step(monkeypatch):
    def broken(model):
        def forward(images):
            raise RuntimeError("\n  lowering failed\nand much more")

        return forward

    monkeypatch.setattr("vshift.train.fast_steps.compile_network", broken)
    context = context_of()
    with pytest.raises(CannotCompile, match=r"RuntimeError: lowering failed \(test_fast_steps"):
        CompiledStep(context).prepare()
    said = []
    assert make_train_step("compiled", context, said.append).name == "eager"
    assert len(said) == 1
    assert "lowering failed" in said[0]


def test_a_warning_turned_into_an_error_changes_no_step(monkeypatch):
    """As under `python -W error`, which pytest's settings here amount to."""

    def advising(model):
        def forward(images):
            warnings.warn("TensorFloat32 is available but not enabled", stacklevel=1)
            return model(images)

        return forward

    monkeypatch.setattr("vshift.train.fast_steps.compile_network", advising)
    context = context_of()
    said = []
    step = make_train_step("compiled", context, said.append)
    assert (step.name, said) == ("compiled", [])


@pytest.mark.parametrize("failing", [1, 2])
def test_a_captured_step_does_without_the_compiler_if_it_fails(monkeypatch, failing):
    """The first way that works: compiled and captured, captured, compiled."""
    tried = []

    def capture(self):
        tried.append(self._compile)
        # A further try is no part of handling the first one's error, which keeps what it computed.
        assert sys.exc_info() == (None, None, None)
        if len(tried) <= failing:
            raise CannotCompile(f"reason {len(tried)}")

    monkeypatch.setattr(CapturedStep, "prepare", capture)
    monkeypatch.setattr(CompiledStep, "compile", lambda *batch: None)
    monkeypatch.setitem(fast_steps.AUTO, "cpu", fast_steps.AUTO["cuda"])
    context = context_of()
    said = []
    step = make_train_step("auto", context, said.append)
    assert tried == [True, False]
    assert step.name == {1: "captured", 2: "compiled"}[failing]
    assert (
        said
        == [
            "captured step without the compiler: reason 1",
            "no captured step: reason 2; using a slower one",
        ][:failing]
    )


def test_a_step_for_another_device_is_refused():
    context = context_of()
    with pytest.raises(ConfigError, match=r"hardware\.step: captured works on cuda only"):
        make_train_step("captured", context, print)


def test_sums_continue_where_they_were_saved():
    context = context_of()
    whole = trained(make_train_step("eager", context, print), epochs=1)
    context = context_of()
    step = make_train_step("eager", context, print)
    torch.manual_seed(derive_seed(0, 0, "noise"))
    steps = step.epoch(derive_seed(0, 0, "data"), [0.01 * (1 + i) for i in range(5)])
    for _ in range(2):
        next(steps)
    saved = context.metrics.state_dict(), context.layer_log.state_dict()
    context.metrics.compute_and_reset()
    context.layer_log.compute_and_reset()
    context.metrics.load_state_dict(saved[0])
    context.layer_log.load_state_dict(saved[1])
    for _ in steps:
        pass
    assert context.metrics.compute_and_reset() == whole[0][0]
    for name, moments in context.layer_log.compute_and_reset().items():
        assert torch.equal(moments.variance, whole[1][name].variance)


def test_starting_does_not_import_the_compiler():
    """Two seconds of every run: PyTorch's own optimizers import it, and so might much else."""
    code = (
        "import sys, torch; from tests.train.test_fast_steps import *\n"
        "for name in ('sgd', 'adamw'):\n"
        "    c = context_of(optimizer={'name': name}); step = make_train_step('auto', c, print)\n"
        "    step(*next(c.stream.epoch(0)))\n"
        "print('torch._dynamo' in sys.modules)"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.split() == ["False"]
