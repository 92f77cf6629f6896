"""The loop against a plain one, determinism, resuming, and measuring without a trace."""

import json
import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch.optim.lr_scheduler import OneCycleLR

from tests.configs import make_config
from vshift.config.data import Augment
from vshift.data import epoch_plan, load
from vshift.networks.build import build
from vshift.runs import prepare
from vshift.train.context import TrainingContext, derive_seed
from vshift.train.progress import Reporter
from vshift.train.run import train_in

NOISE = {"kind": "dropout", "rate": 0.5, "position": "before_last_bn"}
NOISY = {"name": "preresnet", "depth": 8, "noise": NOISE}
TIMES = ("seconds", "images_per_second")


def run(path, config, seed=0, images=None):
    """Train into a new or unfinished folder; returns it and the status."""
    folder, _ = prepare(path, config, seed)
    try:
        status = train_in(
            folder, config, seed, images or load(config.data, "cpu"), Reporter(quiet=True)
        )
        folder.mark_finished(status)
    finally:
        folder.close()
    return folder, status


def weights(folder):
    return folder.load_checkpoint()["model"]


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def figures(folder):
    return [{k: v for k, v in row.items() if k not in TIMES} for row in folder.metrics()]


def test_against_a_plain_loop(tmp_path):
    """Same weights and losses as a loop that shares only the network and the epoch's draws."""
    schedule = {"name": "onecycle", "peak": 0.02}
    config = make_config(schedule=schedule)
    folder, status = run(tmp_path, config, seed=3)
    assert status == "done"

    images = load(config.data, "cpu")
    model = build(config, classes=10, channels=3, size=32, seed=derive_seed(3, 0, "weights"))
    model.to(memory_format=torch.channels_last)  # the same kernels: rounding is amplified fast
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=1e-4)
    scheduler = OneCycleLR(optimizer, 0.02, total_steps=10, cycle_momentum=False)
    mean, std = images.mean.view(3, 1, 1), images.std.view(3, 1, 1)
    losses = []
    for epoch in (1, 2):
        plan = epoch_plan(300, Augment(), derive_seed(3, epoch, "data"))
        total = 0.0
        for start in range(0, 300, 64):
            crops = []
            for i in range(start, min(start + 64, 300)):
                pixels = images.train.images[plan.order[i]].permute(2, 0, 1)
                top, left = plan.offsets[i].tolist()
                crop = F.pad(pixels, (4, 4, 4, 4))[:, top : top + 32, left : left + 32]
                crop = crop.flip(2) if plan.flips[i] else crop
                crops.append((crop.float() / 255 - mean) / std)
            labels = images.train.labels[plan.order[start : start + 64]]
            batch = torch.stack(crops).contiguous(memory_format=torch.channels_last)
            loss = F.cross_entropy(model.train()(batch), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            scheduler.step()
            total += loss.item() * len(labels)
        losses.append(total / 300)
    assert [row["train_loss"] for row in folder.metrics()] == pytest.approx(losses, rel=1e-4)
    for name, tensor in weights(folder).items():
        torch.testing.assert_close(tensor, model.state_dict()[name], rtol=1e-3, atol=1e-3)


def test_the_same_config_and_seed_give_identical_bytes(tmp_path):
    config = make_config(
        network=NOISY, hardware={"device": "cpu", "precision": "bf16", "threads": 1}
    )
    a, _ = run(tmp_path / "a", config)
    b, _ = run(tmp_path / "b", config)
    assert json.dumps(figures(a)) == json.dumps(figures(b))
    assert (a.path / "layers.jsonl").read_bytes() == (b.path / "layers.jsonl").read_bytes()
    assert (a.path / "summary.json").read_bytes() == (b.path / "summary.json").read_bytes()
    assert same(weights(a), weights(b))


def test_another_seed_gives_another_run(tmp_path):
    config = make_config(network=NOISY, epochs=1)
    a, _ = run(tmp_path, config, seed=0)
    b, _ = run(tmp_path, config, seed=1)
    assert figures(a) != figures(b)


def test_measuring_changes_nothing(tmp_path):
    measured = make_config(network=NOISY, measure={"eval_batches": 2, "eval_epochs": "all"})
    silent = make_config(network=NOISY, measure={"every": 0})
    a, _ = run(tmp_path / "a", measured)
    b, _ = run(tmp_path / "b", silent)
    assert same(weights(a), weights(b))
    assert figures(a) == figures(b)
    assert len(a.layers()) == 14
    assert b.layers() == []


def test_resuming_equals_never_having_stopped(tmp_path, monkeypatch):
    config = make_config(network=NOISY, epochs=3)
    whole, _ = run(tmp_path / "a", config)

    from vshift.train.loop import TrainStep

    original = TrainStep.__call__
    calls = []

    def interrupted(self, *args):
        calls.append(1)
        if len(calls) == 8:  # in the middle of epoch 2
            raise KeyboardInterrupt
        return original(self, *args)

    monkeypatch.setattr(TrainStep, "__call__", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "b", config)
    monkeypatch.undo()
    parts, _ = run(tmp_path / "b", config)
    assert same(weights(whole), weights(parts))
    assert figures(whole) == figures(parts)
    assert whole.layers() == parts.layers()
    assert (whole.path / "summary.json").read_text() == (parts.path / "summary.json").read_text()


def test_rows_after_the_checkpoint_are_dropped(tmp_path, monkeypatch):
    """A kill between the rows of an epoch and its checkpoint must not leave that epoch twice."""
    config = make_config(epochs=2)
    whole, _ = run(tmp_path / "a", config)
    from vshift.runs import RunFolder

    saves = []

    def killed(self, state, keep):
        saves.append(state["epoch"])
        if len(saves) == 2:
            raise KeyboardInterrupt
        original(self, state, keep)

    original = RunFolder.save_checkpoint
    monkeypatch.setattr(RunFolder, "save_checkpoint", killed)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "b", config)
    monkeypatch.undo()
    parts, _ = run(tmp_path / "b", config)
    assert [row["epoch"] for row in parts.metrics()] == [1, 2]
    assert parts.layers() == whole.layers()


