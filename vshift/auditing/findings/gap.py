"""What eval mode loses without a cause that was found."""

from __future__ import annotations

from collections.abc import Iterator

from vshift.auditing.comparisons import Departure, first_departure, score_forward_of_training
from vshift.auditing.evidence import Evidence
from vshift.auditing.findings.base import CandidateFinding, Check, list_layers, plural
from vshift.auditing.names import in_quotes
from vshift.auditing.repairs import Repair, set_mode, try_repairs
from vshift.auditing.severity import CHANCE, Gain, format_change, p_of_fall
from vshift.text import join_words, pluralize

WORTH_A_LOOK = 0.01  # p of a gap that is looked into


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
        model, samples = evidence.model, evidence.samples
        left, worst = evidence.gap_left, evidence.repaired_scores
        p = p_of_fall(evidence.best_scores, worst)
        is_seen = p < (CHANCE if left.severity == "info" else WORTH_A_LOOK)
        is_counted = (left.fall or 0.0) >= left.least_fall
        if not (evidence.is_gap_open and is_seen and is_counted):
            return
        if self._is_by_design(evidence, left):
            return
        # Averages are noisy and lag behind the weights: what that costs has a cause.
        repair, by_averages = None, None
        if evidence.judged:
            statistics = {name: evidence.train(name) for name in evidence.judged}
            count = pluralize(len(evidence.judged), "batch norm")
            repair = Repair(f"re-estimating all {count}", statistics=statistics)
            re_estimated = try_repairs(model, samples, [*evidence.repairs, repair])
            by_averages = Gain.between(worst, re_estimated, repair.words)
            if (by_averages.fall or 0.0) > 0:
                worst = re_estimated
        rest = Gain.between(worst, evidence.best_scores, evidence.best_mode)
        is_large = rest.severity in ("medium", "high")
        is_beyond_chance = p_of_fall(evidence.best_scores, worst) < CHANCE
        found = first_departure(model, samples, evidence.judged)
        # Two of three: it is large, chance hardly makes it, the modes part and that costs it.
        is_sure = is_large and is_beyond_chance
        if not is_sure and (is_large or is_beyond_chance) and found is not None:
            is_sure = self._is_cost_of_parting(evidence, left)
        if not is_sure:
            self._note(evidence, left, by_averages, found)
            return
        where = ""
        if found is not None:
            where = (
                f"\nThe modes part first at {in_quotes(found.layer)}: from the same input its "
                f"output differs by {format_change(found.change)}."
            )
            for mode, names in (
                ("training", found.only_in_training), ("eval", found.only_in_eval)
            ):  # fmt: skip
                if names:
                    verb = plural(names, "runs", "run")
                    where += f"\n{list_layers(names)} {verb} in {mode} mode only."
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
        repaired = ", repaired as below," if evidence.repairs else ""
        yield CandidateFinding(
            self,
            None if found is None else found.layer,
            f"eval mode{repaired} is worse than {evidence.best_mode} on the same samples, and "
            f"nothing found explains it.{where}",
            [] if found is None else [found.layer],
            {
                "gap": evidence.gap.fall,
                "unexplained": left.fall,
                "departure": 0.0 if found is None else found.change,
            },
            repair,
            explained=left,
        )

    def _note(
        self, evidence: Evidence, left: Gain, by_averages: Gain | None, found: Departure | None
    ) -> None:
        """Say what makes a loss that is no finding."""
        if by_averages is not None and 2 * (by_averages.fall or 0.0) > (left.fall or 0.0):
            why = (
                f"running averages, which are noisy and lag behind the weights, make most of it "
                f"({by_averages.in_words()})"
            )
        elif found is None:
            why = (
                "no module computes something else in eval mode, so that batch statistics and "
                "noise in training make it"
            )
        else:
            why = (
                f"{in_quotes(found.layer)} computes something else in eval mode, and whether that "
                "costs it is not clear"
            )
        evidence.model.notes.append(f"eval mode loses a little against {left.in_words()}; {why}")

    def _is_cost_of_parting(self, evidence: Evidence, left: Gain) -> bool:
        """Whether what parts the modes' forwards costs most of the gap.

        Not known where rows are not samples: a norm's other batches cannot be tried.
        """
        if not evidence.samples.rows_are_samples:
            return False
        in_training = score_forward_of_training(evidence.model, evidence.samples, evidence.judged)
        cost = Gain.between(evidence.eval_scores, in_training, "").fall or 0.0
        is_beyond_chance = p_of_fall(in_training, evidence.eval_scores) < WORTH_A_LOOK
        return is_beyond_chance and cost > 0.5 * (left.fall or 0.0)

    def _is_by_design(self, evidence: Evidence, left: Gain) -> bool:
        """Whether batch norms for training alone explain the gap, which is noted then.

        Adversarial samples have such layers (AdvProp, Xie et al. 2020, arXiv 1911.09665), and eval
        mode is for the others: with these layers and their running statistics nothing is lost.
        """
        layers = [name for name in evidence.layers if name not in evidence.eval_pass.stats]
        if not layers or not set(layers).isdisjoint(evidence.mismatched):
            return False
        owners = {name.rpartition(".")[0] for name in layers}
        repair = Repair("with them", changes=[set_mode(owners, True)])
        with_them = try_repairs(evidence.model, evidence.samples, [repair])
        gain = Gain.between(evidence.repaired_scores, with_them, repair.words)
        if gain.fall is None or left.fall is None or gain.fall < 0.5 * left.fall:
            return False
        evidence.model.notes.append(
            f"{list_layers(layers)} {plural(layers, 'runs', 'run')} in training mode only, as for "
            f"adversarial samples: {gain.in_words()}; eval mode is for the other samples, audit "
            "these alone"
        )
        return True
