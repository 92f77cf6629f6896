"""A bench as a Markdown table, and the tables of several devices as benchmarks/README.md has them.

Everything in a table comes from the JSON file.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from vshift.bench.results import CaseResult, Contender, Results
from vshift.text import pluralize

NONE = "–"
Cell = Callable[[CaseResult, Contender], str]
_TEXT = ("network", "noise", "contender")


def render(results: Results) -> str:
    """The table, what was left out, and a caption with device, versions and n."""
    parts = [_table(results)] if any(case.contenders for case in results.cases) else []
    left_out = [
        f"- {case.network}, batch {case.batch}, {case.noise}: {one.contender}: {one.reason}"
        for case in results.cases
        for one in case.left_out
    ]
    left_out += [f"- {name}: no time was left" for name in results.not_raced]
    parts += ["\n".join(["Not measured:", "", *left_out])] if left_out else []
    return "\n\n".join([*parts, _caption(results)]) + "\n"


def render_all(found: Iterable[Results]) -> str:
    """A section for each device; without a GPU or a CPU among them, one that says so."""
    found = sorted(found, key=lambda results: (results.device.kind, results.device.name))
    sections = [f"### {_device(results)}\n\n{render(results)}" for results in found]
    titles = {"cuda": "GPU", "cpu": "CPU"}
    for kind, title in titles.items():
        if not any(results.device.kind == kind for results in found):
            sections.append(f"### {title}\n\nNot measured.\n")
    return "\n".join(sections)


def _table(results: Results) -> str:
    rows = [(case, one) for case in results.cases for one in case.contenders]
    columns: dict[str, Cell] = {
        "network": lambda case, one: case.network,
        "batch": lambda case, one: str(case.batch),
        "noise": lambda case, one: case.noise,
        "contender": lambda case, one: label(one),
        "images/s": lambda case, one: f"{one.images_per_second.median:,.0f}",
        "min–max": lambda case, one: _range(one),
        "n": lambda case, one: str(len(one.seconds.values)),
        "of arithmetic": lambda case, one: _percent(one.shares.arithmetic),
        "of Inductor traffic": lambda case, one: _percent(one.shares.inductor),
        "GPU memory": lambda case, one: _bytes(one.peak_memory),
        "logging costs": _logging,
        "vshift is faster by": _faster,
    }
    body = {head: [cell(*row) for row in rows] for head, cell in columns.items()}
    shown = {head: cells for head, cells in body.items() if set(cells) != {NONE}}
    return _markdown(shown)


def _markdown(columns: dict[str, list[str]]) -> str:
    """Columns of one length as a Markdown table that is aligned in plain text as well."""
    lines = [""] * (2 + len(next(iter(columns.values()))))
    for head, cells in columns.items():
        width = max(3, *(len(text) for text in (head, *cells)))
        left = head in _TEXT
        rule = f":{'-' * (width - 1)}" if left else f"{'-' * (width - 1)}:"
        padded = [text.ljust(width) if left else text.rjust(width) for text in (head, *cells)]
        for i, text in enumerate([padded[0], rule, *padded[1:]]):
            lines[i] += f"| {text} "
    return "\n".join(f"{line}|" for line in lines)


def label(one: Contender) -> str:
    """`vshift auto (captured) + log`, or the peer's name."""
    if one.kind is None:
        return one.name
    chosen = f" ({one.step})" if one.step != one.kind else ""
    return f"vshift {one.kind}{chosen}{' + log' if one.log else ''}"


def best(contenders: Sequence[Contender]) -> Contender | None:
    """vshift's fastest contender, with logging if one logs: what peers are compared to."""
    ours = [one for one in contenders if one.kind is not None]
    logging = [one for one in ours if one.log] or ours
    return max(logging, key=lambda one: one.images_per_second.median, default=None)


def _faster(case: CaseResult, one: Contender) -> str:
    ours = best(case.contenders)
    for ratio in case.ratios:
        if ours and (ratio.contender, ratio.to) == (ours.name, one.name):
            speed = ratio.speed
            return f"{speed.median:.2f}× ({speed.low:.2f}–{speed.high:.2f})"
    return NONE


def _logging(case: CaseResult, one: Contender) -> str:
    for cost in case.logging:
        if one.log and cost.kind == one.kind:
            spread = cost.overhead
            low, high = (_signed(value) for value in (spread.low, spread.high))
            return f"{_signed(spread.median)} % ({low} to {high})"
    return NONE


def _signed(share: float) -> str:
    return f"{round(100 * share, 1) + 0.0:+.1f}".replace("-", "−")


def _range(one: Contender) -> str:
    return f"{one.images_per_second.low:,.0f}–{one.images_per_second.high:,.0f}"


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %" if share >= 0.1 else f"{100 * share:.1f} %"


def _bytes(count: int | None) -> str:
    return NONE if count is None else f"{count / 2**20:,.0f} MiB"


def _device(results: Results) -> str:
    device = results.device
    if device.kind == "cuda":
        return device.name
    return f"{device.name}, {pluralize(device.threads, 'thread')}"


def _caption(results: Results) -> str:
    device, versions = results.device, results.versions
    said = ", ".join(f"{name} {version}" for name, version in versions.items() if version)
    reference = any(bound.peaks == "reference" for case in results.cases for bound in case.bounds)
    clocks = [round(case.clock_mhz) for case in results.cases if case.clock_mhz]
    ends = dict.fromkeys((min(clocks), max(clocks))) if clocks else {}
    clock = f", {' to '.join(f'{mhz:,}' for mhz in ends)} MHz" if ends else ", clock not told"
    busy = "" if device.load is None else f", load {device.load:.1f} before"
    return (
        f"{_device(results)}{clock}{busy}; {said}; {results.created[:10]}"
        f"{f', commit {results.git[:10]}' if results.git else ''}. Each timing is one epoch of "
        f"{results.steps} steps, the last one smaller, with contenders in turn; median over n. "
        f"Peaks measured here: {device.flops / 1e12:,.2f} TFLOP/s in bf16, "
        f"{device.bytes_per_second / 1e9:,.0f} GB/s; shares are of bounds from "
        f"{'the reference peaks' if reference else 'these'}."
    )
