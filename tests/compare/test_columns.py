"""Every format: parseable, aligned, and safe against names that want to be more than names."""

from __future__ import annotations

import csv
import io
import json
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pandas as pd
import pytest

from tests.factory import config_of, dropout, make_run, summary_of
from tests.rendering import render, write
from vshift.compare import CompareOptions, Comparison, compare, table_of, to_table
from vshift.compare.table import SHOWN, row_key
from vshift.errors import VShiftError
from vshift.runs import find_runs
from vshift.runs.schema import AVERAGE_BUFFERS, SUMMARY_COLUMNS
from vshift.tables import FORMATS, Column, Table
from vshift.text import format_number, format_spread

EVIL = [
    "[red]x[/red]",
    "<b>x</b>",
    "a|b",
    "a & b \\\\ \\input{x}",
    "100%_#$^~{}",
    "x\ny\x1b[31m\x00\u202e",
    "=cmd()",
    "`code` **x** [l](http://x) www.x.y",
    "\\",
    ":smile:",
]


@pytest.fixture
def small(tmp_path: Path) -> Comparison:
    for seed, (base, noisy) in enumerate([(92.0, 90.0), (94.0, 91.5)]):
        make_run(tmp_path, "base", seed, base)
        summary = summary_of(noisy, shift_ratio_max=1.2345)
        make_run(tmp_path, "noisy", seed, config=config_of(noise=dropout(0.5)), summary=summary)
    return compare(find_runs([tmp_path]))


@pytest.fixture
def evil(tmp_path: Path) -> Comparison:
    for index, name in enumerate(EVIL):
        fields = {"name": name, "device": name, "data": name}
        summary = summary_of(shift_ratio_max_layer=name)
        make_run(tmp_path, "a", index, run=fields, summary=summary)
    return compare(find_runs([tmp_path]), baseline="=cmd()")


def plain_of(text: str) -> str:
    """Without the terminal's colour codes."""
    return re.sub(r"\x1b\[[0-9;]*m", "", text)


def test_numbers_for_people() -> None:
    assert format_spread(8.4321, 0.2149) == "8.43 ± 0.21"
    assert format_spread(8.4321, None) == "8.43"
    assert format_spread(None, None) == "–"
    assert format_number(0.5, 2, "+") == "+0.50"
    assert format_number(-0.5, 2, "+") == "−0.50"
    assert format_number(-0.001, 2) == "0.00"
    assert format_number(1.2345, 3) == "1.234"


def test_plain_table_is_aligned_and_complete(small: Comparison) -> None:
    lines = render(small, "table").splitlines()
    assert lines[0].startswith("config       test error %    difference  after recalibration")
    assert "7.00 ± 1.41 (n=2)      baseline" in lines[1]
    assert "9.25 ± 1.06 (n=2)  +2.25 ± 1.25" in lines[2]
    head = "largest shift ratio"
    assert lines[2].index("1.234") == lines[0].index(head) + len(head) - 5
    assert "All rows: data shapes, epochs 3, device cpu, parameters 1,234." in lines[-1]
    assert "\x1b" not in "".join(lines)


def test_a_pipe_never_cuts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "20")
    make_run(tmp_path, "x" * 110)
    stream = io.StringIO()
    write(compare(find_runs([tmp_path])), "table", stream)
    assert "x" * 110 in stream.getvalue()
    assert "…" not in stream.getvalue()
    assert "10.00 (n=1)" in stream.getvalue()


@pytest.mark.parametrize("width", [30, 60, 80, 100, 200])
def test_a_terminal_never_cuts_a_number(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, width: int
) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    for seed in range(2):
        make_run(tmp_path, "a-rather-long-name-of-a-study-rate-0.5", seed, 90.0 + seed,
                 config=config_of(noise=dropout(0.5)))  # fmt: skip
        make_run(tmp_path, "base", seed, 93.0 + seed)
    stream = io.StringIO()
    write(compare(find_runs([tmp_path])), "table", stream, terminal=True)
    lines = plain_of(stream.getvalue()).splitlines()
    assert "\x1b[" in stream.getvalue()
    text = "\n".join(lines)
    assert "9.50 ± 0.71 (n=2)" in text
    assert width < 60 or "+3.00 ± 0.71" in text
    assert "…" not in text
    names = "".join(line.split("  ")[0].strip() for line in lines)
    assert "a-rather-long-name-of-a-study-rate-0.5" in names
    if width >= 60:
        assert max(map(len, (line.rstrip() for line in lines))) <= width
        assert "1.050" in text
    if width == 60:
        assert re.search(r"\d+ columns\s+left\s+out\.\s+More:\s+compare\s+--verbose\.", text)
    if width == 200:
        assert "--verbose" not in text
        assert "block2.bn1" in text


