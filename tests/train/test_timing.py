"""The stopwatch's phases, and what a run writes and says of them."""

import json

import pytest

from tests.configs import make_config
from vshift.data import load
from vshift.errors import Interrupted
from vshift.train import timing as module
from vshift.train.progress import Reporter
from vshift.train.run import train_one
from vshift.train.timing import Timing


@pytest.fixture
def clock(monkeypatch):
    """Sets the time that a stopwatch reads."""
    now = [100.0]
    monkeypatch.setattr(module.time, "perf_counter", lambda: now[0])

    def at(seconds):
        now[0] = seconds

    return at


def test_phases_are_the_whole_time(clock):
    watch = Timing(since=97.0)
    for seconds, phase in ((101, "steps"), (105, "test"), (106, "write"), (108, "steps")):
        clock(seconds)
        watch.enter(phase)
    clock(112)
    row = watch.row().to_dict()
    assert row == {
        "start": 4, "steps": 8, "test": 1, "measure": 0, "recalibrate": 0, "write": 2,
        "steps_share": pytest.approx(100 * 8 / 15),
    }  # fmt: skip
    clock(115)  # asking ends nothing: the present phase goes on
    assert watch.row().steps == 11


def test_earlier_attempts_are_added(clock):
    watch = Timing()
    clock(110)
    row = watch.row({"start": 5.0, "steps": 15.0, "write": "damaged"})
    assert (row.start, row.steps, row.write, row.steps_share) == (15, 15, 0, 50)
    assert watch.row("damaged").start == 10


class Lines(Reporter):
    def __init__(self):
        super().__init__()
        self.lines = []

    def say(self, text):
        self.lines.append(text)


def test_a_run_says_where_its_time_went(tmp_path):
    """The phases of both attempts at an interrupted run are added; the last line has the share."""
    config = make_config(epochs=2)
    images = load(config.data, "cpu")
    reporter = Lines()

    def stop_after_an_epoch(row, layers):
        raise KeyboardInterrupt

    reporter.epoch = stop_after_an_epoch
    with pytest.raises(Interrupted):
        train_one(config, 0, images, tmp_path, False, reporter)
    path = tmp_path / config.name / "seed-0" / "run.json"
    first = json.loads(path.read_text())["timing"]
    assert first["steps"] > 0
    assert first["recalibrate"] == 0

    reporter = Lines()
    train_one(config, 0, images, tmp_path, False, reporter)
    run = json.loads(path.read_text())
    both = run["timing"]
    phases = both.keys() - {"steps_share"}
    assert all(both[phase] > first[phase] for phase in phases)
    total = sum(both[phase] for phase in phases)
    assert both["steps_share"] == pytest.approx(100 * both["steps"] / total)
    # `seconds` leaves out what comes before the folder is made, and nothing else.
    assert total == pytest.approx(run["seconds"], rel=0.1)
    assert reporter.lines[-1].endswith(" % of it training steps")
