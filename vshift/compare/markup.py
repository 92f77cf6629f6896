"""A sheet in Markdown, LaTeX and HTML, where no name can be more than text."""

from __future__ import annotations

import html
import re

from vshift.compare.sheet import Sheet

_MD_SPECIAL = re.compile(r"([\\`*_\[\]|~$@]|:(?! |$))")


def _md(text: str) -> str:
    """Text in a Markdown table's cell: no emphasis, code, link, HTML, formula or further cell."""
    text = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return _MD_SPECIAL.sub(r"\\\1", text).replace("www.", "www\\.")


def markdown(sheet: Sheet) -> str:
    """A table in the dialect of GitHub and pandoc, the caption below it."""
    lines = [
        [_md(column.line) for column in sheet.columns],
        [":--" if column.is_text else "--:" for column in sheet.columns],
        *([_md(cell) for cell in row] for row in sheet.rows),
    ]
    return "\n".join([*(f"| {' | '.join(line)} |" for line in lines), "", _md(sheet.caption), ""])


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
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    '"': "{''}",
    "'": "{'}",
    "`": "{`}",
    "-": "{-}",  # two would become a dash
    "[": "{[}",  # at a row's start it would be an argument of the line break before it
    "]": "{]}",
    "*": "{*}",
    "±": r"$\pm$",
    "×": r"$\times$",
    "β": r"$\beta$",
    "−": "$-$",
    "–": "--",
}


def _tex(text: str) -> str:
    return "".join(_TEX.get(char, char) for char in text)


def latex(sheet: Sheet) -> str:
    """A booktabs table with its caption."""
    lines = [[column.line for column in sheet.columns], *sheet.rows]
    head, *body = (f"    {' & '.join(map(_tex, line))} \\\\" for line in lines)
    alignment = "".join("l" if column.is_text else "r" for column in sheet.columns)
    return "\n".join(
        [
            "% needs \\usepackage{booktabs}",
            "\\begin{table}",
            "  \\centering",
            f"  \\caption{{{_tex(sheet.caption)}}}",
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


def html_table(sheet: Sheet) -> str:
    """One `<table class="vshift">`, a fragment in ASCII for a page with styles of its own.

    Numbers have the class `number`; a row's labels are its headers.
    """
    kinds = ["" if column.is_text else ' class="number"' for column in sheet.columns]

    def cell(index: int, text: str) -> str:
        tag, scope = ("th", ' scope="row"') if index < sheet.labels else ("td", "")
        return f"<{tag}{scope}{kinds[index]}>{html.escape(text)}</{tag}>"

    heads = (
        f'<th scope="col"{kind}>{html.escape(column.line)}</th>'
        for column, kind in zip(sheet.columns, kinds, strict=True)
    )
    rows = ("".join(cell(i, text) for i, text in enumerate(row)) for row in sheet.rows)
    lines = [
        '<table class="vshift">',
        f"  <caption>{html.escape(sheet.caption)}</caption>",
        f"  <thead><tr>{''.join(heads)}</tr></thead>",
        "  <tbody>",
        *(f"    <tr>{row}</tr>" for row in rows),
        "  </tbody>",
        "</table>",
        "",
    ]
    return "\n".join(lines).encode("ascii", "xmlcharrefreplace").decode()