def test_the_cause_of_a_shift_ratio_comes_right_after_it(tmp_path: Path) -> None:
    for seed in (0, 1):
        summary = summary_of(90 + seed, shift_ratio_cause="lag")
        make_run(tmp_path, "base", seed, summary=summary)
        make_run(tmp_path, "noisy", seed, config=config_of(noise=dropout(0.5)), summary=summary)
    table = to_table(compare(find_runs([tmp_path])))
    for width in (100, 120):
        assert "BN's lag" in plain_of(render(table, "table", terminal_width=width))


def test_the_columns_of_an_average_stay_together(tmp_path: Path) -> None:
    averages = {f"test_error_average_{word}": 10.0 for word in AVERAGE_BUFFERS}
    for name in ("a", "b"):
        make_run(tmp_path, name, summary=summary_of(**averages))
    table = to_table(compare(find_runs([tmp_path])))
    counts = set()
    for width in range(20, 260, 5):
        shown = plain_of(render(table, "table", terminal_width=width))
        counts.add(shown.split("Mean ±")[0].count("average,"))
    assert counts == {0, 4}


@pytest.mark.parametrize(("width", "lines"), [(60, 5), (80, 4), (120, 3)])
def test_a_caption_explains_differences_on_a_terminal_and_the_rest_with_verbose(
    width: int, lines: int, small: Comparison
) -> None:
    table = to_table(small)
    below = plain_of(render(table, "table", terminal_width=width)).split("\n\n")[1]
    assert len(below.splitlines()) <= lines
    said = "none is significant at 5 % (smallest p = 0.223; Welch, Holm over 1 difference)."
    assert said in " ".join(below.split())
    assert "columns left out. More: compare --verbose." in " ".join(below.split())
    shown, whole = plain_of(render(table, "table", terminal_width=width, brief=False)).split("\n\n")
    words = " ".join(whole.split())
    assert words.startswith("Mean ± sd over n seeds. Difference: ")
    assert ("Interval: " in words) == ("interval" in shown)
    assert "Too narrow for: " in words


def test_names_break_between_their_parts_and_only_where_columns_need_it(tmp_path: Path) -> None:
    for name in ("study-before_last_bn-rate=0.25-x", "base"):
        make_run(tmp_path, name)
    table = to_table(compare(find_runs([tmp_path])))
    for width in range(30, 200, 5):
        lines = plain_of(render(table, "table", terminal_width=width)).split("\n\n")[0].splitlines()
        parts = [line.split("  ")[0] for line in lines[lines.index(max(lines)) :]]
        first = [part for part in parts if part and not part.startswith(("base", "─"))]
        assert "".join(first).endswith("study-before_last_bn-rate=0.25-x"), width
        assert all(part.endswith(("-", "_", "=")) for part in first[-4:-1]), (width, first)
    assert "study-before_last_bn-rate=0.25-x  " in plain_of(
        render(table, "table", terminal_width=200)
    )


def test_markdown_columns(small: Comparison) -> None:
    lines = render(small, "md").splitlines()
    assert lines[1].startswith("| :-- | --: | --: |")
    counts = {len(re.findall(r"(?<!\\)\|", line)) for line in lines[:4]}
    assert len(counts) == 1


def test_latex_is_booktabs(small: Comparison) -> None:
    text = render(small, "latex")
    for word in ("\\toprule", "\\midrule", "\\bottomrule", "\\begin{tabular}{lrr", "\\caption{"):
        assert word in text
    assert "9.25 $\\pm$ 1.06 (n=2)" not in text.splitlines()[0]
    assert "\n  \\label{tab:compare}\n" in text
    assert "9.25 $\\pm$ 1.06 (n=2) & +2.25 $\\pm$ 1.25" in text


