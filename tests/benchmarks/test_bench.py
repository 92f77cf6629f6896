"""`vshift bench` from the command line, with a network and steps as small as they get."""

import gc
import json
import shutil
import time
import weakref
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest
import torch

from benchmarks import bench
from benchmarks.bench import Plan
from benchmarks.cases import Case
from benchmarks.race import prepare, time_limit
from benchmarks.training import Training, random_images
from vshift.train.progress import Reporter

CPU = torch.device("cpu")
SMALL = ["--networks", "preresnet-8", "--batch", "8", "--steps", "2", "--repeats", "2"]
SMALL += ["--threads", "1", "--device", "cpu"]
pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def vshift(vshift, monkeypatch):
    """`vshift bench`, with a quick look at what the machine can do."""
    peaks = bench.measure_peaks
    monkeypatch.setattr(bench, "measure_peaks", lambda device, scale: peaks(device, 0.05))
    return partial(vshift, "bench")


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_bench_with_peers_from_start_to_table(vshift):
    code, out, err = vshift(*SMALL, "--peer", "plain", "--peer", "bf16", "--json", "a.json")
    assert code == 0, err
    assert out.startswith("| network")
    assert out.count("\n| preresnet-8") == 2 * 4
    assert "preresnet-8, batch 8, dropout: 4 contenders, 13 images an epoch" in err
    found = json.loads(Path("a.json").read_text())
    assert [case["noise"] for case in found["cases"]] == ["none", "dropout"]
    case = found["cases"][0]
    names = [one["name"] for one in case["contenders"]]
    assert names == [
        "vshift auto + log", "vshift auto", "(a) plain float32 loop", "(b) bf16, channels_last",
    ]  # fmt: skip
    for one in case["contenders"]:
        assert len(one["seconds"]["values"]) == 2
        speed = case["images"] / one["seconds"]["values"][0]
        assert one["images_per_second"]["values"][0] == pytest.approx(speed)
        assert one["peak_memory"] is None
        assert 1.5 < one["loss"] < 4
    assert case["contenders"][0]["step"] in ("fused", "eager")
    assert [(r["contender"], r["to"]) for r in case["ratios"]] == [
        (ours, peer) for ours in names[:2] for peer in names[2:]
    ]
    (cost,) = case["logging"]
    on, off = (one["seconds"]["values"] for one in case["contenders"][:2])
    assert cost["overhead"]["values"] == pytest.approx(
        [a / b - 1 for a, b in zip(on, off, strict=True)]
    )
    (bound,) = case["bounds"]
    assert bound["peaks"] == "measured"
    assert bound["arithmetic"] == pytest.approx(found["device"]["flops"] / 6 / case["macs"])

    code, again, err = vshift("--table", "a.json")
    assert (code, err) == (0, "")
    assert out.rstrip() in again


def test_logging_may_be_on_or_off(vshift):
    code, out, _ = vshift(*SMALL, "--noise", "none", "--log", "off", "--quiet")
    assert code == 0
    assert out.count("\n| preresnet-8") == 1
    assert "logging costs" not in out


@pytest.mark.parametrize(("load", "warns"), [(1.75, True), (0.1, False), (None, False)])
def test_a_busy_machine_is_warned_of_and_kept(vshift, monkeypatch, load, warns):
    monkeypatch.setattr(bench.environment, "load_average", lambda: load)
    code, _, err = vshift(*SMALL, "--budget", "0", "--json", "a.json")
    assert code == 0
    assert ("other programs kept 1.8 cores busy" in err) is warns
    assert json.loads(Path("a.json").read_text())["device"]["load"] == load


def test_a_spent_budget_says_what_was_left_out(vshift):
    code, out, err = vshift(*SMALL, "--budget", "0", "--json", "a.json")
    assert code == 0
    assert "- preresnet-8, batch 8, no noise: no time was left" in out
    assert "left out" in err
    found = json.loads(Path("a.json").read_text())
    assert (found["cases"], len(found["not_raced"])) == ([], 2)


def test_a_contender_that_fails_does_not_end_the_bench(vshift, monkeypatch):
    build = bench.Training

    def broken(case, images, *, log, **options):
        if log:
            raise RuntimeError("out of luck\nand more")
        return build(case, images, log=log, **options)

    monkeypatch.setattr(bench, "Training", broken)
    code, out, err = vshift(*SMALL, "--noise", "none")
    assert code == 1
    assert "vshift auto + log: failed: RuntimeError: out of luck" in out
    assert out.count("\n| preresnet-8") == 1
    assert "error: 1 contenders failed: preresnet-8: vshift auto + log" in err


