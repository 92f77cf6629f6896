"""Tables from results, and benchmarks/README.md from the files that are committed."""

import json
from pathlib import Path

import pytest
from rich.text import Text

from benchmarks.render import BEGIN, END, best, render, render_all, rendered
from benchmarks.results import Command, Series, slug
from tests.benchmarks.results import make_results

ROOT = Path(__file__).parents[2]


def cells(text):
    """Rows of the first Markdown table, as dictionaries."""
    lines = [line for line in text.splitlines() if line.startswith("|")]
    split = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    return [dict(zip(split[0], row, strict=True)) for row in split[2:]]


def test_the_table_shows_median_range_and_n():
    logged, plain, peer = cells(render(make_results()))
    assert logged["contender"] == "vshift auto (eager) + log"
    assert (plain["images/s"], plain["min–max"], plain["n"]) == ("1,000", "500–1,000", "3")
    assert plain["of arithmetic"] == "25 %"
    assert plain["of Inductor traffic"] == "50 %"
    assert peer["contender"] == "(a) plain"


@pytest.mark.parametrize("width", [60, 80, 120, 200])
def test_a_terminal_gets_the_columns_that_fit_and_the_names_of_the_others(width):
    text = Text.from_ansi(render(make_results(), width)).plain
    assert max(len(line.rstrip()) for line in text.splitlines()) <= width
    table, below, *_ = text.split("\n\n")
    assert "images/s" in table
    assert ("vshift is faster by" in table) == (width >= 80)
    assert ("vshift is faster by" in below) == (width < 80)
    assert below.startswith("Too narrow for: ") == (width < 200)


def test_peers_are_compared_with_vshift_as_it_logs():
    """Its faster contender without a log does not count."""
    logged, _, peer = cells(render(make_results()))
    assert peer["vshift is faster by"] == "3.00× (2.00–3.00)"
    assert logged["vshift is faster by"] == "–"
    ours = best(make_results().cases[0].contenders)
    assert ours is not None
    assert ours.log is True


def test_what_logging_costs_stands_beside_what_logs():
    logged, plain, _ = cells(render(make_results()))
    assert logged["logging costs"] == "+1.0 % (−0.2 to +1.0)"
    assert plain["logging costs"] == "–"


def test_a_column_without_values_is_left_out():
    assert "GPU memory" not in cells(render(make_results()))[0]
    gpu = make_results(kind="cuda", name="H100", memory=3 * 2**20)
    assert cells(render(gpu))[0]["GPU memory"] == "3 MiB"


def test_the_caption_says_where_and_with_what():
    text = render(make_results())
    for word in ("Some(R) Processor, 2 threads, 2,600 MHz, load 0.2 before", "torch 2.15.0",
                 "15 steps", "1.20 TFLOP/s", "14 GB/s", "commit aaaaaaaaaa"):  # fmt: skip
        assert word in text
    assert "cuda None" not in text


def test_a_capped_machine_a_precision_and_its_bound_are_named():
    results = make_results()
    (case,) = results.cases
    chosen = [one.model_copy(update={"precision": "float32"}) for one in case.contenders]
    pinned = chosen[1].model_copy(update={"name": "b", "kind": "float32-eager"})
    case = case.model_copy(update={"contenders": [*chosen, pinned]})
    device = results.device.model_copy(update={"isa": "avx2", "flops_precision": "float32"})
    capped = results.model_copy(update={"cases": [case], "device": device})
    labels = [row["contender"] for row in cells(render(capped))]
    assert labels == [
        "vshift auto (eager, float32) + log", "vshift auto (eager, float32)", "(a) plain",
        "vshift float32-eager",
    ]  # fmt: skip
    assert "TFLOP/s in float32" in render(capped)
    text = render_all([capped, results])
    headings = [line for line in text.splitlines() if line.startswith("###")]
    assert headings[:2] == [
        "### Some(R) Processor, 2 threads: preresnet-20",
        "### Some(R) Processor, 2 threads, capped to avx2: preresnet-20",
    ]  # fmt: skip
    assert slug(capped.device) == "some-processor-2-threads-only-avx2"
    ours = best([*chosen, pinned.model_copy(update={"log": True})])
    assert ours is not None
    assert ours.kind == "auto"  # what has a precision of its own is a rival