def test_latex_leaves_single_hyphens_and_apostrophes_as_they_are() -> None:
    rows = [["BN's -- a ''b''"], ["–"], ["+1 *"], ["p < 0.001 [x]"], ["[x]"]]
    text = render(Table([Column("re-estimated")], rows), "latex")
    assert "re-estimated" in text
    assert "BN's {-}- a {'}'b{'}'" in text
    for row in ("--", "+1 *", "p $<$ 0.001 [x]", "{}[x]"):
        assert f"\n    {row} \\\\\n" in text


def test_csv_reads_back_with_full_precision(small: Comparison) -> None:
    frame = pd.read_csv(io.StringIO(render(small, "csv")))
    assert list(frame["name"]) == ["base", "noisy"]
    assert frame["n"].tolist() == [2, 2]
    assert frame["test_error_sd"].tolist() == [row["test_error_sd"] for row in small.rows]
    assert frame["difference"].tolist() == [0.0, 2.25]
    assert frame["seeds"].tolist() == ["0 1", "0 1"]


def test_json_reads_back(small: Comparison, tmp_path: Path) -> None:
    rows = json.loads(render(small, "json"))
    assert rows == small.rows
    assert rows[0]["difference_se"] is None
    make_run(tmp_path / "more", "nothing", status="failed")
    text = render(compare(find_runs([tmp_path / "more"])), "json")
    assert "NaN" not in text
    assert json.loads(text)[0]["test_accuracy_mean"] is None


def test_no_format_of_that_name(small: Comparison) -> None:
    with pytest.raises(VShiftError, match="no such format; did you mean `latex`"):
        render(small, "latx")


def test_every_format_of_nothing_done(tmp_path: Path) -> None:
    make_run(tmp_path, "a", status="failed")
    comparison = compare(find_runs([tmp_path]))
    for kind in FORMATS:
        assert "a" in render(comparison, kind)
    assert "– (n=0)" in render(comparison, "table")
    assert "– (n=0)" in plain_of(render(comparison, "table", terminal_width=60))


def test_json_and_csv_keep_evil_names_as_data(evil: Comparison) -> None:
    assert {row["name"] for row in json.loads(render(evil, "json"))} == set(EVIL)
    frame = pd.read_csv(io.StringIO(render(evil, "csv")))
    assert len(frame) == len(EVIL)
    assert "'=cmd()" in set(frame["name"])
    assert "'=cmd()" in set(frame["shift_ratio_max_layer"])


@pytest.mark.parametrize("start", ["=", "+", "-", "@", " =", "\t=", "=1+1"])
def test_csv_cells_are_no_formulas(tmp_path: Path, start: str) -> None:
    make_run(tmp_path, "a", run={"name": f"{start}x"})
    text = render(compare(find_runs([tmp_path])), "csv")
    name = next(csv.DictReader(io.StringIO(text)))["name"]
    assert name.startswith(("'", "\\t"))


def test_csv_numbers_stay_numbers(tmp_path: Path) -> None:
    make_run(tmp_path, "base", 0, 90.0)
    make_run(tmp_path, "b", 0, 95.0, run={"name": "-5"})
    text = render(compare(find_runs([tmp_path]), baseline="base"), "csv")
    first = next(csv.DictReader(io.StringIO(text)))
    assert (first["name"], first["difference"]) == ("-5", "-5.0")


def test_tables_keep_one_line_a_row(evil: Comparison) -> None:
    lines = render(evil, "table").splitlines()
    assert len(lines) == len(EVIL) + 3
    text = render(evil, "table") + plain_of(render(evil, "table", terminal_width=250))
    for char in ("\x1b", "\x00", "\u202e"):
        assert char not in text
    for name in ("[red]x[/red]", ":smile:", "x\\ny\\x1b[31m\\x00\\u202e"):
        assert text.count(name) >= 2


