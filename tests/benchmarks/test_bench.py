"""`vshift bench` from the command line, with a network and steps as small as they get."""

import gc
import json
import os
import shutil
import subprocess
import sys
import time
import weakref
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest
import torch

from benchmarks import bench, environment, training
from benchmarks.bench import Plan
from benchmarks.cases import Case
from benchmarks.environment import CAPS
from benchmarks.race import prepare, time_limit
from benchmarks.training import Training, random_images
from vshift.train.progress import Reporter

CPU = torch.device("cpu")
SMALL = ["--networks", "preresnet-8", "--batch", "8", "--steps", "2", "--repeats", "2"]
SMALL += ["--threads", "1", "--device", "cpu", "--force"]


@pytest.fixture
def vshift(vshift, monkeypatch):
    """`vshift bench`, with a quick look at what the machine can do."""
    peaks = bench.measure_peaks
    monkeypatch.setattr(bench, "measure_peaks", lambda device, scale: peaks(device, 0.05))
    return partial(vshift, "bench")


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_bench_with_peers_from_start_to_table(vshift, monkeypatch):
    monkeypatch.setattr(bench, "best_precision", lambda case, images: "bf16")
    code, out, err = vshift(*SMALL, "--peer", "plain", "--peer", "bf16", "--json", "a.json")
    assert code == 0, err
    assert out.startswith("| network")
    assert out.count("\n| preresnet-8") == 2 * 5
    assert "preresnet-8, batch 8, dropout: 5 contenders, 13 images an epoch" in err
    found = json.loads(Path("a.json").read_text())
    assert [case["noise"] for case in found["cases"]] == ["none", "dropout"]
    case = found["cases"][0]
    names = [one["name"] for one in case["contenders"]]
    assert names == [
        "vshift auto + log", "vshift auto", "(a) plain float32 loop", "(a) plain bf16 loop",
        "(b) bf16, channels_last",
    ]  # fmt: skip
    precisions = [one["precision"] for one in case["contenders"]]
    assert precisions == ["bf16", "bf16", "float32", "bf16", "bf16"]
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


@pytest.mark.parametrize(("load", "busy"), [(1.75, True), (0.1, False), (None, False)])
def test_a_busy_machine_is_refused_unless_forced(vshift, monkeypatch, load, busy):
    monkeypatch.setattr(bench.environment, "busy_cores", lambda: load)
    code, _, err = vshift(*SMALL, "--budget", "0", "--json", "a.json")
    assert code == 0
    assert ("other programs keep 1.8 cores busy" in err) is busy
    assert json.loads(Path("a.json").read_text())["device"]["load"] == load
    Path("a.json").unlink()
    unforced = [word for word in SMALL if word != "--force"]
    code, _, err = vshift(*unforced, "--budget", "0", "--json", "a.json")
    assert code == (2 if busy else 0)
    assert Path("a.json").exists() is not busy
    assert ("close them, or add --force" in err) is busy


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


def test_every_peer_joins_in_the_faster_precision_too(monkeypatch):
    monkeypatch.setattr(bench, "best_precision", lambda case, images: "float32")
    monkeypatch.setattr(bench, "make_peer", lambda *words: Sleeper())
    plan = small_plan(peers=("plain", "bf16", "airbench"), kinds=("auto", "float32-eager"))
    (case,) = bench.bench(plan, Reporter(quiet=True), lambda results: None).cases
    rivals = [
        "vshift float32-eager + log", "(a) plain float32 loop", "(b) bf16, channels_last",
        "(b) float32, channels_last", "(c) airbench-style, bf16", "(c) airbench-style, float32",
    ]  # fmt: skip
    ours, *others = case.contenders
    assert [one.name for one in others] == rivals
    assert (ours.precision, others[0].precision, others[0].step) == ("bf16", "float32", "eager")
    assert [(ratio.contender, ratio.to) for ratio in case.ratios] == [
        ("vshift auto + log", rival) for rival in rivals
    ]
    plan = small_plan(peers=("plain", "bf16", "airbench"), best_only=True)
    (case,) = bench.bench(plan, Reporter(quiet=True), lambda results: None).cases
    assert [one.name for one in case.contenders[1:]] == [
        "(a) plain float32 loop", "(b) float32, channels_last", "(c) airbench-style, float32",
    ]  # fmt: skip


def test_a_bench_is_resumed_where_its_file_ends(vshift, monkeypatch):
    words = [*SMALL, "--log", "on", "--json", "a.json", "--resume"]
    assert vshift(*words, "--noise", "none")[0] == 0
    first = json.loads(Path("a.json").read_text())["cases"]
    code, _, err = vshift(*words, "--noise", "none,dropout")
    assert code == 0
    assert "preresnet-8, batch 8, no noise: is in the file" in err
    cases = json.loads(Path("a.json").read_text())["cases"]
    assert cases[:1] == first
    assert [case["noise"] for case in cases] == ["none", "dropout"]
    vshift(*words, "--noise", "none", "--repeats", "3")  # raced again, in its place
    cases = json.loads(Path("a.json").read_text())["cases"]
    assert [len(case["contenders"][0]["seconds"]["values"]) for case in cases] == [3, 2]
    code, _, err = vshift(*words, "--steps", "3")
    assert code == 2
    assert "--resume: the file is of other steps: 2, not 3" in err
    assert vshift(*SMALL, "--resume")[0] == 2


