"""Run folders → one HTML file that explains itself, and figures for papers."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from vshift.errors import VShiftError
from vshift.text import escape_control


def write_report(
    folders: Sequence[Path],
    out: Path,
    figures: Path | None = None,
    baseline: str | None = None,
    title: str | None = None,
    command: str = "",
) -> list[Path]:
    """Read the runs under the folders, write the page and, if asked for, figures as SVG and PDF.

    Args:
        title: of the page; by default the folders' names.
        command: that makes this page again, which its foot shows.

    Returns:
        What was written, the page first.

    Raises:
        VShiftError: altair or vl-convert is not installed; no run is found; the baseline is no
            config's name; a file cannot be written.
    """
    try:
        import altair  # noqa: F401
        import vl_convert  # noqa: F401
    except ImportError as error:
        raise VShiftError(
            f"the report needs {error.name}; `pip install 'vshift[report]'` brings it"
        ) from error
    from vshift.report.figures import write_figures
    from vshift.report.page import render, vega_script
    from vshift.report.study import collect
    from vshift.runs import files, find_runs

    with ThreadPoolExecutor(1) as pool:
        vega = pool.submit(vega_script)  # meanwhile, as it takes seconds the first time
        study = collect(find_runs(folders), baseline)
        title = title or " and ".join(folder.resolve().name for folder in folders)
        page = render(study, escape_control(title), vega.result(), escape_control(command))
    files.write_named(out, "--out", page.encode("utf-8", "backslashreplace"))
    return [out, *(write_figures(study, figures) if figures else [])]
