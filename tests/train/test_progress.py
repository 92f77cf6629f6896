"""What a person sees: a bar on a terminal, one plain line an epoch elsewhere."""

import io

from rich.console import Console

from vshift.runs.schema import EpochRow
from vshift.train.progress import Reporter

ROW = EpochRow(
    epoch=3,
    step=15,
    learning_rate=0.1,
    train_loss=1.25,
    train_accuracy=50.0,
    test_loss=None,
    test_accuracy=None,
    seconds=1.0,
    images_per_second=1234.5,
)


def reporter(terminal, quiet=False):
    made = Reporter(quiet)
    made.console = Console(
        file=io.StringIO(), force_terminal=terminal, highlight=False, soft_wrap=True, width=80
    )
    return made


def shown(made, **layers):
    made.start("run [red]x[/red] seed 0", 0, 12, 5)
    made.step(1)
    made.epoch(ROW, {"shift_ratio_mean": 1.2345, **layers})
    made.stop()
    return made.console.file.getvalue()


def test_a_log_file_gets_one_plain_line_an_epoch():
    text = shown(reporter(terminal=False))
    assert text == (
        "run [red]x[/red] seed 0  epoch  3/12  loss 1.250  train 50.00 %  test – %  shift 1.23\n"
    )


def test_the_speed_is_shown_where_80_columns_hold_it():
    made = reporter(terminal=False)
    made.start("a seed 0", 0, 1, 5)
    made.epoch(ROW, {})
    made.start("a-much-longer-name seed 0", 0, 1, 5)
    made.epoch(ROW, {})
    first, second = made.console.file.getvalue().splitlines()
    assert first.endswith("test – %  1234 images/s")
    assert second.endswith("test – %")
    assert len(first) <= 80


def test_lag_that_looks_like_shift_is_called_lag():
    lagging = {"shift_ratio_cause": "lag", "lag_free_ratio_mean": 1.0154}
    assert shown(reporter(terminal=False), **lagging).endswith("  shift 1.23 (lag; 1.02 without)\n")
    lagging["shift_ratio_cause"] = "shift"
    assert "lag" not in shown(reporter(terminal=False), **lagging)
    hidden = {"shift_ratio_cause": "lag", "lag_free_ratio_mean": 3.785}
    assert shown(reporter(terminal=False), **hidden).endswith("  shift 1.23\n")


def test_one_batch_tells_no_cause():
    made = reporter(terminal=False)
    made.start("run seed 0", 0, 12, 1, one_batch=True)
    made.epoch(ROW, {"shift_ratio_mean": 8.811, "lag_free_ratio_mean": 1.326})
    made.epoch(ROW, {"shift_ratio_mean": 8.811, "lag_free_ratio_mean": None})
    first, second = made.console.file.getvalue().splitlines()
    assert first.endswith("  shift 8.81 (cause unknown: one batch)")
    assert second.endswith("  shift 8.81")


def test_a_terminal_gets_a_bar_and_the_same_lines():
    text = shown(reporter(terminal=True))
    assert "\x1b[" in text
    assert "epoch  3/12" in text
    assert "━" in text


def test_quiet_shows_nothing():
    assert shown(reporter(terminal=True, quiet=True)) == ""
