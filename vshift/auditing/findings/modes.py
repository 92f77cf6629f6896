"""Modes that do not do what they say, and what a sample's output should not depend on."""

from __future__ import annotations

from collections.abc import Iterator

from vshift.auditing.distances import largest_healthy, noise_floor, standardized_distance
from vshift.auditing.evidence import Evidence
from vshift.auditing.findings.base import (
    RECALIBRATE,
    CandidateFinding,
    Check,
    list_layers,
    plural,
)
from vshift.auditing.measurements import AFTER_EVAL, AS_GIVEN, REFILL_CHANGE, SWITCHED
from vshift.auditing.names import in_quotes
from vshift.auditing.repairs import Repair, eval_hidden, hold_in_eval, set_mode
from vshift.auditing.severity import (
    LEAST_CHANGE,
    SEVERITIES,
    Gain,
    format_change,
    least_severity,
    severity_of_change,
)
from vshift.shift.stats import Moments, layer_running_moments
from vshift.text import format_significant


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
        change = gains[1].output_change
        if change < LEAST_CHANGE or gain.severity == severity_of_change(change) == "info":
            return
        by_first = evidence.change_by_first_batch()
        if change <= REFILL_CHANGE * by_first:
            evidence.model.notes.append(
                f"after train() and eval() the next batch decides what {list_layers(layers)} "
                f"{plural(layers, 'computes', 'compute')}: another first batch changes the "
                f"output by {format_change(by_first)}"
            )
            return
        yield CandidateFinding(
            self,
            layers[0],
            f"one call of train() and eval() changes the output by "
            f"{format_change(change)}, on the same samples in the same mode.\n"
            f"These calls change more than modes in {list_layers(layers)}.",
            layers,
            {"switch_change": change, "first_batch_change": by_first},
            explained=gain,
            least=least_severity(change),
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
            # What is made anew has no statistics; a child would keep those of all batches.
            averages = {n: m for n in built if (m := evidence.noise_off_pass.average(n))}
            changes = [set_mode(kept, False), *([eval_hidden(averages)] if built else [])]
            with_averages = ", with the statistics of all batches" if averages else ""
            yield CandidateFinding(
                self,
                layers[0],
                f"{list_layers(layers)} {plural(layers, 'is', 'are')} not among the model's "
                "modules: out of eval()'s reach, and in no checkpoint.",
                layers,
                {"made_in_forward": bool(built)},
                Repair(f"putting them into eval mode{with_averages}", changes=changes),
                least=least_severity(max(tests.mates_change, tests.alone_change)),
                explained=evidence.loss_alone,
            )


class BatchDependent(Check):
    """The batch-mates test failed, and no batch norm in the wrong mode explains it."""

    code = "batch_dependent"
    title = "in eval mode a sample's output depends on who else is in the batch"
    causes = (
        "track_running_stats=False, BN on batch statistics in eval mode, or statistics over the "
        "batch dimension in custom code"
    )
    advice = "normalise within a sample"
    remedy = "or keep running statistics"

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
        if evidence.loss_alone is not None:
            yield CandidateFinding(
                self,
                None,
                "a sample alone gives another output than in a batch: they differ by "
                f"{format_change(change)}.\nforward() does something else for a single sample.",
                numbers={"alone_change": change},
                advice="let forward() do the same for a batch of one",
                explains_gap=False,  # the modes are compared in larger batches
                explained=evidence.loss_alone,
                least=least_severity(change),
            )


class BNOnlyInEval(Check):
    """Batch norms that run in eval mode and not in training, with statistics that do not fit."""

    code = "bn_only_in_eval"
    title = "batch norm runs in eval mode only, with statistics that do not fit"
    causes = (
        "a forward() that normalises by a function or by another layer while `self.training`, so "
        "that nothing updates the running statistics that eval mode uses"
    )
    advice = "call the same layer in both modes, as it follows its mode itself"
    remedy = RECALIBRATE

    def find(self, evidence: Evidence) -> Iterator[CandidateFinding]:
        model, distances, limits = evidence.model, dict[str, float](), dict[str, float]()
        statistics: dict[str, Moments] = {}
        for name in evidence.eval_pass.stats:
            layer, stats = model.norms[name], evidence.noise_off_pass.stats.get(name)
            running = layer_running_moments(layer)
            is_elsewhere = name in (
                *evidence.train_pass.stats,
                *model.frozen,
                *model.tracker.hidden,
            )
            if is_elsewhere or running is None or stats is None:
                continue
            moments = stats.average()
            distance = standardized_distance(running, moments, layer.eps)
            limit = largest_healthy(noise_floor(layer, stats))
            if not distance <= limit:  # NaN is far too
                distances[name], limits[name], statistics[name] = distance, limit, moments
        if not statistics:
            return
        layers = list(statistics)
        worst = max(layers, key=lambda name: distances[name])
        yield CandidateFinding(
            self,
            worst,
            f"{list_layers(layers)} {plural(layers, 'runs', 'run')} in eval mode and not in "
            "training mode.\n"
            f"The running statistics of {in_quotes(worst)} are off by "
            f"{format_significant(distances[worst], 2)} standard deviations of its inputs there.",
            layers,
            {"distance": distances[worst], "limit": limits[worst], "distances": distances},
            Repair(f"re-estimating {plural(layers, 'it', 'them')}", statistics=statistics),
            least_gain="low",
        )
