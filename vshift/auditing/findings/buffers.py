"""Running statistics that are broken, never updated, drifted or stale."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from vshift.auditing.distances import is_initial, is_usable
from vshift.auditing.evidence import Evidence
from vshift.auditing.findings.base import (
    FAR,
    RECALIBRATE,
    BufferCheck,
    CandidateFinding,
    distance_in_words,
    harmless_note,
    list_layers,
    plural,
    which_layers,
)
from vshift.auditing.names import in_quotes
from vshift.auditing.repairs import Repair
from vshift.auditing.severity import Gain
from vshift.text import format_significant, pluralize


class NonFinite(BufferCheck):
    """Buffers with inf, NaN or a negative variance; the first in forward order is named."""

    code = "nonfinite"
    title = "running statistics hold inf, NaN or a negative variance"
    causes = (
        "one bad batch or an overflow in low precision, or weights averaged with negative factors; "
        "training mode never reads these buffers, so the loss stayed fine"
    )
    advice = "skip batches whose loss is not finite"
    remedy = RECALIBRATE

    def find(self, evidence: Evidence) -> Iterator[CandidateFinding]:
        bad = [n for n, running in evidence.running.items() if not is_usable(running)]
        if bad:
            too_large = self._too_large(evidence, bad)
            found = self.candidate(
                evidence,
                bad,
                f"the running statistics of {which_layers(evidence, bad)} hold inf, NaN or a "
                "negative variance."
                + f"\nThe first in forward order is {in_quotes(bad[0])}." * (len(bad) > 1)
                + too_large,
                layer=bad[0],
                first=bad[0],
            )
            # Re-estimating may not fit into the layer's type: the loss is that against train mode.
            found.explained = Gain.between(
                evidence.eval_scores, evidence.best_scores, "batch statistics"
            )
            if too_large:
                found.explains_gap, found.advice = True, "keep that layer in float32"
            yield found

    def _too_large(self, evidence: Evidence, layers: list[str]) -> str:
        """A sentence on the layers whose variance their type cannot hold; or nothing."""
        for name in layers:
            buffer = evidence.layers[name].running_var
            largest = float(evidence.train(name).variance.max())
            if buffer is not None and largest > torch.finfo(buffer.dtype).max:
                limit = torch.finfo(buffer.dtype).max
                return (
                    f"\nThe variance at {in_quotes(name)} is {largest:,.0f}, and "
                    f"{str(buffer.dtype)[6:]} ends at {limit:,.0f}: re-estimating does not help."
                )
        return ""


class NeverUpdated(BufferCheck):
    """Buffers at exactly mean 0 and variance 1 that the train pass does not agree with."""

    code = "never_updated"
    title = "running statistics were never updated"
    causes = (
        "no weights loaded, a checkpoint without buffers (parameters only, `strict=False`, another "
        "prefix), an EMA, SWA or federated average of the parameters alone, momentum 0, or BN in "
        "eval mode in training"
    )
    advice = "load or average the buffers as well"
    remedy = RECALIBRATE

    def find(self, evidence: Evidence) -> Iterator[CandidateFinding]:
        layers = [n for n in evidence.unexplained() if is_initial(evidence.running[n])]
        if layers:
            yield self.candidate(
                evidence,
                layers,
                f"{which_layers(evidence, layers)} still {plural(layers, 'holds', 'hold')} the "
                f"initial values, mean 0 and variance 1; {self._updates(evidence, layers)}.\n"
                "In training mode the inputs have others: "
                f"{distance_in_words(evidence, layers)}.",
                drop_if_harmful=True,
                note_if_dropped=(
                    f"the running statistics of {which_layers(evidence, layers)} are the initial "
                    "ones, and re-estimating them makes eval mode worse: no weights were loaded "
                    "(--weights), or they are frozen on purpose"
                ),
                momentum=sorted({str(evidence.layers[n].momentum) for n in layers}),
                batches_tracked=[evidence.batches_tracked(n) for n in layers],
            )

    def _updates(self, evidence: Evidence, layers: list[str]) -> str:
        """What the layers' counters say, for a sentence."""
        tracked = [count for n in layers if (count := evidence.batches_tracked(n)) is not None]
        if not tracked:
            return "they count no updates" if len(layers) > 1 else "it counts no updates"
        if not max(tracked):
            return "no update was counted"
        counted = pluralize(max(tracked), "update was", "updates were") + " counted"
        if all(evidence.layers[n].momentum == 0 for n in layers):
            return f"{counted}, but momentum = 0 makes each do nothing"
        return f"{counted}, so the values were lost or set back afterwards"


