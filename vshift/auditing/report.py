"""The result of an audit, as an object, text, Markdown, HTML and JSON."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from vshift.auditing.comparisons import EvalTests
from vshift.auditing.distances import is_usable
from vshift.auditing.evidence import Evidence
from vshift.auditing.findings import Finding
from vshift.auditing.findings.base import list_layers
from vshift.auditing.measurements import REPAIRED, any_trains
from vshift.auditing.names import plain_name
from vshift.auditing.page import page
from vshift.auditing.samples import tensors_of
from vshift.auditing.severity import SEVERITIES, Gain, format_pair
from vshift.auditing.trace import NoiseSource
from vshift.shift.stats import Moments, shift_ratio
from vshift.tables import Column, Table, render
from vshift.text import (
    NONE,
    escape_control,
    escape_lines,
    format_estimate,
    format_significant,
    keep_together,
    pluralize,
    supported_decimals,
    to_json,
    to_jsonable,
)

if TYPE_CHECKING:
    import pandas as pd
    from torch import Tensor, nn

Row = dict[str, Any]
MOST_LAYERS = 60  # in a table for people; JSON has them all
_ERROR = "±: the standard error over the samples; of a difference between modes it is smaller."


@dataclass(frozen=True)
class NoiseReport:
    """Random operations that ran after train(), after eval(), and those that reach the output
    through no batch norm in training."""

    training: list[NoiseSource]
    eval: list[NoiseSource]
    at_output: list[NoiseSource]

    def to_dict(self) -> Row:
        return {
            key: [{"layer": source.layer, "function": source.function} for source in sources]
            for key, sources in vars(self).items()
        }


@dataclass
class Audit:
    """Findings, the most harmful first, and the numbers they rest on.

    Attributes:
        findings: see `Finding`.
        layers: one row per BN layer in forward order; the columns are in docs/audit.md.
        noise: where the model is random.
        tests: the repeat test and the batch-mates test.
        scores: loss and accuracy per mode on the loader's samples; those named "training data" on
            the training loader's.
        notes: what was done differently, and what cannot be known from model and loader.
        gap: from eval mode to the better one of the modes with batch statistics.
        fixed: the running statistics that gained something, by layer.
        buffers: other buffers that did, by name.
        setup: numbers of samples, batch size, seed, device and versions.
    """

    findings: list[Finding]
    layers: list[Row]
    noise: NoiseReport
    tests: EvalTests
    scores: dict[str, Row]
    notes: list[str]
    gap: Gain | None = None
    fixed: Mapping[str, Moments] = field(default_factory=dict)
    buffers: Mapping[str, Tensor] = field(default_factory=dict)
    setup: Row = field(default_factory=dict)

    def frame(self) -> pd.DataFrame:
        """`layers` as a DataFrame."""
        import pandas as pd

        return pd.DataFrame(self.layers)

    def fails(self, at: str) -> bool:
        """Whether a finding is of this severity (info, low, medium, high) or worse."""
        return any(f.severity in SEVERITIES[SEVERITIES.index(at) :] for f in self.findings)

    def fixed_state(self, model: nn.Module) -> dict[str, Tensor]:
        """The model's state dict with the buffers that gained something."""
        state = {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}
        changed = {plain_name(name): value for name, value in self.buffers.items()}
        for layer, moments in self.fixed.items():
            changed[f"{layer}.running_mean".removeprefix(".")] = moments.mean
            changed[f"{layer}.running_var".removeprefix(".")] = moments.variance
        names = {plain_name(name): name for name in state}
        fitting = {names[name]: value for name, value in changed.items() if name in names}
        return state | {name: value.to(state[name]) for name, value in fitting.items()}

    def to_dict(self) -> Row:
        """Everything, in what JSON can hold; numbers that are not finite are None."""
        content: Row = to_jsonable(
            {
                "findings": [finding.to_dict() for finding in self.findings],
                "layers": self.layers,
                "noise": self.noise.to_dict(),
                "tests": vars(self.tests),
                "scores": self.scores,
                "notes": self.notes,
                "setup": self.setup,
            }
        )
        return content

    def to_json(self) -> str:
        return to_json(self.to_dict(), ascii_only=True)

    def __str__(self) -> str:
        return self.to_text()

    def to_text(self, width: int = 100, *, terminal: bool = False) -> str:
        """The verdict, findings in plain words, then scores and one line per BN layer.

        Args:
            width: in characters, of the text, and with `terminal` of the tables, which then have
                colours.
        """

        def wrap(text: str, first: str = "", others: str = "") -> str:
            whole = keep_together(escape_control(text))
            return textwrap.fill(
                whole, width, initial_indent=first, subsequent_indent=others, break_on_hyphens=False
            )

        parts = [wrap(self.verdict), self.count] if self.verdict else [self.count]
        for number, finding in enumerate(self.findings, 1):
            first, *others = finding.sentences
            heading = f"{number}. [{finding.severity}] {finding.code}: {first}"
            parts += ["", wrap(heading, others="   ")]
            parts += [wrap(sentence, "   ", "     ") for sentence in others]
        notes = [wrap(f"Note: {note}.", others="  ") for note in self.notes]
        tables = self._tables("table", width, terminal=terminal)
        return "\n".join([*parts, "", *tables, *notes])

    def to_markdown(self) -> str:
        """The audit as a Markdown document."""
        parts = [f"{self.verdict} {self.count}".strip(), ""]
        for finding in self.findings:
            first, *others = finding.sentences
            where = f", at `{finding.layer}`" if finding.layer else ""
            sentences = "".join(f"- {sentence}\n" for sentence in others).replace("<", "&lt;")
            parts += [f"### {first.removesuffix('.').replace('<', '&lt;')}", ""]
            parts += [f"`{finding.code}`, severity **{finding.severity}**{where}.", "", sentences]
        parts += self._tables("md")
        parts += ["- " + note.replace("<", "&lt;") for note in self.notes]
        return escape_lines("\n".join(parts))

    def to_html(self, title: str, made: Sequence[str] = ()) -> str:
        """The audit as one self-contained HTML file without scripts.

        Args:
            made: from what data and by what command, a sentence each, for the page's foot.
        """
        tables = self.score_table(), self.layer_table(_COLUMNS)
        return page(self, f"Audit of {title}", *tables, made)

    @property
    def verdict(self) -> str:
        """What eval mode loses, and how much of it repairs give back; empty without labels."""
        gap = self.gap
        if gap is None or gap.loss_before is None or gap.loss_after is None:
            return ""
        before, after, error = gap.accuracy_before, gap.accuracy_after, gap.accuracy_error
        losses = format_pair(gap.loss_before, gap.loss_after, gap.loss_error)
        numbers = "loss {} against {}{}".format(*losses)
        if before is not None and after is not None:
            numbers += ", accuracy {} against {} %{}".format(*format_pair(before, after, error))
        if gap.severity == "info":
            how = "hardly" if gap.is_measurable else "not measurably"
            return f"Eval mode is {how} worse than {gap.repair}: {numbers}."
        repaired = self.scores.get(REPAIRED, {})
        if before is None or after is None or after - before <= 2 * (error or 0.0):
            digits = supported_decimals(gap.loss_before, gap.loss_error)
            more = f"; repairs bring the loss to {repaired['loss']:.{digits}f}" if repaired else ""
            return f"Eval mode is worse than {gap.repair}: {numbers}{more}."
        lost, more = format_estimate(after - before, error), ""
        if repaired:
            digits = supported_decimals(after - before, error)
            more = f"; repairs give back {repaired['accuracy'] - before:.{digits}f}"
        return f"Eval mode loses {lost} points against {gap.repair}{more}."

    @property
    def count(self) -> str:
        """The number of findings, as the line before them."""
        if not self.findings:
            return "No findings."
        is_ordered = len(self.findings) > 1 and self.fails("low")
        order = ", the most harmful first" if is_ordered else ""
        return f"{pluralize(len(self.findings), 'finding')}{order}:"

    def _tables(self, kind: str, width: int = 100, *, terminal: bool = False) -> list[str]:
        layers = self.layer_table([c for c in _COLUMNS if c.key not in _ONLY_IN_HTML])
        layers = replace(layers, rows=layers.rows[:MOST_LAYERS])
        tables = [table for table in (self.score_table(), layers) if table.rows]
        if kind == "table" and not terminal:  # whose captions are lines of any length
            tables = [_with_wrapped_notes(table, width) for table in tables]
        parts = [
            render(table, kind, terminal_width=width if terminal else None) for table in tables
        ]
        more = len(self.layers) - MOST_LAYERS
        if more > 0:
            parts.append(f"… and {pluralize(more, 'more layer')} (--format json has all)")
        return parts

    def score_table(self) -> Table:
        return Table(
            [Column("mode", is_text=True), Column("loss", note=_ERROR), Column("accuracy %")],
            [
                [name, *(format_estimate(score[k], score[f"{k}_se"]) for k in ("loss", "accuracy"))]
                for name, score in self.scores.items()
            ],
        )

    def layer_table(self, columns: Sequence[_LayerColumn]) -> Table:
        shown = {row["role"] for row in self.layers}
        roles = " ".join(f"{role}: {text}." for role, text in _ROLES.items() if role in shown)
        notes = [roles if c.key == "role" else c.note for c in columns]
        return Table(
            [
                Column(c.head, c.priority, c.is_text, c.together, note)
                for c, note in zip(columns, notes, strict=True)
            ],
            [[c.cell(row) for c in columns] for row in self.layers],
        )


