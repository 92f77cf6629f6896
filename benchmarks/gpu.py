"""`make gpu`: on a machine with a CUDA device, its tests, a short study and the bench, in minutes.

Everything is left in one folder: tests.txt and tests.xml, study.txt and study.md, bench.txt and
<device>.json, together.txt and together/<device>.json. Nothing is downloaded: the study trains on
the embedded images, or on --data-root.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from threading import Timer

ROOT = Path(__file__).resolve().parents[1]
NEEDED = (
    *("torch", "torchvision", "typer", "yaml", "rich", "pandas", "pydantic", "safetensors"),
    *("scipy", "platformdirs", "pytest"),
)
BENCH = "--networks resnet-18,resnet-20,paper --noise none --steps 60 --repeats 3 --peers"
TOGETHER = "--network resnet-20,preresnet-110 --seeds 4 --steps 60 --repeats 3"
TESTS_SECONDS, STUDY_SECONDS, TOGETHER_SECONDS = 200, 100, 80
MARGIN = 45  # seconds; for what the bench has started when its budget ends


@dataclass(frozen=True)
class Part:
    """One command: its words after `python -m`, and its time limit."""

    name: str
    words: Sequence[str]
    seconds: float


def main() -> int:
    """0: all went well; 1: a part failed; 2: nothing could be run here."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--out", type=Path, required=True, help="folder for the results")
    options.add_argument("--runs", type=Path, default=Path("runs/gpu"), help="the study's runs")
    options.add_argument("--data-root", help="images in folders, for the study")
    options.add_argument("--seconds", type=float, default=540, help="for everything")
    options.add_argument("--bench", default=BENCH, help="words for vshift bench")
    given = options.parse_args()
    problem = what_is_missing()
    if problem:
        print(f"make gpu: {problem}", file=sys.stderr)
        return 2
    given.out, given.runs = given.out.resolve(), given.runs.resolve()
    given.out.mkdir(parents=True, exist_ok=True)
    end = time.monotonic() + given.seconds
    parts = tests(given.out), study(given), together(given.out)
    failed = [part.name for part in parts if not run(part, given.out)]
    left = end - time.monotonic()
    if not run(bench(given.bench, given.out, left), given.out):
        failed.append("bench")
    print(f"make gpu: {' and '.join(failed) or 'nothing'} failed; see {given.out}", file=sys.stderr)
    return int(bool(failed))


def what_is_missing() -> str | None:
    """Why nothing can be run with this Python; None if all is well."""
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        return (
            f"{sys.executable} lacks {', '.join(missing)}; run `make setup`, or name a Python that "
            "has them: make gpu GPU_PYTHON=…"
        )
    from vshift.errors import ConfigError
    from vshift.train.device import choose_device

    try:
        choose_device("cuda")
    except ConfigError as error:
        reason = str(error).removeprefix("hardware.device: ").split(";")[0]
        return f"no GPU at hand, nothing was run: {reason}"
    return None


def tests(out: Path) -> Part:
    """The tests marked `gpu`, which fail without one. Files without such tests stay unread: they
    may need packages that are not here."""
    files = sorted(
        p for p in (ROOT / "tests").rglob("test_*.py") if "mark.gpu" in p.read_text("utf-8")
    )
    # No addopts and no complaint about unknown options: plugins may be missing.
    words = ["pytest", "-q", "-m", "gpu", "-o", "addopts=", "-W", "ignore::pytest.PytestWarning"]
    words += [f"--junitxml={out / 'tests.xml'}", *map(str, files)]
    return Part("tests", words, TESTS_SECONDS)


def study(given: argparse.Namespace) -> Part:
    """The demo's four runs, or with images of one's own the three of configs/quick."""
    words = ["vshift", "sweep", "configs/quick" if given.data_root else "configs/demo"]
    words += ["--set", f"data.root={given.data_root}"] if given.data_root else []
    words += ["--device", "cuda", "--jobs", "4", "--fresh", "--runs-dir", str(given.runs)]
    return Part("study", words, STUDY_SECONDS)


def together(out: Path) -> Part:
    """Several seeds at once; the race that is running when the time is over is lost."""
    words = ["benchmarks.together", *TOGETHER.split(), "--device", "cuda", "--json", str(out)]
    return Part("together", [*words, "--seconds", str(TOGETHER_SECONDS // 2)], TOGETHER_SECONDS)


def bench(words: str, out: Path, left: float) -> Part:
    """The bench with what is left of the time."""
    more = ["--device", "cuda", "--budget", str(max(0, round(left - MARGIN)))]
    return Part("bench", ["vshift", "bench", *words.split(), *more, "--json", str(out)], left)


def run(part: Part, out: Path) -> bool:
    """Run a part, show what it says and keep it; whether it went well."""
    began = time.monotonic()
    code = shown([sys.executable, "-m", *part.words], out / f"{part.name}.txt", part.seconds)
    if part.name == "study" and code == 0:
        code = compare(Path(part.words[-1]), out / "study.md")
    took = time.monotonic() - began
    end = {0: "done", -signal.SIGKILL: "stopped, its time was over"}.get(code, f"failed ({code})")
    print(f"make gpu: {part.name} {end} after {took:.0f} s", file=sys.stderr)
    return code == 0


def compare(runs: Path, table: Path) -> int:
    """The study's table."""
    command = [sys.executable, "-m", "vshift", "compare", str(runs), "--format", "md"]
    with table.open("w", encoding="utf-8") as file:
        return subprocess.run(command, stdout=file, env=environment(), check=False).returncode


def shown(command: Sequence[str], file: Path, seconds: float) -> int:
    """Run a command, at most so long; what it prints goes to stderr and into a file."""
    process = subprocess.Popen(
        command,
        cwd=ROOT,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        encoding="utf-8",
        errors="replace",
        start_new_session=True,  # its workers are stopped with it
    )
    timer = Timer(max(1, seconds), lambda: os.killpg(process.pid, signal.SIGKILL))
    timer.start()
    try:
        assert process.stdout is not None
        with file.open("w", encoding="utf-8") as kept, process.stdout as lines:
            for line in lines:
                kept.write(line)
                sys.stderr.write(line)
        return process.wait()
    finally:
        timer.cancel()
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)


def environment() -> dict[str, str]:
    """vshift from this folder, and tests that may not be skipped."""
    return {**os.environ, "PYTHONPATH": str(ROOT), "VSHIFT_REQUIRE_GPU": "1"}


if __name__ == "__main__":
    sys.exit(main())
