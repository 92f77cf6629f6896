"""A probe in somebody else's loop: right numbers, in any kind of model, and nothing changed."""

import json
import re

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from examples.patients import Net, data, fit, norms
from tests.auditing.conftest import everything
from vshift import VarianceProbe, audit
from vshift.auditing import AuditError
from vshift.compare import compare
from vshift.errors import RunError
from vshift.runs import find_runs
from vshift.shift.comparison import compare_passes, run_passes
from vshift.shift.sites import bn_sites


def batches_seen(model, layers):
    """What each BN sees in training mode, computed by hooks and by hand."""
    seen = {name: [] for name in layers}

    def hook(name):
        def see(module, inputs):
            if module.training:
                x = inputs[0].detach().double().transpose(0, 1).flatten(1)
                seen[name].append(x.var(1))

        return see

    for name, layer in layers.items():
        layer.register_forward_pre_hook(hook(name))
    return seen


def train(model, batches, steps=1, *, precision=None, every=1):
    optimizer = torch.optim.SGD(model.parameters(), 0.05)
    model.train()
    for i, (x, y) in enumerate(batches * steps, 1):
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            F.cross_entropy(model(x).float(), y).backward()
        if i % every == 0:
            optimizer.step()
            optimizer.zero_grad()


def network(rank):
    shape = {1: (16,), 2: (3, 6, 6), 3: (2, 4, 4, 4)}[rank]
    conv = {
        1: lambda: nn.Linear(16, 8),
        2: lambda: nn.Conv2d(3, 8, 3),
        3: lambda: nn.Conv3d(2, 8, 3),
    }
    norm = {1: nn.BatchNorm1d, 2: nn.BatchNorm2d, 3: nn.BatchNorm3d}[rank]
    torch.manual_seed(0)
    model = nn.Sequential(conv[rank](), norm(8), nn.ReLU(), nn.Flatten(), nn.LazyLinear(4))
    model(torch.randn(4, *shape))
    return model, [(torch.randn(16, *shape), torch.randint(4, (16,))) for _ in range(6)]


def check(model, batches, *, wrapped=None, tolerance=1e-4, **how):
    inner = {
        n: m for n, m in model.named_modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)
    }
    seen = batches_seen(model, inner)
    with VarianceProbe(model if wrapped is None else wrapped) as probe:
        train(model if wrapped is None else wrapped, batches, **how)
        expected = {name: torch.stack(variances).mean() for name, variances in seen.items()}
        frame = probe.end_epoch([x for x, _ in batches])
    for _, row in frame.iterrows():
        assert row["train_variance"] == pytest.approx(float(expected[row["layer"]]), rel=tolerance)
        assert row["eval_variance"] > 0
        layer = inner[row["layer"]]
        assert row["running_variance"] == pytest.approx(float(layer.running_var.mean()), rel=1e-6)
    return frame


@pytest.mark.parametrize("rank", [1, 2, 3])
def test_variances_are_those_that_hooks_see(rank):
    frame = check(*network(rank))
    assert list(frame["layer"]) == ["1"]


def test_channels_last():
    model, batches = network(2)
    check(
        model.to(memory_format=torch.channels_last),
        [(x.to(memory_format=torch.channels_last), y) for x, y in batches],
    )


def test_mixed_precision():
    check(*network(2), precision="bf16", tolerance=2e-2)


def test_sync_batch_norm_in_one_process():
    model, batches = network(2)
    check(nn.SyncBatchNorm.convert_sync_batchnorm(model), batches)


def test_simple_average():
    model, batches = network(2)
    model[1].momentum = None
    check(model, batches)


def test_accumulated_gradients():
    """Of two forwards a step the later one weighs 1/0.9 times the earlier."""
    model, batches = network(2)
    check(model, batches, every=2, tolerance=2e-2)


def test_ddp(tmp_path):
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1
    )
    try:
        model, batches = network(2)
        check(model, batches, wrapped=nn.parallel.DistributedDataParallel(model))
    finally:
        torch.distributed.destroy_process_group()