def test_each_instruction_set_has_a_process_and_a_file_of_its_own(vshift, monkeypatch, tmp_path):
    started = []

    def run(command, env, check):
        name = next(n for n, cap in CAPS.items() if cap.items() <= env.items())
        started.append((name, command[1:]))
        return subprocess.CompletedProcess(command, 0)

    monkeypatch.setattr(bench.subprocess, "run", run)
    monkeypatch.setattr(bench.environment, "_cpuinfo", lambda: "flags : sse avx2 avx512f\n")
    assert vshift(*SMALL, "--isa", "native,avx512,avx2", "--json", tmp_path)[0] == 0
    words = ["-m", "vshift", "bench", *SMALL, "--json", str(tmp_path)]
    assert started == [(name, words) for name in ("native", "avx512", "avx2")]
    for wrong, message in [
        ("avx512_bf16", "this processor does not have these instructions"),
        ("amx", "--isa amx: not known"),
    ]:
        code, _, err = vshift(*SMALL, f"--isa={wrong}")
        assert code == 2
        assert message in err
    code, _, err = vshift(*SMALL, "--isa", "native,avx2", "--json", "a.json")
    assert code == 2
    assert "a folder: a file for each of them" in err


def test_a_capped_process_says_so(tmp_path):
    """PyTorch, oneDNN and the kernels' compiler all leave wider instructions alone."""
    if not environment.has_isa("avx2"):
        pytest.fail("a processor without AVX2 cannot run these tests")
    code = (
        "import torch; from benchmarks import environment; from vshift.kernels import build\n"
        "print(environment.isa(), torch.backends.cpu.get_cpu_capability(), build._native_flag())\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, **CAPS["avx2"]}, capture_output=True,
        text=True, check=True, cwd=Path(bench.__file__).parents[1],
    )  # fmt: skip
    assert done.stdout == "avx2 AVX2 ['-march=x86-64-v3']\n"
    assert environment.isa() == "native"


def test_a_whole_command_is_timed_with_what_the_run_records(vshift):
    Path("mine.yaml").write_text(
        "name: mine\ndata: {name: shapes, train: 64, test: 20, batch_size: 32}\n"
        "network: {name: mlp, widths: [8]}\nepochs: 1\n"
    )
    code, out, err = vshift(
        *SMALL, "--noise", "none", "--log", "on", "--whole", "mine.yaml", "--json", "a.json"
    )
    assert code == 0, err
    (command,) = json.loads(Path("a.json").read_text())["commands"]
    assert (command["name"], command["precision"]) == ("mine.yaml", "bf16")
    assert len(command["seconds"]["values"]) == len(command["steps_share"]["values"]) == 2
    for whole, start, share in zip(
        *(command[key]["values"] for key in ("seconds", "start", "steps_share")), strict=True
    ):
        assert 0 < start < whole
        assert 0 < share < 100
    assert "| mine.yaml | bf16, fused |" in out
    Path("mine.yaml").write_text("name: mine\n")
    assert vshift(*SMALL, "--budget", "0", "--whole", "mine.yaml")[0] == 0  # not started


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
                device="cpu", threads=1, force=True)  # fmt: skip
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
                device="cpu", threads=1, force=True, **options)  # fmt: skip


@pytest.mark.parametrize(("seconds", "joins"), [(0.0, True), (60.0, False)])
def test_the_slowest_peer_comes_last_and_cannot_overrun_the_budget(monkeypatch, seconds, joins):
    made, saved = [], []

    def make(name, case, images, precision):
        made.append((name, [len(results.cases) for results in saved]))
        return Sleeper(seconds if name == "airbench" else 0.0)

    def limit(seconds):
        limits.append(seconds)
        return time_limit(0.1 if seconds <= 600 else seconds)

    limits = []
    monkeypatch.setattr(bench, "make_peer", make)
    monkeypatch.setattr(bench, "best_precision", lambda case, images: "bf16")
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
    slow = ["(c) airbench-style, bf16"]
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


def test_the_process_is_set_up_as_vshift_train_does(monkeypatch):
    """Threads, freed memory and cuDNN's search, wherever a contender is built."""
    given = []
    monkeypatch.setattr(
        training, "configure", lambda hardware, device: given.append((hardware.threads, device))
    )
    case = Case("preresnet-8", 8, "none")
    Training(case, random_images(8, 1, CPU), log=False, kind="eager", threads=1)
    assert given == [(1, CPU)]


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