def test_whole_commands_have_a_table_of_their_own():
    command = Command(
        name="a.yaml", seconds=Series.of([60.0, 70.04, 62.0]), start=Series.of([2.0, 2.5, 3.0]),
        steps_share=Series.of([80.0, 86.2, 90.0]), precision="bf16", step="fused",
    )  # fmt: skip
    text = render_all([make_results(cases=[], commands=[command])])
    assert text.startswith("### Some(R) Processor, 2 threads: `vshift train`\n")
    (row,) = cells(text)
    assert list(row.values()) == ["a.yaml", "bf16, fused", "62.0", "60.0–70.0", "3", "2.5", "86 %"]


def test_what_was_left_out_is_said():
    text = render(make_results(not_raced=["wrn-28-10, batch 128, no noise"]))
    assert "- preresnet-20, batch 128, none: (c) airbench: it takes too long" in text
    assert "- wrn-28-10, batch 128, no noise: no time was left" in text


def test_a_kind_of_device_without_results_is_not_measured():
    assert render_all([]).count("Not measured.") == 2
    text = render_all([make_results()])
    assert "### GPU\n\nNot measured." in text
    assert "### CPU" not in text
    both = render_all([make_results(), make_results(kind="cuda", name="NVIDIA H100")])
    assert both.index("### Some(R)") < both.index("### NVIDIA H100")
    assert "Not measured." not in both


def test_the_readme_is_what_its_results_give():
    readme = (ROOT / "benchmarks" / "README.md").read_text()
    assert rendered(readme, ROOT / "benchmarks" / "results") == readme


def test_a_new_result_changes_the_readme(tmp_path):
    make_results(kind="cuda", name="NVIDIA H100").write(tmp_path / "gpu" / "h100.json")
    new = rendered(f"before\n{BEGIN}\nold\n{END}\nbehind\n", tmp_path)
    assert new.startswith("before\n")
    assert new.endswith("behind\n")
    assert "old" not in new
    assert "### NVIDIA H100" in new


def test_the_readme_says_which_way_to_train_several_seeds_was_raced_where(tmp_path):
    series = {"values": [90.0, 110.0], "median": 100.0, "low": 90.0, "high": 110.0}
    rows = [{"name": "stacked", "step": "eager", "loss": 1.0, "images_per_second": series,
             "gain": {"values": [0.5], "median": 0.5, "low": 0.4, "high": 0.6}}]  # fmt: skip
    case = {"network": "n", "batch": 8, "noise": "none", "seeds": 2, "contenders": rows,
            "left_out": {"streams": "no"}}  # fmt: skip
    found = {"created": "2026-01-02T03", "git": None, "steps": 3, "versions": {"torch": "9"},
             "device": {"kind": "cpu", "name": "A", "threads": 1, "load": 0.1}}  # fmt: skip
    (tmp_path / "together").mkdir()
    (tmp_path / "together" / "a.json").write_text(json.dumps({**found, "cases": [case]}))
    new = rendered(f"{BEGIN}\n{END}", tmp_path)
    assert "| n | none | 8 | 2 | stacked (eager) | 100 | 2 | 0.50× (0.40–0.60) |" in new
    assert "| n | none | 8 | 2 | streams | – | 0 | no |" in new
    assert "A, 1 thread, load 0.1 before; torch 9; 2026-01-02" in new
    assert "On a GPU: not measured." in new


@pytest.mark.parametrize("word", ["make bench", "make gpu", "plain_network.py", "bounds.py"])
def test_the_readme_says_how(word):
    assert word in (ROOT / "benchmarks" / "README.md").read_text()
