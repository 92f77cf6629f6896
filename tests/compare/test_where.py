"""Conditions: what they select, and what is said of those that are none."""

from __future__ import annotations

from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.factory import config_of, dropout, make_run, summary_of
from vshift.compare.fields import Fields
from vshift.compare.where import parse_where
from vshift.errors import VShiftError
from vshift.runs import find_runs


@pytest.fixture(scope="module")
def fields(tmp_path_factory: pytest.TempPathFactory) -> Fields:
    runs = tmp_path_factory.mktemp("runs")
    make_run(runs, "none", 0, 95.0)
    make_run(runs, "low-rate=0.1", 0, 92.0, config=config_of(noise=dropout(0.1)))
    make_run(runs, "high", 0, 80.0, config=config_of(noise=dropout(0.5), epochs=9))
    two = [dropout(0.2), {"kind": "gaussian", "sigma": 1.0, "position": "after_bn"}]
    make_run(runs, "two", 3, config=config_of(noise=two), summary=summary_of(best="a b"))
    make_run(runs, "failed", 1, status="failed")
    return Fields(find_runs([runs]))


def chosen(fields: Fields, text: str) -> list[str]:
    condition = parse_where(text, fields)
    return [run.name for run in fields.runs if condition(run)]


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("network.noise.rate == 0.5", ["high"]),
        ("network.noise.rate == 5e-1", ["high"]),
        ("network.noise.rate <= 0.3", ["low-rate=0.1"]),
        ("0.1 < network.noise.rate <= 0.5", ["high"]),
        ("network.noise == null", ["failed", "none"]),
        ("network.noise.kind != dropout", ["failed", "none", "two"]),
        ("network.noise.1.sigma == 1", ["two"]),
        ("network.noise.position == before_last_bn", ["high", "low-rate=0.1"]),
        ("network.name == mlp and epochs > 3", ["high"]),
        ("epochs > 3 or seed == 3", ["high", "two"]),
        ("not (epochs > 3 or seed == 3) and status == done", ["low-rate=0.1", "none"]),
        ("not epochs > 3 and not status == failed", ["low-rate=0.1", "none", "two"]),
        ("epochs == 9 or epochs == 3 and seed == 3", ["high", "two"]),
        ("status in [failed, diverged]", ["failed"]),
        ("seed not in [0, 1]", ["two"]),
        ("ig in name", ["high"]),
        ("name == 'low-rate=0.1'", ["low-rate=0.1"]),
        ("name==two", ["two"]),
        ("test_error >= 8 and test_error < 10.5", ["low-rate=0.1", "two"]),
        ('best == "a b"', ["two"]),
        ("network.widths == [8, 8]", ["failed", "high", "low-rate=0.1", "none", "two"]),
        ("8 in network.widths and precise in recalibration.methods and seed==1", ["failed"]),
        ("optimizer.nesterov == true", []),
        ("optimizer.nesterov == 0", []),
        ("data.augment.flip == true and seed == 3", ["two"]),
        ("run.device == cpu and seed == 1", ["failed"]),
        ("epochs < 9 and lr > 1", []),
        ("0.4 <= noise.rate <= 0.5", ["high"]),
        ("noise.kind == dropout", ["high", "low-rate=0.1"]),
        ("low < name", ["low-rate=0.1", "none", "two"]),
        ("test_error < null", []),
    ],
)
def test_what_a_condition_selects(fields: Fields, text: str, names: list[str]) -> None:
    assert chosen(fields, text) == names


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "a field or a value is missing here"),
        ("network.nois.rate == 1", "no run has such a field; did you mean `network.noise.rate`?"),
        ("rate == 1", "`rate` may be network.noise."),
        ("rtae == 1", "no field is called rtae; did you mean `network.noise.rate`?"),
        ("tset_error < 1", "did you mean `test_error`?"),
        ("seed", "a comparison such as"),
        ("seed = 1", "`=` does not compare, `==` does"),
        ("seed == 1 && seed == 2", "write and, or, not"),
        ("seed == 1 & seed == 2", "write and, or, not"),
        ("! seed == 1", "write and, or, not"),
        ("(seed == 1", "was never closed"),
        ("seed == 1)", "at `)`"),
        ("seed ==", "after `seed ==`: a field or a value is missing"),
        ("name == 'x", "a quotation mark without its partner"),
        ("seed in [1, 2", "was never closed"),
        ("seed in [1 2]", "forgot a comma"),
        ("seed in [epochs]", "`epochs` is a field"),
        ("seed not 1", "in, not in)"),
        ("name == two words", "put text with spaces into quotes"),
        ("1 == 1", "no field is called 1"),
        ("name < 3", "these have no order"),
        ("a in seed", "`in` takes a list after it"),
        ("__import__('os') == 1", "a comparison such as"),
        ("(" * 60 + "seed == 1" + ")" * 60, "more than 50 brackets"),
        ("seed == 1 or " * 1000, "at most 2,000"),
        ("seed == " + "1" * 1500, "a number of 1500 digits"),
    ],
)
def test_what_is_said_of_a_bad_condition(fields: Fields, text: str, message: str) -> None:
    with pytest.raises(VShiftError) as caught:
        chosen(fields, text)
    assert message in str(caught.value)
    assert str(caught.value).startswith("--where")


_WORDS = ["seed", "name", "network.noise.rate", "test_error", "==", "<", "in", "not", "and", "or"]
_PIECES = st.sampled_from([*_WORDS, "(", ")", "[", "]", ",", "1", "null", "x-1", "'a'", '"', "\0"])


@given(st.lists(_PIECES, max_size=12).map(" ".join) | st.text(max_size=30))
def test_any_text_selects_runs_or_is_refused_in_words(fields: Fields, text: str) -> None:
    with suppress(VShiftError):
        assert set(chosen(fields, text)) <= {run.name for run in fields.runs}
