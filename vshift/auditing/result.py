"""What `audit` returns."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from vshift.auditing.case import Case, Tests, finite
from vshift.auditing.causes_other import inheriting
from vshift.auditing.findings import Finding, listed, reaches
from vshift.auditing.moments import apart
from vshift.auditing.noise import Source
from vshift.auditing.samples import tensors_of
from vshift.shift.stats import Moments, shift_ratio
from vshift.text import pluralize

if TYPE_CHECKING:
    import pandas as pd
    from torch import Tensor, nn

Row = dict[str, Any]


@dataclass(frozen=True)
class Noise:
    """Random operations that ran: after train(), after eval(), and those that reach the output
    through no batch norm."""

    training: list[Source]
    eval: list[Source]
    at_output: list[Source]

    def to_dict(self) -> Row:
        kinds = {"training": self.training, "eval": self.eval, "at_output": self.at_output}
        return {
            kind: [{"layer": s.layer, "function": s.function} for s in sources]
            for kind, sources in kinds.items()
        }


@dataclass
class Audit:
    """Findings, the most harmful first, and the numbers they rest on.

    Attributes:
        findings: see `Finding`.
        layers: one row for each BN layer in forward order; the columns are in docs/audit.md.
        noise: where the model is random.
        tests: the repeat test and the batch-mates test.
        scores: loss and accuracy by what was switched, on the loader's samples; those named
            "training data" on the training loader's.
        notes: what was done differently, and what cannot be known from model and loader.
        fixed: the running statistics that gave something back, by layer.
        buffers: other buffers that did, by name.
    """

    findings: list[Finding]
    layers: list[Row]
    noise: Noise
    tests: Tests
    scores: dict[str, Row]
    notes: list[str]
    fixed: Mapping[str, Moments] = field(default_factory=dict)
    buffers: Mapping[str, Tensor] = field(default_factory=dict)

    def __str__(self) -> str:
        from vshift.auditing.text import as_text

        return as_text(self)

    def frame(self) -> pd.DataFrame:
        """`layers` as a DataFrame."""
        import pandas as pd

        return pd.DataFrame(self.layers)

    def fails(self, at: str) -> bool:
        """Whether a finding is of this severity (info, low, medium, high) or worse."""
        return any(reaches(finding.severity, at) for finding in self.findings)

    def to_dict(self) -> Row:
        """Everything, in what JSON can hold; numbers that are not finite are None."""
        found: Row = plain(
            {
                "findings": [finding.to_dict() for finding in self.findings],
                "layers": self.layers,
                "noise": self.noise.to_dict(),
                "tests": vars(self.tests),
                "scores": self.scores,
                "notes": self.notes,
            }
        )
        return found

    def to_json(self) -> str:
        return json.dumps(self.to_dict(), allow_nan=False)

    def fixed_state(self, model: nn.Module) -> dict[str, Tensor]:
        """The model's state dict with the buffers that gave something back."""
        state = {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}
        state |= {name: value.to(state[name]) for name, value in self.buffers.items()}
        for layer, moments in self.fixed.items():
            for kind, value in (("mean", moments.mean), ("var", moments.variance)):
                name = f"{layer}.running_{kind}".removeprefix(".")
                if name in state:
                    state[name] = value.to(state[name])
        return state


def plain(value: Any) -> Any:
    """Nested containers with NaN and infinities replaced by None."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return value


def layer_rows(case: Case, findings: Sequence[Finding]) -> list[Row]:
    """One row for each batch norm that ran."""
    told = {(f.code, name) for f in findings for name in f.evidence.get("layers", ())}
    inherits = frozenset(inheriting(case))
    return [
        _row(case, index, name, _role(case, name, told, inherits))
        for index, name in enumerate(case.layers)
    ]


def _role(case: Case, name: str, told: set[tuple[str, str]], inherits: frozenset[str]) -> str:
    """A finding's code only where there is such a finding about the layer."""
    if name in case.blamed:
        code = case.blamed[name]
        return code if (code, name) in told else "off"
    if name in case.re_estimated:
        return "re-estimated"
    if name in case.shifted:
        return "variance_shift" if ("variance_shift", name) in told else "shifted"
    if name in inherits:
        return "inherits"
    if name not in case.kept:
        return "keeps no statistics"
    return "frozen" if name in case.subject.frozen else "ok"


