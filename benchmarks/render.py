"""Put the tables of every bench under results/ into README.md, so that nobody types a number.

python -m benchmarks.render            rewrites benchmarks/README.md
python -m benchmarks.render --check    exits with 1 if it is not what it would be
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from benchmarks import together
from vshift.bench.results import read_results
from vshift.bench.table import render_all

HERE = Path(__file__).parent
BEGIN = "<!-- Written by benchmarks/render.py from results/: do not edit. -->"
END = "<!-- End of what render.py wrote. -->"


def rendered(readme: str, results: Path) -> str:
    """The README's text with the tables of all `results/**/*.json` between its two marks."""
    before, rest = readme.split(BEGIN)
    _, after = rest.split(END)
    raced = sorted((results / "together").glob("*.json"))
    tables = render_all(read_results(p) for p in sorted(set(results.rglob("*.json")) - set(raced)))
    seeds = "\n".join(together.render(json.loads(path.read_text())) for path in raced)
    if not any(json.loads(path.read_text())["device"]["kind"] == "cuda" for path in raced):
        seeds += "\nOn a GPU: not measured.\n"
    return f"{before}{BEGIN}\n\n{tables}\n### Several seeds at once\n\n{seeds}\n{END}{after}"


def main() -> int:
    readme = HERE / "README.md"
    old = readme.read_text()
    new = rendered(old, HERE / "results")
    if "--check" in sys.argv[1:]:
        return int(old != new)
    readme.write_text(new)
    return 0


if __name__ == "__main__":
    sys.exit(main())
