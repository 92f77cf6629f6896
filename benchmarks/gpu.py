"""`make gpu`: on a machine with a CUDA device, its tests, a short study and the bench, in minutes.

Each part is a process with a time limit, and leaves what it has done so far in one folder:
tests.txt and tests.log (each test as it ends), study.txt and study.md, together.txt and
together/<device>.json, bench.txt and <device>.json, airbench.txt and airbench/<device>.json.
Nothing is downloaded: the study trains on the embedded images, or on --data-root.
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
BENCH = "--networks preresnet-20,resnet-18 --noise none,dropout --steps 60 --repeats 3"
TOGETHER = "--network resnet-20,preresnet-110 --seeds 4 --steps 60 --repeats 3"
SECONDS = {"tests": 240, "study": 80, "together": 70, "bench": 60, "airbench": 70}  # at least
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
    options.add_argument("--parts", default=",".join(SECONDS), help="which, and in which order")
    given = options.parse_args()
    parts = given.parts.split(",")
    if unknown := set(parts) - set(SECONDS):
        options.error(f"--parts {','.join(sorted(unknown))}: allowed: {', '.join(SECONDS)}")
    problem = what_is_missing()
    if problem:
        print(f"make gpu: {problem}", file=sys.stderr)
        return 2
    given.out, given.runs = given.out.resolve(), given.runs.resolve()
    given.out.mkdir(parents=True, exist_ok=True)
    end = time.monotonic() + given.seconds
    ended = []
    for i, name in enumerate(parts):
        later = sum(SECONDS[other] for other in parts[i + 1 :])
        left = end - time.monotonic()
        seconds = max(SECONDS[name], left - later)
        ended.append(run(Part(name, PARTS[name](given, seconds), seconds), given.out))
    print("\n".join(["", *(f"make gpu: {one}" for one in ended)]), file=sys.stderr)
    print(f"make gpu: everything is in {given.out}", file=sys.stderr)
    return int(any(one.code for one in ended))


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


def tests(given: argparse.Namespace, seconds: float) -> list[str]:
    """The tests marked `gpu`, which fail without one; those of the benchmarks, the longest, last.

    Files without such tests stay unread: they may need packages that are not here.
    """
    files = [p for p in (ROOT / "tests").rglob("test_*.py") if "mark.gpu" in p.read_text("utf-8")]
    files.sort(key=lambda path: ("benchmarks" in path.parts[-2:], path))
    # No addopts and no complaint about unknown options: plugins may be missing.
    words = ["pytest", "-v", "-m", "gpu", "-o", "addopts=", "-W", "ignore::pytest.PytestWarning"]
    return [*words, *map(str, files)]


def study(given: argparse.Namespace, seconds: float) -> list[str]:
    """The demo's four runs, or with images of one's own the three of configs/quick."""
    words = ["vshift", "sweep", "configs/quick" if given.data_root else "configs/demo"]
    words += ["--set", f"data.root={given.data_root}"] if given.data_root else []
    words += ["--device", "cuda", "--jobs-per-gpu", "4", "--fresh"]
    return [*words, "--runs-dir", str(given.runs)]


def together(given: argparse.Namespace, seconds: float) -> list[str]:
    """Several seeds at once; the race that is running when the time is over is lost."""
    words = ["benchmarks.together", *TOGETHER.split(), "--device", "cuda"]
    return [*words, "--json", str(given.out), "--seconds", str(round(seconds / 2))]


def bench(given: argparse.Namespace, seconds: float) -> list[str]:
    """The bench against the peers that are ready within seconds."""
    words = ["vshift", "bench", *given.bench.split(), "--peer", "plain", "--peer", "bf16"]
    return [*words, *_within(seconds), "--json", str(given.out)]


def airbench(given: argparse.Namespace, seconds: float) -> list[str]:
    """The peer whose compiler may take minutes and cannot be stopped: last, in its own process."""
    (given.out / "airbench").mkdir(exist_ok=True)
    words = ["vshift", "bench", *given.bench.split(), "--log", "on", "--peer", "airbench"]
    return [*words, *_within(seconds), "--json", str(given.out / "airbench")]


PARTS = {
    "tests": tests,
    "study": study,
    "together": together,
    "bench": bench,
    "airbench": airbench,
}


def _within(seconds: float) -> list[str]:
    return ["--device", "cuda", "--budget", str(max(0, round(seconds - MARGIN)))]


@dataclass(frozen=True)
class Ended:
    """How a part ended, in a line with the last one that it printed."""

    name: str
    code: int
    seconds: float
    last_line: str

    def __str__(self) -> str:
        end = {0: "done", -signal.SIGKILL: "stopped, its time was over,"}
        how = end.get(self.code, f"failed ({self.code})")
        return f"{self.name} {how} after {self.seconds:.0f} s: {self.last_line}"


def run(part: Part, out: Path) -> Ended:
    """Run a part, show what it says and keep it."""
    began = time.monotonic()
    file = out / f"{part.name}.txt"
    code = shown([sys.executable, "-m", *part.words], file, part.seconds)
    if part.name == "study":  # what is done can be compared, however the sweep ended
        code = compare(Path(part.words[-1]), out / "study.md") or code
    lines = file.read_text("utf-8").strip().splitlines() or ["it printed nothing"]
    ended = Ended(part.name, code, time.monotonic() - began, lines[-1].strip())
    print(f"make gpu: {ended}", file=sys.stderr)
    return ended


def compare(runs: Path, table: Path) -> int:
    """The study's table."""
    command = [sys.executable, "-m", "vshift", "compare", str(runs), "--format", "md"]
    with table.open("w", encoding="utf-8") as file:
        return subprocess.run(
            command, stdout=file, env=environment(table.parent), check=False
        ).returncode


def shown(command: Sequence[str], file: Path, seconds: float) -> int:
    """Run a command, at most so long; what it prints goes to stderr and into a file."""
    process = subprocess.Popen(
        command,
        cwd=ROOT,
        env=environment(file.parent),
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
            line = "\n"
            for line in lines:
                kept.write(line)
                kept.flush()
                sys.stderr.write(line)
            if not line.endswith("\n"):  # it was stopped in the middle of one
                sys.stderr.write("\n")
        return process.wait()
    finally:
        timer.cancel()
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)


def environment(out: Path) -> dict[str, str]:
    """vshift from this folder before whatever is on the path, and tests that may not be skipped."""
    return {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")])),
        "PYTHONUNBUFFERED": "1",  # a killed part has said what it was doing
        "VSHIFT_REQUIRE_GPU": "1",
        "VSHIFT_TEST_LOG": str(out / "tests.log"),
    }


if __name__ == "__main__":
    sys.exit(main())
