"""What a person sees: a bar on a terminal, one plain line an epoch elsewhere."""

import io
from dataclasses import replace

import pytest
from rich.console import Console
from rich.text import Text

from vshift.runs.schema import EpochRow
from vshift.train.progress import Reporter

ROW = EpochRow(
    epoch=3,
    step=15,
    learning_rate=0.1,
    train_loss=1.25,
    train_accuracy=50.0,
    test_loss=None,
    test_accuracy=87.5,
    seconds=1.0,
    images_per_second=1234.5,
)


LAGGING = {"shift_ratio_cause": "lag", "lag_free_ratio_mean": 1.0154}


def reporter(terminal, quiet=False, width=80):
    made = Reporter(quiet)
    made.console = Console(
        file=io.StringIO(), force_terminal=terminal, highlight=False, soft_wrap=True, width=width
    )
    return made


def shown(made, label="run [red]x[/red] seed 0", **layers):
    made.start(label, 0, 12, 5)
    made.step(1)
    made.epoch(ROW, {"shift_ratio_mean": 1.2345, **layers})
    made.stop()
    return made.console.file.getvalue()


def test_a_log_file_gets_one_plain_line_an_epoch():
    text = shown(reporter(terminal=False))
    assert text == (
        "run [red]x[/red] seed 0  epoch  3/12  loss 1.250  test error 12.50 % (train 50.00 %)  "
        "shift 1.23  1234 images/s\n"
    )


NAMES = ("a", "a-longer-name-rate=0.5", "a-name-of-more-than-50-characters-in-all-rate=0.5")
ERRORS = "  test error 12.50 % (train 50.00 %)"
LAG = "  shift 1.02 (1.20 with BN's lag)"


@pytest.mark.parametrize(
    ("width", "rests"),
    [
        (60, ["", "", ""]),
        (80, ["  shift 1.02"] * 3),
        (100, [LAG] * 3),
        (120, [f"{LAG}  1234 images/s", LAG, LAG]),
    ],
)
def test_a_line_fits_a_terminal_and_keeps_both_errors(width, rests):
    made = reporter(terminal=True, width=width)
    for name, rest in zip(NAMES, rests, strict=True):
        made.start(f"{name} seed 0", 0, 12, 5)
        made.stop()
        made.epoch(ROW, {"shift_ratio_mean": 1.2, **LAGGING})
        line = Text.from_ansi(made.console.file.getvalue().splitlines()[-1]).plain
        assert len(line) <= width
        assert line.endswith(f"{ERRORS}{rest}")
        assert line.startswith("a")
        assert "seed 0  epoch  3/12" in line


def test_what_a_narrow_terminal_leaves_out_is_said_once():
    made = reporter(terminal=True, width=60)
    made.start("a-config seed 0", 0, 12, 5)
    made.stop()
    for _ in range(2):
        made.epoch(ROW, {"shift_ratio_mean": 1.2})
    lines = Text.from_ansi(made.console.file.getvalue()).plain.splitlines()
    note = (
        "note: too narrow for images/s, training loss and shift ratio; a wider terminal shows them"
    )
    first = next(n for n, line in enumerate(lines) if line.startswith("note: "))
    assert " ".join(lines[first : first + 2]) == note
    assert sum(line.startswith("note: ") for line in lines) == 1


def test_numbers_have_the_training_loss_where_nothing_is_classified():
    made = reporter(terminal=True)
    made.start("a-name-that-is-long-rate=0.5 seed 0", 0, 12, 5)
    made.stop()
    row = replace(ROW, train_accuracy=None, test_accuracy=None, test_rmse=3.1, test_r2=0.5)
    made.epoch(row, {})
    line = Text.from_ansi(made.console.file.getvalue().splitlines()[-1]).plain
    assert line.endswith("  epoch  3/12  test RMSE 3.1 (train loss 1.250)  R² 0.500")


def test_lag_is_told_apart_from_shift():
    assert shown(reporter(terminal=False), "x", **LAGGING).endswith(
        "  shift 1.02 (1.23 with BN's lag)  1234 images/s\n"
    )
    shift = {**LAGGING, "shift_ratio_cause": "shift"}
    hidden = {"shift_ratio_cause": "lag", "lag_free_ratio_mean": 3.785}
    for layers in (shift, hidden):
        assert "  shift 1.23  1234" in shown(reporter(terminal=False), "x", **layers)


def test_one_batch_cannot_tell_lag():
    made = reporter(terminal=False)
    made.start("run seed 0", 0, 12, 1, one_batch=True)
    made.epoch(ROW, {"shift_ratio_mean": 8.811, "lag_free_ratio_mean": 1.326})
    made.epoch(ROW, {"shift_ratio_mean": 8.811, "lag_free_ratio_mean": None})
    first, second = made.console.file.getvalue().splitlines()
    assert "  shift 8.81 (may be BN's lag)  " in first
    assert "  shift 8.81  1234" in second


def test_a_terminal_gets_a_bar_and_the_same_lines():
    text = shown(reporter(terminal=True))
    assert "\x1b[" in text
    assert "epoch  3/12" in text
    assert "━" in text


def test_quiet_shows_nothing():
    assert shown(reporter(terminal=True, quiet=True)) == ""


def test_phases_have_bars_of_their_own_and_end_with_the_next_step():
    made = reporter(terminal=True)
    made.start("run seed 0", 0, 12, 5)
    made.step(5)
    made.phase("measuring")
    made.batch(3, 30)
    made._bar.refresh()
    text = made.console.file.getvalue()
    assert "measuring" in text
    assert "10%" in text
    made.phase("")
    before = len(text)
    made._bar.refresh()
    assert "measuring" not in made.console.file.getvalue()[before:]
    made.stop()
