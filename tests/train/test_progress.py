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
    test_accuracy=87.5,
    seconds=1.0,
    images_per_second=1234.5,
)


LAGGING = {"shift_ratio_cause": "lag", "lag_free_ratio_mean": 1.0154}


def reporter(terminal, quiet=False):
    made = Reporter(quiet)
    made.console = Console(
        file=io.StringIO(), force_terminal=terminal, highlight=False, soft_wrap=True, width=80
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
        "run [red]x[/red] seed 0  epoch  3/12  loss 1.250  test error 12.50 %  shift 1.23\n"
    )


def test_what_is_needed_least_is_left_out_where_80_columns_do_not_hold_it():
    made = reporter(terminal=False)
    rest = {}
    for name in (
        "a",
        "a-longer-name-rate=0.5",
        "a-name-of-more-than-50-characters-in-all-rate=0.5",
    ):
        made.start(f"{name} seed 0", 0, 12, 5)
        made.epoch(ROW, {"shift_ratio_mean": 1.2, **LAGGING})
        line = made.console.file.getvalue().splitlines()[-1]
        assert len(line) <= 80
        rest[name] = line.partition("/12  ")[2]
    assert list(rest.values()) == [
        "test error 12.50 %  shift 1.20 (lag; 1.02 without)",
        "test error 12.50 %  shift 1.20",
        "test error 12.50 %  shift 1.20",
    ]
    assert line.startswith("a-name-")
    assert "…" in line
    made.start("a seed 0", 0, 1, 5)
    made.epoch(ROW, {})
    assert made.console.file.getvalue().endswith(
        "a seed 0  epoch 3/1  loss 1.250  train error 50.00 %  test error 12.50 %\n"
    )


def test_lag_that_looks_like_shift_is_called_lag():
    lagging = {**LAGGING}
    assert shown(reporter(terminal=False), "x", **lagging).endswith(
        "  shift 1.23 (lag; 1.02 without)\n"
    )
    lagging["shift_ratio_cause"] = "shift"
    assert "lag" not in shown(reporter(terminal=False), "x", **lagging)
    hidden = {"shift_ratio_cause": "lag", "lag_free_ratio_mean": 3.785}
    assert shown(reporter(terminal=False), "x", **hidden).endswith("  shift 1.23\n")


def test_one_batch_tells_no_cause():
    made = reporter(terminal=False)
    made.start("run seed 0", 0, 12, 1, one_batch=True)
    made.epoch(ROW, {"shift_ratio_mean": 8.811, "lag_free_ratio_mean": 1.326})
    made.epoch(ROW, {"shift_ratio_mean": 8.811, "lag_free_ratio_mean": None})
    first, second = made.console.file.getvalue().splitlines()
    assert first.endswith("  shift 8.81 (cause unknown)")
    assert second.endswith("  shift 8.81")


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
