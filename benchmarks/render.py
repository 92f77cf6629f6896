"""Tables of benches: one for `vshift bench`, and those of benchmarks/README.md.

python -m benchmarks.render            rewrites the README with the tables of all results/
python -m benchmarks.render --check    exits with 1 if that would change it

Everything in a table comes from the JSON files, so that nobody types a number.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from textwrap import fill
from typing import Any

from benchmarks.results import IN_TURN, CaseResult, Contender, Results, read_results
from vshift import tables
from vshift.tables import Column, Table
from vshift.text import NONE, format_integer, format_number, pluralize

HERE = Path(__file__).parent
BEGIN = "<!-- Written by benchmarks/render.py from results/: do not edit. -->"
END = "<!-- End of what render.py wrote. -->"
Cell = Callable[[CaseResult, Contender], str]
_TEXT = ("network", "noise", "contender")
# Of columns on a narrow terminal, from the one that stays longest.
_PRIORITY = {
    "images/s": 99, "vshift is faster by": 90, "logging costs": 80, "n": 70, "min–max": 60,
    "of arithmetic": 40,
}  # fmt: skip


def render(results: Results, width: int | None = None) -> str:
    """The table, what was left out, and a caption with device, versions and n.

    Args:
        width: of a terminal; None for Markdown.
    """

    def write(table: Table) -> str:
        kind = "md" if width is None else "table"
        return tables.render(table, kind, terminal_width=width).rstrip("\n")

    def wrap(text: str, others: str = "") -> str:
        if width is None:
            return text
        return fill(
            text, width, subsequent_indent=others, break_long_words=False, break_on_hyphens=False
        )

    has_rows = any(case.contenders for case in results.cases)
    parts = [write(_table(results))] if has_rows else []
    parts += [write(_commands(results))] if results.commands else []
    left_out = [
        f"- {case.network}, batch {case.batch}, {case.noise}: {one.contender}: {one.reason}"
        for case in results.cases
        for one in case.left_out
    ]
    left_out += [f"- {name}: no time was left" for name in results.not_raced]
    lines = ["Not measured:", "", *(wrap(line, "  ") for line in left_out)]
    parts += ["\n".join(lines)] if left_out else []
    return "\n\n".join([*parts, wrap(_caption(results))]) + "\n"


def render_all(benches: Iterable[Results], width: int | None = None) -> str:
    """A section per device; one that says "Not measured" if no GPU or no CPU is among them.

    Args:
        width: of a terminal; None for Markdown.
    """
    benches = sorted(
        benches,
        key=lambda results: (
            results.device.kind, results.device.name, results.device.isa != "native",
            results.device.isa,
        ),
    )  # fmt: skip
    sections = [f"### {_heading(results)}\n\n{render(results, width)}" for results in benches]
    for kind, title in {"cuda": "GPU", "cpu": "CPU"}.items():
        if not any(results.device.kind == kind for results in benches):
            sections.append(f"### {title}\n\nNot measured.\n")
    return "\n".join(sections)


def _table(results: Results) -> Table:
    """One row per contender; columns without any value are left out."""
    columns: dict[str, Cell] = {
        "network": lambda case, one: case.network,
        "batch": lambda case, one: str(case.batch),
        "noise": lambda case, one: case.noise,
        "contender": lambda case, one: label(one),
        "images/s": lambda case, one: format_integer(one.images_per_second.median),
        "min–max": lambda case, one: (
            f"{one.images_per_second.low:,.0f}–{one.images_per_second.high:,.0f}"
        ),
        "n": lambda case, one: str(len(one.seconds.values)),
        "of arithmetic": lambda case, one: _percent(one.shares.arithmetic),
        "of Inductor traffic": lambda case, one: _percent(one.shares.inductor),
        "GPU memory": lambda case, one: (
            NONE if one.peak_memory is None else f"{one.peak_memory / 2**20:,.0f} MiB"
        ),
        "logging costs": _logging,
        "vshift is faster by": _faster,
    }
    rows = [
        [cell(case, one) for cell in columns.values()]
        for case in results.cases
        for one in case.contenders
    ]
    heads = [Column(head, _PRIORITY.get(head, 50), head in _TEXT) for head in columns]
    table = Table(heads, rows, labels=list(columns).index("images/s"))
    return table.part([i for i in range(len(columns)) if any(row[i] != NONE for row in rows)])


def _commands(results: Results) -> Table:
    """One row per config whose `vshift train` was timed as a whole."""
    heads = ("vshift train", "runs in", "wall s", "min–max", "n", "before the first step s",
             "of it training steps")  # fmt: skip
    rows = [
        [
            one.name,
            f"{one.precision}, {one.step}",
            format_number(one.seconds.median, 1),
            f"{one.seconds.low:.1f}–{one.seconds.high:.1f}",
            str(len(one.seconds.values)),
            format_number(one.start.median, 1),
            f"{format_number(one.steps_share.median, 0)} %",
        ]
        for one in results.commands
    ]
    return Table([Column(head, is_text=i < 2) for i, head in enumerate(heads)], rows)


def label(one: Contender) -> str:
    """`vshift auto (captured) + log`, or the peer's name."""
    if one.kind is None:
        return one.name
    words = one.kind.split("-")
    chosen = [word for word in (one.step, one.precision) if word and word not in words]
    in_brackets = f" ({', '.join(chosen)})" if chosen else ""
    return f"vshift {one.kind}{in_brackets}{' + log' if one.log else ''}"


