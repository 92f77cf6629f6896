"""Several seeds of one config at once: which way trains the most images a second?

    python -m benchmarks.together --network resnet-20 --seeds 1,2,4,8 --json benchmarks/results

One after the other is what `vshift train` does with a config's seeds. Against it race, each with
every layer's variance logged:

| contender | is |
|---|---|
| processes | a process for each seed: `vshift sweep --jobs-per-gpu N`, on a CPU `--jobs N` |
| streams | one process, a captured step for each seed, on CUDA streams of their own |
| stacked | one process, one step for all: `stack.py` |

`ways.py` has them.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks import environment
from benchmarks.cases import make_cases, numbers, words
from benchmarks.race import Budget, Ready, failure_line, prepare, race
from benchmarks.render import render_together
from benchmarks.results import IN_TURN, Series, paired, slug
from benchmarks.ways import CONTENDERS, Processes, Work, say
from vshift.config.schema import Hardware
from vshift.errors import VShiftError
from vshift.runs.files import write_named
from vshift.runs.folder import now
from vshift.runs.prepare import git_commit
from vshift.train.device import choose_device, configure


def race_together(work: Work, repeats: int, budget: Budget) -> dict[str, Any]:
    """Race all contenders; one that cannot be had here is left out with its reason."""
    ready: list[Ready] = []
    left_out: dict[str, str] = {}
    for name, make in CONTENDERS.items():
        if name == "streams" and work.device.type != "cuda":
            left_out[name] = "streams are CUDA's"
            continue
        try:
            ready.append(prepare(name, lambda make=make: make(work), work.device))  # type: ignore[misc]
        except Exception as error:  # a contender that fails must not end the race; it is reported
            left_out[name] = failure_line(error)
    try:
        race(ready, repeats, work.device, budget)
    finally:
        for one in ready:
            if isinstance(one.runner, Processes):
                one.runner.close()
    images = work.count * len(work.images().train)
    alone = next(one for one in ready if one.name == IN_TURN)
    rows = []
    for one in ready:
        speed = Series.of([images / seconds for seconds in one.seconds])
        gain = paired(Series.of(alone.seconds), Series.of(one.seconds))
        rows.append(
            {
                "name": one.name,
                "step": getattr(one.runner, "step", None),
                "loss": one.loss,
                "images_per_second": speed.model_dump(),
                "gain": gain.model_dump(),
            }
        )
    return {
        **asdict(work.case),
        "seeds": work.count,
        "contenders": rows,
        "left_out": left_out,
    }


def parser() -> argparse.ArgumentParser:
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    options.add_argument("--network", default="resnet-20", help="one or more, comma-separated")
    options.add_argument("--seeds", default="2,4", help="how many at once, comma-separated")
    options.add_argument("--noise", default="none", help="none, dropout, gaussian, uniform")
    options.add_argument("--batch", default="128")
    options.add_argument("--steps", type=int, default=60, help="of an epoch")
    options.add_argument("--repeats", type=int, default=3)
    options.add_argument("--device", default="auto", choices=("auto", "cpu", "cuda"))
    options.add_argument("--threads", type=int, help="CPU threads of all together")
    options.add_argument("--seconds", type=float, help="after which nothing new is started")
    options.add_argument("--json", type=Path, help="folder for together/<device>.json")
    return options


def main() -> int:
    try:
        found = measured(parser().parse_args())
    except VShiftError as error:
        print(f"together: {error}", file=sys.stderr)
        return error.exit_code
    print(render_together(found), end="")
    return 0


def measured(given: argparse.Namespace) -> dict[str, Any]:
    """Race every case that the command line asks for; with `--json` each is saved at once."""
    device = choose_device(given.device)
    configure(Hardware(threads=given.threads), device)
    budget = Budget(given.seconds)
    load = environment.busy_cores()
    info = environment.describe_device(device, environment.measure_peaks(device, 0.1), load)
    cases = make_cases(words(given.network), numbers("--batch", given.batch), words(given.noise))
    found: dict[str, Any] = {
        "created": now(),
        "device": info.model_dump(exclude={"flops", "flops_precision", "bytes_per_second", "isa"}),
        "versions": environment.all_versions(),
        "git": git_commit(),
        "steps": given.steps,
        "cases": [],
    }
    for case in cases:
        for count in numbers("--seeds", given.seeds):
            if budget.left() <= 0:
                say(f"{case}, {count} seeds: left out, no time is left")
                continue
            say(f"{case}, {count} seeds")
            work = Work(case, count, given.steps, device, info.threads)
            found["cases"].append(race_together(work, given.repeats, budget))
            if given.json:
                path = given.json / "together" / f"{slug(info)}.json"
                write_named(path, "--json", f"{json.dumps(found, indent=1)}\n".encode())
    return found


if __name__ == "__main__":
    sys.exit(main())
