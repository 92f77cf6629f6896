"""The classes of findings, and of the checks that look for them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

from vshift.auditing.evidence import Evidence
from vshift.auditing.names import in_quotes
from vshift.auditing.repairs import Repair
from vshift.auditing.severity import SEVERITIES, Gain
from vshift.text import format_significant, list_names

FAR = 0.5  # standard deviations; augmentation of training data makes up to 0.3
LEAVE_IT = "Repairing it makes eval worse: leave it."
NOTHING = "nothing, as it makes no measurable difference on these samples"
RECALIBRATE = "re-estimate with `vshift.recalibrate(model, loader)` or `--fix OUT.safetensors`"


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong.

    Attributes:
        code: of the check that found it, for instance `stale`.
        title: what it is called.
        layer: the layer that causes the problem, or None.
        severity: info, low, medium or high: what the repair measurably gained.
        found: what was found; tried: what the repair gained, empty without one. A sentence a line,
            the first of `found` says it all.
        causes, advice: usual causes, and what to do.
        evidence: numbers; `layers` lists every layer concerned, `inherits` those that only inherit,
            `repair` is the gain.
        gain: of the repair; None if none could be tried.
    """

    code: str
    title: str
    layer: str | None
    severity: str
    found: str
    causes: str
    advice: str
    tried: str = ""
    evidence: dict[str, Any] = field(default_factory=dict)
    gain: Gain | None = None

    @property
    def sentences(self) -> list[str]:
        """What was found, what the repair gained, what to do, usual causes."""
        tried = self.tried.splitlines()
        advice = [] if LEAVE_IT in tried else [f"What to do: {self.advice}."]
        return [*self.found.splitlines(), *tried, *advice, f"Usual causes: {self.causes}."]

    @property
    def message(self) -> str:
        """The sentences as one text."""
        return " ".join(self.sentences)

    def to_dict(self) -> dict[str, Any]:
        keys = ("code", "layer", "severity", "message", "evidence")
        return {key: getattr(self, key) for key in keys}

    @property
    def harm(self) -> tuple[int, float]:
        """Severity and the size of the gain, to order by."""
        return SEVERITIES.index(self.severity), 0.0 if self.gain is None else self.gain.size


@dataclass
class CandidateFinding:
    """A finding before its repair has been tried.

    Attributes:
        check: that made it.
        message: what was found, with the number, a sentence a line.
        repair: tried on top of earlier candidates' repairs; None if nothing can be tried.
        least_gain: leave it out if the severity of what its repair gains is below this.
        drop_if_harmful: leave it out if its repair measurably raises the loss.
        note_if_dropped: what the notes say then; empty for nothing.
        severity: if there is neither a repair nor `explained`.
        least: the least severity, of what is wrong whatever it costs on these samples.
        explained: what the fault costs, where another comparison than the repair shows it; the
            finding's severity is the larger of the two.
        explains_gap: whether it accounts for all that eval mode loses, whatever its repair gains;
            by default if it is grave and no repair can be tried.
        advice: for this case, instead of the check's and its remedy.
    """

    check: Check
    layer: str | None
    message: str
    layers: Sequence[str] = ()
    numbers: dict[str, Any] = field(default_factory=dict)
    repair: Repair | None = None
    least_gain: str = "info"
    note_if_dropped: str = ""
    severity: str = "info"
    drop_if_harmful: bool = False
    least: str = "info"
    explained: Gain | None = None
    explains_gap: bool | None = None
    advice: str = ""

    def to_finding(self, gain: Gain | None) -> Finding:
        """The finding, with what its repair gained."""
        check, numbers, tried = self.check, dict(self.numbers), list[str]()
        compared = [each for each in (self.explained, gain) if each is not None]
        severities = [each.severity for each in compared] or [self.severity]
        severity = max([*severities, self.least], key=SEVERITIES.index)
        if self.layers:
            numbers["layers"] = list(self.layers)
        if self.explained is not None:
            numbers["explained"] = self.explained.to_dict()
            tried += [f"Compared with {self.explained.in_words()}."]
        if gain is not None:
            numbers["repair"] = gain.to_dict()
            tried += [f"Tried {gain.in_words()}.", *_judged(gain, severity)]
        # What is wrong whatever it costs is mended by what does no harm.
        is_ruled_out = gain is not None and gain.severity == "info"
        is_ruled_out &= severity == "info" or (gain is not None and gain.harms)
        remedies = [check.advice, *([] if is_ruled_out else [check.remedy])]
        advice = self.advice or "; ".join(filter(None, remedies))
        found = "\n".join(line[:1].upper() + line[1:] for line in self.message.splitlines())
        return Finding(
            check.code, check.title, self.layer, severity, found, check.causes, advice or NOTHING,
            "\n".join(tried), numbers, max(compared, key=lambda g: g.size, default=None),
        )  # fmt: skip


