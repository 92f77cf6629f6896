"""A captured step's graphs: the eager step's bits, and no graph that does anything else."""

import copy
import gc
import weakref
from contextlib import contextmanager

import pytest
import torch

from tests.train.test_fast_steps import NOISE, context_of, equal, trained
from vshift.shift.modes import noise_modules
from vshift.train.captured_step import STEPS_PER_GRAPH, CapturedStep
from vshift.train.compiled_step import CannotCompile
from vshift.train.loop import TrainStep

FEW = {"name": "shapes", "train": 77, "test": 20, "batch_size": 8}  # 9 batches and 5
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