def _with_wrapped_notes(table: Table, width: int) -> Table:
    """The table with each column's note on lines of its own below."""
    notes = [textwrap.fill(c.note, width, subsequent_indent="  ") for c in table.columns if c.note]
    return replace(table.without_notes(), caption="\n".join(notes))


@dataclass(frozen=True)
class _LayerColumn:
    """A column of the table of layers: text, or numbers with as many digits as `<key>_se` supports.

    Attributes:
        priority, together, note: see `Column`; a narrow terminal leaves out some.
    """

    key: str
    head: str
    priority: int = 50
    is_text: bool = False
    together: str = ""
    note: str = ""

    def cell(self, row: Row) -> str:
        value, error = row[self.key], row.get(f"{self.key}_se")
        if self.is_text:
            text = (", ".join(value) or NONE) if isinstance(value, list) else value
            return escape_control(text) or "(the model)"
        if value is None or value != value:
            return NONE
        if isinstance(value, int):
            return str(value)
        if error is None:
            text = f"{value:#.3g}".rstrip(".")
            return format_significant(value, 3) if "e+" in text else text
        return f"{value:.{min(supported_decimals(value, error), 3)}f}"


_COLUMNS = (
    _LayerColumn("layer", "layer", is_text=True),
    _LayerColumn("role", "role", 90, is_text=True),
    _LayerColumn("channels", "channels"),
    _LayerColumn("noise", "noise", is_text=True),
    _LayerColumn("train_variance", "train var", together="variances"),
    _LayerColumn("noise_off_variance", "noise-off var", together="variances"),
    _LayerColumn("running_variance", "running var", together="variances"),
    _LayerColumn("eval_variance", "eval var", together="variances"),
    _LayerColumn(
        "distance",
        "distance",
        70,
        note="distance: of the running statistics from those of training mode, in standard "
        "deviations of the layer's input; its role says whether that is too much.",
    ),
    _LayerColumn(
        "shift_ratio",
        "shift",
        80,
        note="shift: running and eval variance, the larger over the smaller.",
    ),
    _LayerColumn(
        "local_ratio",
        "local",
        80,
        note="local: the variance with all noise on over that with it off, on batch statistics.",
    ),
    _LayerColumn(
        "inherited_ratio",
        "inherited",
        80,
        note="inherited: the variance with noise off, on batch statistics, over eval mode's.",
    ),
)
# Roles that are no finding's code, of those that are shown.
_ROLES = {
    "off": "its running statistics are not those of training mode, and that does no measurable "
    "harm",
    "inherits": "it is right itself, and gets other inputs in eval mode from an earlier layer",
    "re-estimated": "its running statistics are those without noise",
    "frozen": "it is in eval mode in training too, and not judged",
    "keeps no statistics": "it normalises by the batch in both modes",
}
_ONLY_IN_HTML = ("channels", "noise", "noise_off_variance")


