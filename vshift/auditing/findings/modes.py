"""Batch norm that eval() does not switch, and outputs that depend on the batch."""

from __future__ import annotations

from collections.abc import Iterator

from vshift.auditing.evidence import Evidence
from vshift.auditing.findings.base import CandidateFinding, Check, list_layers
from vshift.auditing.repairs import Repair, eval_hidden, set_mode
from vshift.auditing.severity import format_change, severity_of_change
from vshift.text import pluralize


class BNWrongMode(Check):
    """Registered batch norms in training mode after eval()."""

    code = "bn_wrong_mode"
    title = "batch norm stays in training mode after eval()"
    causes = "a custom train() or eval() that does not pass the mode on"
    advice = "call super().train(mode), and check `module.training` after eval()"

    def find(self, evidence: Evidence) -> Iterator[CandidateFinding]:
        layers = [n for n in evidence.eval_trace.calls if n in evidence.still_training]
        if layers:
            count = pluralize(len(layers), "batch norm is", "batch norms are")
            yield CandidateFinding(
                self,
                layers[0],
                f"After model.eval() {count} still in training mode "
                f"({list_layers(layers)}): every forward normalises by its own batch and moves the "
                "buffers.",
                layers,
                {"batch_mates_change": evidence.tests.mates_change},
                Repair("putting them into eval mode", changes=[set_mode(layers, False)]),
            )


class BNOutOfReach(Check):
    """Batch norms that run, are no children of the model, and are in training mode."""

    code = "bn_out_of_reach"
    title = "batch norm is out of eval()'s reach"
    causes = (
        "a layer kept in a plain list, tuple or dict, or outside the model: it is not registered, "
        "gets no mode, no device, no optimiser and no place in the checkpoint"
    )
    advice = "use nn.ModuleList or nn.ModuleDict"

    def find(self, evidence: Evidence) -> Iterator[CandidateFinding]:
        tracker, norms = evidence.model.tracker, evidence.model.norms
        ran = evidence.eval_trace.calls
        built = [n for n in ran if n in tracker.built]
        kept = [n for n in ran if n in tracker.hidden and n not in built and norms[n].training]
        layers = [*kept, *built]
        if layers:
            count = pluralize(len(layers), "batch norm is", "batch norms are")
            changes = [set_mode(kept, False), *([eval_hidden] if built else [])]
            yield CandidateFinding(
                self,
                layers[0],
                f"{count} not among the model's modules ({list_layers(layers)}), so eval() does "
                "not reach them and no checkpoint holds them.",
                layers,
                {"made_in_forward": bool(built)},
                Repair("putting them into eval mode", changes=changes),
            )


class BatchDependent(Check):
    """The batch-mates test failed, and no batch norm in the wrong mode explains it."""

    code = "batch_dependent"
    title = "in eval mode a sample's output depends on who else is in the batch"
    causes = (
        "track_running_stats=False, BN on batch statistics in eval mode, or statistics over the "
        "batch dimension in custom code"
    )
    advice = "keep running statistics, or normalise within a sample"

    def find(self, evidence: Evidence) -> Iterator[CandidateFinding]:
        where, norms = evidence.tests.mates_at, evidence.model.norms
        if where is None:
            return
        ran = [name for name in evidence.eval_trace.calls if name in norms]
        layers = [name for name in ran if norms[name].running_var is None]
        layers += [
            name
            for name in ran
            if getattr(norms[name], "evaluate", "") == "batch" and name not in layers
        ]
        in_wrong_mode = where in evidence.still_training or (
            where in evidence.model.tracker.hidden and where in norms
        )
        if not layers and in_wrong_mode:
            return
        culprit = layers[0] if layers else where
        change = evidence.tests.mates_change
        statistics = {n: m for n in layers if (m := evidence.noise_off_pass.average(n)) is not None}
        repair = Repair("giving them the statistics of all batches", statistics=statistics)
        yield CandidateFinding(
            self,
            culprit,
            f"The same samples with other batch mates give outputs that differ by "
            f"{format_change(change)}, first at {culprit or 'the model'}"
            + (": it keeps no running statistics." if layers else "."),
            layers or [culprit],
            {"batch_mates_change": change},
            repair if layers else None,
            severity=severity_of_change(change),
        )