def test_what_is_done_is_kept_when_interrupted(vshift, monkeypatch):
    """All timings of the races that ended, and one of each contender of the one that did not."""
    race, calls = bench.race, []

    def stop(*words):
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        race(*words)

    monkeypatch.setattr(bench, "race", stop)
    code, out, err = vshift(*SMALL, "--json", "a.json")
    assert (code, out) == (130, "")
    assert "interrupted; what was timed until then is in a.json" in err
    cases = json.loads(Path("a.json").read_text())["cases"]
    assert [case["noise"] for case in cases] == ["none", "dropout"]
    timings = [[len(one["seconds"]["values"]) for one in case["contenders"]] for case in cases]
    assert timings == [[2, 2], [1, 1]]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--networks", "preresnt-20"], "did you mean `preresnet-20`?"),
        (["--kinds", "compield"], "--kinds compield: not known"),
        (["--peer", "air"], "--peer air: not known; allowed: plain, bf16, airbench"),
        (["--batch", "many"], "--batch many: comma-separated whole numbers"),
        (["--noise", "salt"], "--noise salt: not known"),
        (["--table", "missing.json"], "missing.json: cannot be read"),
    ],
)
def test_mistakes_are_explained(vshift, words, message):
    code, out, err = vshift(*words)
    assert (code, out) == (2, "")
    assert message in err
    assert "Traceback" not in err


def test_without_a_clone_it_says_where_the_benchmarks_are(vshift, monkeypatch, tmp_path):
    monkeypatch.setattr("vshift.__file__", str(tmp_path / "site-packages" / "vshift" / "x.py"))
    code, out, err = vshift("--help")
    assert code == 0
    code, out, err = vshift(*SMALL)
    assert (code, out) == (2, "")
    assert "come with vshift's repository, not with the installed package" in err
    assert "make bench" in err


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU; the refusal cannot happen")
def test_cuda_where_there_is_none(vshift):
    code, _, err = vshift(*SMALL, "--device", "cuda")
    assert code == 2
    assert "cuda is not available" in err


def test_a_forecast_leaves_out_what_would_take_too_long(monkeypatch):
    said = []
    reporter = Reporter(quiet=True)
    reporter.say = said.append
    monkeypatch.setattr(bench.Forecast, "seconds", lambda self, name, layers: 1e9 * ("log" in name))
    plan = Plan([Case("preresnet-8", 8, "none")], steps=2, repeats=1, budget=600, scale=0.05,
                device="cpu", threads=1)  # fmt: skip
    results = bench.bench(plan, reporter, lambda results: None)
    (case,) = results.cases
    assert [one.name for one in case.contenders] == ["vshift auto"]
    assert "its set-up takes about 1000000000 s, and 6" in case.left_out[0].reason
    assert not case.left_out[0].failed


@dataclass
class Sleeper:
    """A contender that takes its time to get ready."""

    seconds: float = 0.0

    def __post_init__(self):
        time.sleep(self.seconds)

    def epoch(self):
        return 2.0


def small_plan(**options):
    return Plan([Case("preresnet-8", 8, "none")], logs=[True], steps=2, repeats=2, scale=0.05,
                device="cpu", threads=1, **options)  # fmt: skip