# ---- rows and notes


def layer_rows(evidence: Evidence, findings: Sequence[Finding]) -> list[Row]:
    """One row per batch norm that ran."""
    concerned = {(f.code, name) for f in findings for name in f.evidence.get("layers", ())}
    rows: list[Row] = []
    for index, (name, layer) in enumerate(evidence.layers.items()):
        running, eval_ = evidence.running.get(name), evidence.eval_pass.average(name)
        local, inherited = evidence.local_ratio(name), evidence.inherited_ratio(name)
        # A finding's code only if there is such a finding about the layer.
        role = "frozen" if name in evidence.model.frozen else "ok"
        if name in evidence.explained_by:
            code = evidence.explained_by[name]
            is_off = name in evidence.mismatched or name not in evidence.judged
            role = code if (code, name) in concerned else "off" if is_off else "ok"
        elif name in evidence.re_estimated:
            role = "re-estimated"
        elif name in evidence.shifted:
            role = "variance_shift"
        elif name in evidence.inheriting or name in evidence.following:
            role = "inherits"
        elif running is None:
            role = "keeps no statistics"
        row = {
            "index": index,
            "layer": name,
            "type": type(layer).__name__,
            "channels": layer.num_features,
            "role": role,
            "momentum": layer.momentum,
            "eps": layer.eps,
            "batches_tracked": evidence.batches_tracked(name),
            "calls": evidence.train_stats(name).calls,
            "values": evidence.train_stats(name).count,
            "noise": [str(source) for source in evidence.noise_reaching(name)],
            "train_variance": _mean_variance(evidence.train(name)),
            "noise_off_variance": _mean_variance(evidence.noise_off_pass.average(name)),
            "running_variance": _mean_variance(running),
            "eval_variance": _mean_variance(eval_),
            "shift_ratio": None,
            "local_ratio": local.value,
            "local_ratio_se": local.error,
            "inherited_ratio": inherited.value,
            "inherited_ratio_se": inherited.error,
            "distance": evidence.distance.get(name),
            "limit": evidence.limit.get(name),
            "eval_distance": None,
        }
        if running and eval_:
            row["shift_ratio"] = shift_ratio(running.variance, eval_.variance)
            if is_usable(running):
                row["eval_distance"] = evidence.distance_to(eval_, name)
        rows.append(row)
    return rows