def test_files_and_columns_of_a_run(tmp_path):
    config = make_config(network=NOISY, data={**make_config().data.model_dump(), "validation": 50})
    folder, _ = run(tmp_path, config)
    metrics = folder.metrics()
    assert set(metrics[0]) >= {
        "epoch", "step", "learning_rate", "train_loss", "train_accuracy", "test_loss",
        "test_accuracy", "seconds", "images_per_second", "validation_loss", "validation_accuracy",
    }  # fmt: skip
    assert [row["step"] for row in metrics] == [4, 8]
    layers = folder.layers()
    assert list(layers[0]) == [
        "epoch", "index", "layer", "channels", "noise_before", "train_variance",
        "running_variance", "eval_variance", "shift_ratio", "shift_ratio_se", "kind", "lag_ratio",
        "lag_ratio_se", "lag_free_ratio", "lag_free_ratio_se", "cause", "mean_shift",
        "mean_shift_se", "mean_tid", "variance_tid",
        "total_ratio", "total_ratio_se", "local_ratio", "local_ratio_se",
        "inherited_ratio", "inherited_ratio_se", "predicted_ratio", "predicted_ratio_se",
        "predicted_exact", "closed_form_ratio", "cos2", "dcos2",
    ]  # fmt: skip
    assert [row["eval_variance"] is None for row in layers] == [True] * 7 + [False] * 7
    assert [row["layer"] for row in layers[7:] if row["noise_before"]] == [
        f"stage{s}.block1.branch.bn2" for s in (1, 2, 3)
    ]
    vectors = folder.read_channels()
    for row in layers[7:]:
        for kind in ("train", "running", "eval"):
            vector = vectors[f"{row['layer']}.{kind}_variance"]
            assert vector.shape == (row["channels"],)
            assert float(vector.mean()) == pytest.approx(row[f"{kind}_variance"], rel=1e-5)
    summary = json.loads((folder.path / "summary.json").read_text())
    assert summary["test_accuracy"] == metrics[-1]["test_accuracy"]
    assert summary["test_error"] == pytest.approx(100 - summary["test_accuracy"])
    ratios = {row["layer"]: row["shift_ratio"] for row in layers[7:]}
    assert summary["shift_ratio_mean"] == pytest.approx(sum(ratios.values()) / 7)
    assert summary["shift_ratio_max"] == max(ratios.values())
    assert ratios[summary["shift_ratio_max_layer"]] == summary["shift_ratio_max"]
    assert {"train_accuracy_eval_mode", "train_accuracy_train_mode"} <= set(summary)
    assert summary["noise_modules"] == 3  # one per block


def test_running_variance_in_the_rows_is_the_checkpoints(tmp_path):
    folder, _ = run(tmp_path, make_config(epochs=1))
    state = weights(folder)
    for row in folder.layers():
        kept = state[f"{row['layer']}.running_var"].double().mean().item()
        assert row["running_variance"] == pytest.approx(kept)


