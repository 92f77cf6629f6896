"""A table as text that is never cut: plain, Markdown, LaTeX, HTML, CSV and JSON.

Names come from files that anybody may have written, so each format escapes them in its own way such
that they stay text.
"""

from __future__ import annotations

import csv
import html
import io
import math
import re
from collections.abc import Sequence
from importlib import resources
from typing import Any

from vshift.tables.table import Table
from vshift.text import escape_control, keep_together, to_json, to_jsonable


def plain(table: Table) -> str:
    """Columns side by side, two spaces apart, for a pipe."""
    from rich.cells import cell_len

    columns = []
    for column, *cells in zip(table.columns, *table.rows, strict=True):
        texts = [column.one_line, *cells]
        width = max(map(cell_len, texts))
        spaces = [" " * (width - cell_len(text)) for text in texts]
        pairs = zip(texts, spaces, strict=True)
        columns.append([t + space if column.is_text else space + t for t, space in pairs])
    lines = ["  ".join(line).rstrip() for line in zip(*columns, strict=True)]
    return "\n".join([*lines, *_below(table.whole_caption)])


def _below(caption: str) -> list[str]:
    """The lines after a table, the last one empty to end the text in a newline."""
    return ["", caption, ""] if caption else [""]


# The wide forms too, which Japanese and Chinese spreadsheets take for the narrow ones.
_FORMULA = tuple("=+-@＝＋－＠")


def _unformula(value: Any) -> Any:
    """Text that a spreadsheet does not take for a formula."""
    if isinstance(value, list):
        value = " ".join(map(str, value))
    if not isinstance(value, str):
        return value
    text = escape_control(value)
    if text.lstrip()[:1] not in _FORMULA:
        return text
    try:
        is_number = math.isfinite(float(text))
    except ValueError:
        is_number = False
    return text if is_number else f"'{text}"


def as_csv(table: Table) -> str:
    """The records with full precision; a value that is missing is an empty cell."""
    keys = dict.fromkeys(key for record in table.records for key in record)
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow([_unformula(key) for key in keys])
    for record in table.records:
        writer.writerow([_unformula(to_jsonable(record.get(key))) for key in keys])
    return buffer.getvalue()


def as_json(table: Table) -> str:
    """The records as a list, in ASCII."""
    return to_json(table.records, indent=2, ascii_only=True) + "\n"


# ---- Markdown, LaTeX, HTML

_MD_SPECIAL = re.compile(r"([\\`*_\[\]|~$@]|:(?! |$))")


def _md(text: str) -> str:
    """Text in a Markdown table's cell: no emphasis, code, link, HTML, formula or further cell."""
    text = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return _MD_SPECIAL.sub(r"\\\1", text).replace("www.", "www\\.")


def markdown(table: Table) -> str:
    """A table in the dialect of GitHub and pandoc, the caption below it."""
    lines = [
        [_md(column.one_line) for column in table.columns],
        [":--" if column.is_text else "--:" for column in table.columns],
        *([_md(cell) for cell in row] for row in table.rows),
    ]
    rows = (f"| {' | '.join(line)} |" for line in lines)
    return "\n".join([*rows, *_below(_md(table.whole_caption))])


_TEX = {
    "\\": r"\textbackslash{}",
    "{": r"\{",
    "}": r"\}",
    "$": r"\$",
    "&": r"\&",
    "%": r"\%",
    "#": r"\#",
    "_": r"\_",
    "^": r"\textasciicircum{}",
    "~": r"\textasciitilde{}",
    "<": "$<$",
    ">": "$>$",
    "|": r"\textbar{}",
    '"': "{''}",
    "`": "{`}",
    "±": r"$\pm$",
    "×": r"$\times$",
    "β": r"$\beta$",
    "−": "$-$",
    "–": "--",
    "\N{NO-BREAK SPACE}": "~",
}
# Of two hyphens or apostrophes, which would become a dash or a quotation mark, the first one.
_TEX_CHAR = re.compile(r"([-'])(?=\1)|.", re.DOTALL)


def _tex(text: str) -> str:
    return _TEX_CHAR.sub(lambda m: f"{{{m[1]}}}" if m[1] else _TEX.get(m[0], m[0]), text)


def _tex_row(cells: Sequence[str]) -> str:
    row = " & ".join(map(_tex, cells))
    # At a row's start they would belong to the line break before it.
    return f"    {{}}{row} \\\\" if row.startswith(("[", "*")) else f"    {row} \\\\"


def latex(table: Table) -> str:
    """A booktabs table with its caption and a label, `tab:` and the table's name."""
    lines = [[column.one_line for column in table.columns], *table.rows]
    caption = _tex(keep_together(table.whole_caption))
    head, *body = map(_tex_row, lines)
    alignment = "".join("l" if column.is_text else "r" for column in table.columns)
    return "\n".join(
        [
            "% needs \\usepackage{booktabs}",
            "\\begin{table}",
            "  \\centering",
            *([f"  \\caption{{{caption}}}", f"  \\label{{tab:{table.name}}}"] if caption else []),
            f"  \\begin{{tabular}}{{{alignment}}}",
            "    \\toprule",
            head,
            "    \\midrule",
            *body,
            "    \\bottomrule",
            "  \\end{tabular}",
            "\\end{table}",
            "",
        ]
    )


def html_table(table: Table) -> str:
    """One `<table class="vshift">`, a fragment in ASCII for a page with styles of its own.

    Numbers have the class `number`; a row's labels are its headers.
    """
    kinds = ["" if column.is_text else ' class="number"' for column in table.columns]

    def cell(index: int, text: str) -> str:
        tag, scope = ("th", ' scope="row"') if index < table.labels else ("td", "")
        return f"<{tag}{scope}{kinds[index]}>{html.escape(text)}</{tag}>"

    heads = (
        f'<th scope="col"{kind}>{html.escape(column.one_line)}</th>'
        for column, kind in zip(table.columns, kinds, strict=True)
    )
    caption = html.escape(table.whole_caption)
    rows = ("".join(cell(i, text) for i, text in enumerate(row)) for row in table.rows)
    lines = [
        '<table class="vshift">',
        *([f"  <caption>{caption}</caption>"] if caption else []),
        f"  <thead><tr>{''.join(heads)}</tr></thead>",
        "  <tbody>",
        *(f"    <tr>{row}</tr>" for row in rows),
        "  </tbody>",
        "</table>",
        "",
    ]
    return "\n".join(lines).encode("ascii", "xmlcharrefreplace").decode()


def page_style() -> str:
    """The style sheet of every page that has such tables."""
    return (resources.files("vshift") / "style.css").read_text("utf-8")