def _mean_variance(moments: Moments | None) -> float | None:
    return None if moments is None else float(moments.variance.mean())


def notes_on_unknowns(evidence: Evidence, findings: Sequence[Finding]) -> list[str]:
    """Notes on questions that model and loader cannot answer, and what would."""
    notes, samples, scores = [], evidence.train_samples, evidence.eval_scores
    if not evidence.samples.rows_are_samples:
        notes.append(
            "batches were used as they come (rows are not known to be independent samples): "
            "the tests of batch mates and of the loader's order were left out"
        )
    elif samples.batch_size < 2:
        notes.append(
            f"the loader gives single samples; {samples.shuffled_size} of them were put together, "
            "and whether training's batches are large enough was not judged"
        )
    inputs = [t for batch in evidence.samples.batches for t in tensors_of(batch.inputs)]
    if not all(bool(t.isfinite().all()) for t in inputs if t.is_floating_point()):
        notes.append("inputs hold inf or NaN, and all results include them")
    elif not (scores.finite or evidence.train_pass.scores.finite):
        notes.append("outputs hold inf or NaN in training mode too, as some weights probably do")
    if functional := evidence.train_trace.functional_norms:
        notes.append(
            f"batch norm runs as a function, outside of PyTorch's modules, in "
            f"{list_layers(functional)}: its statistics cannot be inspected and were not judged"
        )
    if not evidence.layers:
        notes.append("no batch norm module ran: there are no running statistics to judge")
    elif not (evidence.has_train_loader or any(f.code == "stale" for f in findings)):
        notes.append(  # `stale` says it itself
            "pass train_loader= (--train-data) to learn whether eval inputs differ from training "
            "inputs"
        )
    if evidence.re_estimated:
        notes.append(
            f"the running statistics of {list_layers(evidence.re_estimated)} are those without "
            "noise, as re-estimation leaves them: they agree with eval mode there"
        )
    # Of layers that do not train in a model that does, or of those whose cause is open.
    frozen_layers = any_trains(evidence.model.module.parameters()) and any(
        any_trains(evidence.layers[name].parameters(recurse=False)) is False
        for name in evidence.judged
    )
    may_have_drifted = frozen_layers or any(finding.code == "stale" for finding in findings)
    if not evidence.reference and may_have_drifted:
        notes.append(
            "pass reference= (--reference), an earlier checkpoint, to learn whether frozen layers "
            "drifted"
        )
    if evidence.reference and not any(
        f"{name}.running_mean".removeprefix(".") in evidence.reference for name in evidence.running
    ):
        notes.append(
            "the reference has none of this model's batch norms: is it of the same network?"
        )
    if scores.loss is None:
        why = f"the labels were not used ({scores.unused}): " if scores.unused else ""
        notes.append(
            f"{why}without labels, severity is how much the output moves, not how much is gained"
        )
    labels = [batch.labels for batch in evidence.samples.batches if batch.labels is not None]
    outputs = scores.outputs.shape[1] if scores.outputs.ndim == 2 else 0
    if scores.accuracy is not None and labels and all(rows.ndim == 1 for rows in labels):
        used = 1 + max(int(rows.max()) for rows in labels)
        if outputs >= 2 * used:
            notes.append(
                f"the labels name classes 0 to {used - 1} of the model's {outputs:,} outputs: are "
                "they numbered as in training?"
            )
    if frozen := sorted(evidence.model.frozen):
        notes.append(f"not judged, as in eval mode in training too: {list_layers(frozen)}")
    return notes
