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


def pytest_of_gpu_tests(require):
    """`make gpu`'s own command, on one of its files."""
    words = [sys.executable, "-m", *gpu.tests(Path("nowhere")).words]
    others = [word for word in words if word.endswith(".py") and "test_stream" not in word]
    words = [word for word in words if word not in others and not word.startswith("--junitxml")]
    environment = {**WITHOUT, "VSHIFT_REQUIRE_GPU": require}
    return subprocess.run(
        [*words, "-p", "no:cacheprovider", "-rs"], cwd=ROOT, env=environment,
        capture_output=True, text=True, check=False,
    )  # fmt: skip


def test_gpu_tests_are_skipped_without_one_with_the_reason():
    done = pytest_of_gpu_tests("0")
    assert done.returncode == 0, done.stdout
    assert "no CUDA device: run `make gpu` on a machine with one" in done.stdout
    assert "passed" not in done.stdout


def test_gpu_tests_fail_where_a_gpu_is_required():
    done = pytest_of_gpu_tests("1")
    assert done.returncode == 1
    assert "VSHIFT_REQUIRE_GPU=1, and there is no CUDA device" in done.stdout
    assert "skipped" not in done.stdout


def test_every_file_with_gpu_tests_is_run():
    words = gpu.tests(Path("out")).words
    names = {Path(word).name for word in words if word.endswith(".py")}
    assert {"test_gpu.py", "test_bench.py", "test_stream.py"} <= names


def test_the_bench_gets_the_rest_of_the_time():
    words = gpu.bench(gpu.BENCH, Path("out"), 300.0).words
    assert words[words.index("--budget") + 1] == str(300 - gpu.MARGIN)
    assert "--peers" in words
    assert gpu.bench("", Path("out"), 1.0).words[-3] == "0"


def test_several_seeds_are_raced_with_words_that_the_race_knows(tmp_path):
    part = gpu.together(tmp_path)
    module, *words = part.words
    assert module == "benchmarks.together"
    given = together.parser().parse_args(words)
    assert given.json == tmp_path
    assert given.seconds < part.seconds
    assert make_cases(given.network.split(","), [int(given.batch)], [given.noise])


def test_what_a_command_prints_is_shown_and_kept(tmp_path, capsys):
    program = "import os; print('hello', os.environ['VSHIFT_REQUIRE_GPU'])"
    assert gpu.shown([sys.executable, "-c", program], tmp_path / "a.txt", 60) == 0
    assert (tmp_path / "a.txt").read_text() == "hello 1\n"
    assert "hello 1" in capsys.readouterr().err


def test_a_command_is_stopped_with_its_children_when_its_time_is_over(tmp_path):
    began = time.monotonic()
    code = gpu.shown(["sh", "-c", "echo begun; sleep 60 & sleep 60"], tmp_path / "a.txt", 1)
    assert code == -9
    assert time.monotonic() - began < 30
    assert (tmp_path / "a.txt").read_text() == "begun\n"


def test_a_part_that_fails_does_not_keep_the_others_from_running(tmp_path, monkeypatch, capsys):
    """The parts stand-ins that end at once: one well, one badly."""
    monkeypatch.setattr(gpu, "what_is_missing", lambda: None)
    monkeypatch.setattr(gpu, "tests", lambda out: gpu.Part("tests", ["no_such_module"], 60))
    monkeypatch.setattr(gpu, "study", lambda given: gpu.Part("study", ["platform", "runs"], 60))
    monkeypatch.setattr(gpu, "together", lambda out: gpu.Part("together", ["platform"], 60))
    monkeypatch.setattr(gpu, "compare", lambda runs, table: table.write_text("t") - 1)
    monkeypatch.setattr(gpu, "bench", lambda words, out, left: gpu.Part("bench", ["this"], left))
    monkeypatch.setattr(sys, "argv", ["gpu", "--out", str(tmp_path / "out")])
    assert gpu.main() == 1
    said = capsys.readouterr().err
    assert "make gpu: tests failed (1) after" in said
    assert "make gpu: study done after" in said
    assert f"make gpu: tests failed; see {tmp_path / 'out'}" in said
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == {"tests.txt", "study.txt", "study.md", "together.txt", "bench.txt"}


def test_the_study_trains_ones_own_images_where_they_are_given(tmp_path):
    given = argparse.Namespace(data_root=None, runs=tmp_path)
    assert "configs/demo" in gpu.study(given).words
    given.data_root = "images"
    words = gpu.study(given).words
    assert "configs/quick" in words
    assert words[words.index("--set") + 1] == "data.root=images"
    assert words[-1] == str(tmp_path)