def test_markdown_injection(evil: Comparison) -> None:
    lines = render(evil, "md").splitlines()
    rows = lines[2 : 2 + len(EVIL)]
    unescaped = [re.sub(r"\\.", "", row) for row in rows]
    assert len({row.count("|") for row in unescaped}) == 1
    for row in unescaped:
        assert not re.search(r"[<>`\[\]*_$]|://|www\.", row)


def test_latex_injection(evil: Comparison) -> None:
    text = render(evil, "latex")
    body = text.split("\\midrule\n")[1].split("\n    \\bottomrule")[0].splitlines()
    assert len(body) == len(EVIL)
    for row in body:
        assert row.endswith(" \\\\")
        known = r"\\(text[a-z]+\{\}|[{}$&%#_]|pm|\\$)"
        rest = re.sub(known, "", row)
        assert "\\" not in rest
        assert not re.search(r"[%#_^~]", rest)
        assert not rest.strip().startswith(("[", "*"))
    assert len({re.sub(r"\\&", "", row).count("&") for row in body}) == 1


@pytest.mark.parametrize("kind", FORMATS)
def test_an_ascii_pipe_takes_every_format(tmp_path: Path, kind: str) -> None:
    make_run(tmp_path, "a", 0, 90.0, run={"name": "größe"})
    make_run(tmp_path, "a", 1, 91.0, run={"name": "größe"})
    script = (
        "import sys; from vshift.compare import compare, to_table; "
        "from vshift.tables import write; from vshift.runs import find_runs\n"
        f"write(to_table(compare(find_runs([{str(tmp_path)!r}]))), {kind!r}, sys.stdout)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script],
        env={"PYTHONIOENCODING": "ascii", "PATH": ""},
        capture_output=True,
        check=True,
    )
    text = done.stdout.decode("ascii")
    if kind == "table":
        assert "9.50 +/- 0.71 (n=2)" in text
    if kind == "json":
        assert json.loads(text)[0]["name"] == "größe"


def test_the_statistics_columns(tmp_path: Path) -> None:
    for seed, spread in enumerate((-0.1, 0.0, 0.1)):
        make_run(tmp_path, "base", seed, 92.0 + spread)
        make_run(tmp_path, "clear", seed, 90.0 + spread, config=config_of(noise=dropout(0.5)))
        make_run(tmp_path, "close", seed, 91.9 + spread, config=config_of(noise=dropout(0.1)))
    make_run(tmp_path, "single", 0, 91.0, config=config_of(noise=dropout(0.2)))
    comparison = compare(find_runs([tmp_path]))
    cells = {row[0]: dict(zip([c.one_line for c in to_table(comparison).columns], row, strict=True))
             for row in to_table(comparison).rows}  # fmt: skip
    assert cells["clear"]["significant"] == "yes (p < 0.001)"
    assert cells["clear"]["95 % interval of difference"] == "+1.77 to +2.23"
    assert cells["clear"]["difference"].endswith(" *")
    assert not cells["close"]["difference"].endswith("*")
    assert cells["close"]["significant"] == "no (p = 0.288; needs 21 seeds)"
    assert cells["single"]["significant"] == "one seed"
    assert cells["base"]["significant"] == "–"
    assert cells["base"]["difference"] == "baseline"
    assert "(Welch, Holm over 2 differences)" in comparison.about_difference
    rows = {row["name"]: row for row in comparison.rows}
    assert rows["close"]["verdict"] == (
        "not significant (p = 0.288; about 21 seeds per config would be needed)"
    )
    assert rows["close"]["seeds_needed"] == 21
    assert rows["single"]["verdict"] == "not tested (one seed)"


def test_every_summary_column_with_a_heading_is_in_the_table(tmp_path: Path) -> None:
    """And under a key of its own in JSON, so that one declaration adds a statistic to both."""
    columns = SUMMARY_COLUMNS.values()
    summary = {c.key: "word" if c.is_text else 7.0 for c in columns if c.key != "test_error"}
    for seed in range(2):
        make_run(tmp_path, "a", seed, summary={**summary, "parameters": 7 + seed})
        make_run(tmp_path, "b", seed, summary={**summary, "parameters": 9})
    comparison = compare(find_runs([tmp_path]))
    heads = [column.head for column in to_table(comparison).columns]
    assert [
        c.heading for c in columns if c.heading and c.key not in ("test_rmse", "test_loss")
    ] == [head for head in heads if head in {c.heading for c in columns}]
    for column in SHOWN.values():
        assert comparison.rows[0][row_key(column)] is not None