@pytest.mark.parametrize("norm", [{"kind": "group", "groups": 4}, {"kind": "none"}], ids=str)
def test_networks_without_bn_train_and_have_no_ratio(tmp_path, norm):
    folder, status = run(tmp_path, make_config(epochs=1, norm=norm))
    summary = json.loads((folder.path / "summary.json").read_text())
    assert status == "done"
    assert summary["shift_ratio_mean"] is None
    assert summary["bn_layers"] == 0


def test_bn_layers_are_counted_where_none_is_measured(tmp_path):
    folder, _ = run(tmp_path, make_config(epochs=1, measure={"every": 0}))
    assert json.loads((folder.path / "summary.json").read_text())["bn_layers"] == 7


def test_cumulative_statistics_are_the_simple_average(tmp_path):
    """After one epoch the simple average over all batches is exactly what training logged."""
    norm = {"kind": "batch", "momentum": None}
    folder, _ = run(tmp_path, make_config(epochs=1, norm=norm))
    for row in folder.layers():
        assert row["running_variance"] == pytest.approx(row["train_variance"], rel=1e-5)


def test_an_infinite_loss_ends_as_diverged_and_keeps_what_was_measured(tmp_path):
    optimizer = {"name": "sgd", "learning_rate": 1e30}
    config = make_config(optimizer=optimizer, norm={"kind": "none"}, epochs=3)
    folder, status = run(tmp_path, config)
    assert status == "diverged"
    rows = folder.metrics()
    assert len(rows) == 1
    assert rows[-1]["train_loss"] is None
    assert not (folder.path / "summary.json").exists()


def test_statistics_that_are_not_finite_are_null_and_end_no_run(tmp_path):
    """The weights are huge and the loss is finite: lag is not a number, and BN has statistics."""
    config = make_config(
        data={"name": "shapes", "train": 10, "test": 10, "batch_size": 10},
        network={"name": "resnext", "depth": 11, "cardinality": 1, "base_width": 2},
        optimizer={"name": "adamw", "learning_rate": 1e6},
        hardware={"device": "cpu", "precision": "bf16", "threads": 1},
    )
    folder, status = run(tmp_path, config)
    assert status == "done"
    last = [row for row in folder.layers() if row["epoch"] == 2]
    assert any(row["lag_ratio"] is None and row["mean_tid"] is not None for row in last)


def test_train_mode_accuracy_leaves_weights_and_statistics_alone(tmp_path):
    """The saved checkpoint is taken after the final scores: they must not have touched it."""
    config = make_config(network=NOISY, epochs=1)
    folder, _ = run(tmp_path, config)
    state = weights(folder)
    tracked = {int(v) for k, v in state.items() if k.endswith("num_batches_tracked")}
    assert tracked == {5}


# A refactor must reproduce these losses: shapes, 300 images, 5 steps an epoch, float32, 1 thread.
# The noisy ones differ because the steps draw their noise from different generators.
PLAIN = {"name": "preresnet", "depth": 8}
GOLDEN = [
    ("eager", PLAIN, [2.41053, 2.27364]),
    ("fused", PLAIN, [2.41053, 2.27364]),
    ("eager", NOISY, [2.39520, 2.29802]),
    ("fused", NOISY, [2.38822, 2.30297]),
]


@pytest.mark.parametrize(("step", "network", "expected"), GOLDEN)
def test_golden_trace(tmp_path, step, network, expected):
    hardware = {"device": "cpu", "precision": "float32", "threads": 1, "step": step}
    folder, _ = run(tmp_path, make_config(network=network, hardware=hardware))
    assert folder.run["step"] == step
    losses = [row["train_loss"] for row in folder.metrics()]
    assert all(math.isfinite(loss) for loss in losses)
    # The same processor repeats every bit (see above); others, down to SSE4.1, came within 1e-4.
    assert losses == pytest.approx(expected, rel=5e-4)


def test_bn_that_tests_with_batch_statistics_gets_shuffled_batches(tmp_path):
    """Files come class by class; in that order each batch would hold few classes."""
    norm = {"kind": "batch", "eval_statistics": "batch"}
    config = make_config(norm=norm, epochs=1)
    images = load(config.data, "cpu")
    order = images.test.labels.argsort()
    test = type(images.test)(images.test.images[order], images.test.labels[order])
    context = TrainingContext(config, 0, replace(images, test=test))
    batches = list(context.to_test(test))
    assert [len(labels) for _, labels in batches] == [64, 36]
    assert all(len(labels.unique()) == 10 for _, labels in batches)
    running = TrainingContext(make_config(epochs=1), 0, images)
    assert [len(labels) for _, labels in running.to_test(test)] == [100]
