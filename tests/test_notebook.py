"""examples/first_hour.ipynb runs from its first cell to its last, and shows what it says."""

import warnings
from pathlib import Path

import pytest

NEEDED = "the development tools are not installed"
with warnings.catch_warnings(action="ignore"):  # of what they import
    nbformat = pytest.importorskip("nbformat", reason=NEEDED)
    nbclient = pytest.importorskip("nbclient", reason=NEEDED)
    pytest.importorskip("ipykernel", reason=NEEDED)
    pytest.importorskip("matplotlib", reason=NEEDED)
NOTEBOOK = Path(__file__).parents[1] / "examples" / "first_hour.ipynb"


def shown(cell) -> str:
    """All text that a cell prints or returns."""
    found = [out.get("data", {}) | {"printed": out.get("text", "")} for out in cell.outputs]
    return "".join(text for data in found for text in data.values())


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_notebook(tmp_path):
    book = nbformat.read(NOTEBOOK, as_version=4)
    shorter = {"part(2000)": "part(640)", "epochs: 6": "epochs: 3"}
    for cell, (whole, part) in zip(book.cells[2:4], shorter.items(), strict=True):
        assert whole in cell.source
        cell.source = cell.source.replace(whole, part)
    with warnings.catch_warnings(action="ignore"):
        client = nbclient.NotebookClient(
            book, timeout=600, resources={"metadata": {"path": str(tmp_path)}}
        )
        client.execute()  # raises where a cell does
    _, _, table, summary, plot, noisy, report, audit = (
        cell for cell in book.cells if cell.cell_type == "code"
    )
    assert "| no-noise |" in shown(table)
    assert "test_error_recalibrated" in shown(summary)
    assert any("image/png" in out.get("data", {}) for out in plot.outputs)
    assert noisy.outputs[0]["data"]["text/plain"].count("branch.bn2") == 3 * 2  # blocks and seeds
    assert (tmp_path / "report.html").stat().st_size > 100_000
    assert "<iframe" in shown(report)
    assert "variance_shift" in shown(audit)


def test_its_outputs_are_committed():
    """Readers of the repository see them without running it."""
    book = nbformat.read(NOTEBOOK, as_version=4)
    cells = [cell for cell in book.cells if cell.cell_type == "code"]
    assert all(cell.outputs for cell in cells)
    assert not any(out.output_type == "error" for cell in cells for out in cell.outputs)
    assert NOTEBOOK.stat().st_size < 200_000