def best(contenders: Sequence[Contender]) -> Contender | None:
    """vshift's fastest contender, with logging if one logs: what peers are compared to."""
    ours = [one for one in contenders if not one.is_rival]
    logging = [one for one in ours if one.log] or ours
    return max(logging, key=lambda one: one.images_per_second.median, default=None)


def _faster(case: CaseResult, one: Contender) -> str:
    ours = best(case.contenders)
    for ratio in case.ratios:
        if ours and (ratio.contender, ratio.to) == (ours.name, one.name):
            return f"{ratio.speed.median:.2f}× ({ratio.speed.low:.2f}–{ratio.speed.high:.2f})"
    return NONE


def _logging(case: CaseResult, one: Contender) -> str:
    for cost in case.logging:
        if one.log and cost.kind == one.kind:
            spread = cost.overhead
            median, low, high = (
                format_number(100 * share, 1, "+")
                for share in (spread.median, spread.low, spread.high)
            )
            return f"{median} % ({low} to {high})"
    return NONE


def _percent(share: float) -> str:
    return f"{format_number(100 * share, 0 if share >= 0.1 else 1)} %"


def _heading(results: Results) -> str:
    timed = [case.network for case in results.cases] + ["`vshift train`"] * bool(results.commands)
    return f"{_device(results)}: {', '.join(dict.fromkeys(timed))}"


def _device(results: Results) -> str:
    device = results.device
    if device.kind == "cuda":
        return device.name
    capped = "" if device.isa == "native" else f", capped to {device.isa}"
    return f"{device.name}, {pluralize(device.threads, 'thread')}{capped}"


def _caption(results: Results) -> str:
    device = results.device
    reference = any(bound.peaks == "reference" for case in results.cases for bound in case.bounds)
    clocks = [round(case.clock_mhz) for case in results.cases if case.clock_mhz]
    ends = dict.fromkeys((min(clocks), max(clocks))) if clocks else {}
    clock = f", {' to '.join(f'{mhz:,}' for mhz in ends)} MHz" if ends else ", clock not told"
    busy = "" if device.load is None else f", load {device.load:.1f} before"
    return (
        f"{_device(results)}{clock}{busy}; "
        f"{_origin(results.versions, results.created, results.git)}. Each timing is one epoch of "
        f"{results.steps} steps, the last one smaller, with contenders in turn; median over n. "
        f"Peaks measured here: {device.flops / 1e12:,.2f} TFLOP/s in {device.flops_precision}, "
        f"{device.bytes_per_second / 1e9:,.0f} GB/s; shares are of bounds from "
        f"{'the reference peaks' if reference else 'these'}."
    )


def _origin(versions: dict[str, str | None], created: str, git: str | None) -> str:
    """Versions, date and commit of a bench."""
    programs = ", ".join(f"{name} {version}" for name, version in versions.items() if version)
    return f"{programs}; {created[:10]}{f', commit {git[:10]}' if git else ''}"


def render_together(bench: dict[str, Any]) -> str:
    """The table and caption of a file of `benchmarks.together`."""
    heads = ("network", "noise", "batch", "seeds", "contender", "images/s", "n", "gain")
    rows: list[list[str]] = []
    for case in bench["cases"]:
        work = [str(case[key]) for key in heads[:4]]
        for row in case["contenders"]:
            speed, gain = row["images_per_second"], row["gain"]
            spread = f" ({gain['low']:.2f}–{gain['high']:.2f})" if row["name"] != IN_TURN else ""
            rows.append(
                [*work, f"{row['name']} ({row['step']})", format_integer(speed["median"]),
                 str(len(speed["values"])), f"{gain['median']:.2f}×{spread}"]
            )  # fmt: skip
        rows += [[*work, name, NONE, "0", reason] for name, reason in case["left_out"].items()]
    device = bench["device"]
    caption = (
        f"{device['name']}, {pluralize(device['threads'], 'thread')}, "
        f"load {device['load'] or 0:.1f} before; "
        f"{_origin(bench['versions'], bench['created'], bench['git'])}. "
        f"Each timing is one epoch of {bench['steps']} steps of every seed, contenders in turn; "
        "median over n. The gain is over one seed after the other in the same repeat."
    )
    table = Table([Column(head, is_text=head in _TEXT) for head in heads], rows)
    return f"{tables.markdown(table)}\n{caption}\n"


def rendered(readme: str, results: Path) -> str:
    """The README's text with the tables of all `results/**/*.json` between its two marks."""
    before, rest = readme.split(BEGIN)
    _, after = rest.split(END)
    together = sorted((results / "together").glob("*.json"))
    benches = sorted(set(results.rglob("*.json")) - set(together))
    seeds = [json.loads(path.read_text("utf-8")) for path in together]
    text = "\n".join(map(render_together, seeds))
    if not any(bench["device"]["kind"] == "cuda" for bench in seeds):
        text += "\nOn a GPU: not measured.\n"
    return (
        f"{before}{BEGIN}\n\n{render_all(map(read_results, benches))}\n"
        f"### Several seeds at once\n\n{text}\n{END}{after}"
    )


def main() -> int:
    readme = HERE / "README.md"
    old = readme.read_text("utf-8")
    new = rendered(old, HERE / "results")
    if "--check" in sys.argv[1:]:
        return int(old != new)
    readme.write_text(new, "utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