@pytest.mark.parametrize(("seconds", "joins"), [(0.0, True), (60.0, False)])
def test_the_slowest_peer_comes_last_and_cannot_overrun_the_budget(monkeypatch, seconds, joins):
    made, saved = [], []

    def make(name, case, images):
        made.append((name, [len(results.cases) for results in saved]))
        return Sleeper(seconds if name == "airbench" else 0.0)

    def limit(seconds):
        limits.append(seconds)
        return time_limit(0.1 if seconds <= 600 else seconds)

    limits = []
    monkeypatch.setattr(bench, "make_peer", make)
    monkeypatch.setattr(bench, "time_limit", limit)
    plan = small_plan(peers=("airbench", "bf16"), budget=None if joins else 600)
    bench.bench(plan, Reporter(quiet=True), lambda results: saved.append(results.model_copy(
        update={"cases": list(results.cases)})))  # fmt: skip
    # Cheap ones first; each is saved when it is ready, then the race, before the slowest is made.
    assert made == [("bf16", []), ("airbench", [1, 1, 1])]
    assert [seconds < 600 for seconds in limits] == [False, False, not joins]
    first, (case,) = saved[2].cases[0], saved[-1].cases
    others = ["vshift auto + log", "(b) bf16, channels_last"]
    assert [one.name for one in saved[0].cases[0].contenders] == others[1:]
    assert [len(one.seconds.values) for one in saved[1].cases[0].contenders] == [1, 1]
    assert [one.name for one in first.contenders] == others
    assert first.left_out == []
    slow = ["(c) airbench-style"]
    assert [one.name for one in case.contenders] == others + (slow if joins else [])
    assert [one.contender for one in case.left_out] == ([] if joins else slow)
    assert all("its set-up was stopped after" in one.reason for one in case.left_out)
    assert not any(one.failed for one in case.left_out)
    assert all(len(one.seconds.values) == 2 for one in case.contenders)


def test_nothing_of_a_contender_outlives_its_case(monkeypatch):
    """Its context, and with it the graphs and pools that a captured step holds on a GPU."""
    alive = []
    build = bench.Training

    def watched(*words, **options):
        training = build(*words, **options)
        alive.extend(map(weakref.ref, (training, training.context, training._step)))
        return training

    monkeypatch.setattr(bench, "Training", watched)
    freed = []

    def free(device):
        gc.collect()
        freed.append([ref() for ref in alive])

    monkeypatch.setattr(bench, "_free_memory", free)
    bench.bench(small_plan(), Reporter(quiet=True), lambda results: None)
    assert freed == [[None] * 3]


def test_images_are_the_same_at_every_call_and_end_in_a_smaller_batch():
    images, again = (random_images(128, 4, CPU) for _ in range(2))
    assert len(images.train) % 128 == 80  # as CIFAR-10's 50,000
    assert torch.equal(images.train.images, again.train.images)
    assert images.train.images.shape[1:] == (32, 32, 3)


def test_training_is_what_vshift_train_does(tmp_path):
    """The same weights after an epoch as a run's, bit for bit."""
    from benchmarks.cases import make_config
    from vshift.runs import prepare as prepare_run
    from vshift.train.run import train_in

    case = Case("preresnet-8", 8, "dropout")
    images = random_images(case.batch, 3, CPU)
    ours = Training(case, images, log=True, kind="auto", threads=1)
    ours.epoch()
    config = make_config(case, hardware={"device": "cpu", "threads": 1})
    config = config.model_copy(update={"recalibration": config.recalibration.model_copy(
        update={"methods": []})})  # fmt: skip
    folder, _ = prepare_run(tmp_path, config, 0)
    train_in(folder, config, 0, images, Reporter(quiet=True))
    state = folder.load_checkpoint()["model"]
    folder.close()
    for name, tensor in ours.model.state_dict().items():
        assert torch.equal(tensor, state[name]), name


@pytest.mark.gpu
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_on_a_gpu_memory_and_clock_are_measured_and_memory_is_given_back():
    plan = Plan([Case("preresnet-20", 128, "dropout")], peers=("plain", "bf16"), steps=8,
                repeats=2, device="cuda", scale=0.25)  # fmt: skip
    held = []
    for _ in range(2):  # the libraries keep what they take at first
        results = bench.bench(plan, Reporter(quiet=True), lambda results: None)
        held.append(torch.cuda.memory_allocated())
    assert held[1] - held[0] < 2**20
    (case,) = results.cases
    assert not case.left_out
    assert len(case.contenders) == 4
    for one in case.contenders:
        assert one.peak_memory is not None
        assert 2**20 < one.peak_memory < 2**34
        assert one.loss is not None
    assert shutil.which("nvidia-smi") is None or (case.clock_mhz or 0) > 100
    assert 1e12 < results.device.flops < 5e15


@pytest.mark.gpu
def test_events_see_the_gpus_own_time():
    device = torch.device("cuda", torch.cuda.current_device())

    class Sleeper:
        def epoch(self):
            torch.cuda._sleep(200_000_000)  # cycles: at least 0.08 s; the host does not wait
            return 0.0

    ready = prepare("sleeper", Sleeper, device)
    from benchmarks.race import time_epoch

    time_epoch(ready, device)
    assert ready.seconds[0] > 0.05
