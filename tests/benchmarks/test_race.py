"""Turns, budgets and timings, with contenders and a clock of the test's own."""

import math
import time

import pytest
import torch

from benchmarks.race import (
    Budget,
    Forecast,
    OutOfTime,
    Ready,
    order,
    prepare,
    race,
    time_limit,
)

CPU = torch.device("cpu")


class Fake:
    def __init__(self, name, calls, seconds=0.0):
        self.name, self.calls, self.seconds = name, calls, seconds

    def epoch(self):
        self.calls.append(self.name)
        time.sleep(self.seconds)
        return float(len(self.calls))


def test_turns_go_forwards_and_backwards():
    assert [order(3, repeat) for repeat in range(3)] == [[0, 1, 2], [2, 1, 0], [0, 1, 2]]


def test_a_race_times_every_contender_once_a_repeat():
    calls, said = [], []
    ready = [Ready(name, Fake(name, calls), 0.0) for name in "abc"]
    race(ready, 3, CPU, Budget(None), said.append)
    assert "".join(calls) == "abccbaabc"
    assert said == [1, 2, 3]
    assert [len(one.seconds) for one in ready] == [3, 3, 3]
    assert [one.loss for one in ready] == [7.0, 8.0, 9.0]


def test_the_time_of_an_epoch_is_its_own():
    calls = []
    ready = [Ready("slow", Fake("slow", calls, 0.05), 0.0), Ready("fast", Fake("fast", calls), 0.0)]
    race(ready, 2, CPU, Budget(None))
    assert min(ready[0].seconds) >= 0.05
    assert max(ready[1].seconds) < 0.05


def test_a_spent_budget_leaves_one_repeat():
    calls = []
    race([Ready("a", Fake("a", calls), 0.0)], 5, CPU, Budget(0))
    assert calls == ["a"]


def test_the_warm_up_is_an_epoch_that_is_not_timed():
    calls = []
    ready = prepare("a", lambda: Fake("a", calls, 0.01), CPU)
    assert calls == ["a"]
    assert ready.seconds == []
    assert ready.setup_seconds >= 0.01
    assert ready.peak_memory is None


def test_memory_is_what_it_keeps_and_what_an_epoch_takes_or_what_its_graphs_reserve():
    ready = Ready("a", Fake("a", []), 0.0, held=10, reserved=25, transient=5)
    assert ready.peak_memory == 25
    ready.transient = 20
    assert ready.peak_memory == 30


def test_a_budget_is_shared_out():
    clock = [0.0]
    budget = Budget(90, lambda: clock[0])
    share = budget.share(3)
    clock[0] = 10
    assert (budget.left(), share.left()) == (80, 20)
    assert budget.share(2).left() == 40
    assert math.isinf(Budget(None).share(3).left())


def test_a_forecast_grows_with_the_layers():
    forecast = Forecast()
    assert forecast.seconds("a", 50) == 0
    forecast.note("a", 20, 10.0)
    forecast.note("a", 40, 10.0)
    assert forecast.seconds("a", 100) == pytest.approx(50)


def test_a_time_limit_ends_what_it_limits_and_nothing_after_it():
    with pytest.raises(OutOfTime), time_limit(0.02):
        time.sleep(5)
    with time_limit(0.02):
        pass
    with time_limit(math.inf):
        time.sleep(0.04)