def compiled(backend):
    """Attached before the first call and after it, against an eager twin."""
    for late in (False, True):
        torch.compiler.reset()
        frames = []
        for wrap in (lambda m: m, lambda m: torch.compile(m, backend=backend)):
            model, batches = network(2)
            wrapped = wrap(model)
            if late:
                train(wrapped, batches)
            with VarianceProbe(wrapped) as probe:
                train(wrapped, batches)
                frames.append(probe.end_epoch([x for x, _ in batches]))
        for key in ("train_variance", "running_variance", "eval_variance"):
            assert frames[1][key].tolist() == pytest.approx(frames[0][key].tolist(), rel=1e-3)


def test_compiled_models():
    compiled("aot_eager")


@pytest.mark.slow
def test_compiled_models_by_inductor():
    compiled("inductor")


def test_training_with_a_probe_ends_in_the_same_bits():
    results = []
    for probed in (False, True):
        model, batches = network(2)
        before = [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules()]
        probe = VarianceProbe(model) if probed else None
        torch.manual_seed(5)
        train(model, batches, 2)
        if probe is not None:
            probe.end_epoch([x for x, _ in batches])
            probe.remove()
            probe.remove()
        train(model, batches)
        assert [
            len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules()
        ] == before
        results.append({k: v for k, v in everything(model).items() if "objects" not in k})
    assert results[0] == results[1]


def test_attaching_measuring_and_removing_leave_everything():
    model, batches = network(2)
    before = everything(model)
    probe = VarianceProbe(model)
    probe.end_epoch([x for x, _ in batches])
    probe.remove()
    assert everything(model) == before


def test_a_removed_probe_sees_nothing():
    model, batches = network(2)
    probe = VarianceProbe(model)
    probe.remove()
    train(model, batches)
    assert float(probe._sums["1"][2]) == 0


def test_one_optimizer_of_two():
    model, batches = network(2)
    other = nn.Linear(2, 2)
    optimizer = torch.optim.SGD(other.parameters(), 0.1)
    probe = VarianceProbe(model, optimizer)
    train(model, batches)
    assert float(probe._sums["1"][2]) == 0
    other(torch.randn(2, 2)).sum().backward()
    optimizer.step()
    assert float(probe._sums["1"][2]) == len(batches)
    probe.remove()


def test_momentum_zero_has_no_train_variance():
    model, batches = network(2)
    model[1].momentum = 0.0
    with VarianceProbe(model) as probe:
        train(model, batches)
        assert probe.end_epoch()["train_variance"].isna().all()


def probed(model, batches):
    """A frame of the probe after some training, and the audit's rows."""
    with VarianceProbe(model) as probe:
        train(model, batches, 10)
        frame = probe.end_epoch([x for x, _ in batches])
    return frame, audit(model, batches).layers


def test_the_eval_variance_is_what_an_audit_finds():
    """The probe takes the loader's batches, and the audit the same samples in random ones.

    The variance within batches depends on who is in them: of 128 images by about 1e-3.
    """
    torch.manual_seed(0)
    frame, rows = probed(Net(before_bn2=nn.Dropout(0.5)), data(0, 128))
    assert frame["eval_variance"].tolist() == pytest.approx(
        [row["eval_variance"] for row in rows], rel=3e-3
    )
    assert frame["shift_ratio"].max() > 1.3
    assert frame["noise_before"].tolist() == [False, True, False]


