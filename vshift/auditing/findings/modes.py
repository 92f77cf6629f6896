"""Modes that do not do what they say, and what eval mode loses without a cause that is found."""

from __future__ import annotations

from collections.abc import Iterator

from vshift.auditing.comparisons import first_departure
from vshift.auditing.evidence import AFTER_EVAL, AS_GIVEN, SWITCHED, Evidence
from vshift.auditing.findings.base import CandidateFinding, Check, list_layers, plural
from vshift.auditing.repairs import Repair, eval_hidden, hold_in_eval, set_mode
from vshift.auditing.severity import (
    LEAST_CHANGE,
    SEVERITIES,
    Gain,
    format_change,
    least_severity,
    severity_of_change,
)
from vshift.auditing.trace import in_quotes
from vshift.text import join_words, pluralize

ALONE = 0.01  # relative change of a sample's output; kernels of another batch size round by less


class ModeSwitchChangesState(Check):
    """Calling train() and eval() once, and going back, gives other results."""

    code = "mode_switch_changes_state"
    title = "a call of train() and eval() changes the results"
    causes = (
        "weights that eval() merges and train() does not take back, a cache or statistics that a "
        "switch empties, a counter or flag that it resets"
    )
    advice = (
        "let train() and eval() set modes only, or restore exactly what they change; clear a cache "
        "whenever the weights change, and save such state with the model"
    )

    def find(self, evidence: Evidence) -> Iterator[CandidateFinding]:
        layers = evidence.model.changed_by_switch
        if not layers:
            return
        given, switched = evidence.given_scores[AS_GIVEN], evidence.given_scores[SWITCHED]
        # Either may be the better one: a stale cache loses as given, a lost statistic afterwards.
        gains = [
            Gain.between(given, switched, "the model after these calls"),
            Gain.between(switched, given, "the model as it was given"),
        ]
        gain = max(gains, key=lambda gain: SEVERITIES.index(gain.severity))
        if gain.output_change < LEAST_CHANGE or gain.severity == "info":
            return
        yield CandidateFinding(
            self,
            layers[0],
            f"one call of train() and eval() changes the output by "
            f"{format_change(gain.output_change)}, on the same samples in the same mode.\n"
            f"These calls change more than modes in {list_layers(layers)}.",
            layers,
            {"switch_change": gain.output_change},
            explained=gain,
        )


class MixedModes(Check):
    """The model was given in eval mode, and some of its modules in training mode."""

    code = "mixed_modes"
    title = "handed over in eval mode, with modules in training mode"
    causes = "train() called on a part after eval(), or a flag `training` set by hand"
    advice = "call model.eval() last, right before testing"

    def find(self, evidence: Evidence) -> Iterator[CandidateFinding]:
        if not evidence.model.is_mixed:
            return
        flags = evidence.model.given_training
        parents = {name.rpartition(".")[0] for name, training in flags.items() if training}
        layers = [name for name, training in flags.items() if training and name not in parents]
        gain = Gain.between(
            evidence.given_scores[AS_GIVEN], evidence.given_scores[AFTER_EVAL], "eval mode"
        )
        if gain.output_change >= LEAST_CHANGE:
            yield CandidateFinding(
                self,
                layers[0],
                f"the model is in eval mode, but {list_layers(layers)} "
                f"{plural(layers, 'is', 'are')} in training mode.\n"
                "Every score but `as given` is of the model after its own train() or eval().",
                layers,
                explained=gain,
                least=least_severity(gain.output_change),
            )


class BNWrongMode(Check):
    """Registered batch norms in training mode after eval()."""

    code = "bn_wrong_mode"
    title = "batch norm stays in training mode after eval()"
    causes = (
        "a custom train() or eval() that does not pass the mode on, or a forward() that sets "
        "`training` or calls train()"
    )
    advice = (
        "call super().train(mode), set no mode in forward(), and check `module.training` after "
        "eval() and after a forward"
    )

    def find(self, evidence: Evidence) -> Iterator[CandidateFinding]:
        registered = dict(evidence.model.module.named_modules())
        layers = [n for n in evidence.eval_trace.norms_in_training if n in registered]
        if layers:
            verb = plural(layers, "is", "are")
            when = f"{verb} still in training mode after model.eval()"
            if not evidence.still_training.intersection(layers):
                when = f"{verb} switched to training mode by forward() itself"
            yield CandidateFinding(
                self,
                layers[0],
                f"{list_layers(layers)} {when}.\n"
                "Every forward normalises by its own batch and moves the running statistics.",
                layers,
                {"batch_mates_change": evidence.tests.mates_change},
                Repair("putting them into eval mode", changes=[hold_in_eval(layers)]),
                # At least low: it moves its buffers whenever the model is used.
                least=max("low", least_severity(evidence.tests.mates_change), key=SEVERITIES.index),
            )