class Drift(BufferCheck):
    """Layers whose parameters are the reference's, bit for bit, and whose buffers are not."""

    code = "drift"
    title = "running statistics drifted away from the reference"
    causes = (
        "a frozen backbone whose batch norms still updated: train() switches them back on, and "
        "requires_grad=False does not stop buffers"
    )
    advice = "put frozen batch norms into eval mode after every train()"
    remedy = "restore the reference's buffers"

    def find(self, evidence: Evidence) -> Iterator[CandidateFinding]:
        reference, distances = {}, {}
        for name in evidence.running:
            moments = evidence.reference_moments(name)
            parameters = dict(evidence.layers[name].named_parameters(recurse=False))
            same = parameters and all(
                (old := evidence.reference.get(f"{name}.{key}")) is not None
                and torch.equal(old.cpu(), parameter.detach().cpu())
                for key, parameter in parameters.items()
            )
            if moments is None or not same or name in evidence.explained_by:
                continue
            distance = evidence.distance_to(moments, name)
            if not distance <= 0.1:  # NaN is far too
                reference[name], distances[name] = moments, distance
        if not distances:
            return
        layers = list(distances)
        evidence.claim(layers, self.code)
        worst = max(layers, key=lambda n: distances[n])
        where = f" at {in_quotes(worst)}" if len(layers) > 1 else ""
        yield CandidateFinding(
            self,
            worst,
            f"{which_layers(evidence, layers)} {plural(layers, 'has', 'have')} the reference's "
            "parameters, but running statistics that drifted: by "
            f"{format_significant(distances[worst], 2)} standard deviations{where}.",
            layers,
            {"distances": distances},
            Repair("restoring the reference's buffers", statistics=reference),
        )


class Stale(BufferCheck):
    """Layers that are still unexplained: their statistics are of other weights or other inputs.

    Checked twice: once for layers that are far off, and again, after all other repairs, for those
    that are off so little that augmented training data could explain it. The latter count for what
    their repair gains; and with them those within the limit that are off by more than chance, if
    eval mode loses what nothing else explains. Alone these count from `medium` on: averages lag
    behind weights that move, and in healthy deep networks that costs a little.
    """

    code = "stale"
    title = "running statistics do not belong to these weights and inputs"
    causes = (
        "weights changed after the statistics (averaging, EMA, pruning, quantisation, loading a "
        "part of a checkpoint), weights that still moved fast in the last steps, batch norm in "
        "eval mode in training, statistics taken from other inputs (a dummy forward in train mode "
        "is enough), or inputs that differ from training"
    )
    advice = ""  # which of the causes it is cannot be known
    remedy = RECALIBRATE

    def __init__(self, at_least: float) -> None:
        self.at_least, self.is_late = at_least, not at_least

    def find(self, evidence: Evidence) -> Iterator[CandidateFinding]:
        layers, slightly = evidence.unexplained(), list[str]()
        is_large = evidence.is_gap_open and evidence.gap_left.severity in ("medium", "high")
        if self.is_late and is_large:
            slightly = [n for n in evidence.slightly_off if n not in evidence.explained_by]
            layers = sorted([*layers, *slightly], key=evidence.judged.index)
        far = max((evidence.distance[n] for n in layers), default=-1.0)
        if far < self.at_least:
            return
        referenced = [n for n in layers if evidence.has_reference_statistics(n)]
        more = ""
        if evidence.inheriting:
            verb = plural(evidence.inheriting, "inherits", "inherit")
            more += f"\n{list_layers(evidence.inheriting)} only {verb} the error."
        if referenced:
            verb = plural(referenced, "holds", "hold")
            more += f"\n{list_layers(referenced)} still {verb} the reference's buffers."
        simple = [
            n for n in layers if evidence.layers[n].momentum is None and evidence.batches_tracked(n)
        ]
        if simple:
            more += (
                f"\nA momentum of None averages over all {evidence.batches_tracked(simple[0]):,} "
                "batches since the statistics were reset, the first of them as much as the last."
            )
        if evidence.has_train_loader:
            more += (
                "\nThese inputs are the training data's: the statistics are wrong, and not how "
                "eval inputs are preprocessed."
            )
        else:
            more += (
                "\nPass train_loader= (--train-data): if the statistics fit the training data, "
                "your eval inputs are preprocessed differently; if not, the statistics are wrong."
            )
        may_drop = not (referenced and far >= FAR)
        note = harmless_note(evidence, layers) if may_drop else ""
        least = "low" if may_drop and (note or far < FAR) else "info"
        if set(layers) == set(slightly):
            least = "medium"  # what fits is as noisy, and lags as much, as averages do
        yield self.candidate(
            evidence,
            layers,
            f"{which_layers(evidence, layers)} {plural(layers, 'holds', 'hold')} other running "
            "statistics than the inputs have in training mode: "
            f"{distance_in_words(evidence, layers)}.{more}",
            least_gain=least,
            note_if_dropped=note,
            as_reference=referenced,
            distances={n: evidence.distance[n] for n in layers},
        )
