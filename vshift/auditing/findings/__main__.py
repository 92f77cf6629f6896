"""Fill the table of findings: python -m vshift.auditing.findings docs/audit.md."""

import sys
from pathlib import Path

from vshift.auditing.findings import CHECKS

START, END = "<!-- findings -->\n", "<!-- end -->"


def fill_document(text: str) -> str:
    """The document with its table of findings as the classes have it."""
    before, rest = text.split(START)
    after = rest.split(END, 1)[1]
    checks = {check.code: check for check in CHECKS}
    rows = [f"| `{c.code}` | {c.title} | {c.causes} |\n" for c in checks.values()]
    head = "| code | means | usual causes |\n| :-- | :-- | :-- |\n"
    return f"{before}{START}{head}{''.join(rows)}{END}{after}"


if __name__ == "__main__":
    document = Path(sys.argv[1])
    document.write_text(fill_document(document.read_text("utf-8")), "utf-8")