class BNOutOfReach(Check):
    """Batch norms that run, are no children of the model, and are in training mode."""

    code = "bn_out_of_reach"
    title = "batch norm is out of eval()'s reach"
    causes = (
        "a layer made inside forward(), or kept in a plain list, tuple or dict or outside the "
        "model: it is not registered, gets no mode, no device, no optimiser and no place in the "
        "checkpoint"
    )
    advice = (
        "make it in __init__, where it is registered and learns, and use nn.ModuleList or "
        "nn.ModuleDict instead of a list or dict"
    )

    def find(self, evidence: Evidence) -> Iterator[CandidateFinding]:
        tracker, norms, tests = evidence.model.tracker, evidence.model.norms, evidence.tests
        ran = evidence.eval_trace.calls
        built = [n for n in ran if n in tracker.built]
        kept = [n for n in ran if n in tracker.hidden and n not in built and norms[n].training]
        layers = [*kept, *built]
        if layers:
            changes = [set_mode(kept, False), *([eval_hidden] if built else [])]
            yield CandidateFinding(
                self,
                layers[0],
                f"{list_layers(layers)} {plural(layers, 'is', 'are')} not among the model's "
                "modules: out of eval()'s reach, and in no checkpoint.",
                layers,
                {"made_in_forward": bool(built)},
                Repair("putting them into eval mode", changes=changes),
                least=least_severity(max(tests.mates_change, tests.alone_change)),
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
            yield from self._alone(evidence)
            return
        ran = [name for name in evidence.eval_trace.calls if name in norms]
        layers = [name for name in ran if norms[name].running_var is None]
        layers += [
            name
            for name in ran
            if getattr(norms[name], "evaluate", "") == "batch" and name not in layers
        ]
        in_wrong_mode = where in evidence.eval_trace.norms_in_training or (
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
            f"other samples in the batch change a sample's own output by {format_change(change)}, "
            f"first at {in_quotes(culprit)}."
            + "\nThat layer keeps no running statistics."
            * bool(layers),
            layers or [culprit],
            {"batch_mates_change": change},
            repair if layers else None,
            severity=severity_of_change(change),
            least=least_severity(change),
        )

    def _alone(self, evidence: Evidence) -> Iterator[CandidateFinding]:
        """Samples that give another output in a batch of their own."""
        change = evidence.tests.alone_change
        if change > ALONE:
            yield CandidateFinding(
                self,
                None,
                "a sample alone gives another output than in a batch: they differ by "
                f"{format_change(change)}.\nforward() does something else for a single sample.",
                numbers={"alone_change": change},
                severity=severity_of_change(change),
            )


class UnexplainedGap(Check):
    """Eval mode is worse than train mode, and the findings account for less than half of it."""

    code = "unexplained_gap"
    title = "eval mode is worse than train mode, and no finding explains most of it"
    causes = (
        "a part that computes something else in eval mode: weights merged wrongly, statistics that "
        "are kept outside of batch norm modules and were lost, a branch on `self.training`"
    )
    advice = (
        "compare forward() of the named module in both modes; pass train_loader= (--train-data) if "
        "the eval inputs may be preprocessed differently"
    )

    is_late = True

    def find(self, evidence: Evidence) -> Iterator[CandidateFinding]:
        if not evidence.has_open_gap:
            return
        gap, left = evidence.gap, evidence.gap_left
        fitting = set(evidence.judged).difference(evidence.mismatched, evidence.slightly_off)
        departure = first_departure(evidence.model, evidence.samples.first(), fitting)
        layer, change = departure or (None, 0.0)
        where = ""
        if layer is not None:
            where = (
                f"\nThe modes part first at {in_quotes(layer)}: from the same input its output "
                f"differs by {format_change(change)}."
            )
        ruled_out = [
            text
            for text, holds in (
                (
                    f"running statistics ({len(evidence.judged)} of {len(evidence.layers)} batch "
                    "norms fit these inputs)",
                    evidence.judged and not evidence.mismatched,
                ),
                ("noise in eval mode", evidence.tests.repeat_at is None),
                ("the other samples of a batch", evidence.tests.mates_at is None),
                ("modules out of eval()'s reach", not evidence.still_training),
            )
            if holds
        ]
        if ruled_out:
            where += f"\nRuled out: {join_words(ruled_out)}."
        is_repaired = evidence.repaired_scores is not evidence.eval_scores
        repaired, repair = ", repaired as below," if is_repaired else "", None
        if evidence.judged:
            count = pluralize(len(evidence.judged), "batch norm")
            statistics = {name: evidence.train(name) for name in evidence.judged}
            repair = Repair(f"re-estimating all {count}", statistics=statistics)
        yield CandidateFinding(
            self,
            layer,
            f"eval mode{repaired} is worse than {evidence.best_mode} on the same samples, and "
            f"nothing found explains it.{where}",
            [] if layer is None else [layer],
            {"gap": gap.fall, "unexplained": left.fall, "departure": change},
            repair,
            explained=left,
        )
