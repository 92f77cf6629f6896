"""What measuring more sites costs in training, over measuring BN layers alone.

    python -m benchmarks.sites [--network preresnet-20] [--batch 128] [--steps 4] [--pairs 9]

In pairs: some steps with `measure.sites: bn`, the same number with more sites, in turns, on one
thread. The time is the process's own on the processor, so that a busy machine adds little to it.
Printed are the median and the range of the pairs' extra time in percent.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch

from benchmarks.cases import Case, make_config
from benchmarks.environment import cpu_name
from benchmarks.training import random_images
from vshift.config.schema import Config, Hardware
from vshift.train.context import TrainingContext
from vshift.train.device import configure
from vshift.train.fast_steps import make_train_step

NORMS: dict[str, dict[str, Any]] = {
    "batch norm": {"kind": "batch"},
    "group norm": {"kind": "group", "groups": 4},
}


def config_of(case: Case, norm: str, sites: str) -> Config:
    """A case with one of NORMS, which measures these sites."""
    values = make_config(case, kind="auto", hardware={"device": "cpu", "threads": 1}).model_dump()
    return Config.model_validate({**values, "norm": NORMS[norm], "measure": {"sites": sites}})


class Contender:
    """Trains the same steps again and again, and times them."""

    def __init__(self, config: Config, steps: int) -> None:
        images = random_images(config.data.batch_size, steps, torch.device("cpu"))
        self.context = TrainingContext(config, 0, images)
        self.context.model.train()
        self.step = make_train_step("auto", self.context, print)

    def seconds(self) -> float:
        """An epoch's time on the processor."""
        began = time.process_time()
        for _ in self.step.epoch(0, [0.01] * self.context.stream.steps):
            pass
        return time.process_time() - began


def costs(make: Callable[[str], Contender], sites: str, pairs: int) -> Iterator[float]:
    """The extra time of these sites over BN's, pair by pair, the order changing in turns."""
    contenders = [make("bn"), make(sites)]
    for contender in contenders:
        contender.seconds()  # warm up
    for pair in range(pairs):
        order = contenders if pair % 2 else contenders[::-1]
        times = {id(contender): contender.seconds() for contender in order}
        yield times[id(contenders[1])] / times[id(contenders[0])] - 1


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--network", default="preresnet-20")
    parser.add_argument("--noise", default="dropout")
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--pairs", type=int, default=9)
    asked = parser.parse_args()
    configure(Hardware(threads=1), torch.device("cpu"))
    case = Case(asked.network, asked.batch, asked.noise)
    print(f"{case}, {cpu_name()}, one thread, {asked.steps} steps per timing")
    for norm, sites in (
        ("batch norm", "logits"),
        ("batch norm", "activations"),
        ("batch norm", "all"),
        ("group norm", "norms"),
    ):
        found = list(
            costs(
                lambda word, norm=norm: Contender(config_of(case, norm, word), asked.steps),  # type: ignore[misc]
                sites,
                asked.pairs,
            )
        )
        low, middle, high = (100 * f(found) for f in (min, statistics.median, max))
        print(
            f"{norm}, {sites}: {middle:+.1f} % ({low:+.1f} to {high:+.1f}, n = {len(found)})",
            flush=True,
        )


if __name__ == "__main__":
    main()
