"""`make gpu` where there is no GPU, and its parts."""

import argparse
import os
import subprocess
import sys
import time
from pathlib import Path

from benchmarks import gpu, together
from benchmarks.cases import make_cases

ROOT = Path(__file__).parents[2]
GIVEN = argparse.Namespace(out=Path("out"), runs=Path("runs"), data_root=None, bench=gpu.BENCH)
WITHOUT = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": str(ROOT)}


def test_without_a_gpu_it_says_so_and_fails(tmp_path):
    words = [sys.executable, "-m", "benchmarks.gpu", "--out", str(tmp_path / "out")]
    done = subprocess.run(words, cwd=ROOT, env=WITHOUT, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith("make gpu: no GPU at hand, nothing was run: cuda is not avail")
    assert done.stderr.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_a_python_without_the_packages_is_told_which(monkeypatch):
    monkeypatch.setattr(gpu, "NEEDED", ("torch", "no_such_package"))
    problem = gpu.what_is_missing()
    assert problem is not None
    assert "lacks no_such_package" in problem
    assert "make gpu GPU_PYTHON=" in problem


def pytest_of_gpu_tests(require, log):
    """`make gpu`'s own command, on one of its files."""
    words = [sys.executable, "-m", *gpu.tests(GIVEN, 60)]
    others = [word for word in words if word.endswith(".py") and "test_stream" not in word]
    words = [word for word in words if word not in others]
    environment = {**WITHOUT, "VSHIFT_REQUIRE_GPU": require, "VSHIFT_TEST_LOG": str(log)}
    return subprocess.run(
        [*words, "-p", "no:cacheprovider", "-rs"], cwd=ROOT, env=environment,
        capture_output=True, text=True, check=False,
    )  # fmt: skip


def test_gpu_tests_are_skipped_without_one_with_the_reason(tmp_path):
    done = pytest_of_gpu_tests("0", tmp_path / "tests.log")
    assert done.returncode == 0, done.stdout
    assert "no CUDA device: run `make gpu` on a machine with one" in done.stdout
    assert "passed" not in done.stdout


def test_gpu_tests_fail_where_a_gpu_is_required(tmp_path):
    """Each is in the log as soon as it has failed, with the reason."""
    done = pytest_of_gpu_tests("1", tmp_path / "tests.log")
    assert done.returncode == 1
    assert "VSHIFT_REQUIRE_GPU=1, and there is no CUDA device" in done.stdout
    assert "skipped" not in done.stdout
    first, reason, *_ = (tmp_path / "tests.log").read_text().splitlines()
    assert first.startswith("failed after 0.0 s: tests/data/test_stream.py::test_")
    assert reason == "VSHIFT_REQUIRE_GPU=1, and there is no CUDA device"


def test_every_file_with_gpu_tests_is_run():
    names = [Path(word).name for word in gpu.tests(GIVEN, 60) if word.endswith(".py")]
    assert {"test_gpu.py", "test_stream.py"} <= {*names}
    assert names[-2:] == ["test_bench.py", "test_together.py"]  # the longest


def test_the_bench_races_what_is_ready_soon_within_its_time():
    words = gpu.bench(GIVEN, 300)
    assert words[words.index("--budget") + 1] == str(300 - gpu.MARGIN)
    assert "airbench" not in words
    assert gpu.bench(GIVEN, 1)[gpu.bench(GIVEN, 1).index("--budget") + 1] == "0"


def test_the_peer_that_compiles_for_minutes_comes_last_in_its_own_process(tmp_path):
    words = gpu.airbench(argparse.Namespace(out=tmp_path, bench=gpu.BENCH), 100)
    assert words[words.index("--peer") + 1] == "airbench"
    assert list(gpu.PARTS)[-1] == "airbench"
    assert list(gpu.SECONDS) == list(gpu.PARTS)


def test_several_seeds_are_raced_with_words_that_the_race_knows():
    module, *words = gpu.together(GIVEN, 80)
    assert module == "benchmarks.together"
    given = together.parser().parse_args(words)
    assert given.json == Path("out")
    assert given.seconds < 80
    assert make_cases(given.network.split(","), [int(given.batch)], [given.noise])


def test_what_a_command_prints_is_shown_and_kept(tmp_path, capsys):
    program = "import os; print('hello', os.environ['VSHIFT_REQUIRE_GPU'])"
    assert gpu.shown([sys.executable, "-c", program], tmp_path / "a.txt", 60) == 0
    assert (tmp_path / "a.txt").read_text() == "hello 1\n"
    assert "hello 1" in capsys.readouterr().err


def test_packages_that_are_on_the_path_are_found(tmp_path, monkeypatch):
    """Wheels carried to a machine without a network; vshift itself comes from this folder."""
    (tmp_path / "carried.py").write_text("")
    (tmp_path / "vshift.py").write_text("1 / 0")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    program = "import carried, vshift"
    assert gpu.shown([sys.executable, "-c", program], tmp_path / "a.txt", 60) == 0
    monkeypatch.delenv("PYTHONPATH")
    assert gpu.environment(tmp_path)["PYTHONPATH"] == str(ROOT)


def test_a_command_is_stopped_with_its_children_when_its_time_is_over(tmp_path, capsys):
    """What is said next begins a line."""
    began = time.monotonic()
    words = ["sh", "-c", "echo begun; printf test_a; sleep 60 & sleep 60"]
    assert gpu.shown(words, tmp_path / "a.txt", 1) == -9
    assert time.monotonic() - began < 30
    assert (tmp_path / "a.txt").read_text() == "begun\ntest_a"
    assert capsys.readouterr().err == "begun\ntest_a\n"


def test_a_part_that_fails_does_not_keep_the_others_from_running(tmp_path, monkeypatch, capsys):
    """Stand-ins that end at once. Every part has a line at the end: how it ended, and why; a study
    that failed is compared all the same."""
    words = {
        "tests": ["no_such_module"],
        "study": ["no_such_sweep", "runs"],
        "together": ["platform"],
        "bench": ["this"],
    }
    monkeypatch.setattr(gpu, "what_is_missing", lambda: None)
    for name in words:
        monkeypatch.setitem(gpu.PARTS, name, lambda given, seconds, name=name: words[name])
    monkeypatch.setattr(gpu, "compare", lambda runs, table: table.write_text(f"{runs}") - 4)
    out = tmp_path / "out"
    monkeypatch.setattr(sys, "argv", ["gpu", "--out", str(out), "--parts", ",".join(words)])
    assert gpu.main() == 1
    *_, tests, study, together, bench, last = capsys.readouterr().err.splitlines()
    assert tests.startswith("make gpu: tests failed (1) after 0 s: ")
    assert tests.endswith("No module named no_such_module")
    assert study.endswith("No module named no_such_sweep")
    assert together.startswith("make gpu: together done after")
    assert bench.endswith(": Namespaces are one honking great idea -- let's do more of those!")
    assert last == f"make gpu: everything is in {out}"
    names = {path.name for path in out.iterdir()}
    assert names == {"tests.txt", "study.txt", "study.md", "together.txt", "bench.txt"}
    assert (out / "study.md").read_text() == "runs"


def test_the_study_trains_ones_own_images_where_they_are_given():
    assert "configs/demo" in gpu.study(GIVEN, 60)
    given = argparse.Namespace(data_root="images", runs=GIVEN.runs)
    words = gpu.study(given, 60)
    assert "configs/quick" in words
    assert words[words.index("--set") + 1] == "data.root=images"
    assert words[words.index("--jobs-per-gpu") + 1] == "4"
    assert words[-1] == str(GIVEN.runs)