def _row(case: Case, index: int, name: str, role: str) -> Row:
    layer, kept, seen = case.layers[name], case.kept.get(name), case.seen(name)
    plain_stats = case.probes.plain.stats.get(name)
    quiet = case.probes.quiet.stats.get(name)
    met = plain_stats.average() if plain_stats else None
    local, inherited = case.local(name), case.inherited(name)
    return {
        "index": index,
        "layer": name,
        "type": type(layer).__name__,
        "channels": layer.num_features,
        "role": role,
        "momentum": layer.momentum,
        "eps": layer.eps,
        "batches_tracked": None
        if layer.num_batches_tracked is None
        else int(layer.num_batches_tracked),
        "calls": case.stats(name).calls,
        "values": case.stats(name).count,
        "noise": [str(source) for source in case.noise_of(name)],
        "train_variance": _level(seen),
        "noise_off_variance": _level(quiet.average() if quiet else None),
        "running_variance": _level(kept),
        "eval_variance": _level(met),
        "shift_ratio": shift_ratio(kept.variance, met.variance) if kept and met else None,
        "local_ratio": local.value,
        "local_ratio_se": local.error,
        "inherited_ratio": inherited.value,
        "inherited_ratio_se": inherited.error,
        "distance": case.distance.get(name),
        "limit": case.limit.get(name),
        "eval_distance": apart(kept, met, layer.eps) if kept and met and finite(kept) else None,
    }


def _level(moments: Moments | None) -> float | None:
    return None if moments is None else float(moments.variance.mean())


def _odd_inputs(case: Case) -> list[str]:
    """What is said about inputs that no training would have."""
    notes, samples = [], case.probed
    if samples.size < 2:
        notes.append(
            f"the loader gives single samples; {samples.probe_size} of them were put together, and "
            "whether training's batches are large enough was not judged"
        )
    rows = [t for b in case.samples.given for t in tensors_of(b.inputs) if t.is_floating_point()]
    if not all(bool(t.isfinite().all()) for t in rows):
        notes.append("inputs hold inf or NaN: whatever is said here is said of these")
    elif not (case.scores.finite or case.probes.trained.scores.finite):
        notes.append("outputs hold inf or NaN in training mode too, as some weights probably do")
    return notes


def _may_have_drifted(case: Case, findings: Sequence[Finding]) -> bool:
    """Whether a layer does not train in a model that does, or a finding leaves the cause open."""
    if any(finding.code == "stale" for finding in findings):
        return True
    trains = any(p.requires_grad for p in case.subject.model.parameters())
    own = [list(case.layers[n].parameters(recurse=False)) for n in case.judged]
    return trains and any(ps and not any(p.requires_grad for p in ps) for ps in own)


def unknowns(case: Case, findings: Sequence[Finding] = ()) -> list[str]:
    """What model and loader cannot tell, and what would be needed."""
    notes = _odd_inputs(case)
    if case.trained.unjudged:
        notes.append(
            f"batch norm runs as a function, outside of PyTorch's modules, in "
            f"{listed(case.trained.unjudged)}: its statistics cannot be told and were not judged"
        )
    if not case.layers:
        notes.append("no batch norm module ran: there are no running statistics to judge")
    elif not case.has_train_loader:
        notes.append(
            "whether eval inputs differ from training inputs cannot be known from one loader: pass "
            "train_loader (--train-data)"
        )
    if case.re_estimated:
        notes.append(
            f"the running statistics of {listed(case.re_estimated)} are those without noise, as "
            "re-estimating leaves them: eval mode meets what it remembers there"
        )
    if case.reference is None and _may_have_drifted(case, findings):
        notes.append(
            "whether frozen layers drifted cannot be known without an earlier checkpoint: pass "
            "reference (--reference)"
        )
    if case.reference is not None and not any(
        f"{name}.running_mean".removeprefix(".") in case.reference for name in case.kept
    ):
        notes.append(
            "the reference has none of this model's batch norms: is it of the same network?"
        )
    if case.scores.loss is None:
        why = f"the labels were not used ({case.scores.unused}): " if case.scores.unused else ""
        notes.append(
            f"{why}without labels, severity is how much the output moves, not how much is gained"
        )
    if frozen := sorted(case.subject.frozen):
        notes.append(
            f"{pluralize(len(frozen), 'batch norm')} in eval mode in training too, not judged: "
            f"{listed(frozen)}"
        )
    return notes
