"""Words around numbers."""

from __future__ import annotations

import pytest

from vshift.text import (
    first_lines,
    format_duration,
    format_estimate,
    format_p,
    format_significant,
    keep_together,
    pluralize,
    shorten_middle,
    wrap_words,
)


def test_one_is_singular_and_all_else_plural() -> None:
    assert [pluralize(n, "thread") for n in (0, 1, 2, 1200)] == [
        "0 threads", "1 thread", "2 threads", "1,200 threads",
    ]  # fmt: skip
    assert (pluralize(1, "batch", "batches"), pluralize(3, "batch", "batches")) == (
        "1 batch", "3 batches",
    )  # fmt: skip


def test_significant_digits_need_no_power_of_ten_below_a_million() -> None:
    values = (0.01234, 1.29, 99.6, 168.4, 12345.0, 2.5e7, float("nan"), None)
    assert [format_significant(value, 2) for value in values] == [
        "0.012", "1.3", "100", "170", "12,000", "2.5e+07", "–", "–",
    ]  # fmt: skip


def test_lines_break_between_words_and_nowhere_else() -> None:
    text = "error: no such file\n  see a-name-that-is-long/seed-0.log"
    assert wrap_words(text, None) == text
    assert wrap_words(text, 14).split("\n") == [
        "error: no such", "file", "  see", "a-name-that-is-long/seed-0.log"
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(None, "–"), (0.2, "1 s"), (89, "89 s"), (90, "2 min"), (3541, "59 min"), (3599, "1 h 00 min"),
     (12_000, "3 h 20 min"), (180_000, "2 d 2 h")],
)  # fmt: skip
def test_durations(seconds: float | None, words: str) -> None:
    assert format_duration(seconds) == words


def test_many_lines_end_in_how_many_more_there_are() -> None:
    lines = [str(n) for n in range(1300)]
    assert first_lines(lines, 2) == ["0", "1", "and 1,298 more"]
    assert first_lines(lines[:3], 2, "  and {:,} more runs") == ["0", "1", "  and 1 more runs"]
    assert first_lines(lines[:2], 2) == ["0", "1"]


def test_p_values_at_both_ends_and_at_the_level():
    """A page of corrected p has many that are 1; none only rounds to it, or to the other side."""
    texts = [format_p(p) for p in (1.0, 0.9996, 0.9994, 0.0009, None)]
    assert texts == ["p = 1", "p > 0.999", "p = 0.999", "p < 0.001", ""]
    texts = [format_p(p) for p in (0.0494, 0.0496, 0.049996, 0.05, 0.05004, 0.0504, 0.0506)]
    assert texts == [
        "p = 0.049", "p = 0.0496", "p = 0.049996", "p = 0.050", "p = 0.05004", "p = 0.0504",
        "p = 0.051",
    ]  # fmt: skip


def test_names_lose_their_middle() -> None:
    assert shorten_middle("abc", 5) == "abc"
    assert shorten_middle("study-one-rate=0.5 seed 3", 16) == "study…0.5 seed 3"[-16:]
    assert len(shorten_middle("x" * 50, 16)) == 16


@pytest.mark.parametrize(
    ("value", "error", "text"),
    [
        (86.328125, 2.1479, "86.3 ± 2.1"),
        (0.123456, 0.0213, "0.123 ± 0.021"),
        (0.123456, 0.0512, "0.12 ± 0.05"),
        (0.123456, 0.0098, "0.123 ± 0.010"),  # 0.0098 rounds up to two digits again
        (98.6, 12.3, "99 ± 12"),
        (2.302585, 1e-7, "2.303"),
        (100.0, 0.0, "100"),
        (0.0234567, None, "0.0235"),
        (float("nan"), None, "–"),
        (float("inf"), float("nan"), "inf"),
        (0.0, 0.003, "0.000 ± 0.003"),
    ],
)
def test_a_number_has_the_decimals_that_its_error_supports(
    value: float, error: float | None, text: str
) -> None:
    assert format_estimate(value, error) == text


def test_a_sign_never_leaves_its_number() -> None:
    assert keep_together("1.4 ± 0.5 points, 98.6 to 100 % (± 0.5)").split(" ") == [
        "1.4\xa0±\xa00.5", "points,", "98.6", "to", "100\xa0%", "(±\xa00.5)",
    ]  # fmt: skip