def _judged(gain: Gain, severity: str) -> list[str]:
    """A sentence on a repair that is no plain gain, for a finding of this severity; or none."""
    if gain.harms and gain.severity != "info":
        return ["It gives accuracy and costs loss."]
    if gain.harms:
        return [LEAVE_IT if severity == "info" else "That alone makes eval mode worse."]
    if gain.severity != "info":
        return []
    if gain.fall is None:
        return ["That is next to nothing."]
    return [f"That is {'too little to count' if gain.is_measurable else 'no measurable gain'}."]


class Check(ABC):
    """Looks for one kind of finding, and has the words for it.

    A new check needs its class, its place in `vshift.auditing.findings.CHECKS`, and a planted fault
    in examples/broken_models.py.

    Attributes:
        code: the finding's name for programs.
        title: the finding's name for people.
        causes: usual causes, as a list without a full stop.
        advice: what to change, without a full stop.
        remedy: what the repair that is tried stands for, said unless the trial ruled it out.
        is_late: looked for after the repairs of all others have been tried.
    """

    code: ClassVar[str]
    title: ClassVar[str]
    causes: ClassVar[str]
    advice: ClassVar[str]
    remedy: ClassVar[str] = ""
    is_late: bool = False

    @abstractmethod
    def find(self, evidence: Evidence) -> Iterator[CandidateFinding]:
        """The candidates for this finding, usually none or one."""


class BufferCheck(Check):
    """A check that explains why running statistics are not what the layers are trained with.

    Each such check takes its layers from `Evidence.unexplained` and claims them, so that later ones
    do not explain the same layers again.
    """

    def candidate(
        self,
        evidence: Evidence,
        layers: Sequence[str],
        message: str,
        *,
        layer: str | None = None,
        repair: Repair | None = None,
        least_gain: str = "info",
        drop_if_harmful: bool = False,
        note_if_dropped: str = "",
        **numbers: Any,
    ) -> CandidateFinding:
        """A candidate about these layers, which it claims.

        Args:
            layer: the culprit; by default the one that is furthest off.
            repair: by default re-estimation from the train pass.
        """
        evidence.claim(layers, self.code)
        if layer is None:
            layer = max(layers, key=lambda name: evidence.distance.get(name, 0.0))
        if repair is None:
            repair = Repair(
                f"re-estimating {'it' if len(layers) == 1 else f'these {len(layers)}'}",
                statistics={name: evidence.train(name) for name in layers},
            )
        numbers = {
            "distance": evidence.distance.get(layer), "limit": evidence.limit.get(layer), **numbers
        }  # fmt: skip
        return CandidateFinding(
            self, layer, message, layers, numbers, repair, least_gain, note_if_dropped,
            drop_if_harmful=drop_if_harmful,
        )  # fmt: skip


def list_layers(names: Sequence[str]) -> str:
    """Names of layers for a sentence."""
    return list_names(list(map(in_quotes, names)))


def which_layers(evidence: Evidence, layers: Sequence[str]) -> str:
    """These batch norms, and of how many, for a sentence."""
    count = len(evidence.layers)
    if len(layers) == 1:
        return in_quotes(layers[0])
    if len(layers) == count:
        return f"{'both' if count == 2 else f'all {count}'} batch norms"
    return f"{len(layers)} of {count} batch norms ({list_layers(layers)})"


def plural(layers: Sequence[str], one: str, several: str) -> str:
    """The word that agrees with this number of layers."""
    return one if len(layers) == 1 else several


def distance_in_words(evidence: Evidence, layers: Sequence[str]) -> str:
    """How far the worst of these layers is off, for a sentence."""
    worst = max(layers, key=lambda name: evidence.distance[name])
    where = f" at {in_quotes(worst)}" if len(layers) > 1 else ""
    off = format_significant(evidence.distance[worst], 2)
    return f"off by {off} standard deviations{where} (healthy: {evidence.noise_floor[worst]:.1g})"


def harmless_note(evidence: Evidence, layers: Sequence[str]) -> str:
    """A note on layers that are off without harm if other inputs explain it; or nothing.

    They do if the training inputs are not known (they may be augmented) and the first batch norm is
    off as well: in the train pass a layer after one that agrees gets what it got in training.
    """
    far = max(evidence.distance[n] for n in layers)
    if evidence.has_train_loader or (far >= FAR and evidence.judged[0] not in evidence.mismatched):
        return ""
    return (
        f"the running statistics of {which_layers(evidence, layers)} are off by up to "
        f"{format_significant(far, 2)} standard deviations on these inputs, without measurable "
        "harm; training inputs that were augmented or otherwise different explain it"
    )