def recalibrated(folder: Path, name: str, method: str | None, error: float, seed: int = 0) -> None:
    said = {} if method is None else {"recalibration": method}
    config = config_of(noise=dropout(0.5)) | {"recalibration": {"methods": [method or "precise"]}}
    make_run(
        folder, name, seed, config=config,
        summary={**summary_of(80.0), **said, "test_error_recalibrated": error},
    )  # fmt: skip


def test_different_methods_of_recalibration_have_columns_of_their_own(tmp_path: Path) -> None:
    """Test statistics are no recalibration: 12 % after `batch` is not 14 % after `precise`."""
    recalibrated(tmp_path, "a", "precise", 14.0)
    recalibrated(tmp_path, "b", "batch", 12.0)
    recalibrated(tmp_path, "old", None, 13.0)  # by a version that did not say
    comparison = compare(find_runs([tmp_path]))
    table = to_table(comparison)
    heads = [column.one_line for column in table.columns]
    cells = {head: [row[place] for row in table.rows] for place, head in enumerate(heads)}
    assert cells["after recalibration (precise)"] == ["14.00", "–", "–"]
    assert cells["after recalibration (batch)"] == ["–", "12.00", "–"]
    assert cells["after recalibration"] == ["–", "–", "13.00"]
    found = [(row["recalibrated_by"], row["recalibrated_error_mean"]) for row in comparison.rows]
    assert found == [("precise", 14.0), ("batch", 12.0), (None, 13.0)]
    one = to_table(compare(find_runs([tmp_path / "a"])))
    assert "after recalibration" in [column.one_line for column in one.columns]


def test_no_mean_is_over_different_methods_of_recalibration(tmp_path: Path) -> None:
    recalibrated(tmp_path, "a", "precise", 14.0)
    recalibrated(tmp_path, "b", "batch", 12.0, seed=1)
    comparison = compare(find_runs([tmp_path]), by=["network.noise.rate"])
    (row,) = comparison.rows
    assert row["recalibrated_by"] is row["recalibrated_error_mean"] is None
    note = "rate=0.5 has no test_error_recalibrated: its runs differ in recalibration"
    assert f"{note} (precise, batch)" in comparison.notes
    named = compare(find_runs([tmp_path]), metrics=["test_error_recalibrated"])
    wanted = "the values of test_error_recalibrated differ in recalibration: a (precise), b (batch)"
    assert wanted in named.notes
    plain = compare(find_runs([tmp_path]), metrics=["test_error"])
    assert not any("differ in recalibration" in note for note in plain.notes)


def test_calibration_is_a_metric_like_any_other(tmp_path: Path) -> None:
    for seed, ece in enumerate((4.125, 6.125)):
        summary = summary_of(test_nll=0.5, test_ece=ece, test_ece_precise=2.0)
        make_run(tmp_path, "a", seed, summary=summary)
    metrics = ["test_nll", "test_ece", "test_ece_precise"]
    (row,) = to_table(compare(find_runs([tmp_path]), metrics=metrics)).rows
    assert row[-3:] == ["0.5000 ± 0.0000", "5.12 ± 1.41", "2.00 ± 0.00"]
    assert not any("ECE" in c.head for c in to_table(compare(find_runs([tmp_path]))).columns)


def test_one_seed_everywhere_is_said_once(tmp_path: Path) -> None:
    make_run(tmp_path, "base")
    make_run(tmp_path, "noisy", config=config_of(noise=dropout(0.5)))
    comparison = compare(find_runs([tmp_path]))
    assert "significant" not in [c.one_line for c in to_table(comparison).columns]
    untested = "One seed per config leaves differences untested; take 3 or more."
    assert comparison.about_difference.endswith(untested)


