"""`measure.sites` in training: every kind of step, resuming, the rows, and what is refused."""

import json

import pytest
import torch

from tests.configs import make_config
from tests.soak.harness import differences
from tests.train.test_checkpointer import attempt
from tests.train.test_fast_steps import context_of, equal, trained
from vshift.compare import compare
from vshift.errors import ConfigError
from vshift.runs import find_runs
from vshift.train import compiled_step
from vshift.train.captured_step import CapturedStep
from vshift.train.fast_steps import make_train_step
from vshift.train.loop import TrainStep
from vshift.train.progress import Reporter
from vshift.train.run import train_seeds

NOISE = {"kind": "dropout", "rate": 0.5, "position": "before_last_bn"}
NET = {"name": "preresnet", "depth": 8}
DATA = {"name": "shapes", "train": 200, "test": 20, "batch_size": 64}  # 3 batches and 8


def context(sites, network=NET):
    return context_of(data=DATA, network=network, measure={"sites": sites})


def steps(kind, sites, network=NET):
    step = make_train_step(kind, context(sites, network), print)
    assert step.name == kind
    return trained(step, epochs=1)


def test_measuring_more_changes_no_bit_of_the_fused_step():
    """Its BN layers do the ReLU after them; what a ReLU gave is still seen."""
    _, log, weights = steps("fused", "bn")
    _, more, same = steps("fused", "all")
    equal(weights, same)
    for name, moments in log.items():
        assert torch.equal(moments.variance, more[name].variance)
    _, eager, _ = steps("eager", "all")
    assert list(eager) == list(more)
    assert {"logits", "head.relu1", "stage1.block1.branch.relu1"} <= set(more) - set(log)
    for name, moments in eager.items():
        torch.testing.assert_close(more[name].mean, moments.mean, rtol=1e-2, atol=1e-2)
        torch.testing.assert_close(more[name].variance, moments.variance, rtol=2e-2, atol=1e-2)


def test_what_a_graph_captures_is_the_eager_step_bit_for_bit(recorded_graphs):
    (_, captured, weights), (_, eager, eager_weights) = (
        trained(make(context("all")), epochs=1)
        for make in (lambda context: CapturedStep(context, compile=False), TrainStep)
    )
    equal(eager_weights, weights)
    for name, moments in eager.items():
        assert torch.equal(moments.variance, captured[name].variance)
        assert torch.equal(moments.mean, captured[name].mean)


def test_a_compiled_forward_writes_every_sites_statistics(monkeypatch):
    """The compiler's tracing with its own kernels left out, which takes a second, not a minute."""
    monkeypatch.setattr(
        compiled_step,
        "compile_network",
        lambda model: torch.compile(model, dynamic=False, backend="aot_eager", fullgraph=True),
    )
    network = {"name": "mlp", "widths": [16, 16]}
    _, compiled, _ = steps("compiled", "all", network)
    _, eager, _ = steps("eager", "all", network)
    assert list(eager) == list(compiled)
    for name, moments in eager.items():
        torch.testing.assert_close(compiled[name].variance, moments.variance, rtol=1e-3, atol=1e-4)


def test_resuming_in_mid_epoch_has_the_sums_of_the_whole_epoch(tmp_path):
    config = make_config(
        data={"name": "shapes", "train": 100, "test": 20, "batch_size": 20},
        network={"name": "mlp", "widths": [16, 16], "noise": {**NOISE, "position": "before_bn"}},
        measure={"eval_batches": 2, "explain_batches": 2, "sites": ["activations", "logits"]},
        epochs=2,
    )
    whole, status, _ = attempt(tmp_path / "whole", config)
    assert status == "done"
    for step in (3, 8):
        folder, status, _ = attempt(tmp_path / str(step), config, steps=step)
        assert status == "interrupted"
        folder, status, _ = attempt(tmp_path / str(step), config)
        assert status == "done"
        assert differences(whole.path, folder.path) == []


def test_rows_and_means_by_kind_of_a_network_without_running_statistics(tmp_path):
    config = make_config(
        network={**NET, "noise": NOISE}, norm={"kind": "group", "groups": 4}, epochs=1,
        measure={"sites": "all", "eval_batches": 4, "explain_batches": 4},
    )  # fmt: skip
    folder, status, _ = attempt(tmp_path, config)
    assert status == "done"
    rows = folder.layers()
    assert {row["kind"] for row in rows} == {"group_norm", "activation", "logits"}
    assert [row["index"] for row in rows] == list(range(len(rows)))
    assert rows[-1]["layer"] == "logits"
    for row in rows:
        assert row["running_variance"] is row["lag_ratio"] is row["mean_tid"] is None
        assert row["train_variance"] > 0
        assert row["shift_ratio"] >= 1
        assert row["shift_ratio"] == pytest.approx(row["lag_free_ratio"])
    noisy = [r for r in rows if r["layer"].startswith("stage1") and r["kind"] == "group_norm"]
    assert noisy[-1]["cause"] == "shift"
    summary = json.loads((folder.path / "summary.json").read_text())
    of_kind = [row["shift_ratio"] for row in rows if row["kind"] == "group_norm"]
    assert summary["shift_ratio_mean_group_norm"] == pytest.approx(sum(of_kind) / len(of_kind))
    assert summary["mean_shift_logits"] == pytest.approx(rows[-1]["mean_shift"])
    assert summary["shift_ratio_mean"] is None
    assert summary["bn_layers"] == 0
    metric = "shift_ratio_mean_group_norm"
    (row,) = compare(find_runs([tmp_path]), metrics=[metric]).rows
    assert row[f"{metric}_mean"] == pytest.approx(summary[metric])
    vectors = folder.read_channels()
    assert vectors["logits.train_variance"].shape == (10,)
    assert "logits.running_variance" not in vectors


def test_a_pattern_that_matches_nothing_writes_nothing(tmp_path):
    config = make_config(measure={"sites": ["stage9.*"]}, network=NET)
    with pytest.raises(ConfigError, match=r"measure\.sites: .*'stage9\.\*'"):
        train_seeds(config, tmp_path, False, Reporter(quiet=True))
    assert list(tmp_path.iterdir()) == []
