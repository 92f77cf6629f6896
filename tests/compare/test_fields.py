"""Names of fields: in full, by their end, and what is said of those that there are not."""

import pytest

from tests.factory import config_of, dropout, make_run
from vshift.compare import compare
from vshift.compare.fields import Fields
from vshift.compare.options import CompareOptions, table_of
from vshift.errors import VShiftError
from vshift.runs import find_runs


@pytest.fixture
def runs(tmp_path):
    make_run(tmp_path, "none", 0, 95.0)
    make_run(tmp_path, "low", 0, 92.0, config=config_of(noise=dropout(0.1)))
    make_run(tmp_path, "high", 0, 80.0, config=config_of(noise=dropout(0.5)))
    return find_runs([tmp_path])


@pytest.mark.parametrize(
    ("name", "field"),
    [
        ("rate", "network.noise.rate"),
        ("noise.rate", "network.noise.rate"),
        ("lr", "optimizer.learning_rate"),
        ("test_error", "test_error"),  # in full, though `…_error` ends others
        ("seed", "seed"),
        ("kind", "network.noise.kind"),
        ("nonsense", "nonsense"),
    ],
)
def test_a_name_may_be_the_end_of_a_config_key(runs, name, field):
    assert Fields(runs).resolve(name, "--by") == field


def test_of_several_keys_the_one_that_differs_is_meant_and_a_note_says_so(runs):
    table = table_of(runs, CompareOptions(by=("kind",), sort="kind"))
    assert table.records[0].keys() >= {"network.noise.kind"}
    assert "--by: kind is network.noise.kind; norm.kind is the same in all runs" in table.notes


def test_keys_that_may_be_meant_are_listed(runs):
    with pytest.raises(VShiftError, match=r"`train` may be data\.train or optimizer\.train; write"):
        compare(runs, by=["train"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"by": ("widhts",)},
            "--by widhts: no run has such a field; did you mean `network.widths`",
        ),
        ({"sort": "ratte"}, "--sort ratte: there is no such column; did you mean `network.noise."),
        ({"sort": "maen shift ratio"}, "no such column; did you mean `mean shift ratio`?"),
        ({"metrics": ("tset_error",)}, "no summary.json has it; did you mean `test_error`?"),
    ],
)
def test_a_name_that_there_is_not_is_answered_with_the_nearest_in_short_lines(
    runs, options, message
):
    with pytest.raises(VShiftError) as caught:
        table_of(runs, CompareOptions(**options))
    lines = str(caught.value).splitlines()
    assert message in lines[0]
    assert len(lines) > 1
    assert max(map(len, lines)) <= 100


def test_a_table_is_sorted_by_what_its_headings_say(runs):
    names = [row["name"] for row in compare(runs, sort="test error").rows]
    assert names == ["none", "low", "high"]
    assert [row["name"] for row in compare(runs, sort="-rate").rows] == ["high", "low", "none"]