def test_in_the_same_batches_probe_and_audit_find_the_same_eval_variance():
    """Images of several sizes cannot be mixed, so that the audit takes batches as they come."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Dropout(0.5),
        nn.Conv2d(8, 8, 3), nn.BatchNorm2d(8), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4),
    )  # fmt: skip
    batches = [(x[..., : 8 - i % 2], y) for i, (x, y) in enumerate(data(0, 128))]
    frame, rows = probed(model, batches)
    assert frame["eval_variance"].tolist() == pytest.approx(
        [row["eval_variance"] for row in rows], rel=1e-6
    )


def test_lag_and_mean_shift_are_those_of_the_passes():
    torch.manual_seed(0)
    model, batches = Net(before_bn2=nn.Dropout(0.5)), data(0, 128)
    with VarianceProbe(model) as probe:
        train(model, batches, 10)
        frame = probe.end_epoch([x for x, _ in batches])
    sites = bn_sites(model)
    passes = run_passes(model, lambda: (x for x, _ in batches), sites)
    found = list(compare_passes(sites, passes).values())
    close = {"rel": 0.05, "abs": 0.02}  # another draw of the noise
    assert frame["lag_ratio"].tolist() == pytest.approx([f.lag.value for f in found], **close)
    assert frame["mean_shift"].tolist() == pytest.approx(
        [f.mean_shift.value for f in found], **close
    )
    assert frame["lag_ratio"][0] == pytest.approx(found[0].lag.value, rel=1e-4)


def test_the_run_folder_is_one_that_compare_reads(tmp_path):
    for seed in (0, 1):
        torch.manual_seed(seed)
        model, batches = Net(), data(seed, 128)
        with VarianceProbe(model) as probe:
            for accuracy in (50.0, 60.0 + seed):
                train(model, batches)
                probe.end_epoch([x for x, _ in batches], test_accuracy=accuracy, test_loss=1.0)
            assert len(probe.frame()) == 6
            probe.save(tmp_path / "mine" / f"seed-{seed}", config={"network": {"name": "Net"}})
    (row,) = compare(find_runs([tmp_path])).rows
    assert row["n"] == 2
    assert row["test_accuracy_mean"] == 60.5
    assert row["test_error_mean"] == 39.5
    assert row["shift_ratio_max_layer"] in norms(model)
    run = json.loads((tmp_path / "mine" / "seed-0" / "run.json").read_text())
    assert run["status"] == "done"
    lines = (tmp_path / "mine" / "seed-0" / "layers.jsonl").read_text().splitlines()
    assert len(lines) == 6
    record = find_runs([tmp_path])[0]
    assert record.metrics[1]["test_accuracy"] == 60.0
    assert not record.problems


def test_the_run_folder_is_one_that_report_reads(tmp_path):
    pytest.importorskip("altair", reason="the extra report is not installed")
    from vshift.report import write_report

    for name, noise in (("noisy", nn.Dropout(0.5)), ("quiet", nn.Identity())):
        torch.manual_seed(0)
        model, batches = Net(before_bn2=noise), data(0, 128)
        with VarianceProbe(model) as probe:
            for accuracy in (50.0, 60.0):
                train(model, batches, 5)
                probe.end_epoch([x for x, _ in batches], test_accuracy=accuracy)
            probe.save(tmp_path / name / "seed-0", config={"network": {"name": name}})
    write_report([tmp_path], tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text()
    assert "noisy" in page
    assert "bn2" in page


def test_what_cannot_be_probed_or_saved_is_refused(tmp_path):
    with pytest.raises(AuditError, match="no batch norm"):
        VarianceProbe(nn.Linear(2, 2))
    model, _ = network(2)
    with VarianceProbe(model) as probe:
        with pytest.raises(AuditError, match="call end_epoch"):
            probe.save(tmp_path / "mine" / "seed-0")
        probe.end_epoch()
        with pytest.raises(RunError, match="<name>/seed-<n>"):
            probe.save(tmp_path / "mine")


def test_its_repr_is_the_state_in_a_line():
    torch.manual_seed(0)
    model, batches = Net(), data(0, 128)
    probe = VarianceProbe(model)
    assert repr(probe).startswith("VarianceProbe of 3 BN layers, no epoch closed yet; the running")
    fit(model, batches, epochs=1)
    probe.end_epoch()
    assert repr(probe).endswith("1 epoch, no eval variance measured")
    probe.end_epoch(batches)
    assert re.fullmatch(r".*2 epochs, shift ratio \d+\.\d+ on average, .* at bn\d", repr(probe))


def test_before_any_step_the_statistics_are_said_to_be_initial():
    model, batches = network(2)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.reset_running_stats()
    images = [x for x, _ in batches]
    with VarianceProbe(model) as probe:
        assert "no epoch closed yet; the running statistics are the initial ones" in repr(probe)
        with pytest.warns(UserWarning, match="mean 0 and variance 1: nothing was trained yet"):
            probe.end_epoch(images)
        train(model, batches)
        assert "initial" not in repr(probe)
        probe.end_epoch(images)  # warnings are errors here