def test_the_caption_counts_what_is_left_out_and_says_what_differs(tmp_path: Path) -> None:
    make_run(tmp_path, "base")
    make_run(tmp_path, "noisy", config=config_of(noise=dropout(0.5)))
    make_run(tmp_path, "noisy", 1, status="diverged", config=config_of(noise=dropout(0.5)))
    text = render(compare(find_runs([tmp_path])), "table")
    assert "Left out: 1 run." in text
    assert "Configs differ from base in network.noise." in text
    make_run(tmp_path, "long", config=config_of(noise=dropout(0.5), epochs=9))
    text = render(compare(find_runs([tmp_path])), "table")
    assert "network.noise, epochs" in text
    assert "differs from base in" in text


def test_chosen_metrics_stand_alone(small: Comparison, tmp_path: Path) -> None:
    metrics = ("shift_ratio_mean", "parameters", "shift_ratio_max_layer", "test_error")
    chosen = to_table(compare(find_runs([tmp_path]), metrics=metrics))
    names = ["mean shift ratio", "parameters", "layer of the largest ratio", "test error %"]
    assert [c.one_line for c in chosen.columns][:6] == ["config", *names, "difference"]
    assert chosen.rows[1][1:5] == ["1.050 ± 0.000", "1,234", "block2.bn1", "9.25 ± 1.06"]
    assert "All rows: n 2." in chosen.caption


def test_html_is_one_escaped_table(evil: Comparison) -> None:
    text = render(evil, "html")
    assert text.isascii()
    found = _Tags()
    found.feed(text)
    assert found.counts == {
        "table": 1, "caption": 1, "thead": 1, "tbody": 1, "tr": len(EVIL) + 1,
        "th": len(to_table(evil).columns) + len(EVIL),
        "td": len(EVIL) * (len(to_table(evil).columns) - 1),
    }  # fmt: skip
    assert set(found.texts) >= {"[red]x[/red]", "<b>x</b>", "a & b \\\\ \\input{x}", "=cmd()"}
    assert "\x1b" not in text


class _Tags(HTMLParser):
    """Counts tags and collects what a browser would show."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: dict[str, int] = {}
        self.texts: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.counts[tag] = self.counts.get(tag, 0) + 1

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="there is no pdflatex")
def test_latex_compiles(small: Comparison, evil: Comparison, tmp_path: Path) -> None:
    tables = "".join(render(table, "latex") for table in (small, evil))
    text = "\\documentclass{article}\\usepackage{booktabs}\\begin{document}\n" + tables
    (tmp_path / "a.tex").write_text(text + "\\end{document}\n")
    command = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "a.tex"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-2000:]
    assert (tmp_path / "a.pdf").stat().st_size > 1000


def test_an_ascii_stream_gets_no_latex_command_out_of_a_letter(tmp_path: Path) -> None:
    make_run(tmp_path, "a", run={"name": "größe"})
    stream = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    write(compare(find_runs([tmp_path])), "latex", stream)
    stream.seek(0)
    assert "gr??e" in stream.read()


@pytest.mark.parametrize("width", [40, 60, 80, 120, 200])
@pytest.mark.parametrize(
    "options",
    [
        CompareOptions(by=("network.noise.rate", "network.noise.position")),
        CompareOptions(rows=("network.noise.position",), columns=("network.noise.rate",)),
        CompareOptions(view="figure4"),
    ],
    ids=["by", "pivot", "view"],
)
def test_every_table_fits_a_terminal_with_every_number_whole(
    tmp_path: Path, options: CompareOptions, width: int
) -> None:
    net = {"name": "preresnet", "depth": 8}
    for rate in (0.0, 0.1, 0.3, 0.5, 0.7):
        for seed in range(2):
            config = {**config_of(), "network": {**net, "noise": dropout(rate)}}
            make_run(tmp_path, f"rate-{rate}", seed, 90 - 10 * rate + seed, config=config)
    table = table_of(find_runs([tmp_path]), options)
    text = plain_of(render(table, "table", terminal_width=width))
    lines = [line.rstrip() for line in text.splitlines()]
    assert max(map(len, lines)) <= width
    for error in ("9.50", "10.50", "12.50", "14.50", "16.50"):
        assert f"{error} ± 0.71" in text
    assert "…" not in text
