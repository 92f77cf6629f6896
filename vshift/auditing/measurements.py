"""Everything that is measured of a model before conclusions are drawn, and the scores compared."""

from __future__ import annotations

import fnmatch
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from functools import cached_property

from torch import Tensor, nn

from vshift.auditing.comparisons import run_eval_tests
from vshift.auditing.distances import is_initial
from vshift.auditing.names import fit_to_names, plain_name
from vshift.auditing.passes import CANNOT_RUN, AuditedModel, Mode, Pass, run_pass
from vshift.auditing.samples import AuditError, Batch, Samples, call, order_effect
from vshift.auditing.severity import Gain, Scores, output_change
from vshift.shift.stats import layer_running_moments
from vshift.text import list_names, suggest

# Names of the scores, in the order in which they are shown.
SCORE_NAMES: dict[Mode, str] = {
    "train": "train mode",
    "noise_off": "batch statistics without noise",
    "eval": "eval mode",
}
REPAIRED = "eval mode, repaired"
# Scores of the loader's batches as they come.
AS_GIVEN = "as given"
SWITCHED = "as given, after train() and eval()"
AFTER_EVAL = "in eval mode"
ONE_BY_ONE = "eval mode, one by one"

REFILLS = 7  # batches that come first in turn after a call of train() and eval()
REFILL_CHANGE = 1.5  # times the largest change that these make; state filled by one makes about 0.7
ALONE = 0.01  # relative change of a sample's output; kernels of another batch size round by less


class Measurements:
    """One model, one loader, and all that was measured of them.

    Attributes:
        samples: of the loader; modes are scored on these.
        train_samples: of the training loader, if there is one; otherwise the same object. The
            three passes run on these.
        reference: an earlier state dict to compare with, under the model's names; empty for none.
        allowed_noise: names and patterns of modules whose noise in eval mode is wanted.
        still_training: modules that are in training mode after the model's own eval().
        train_trace, eval_trace: noise traced in training mode and in eval mode.
        given_scores: of the model as given, and after `train()` and `eval()`; {} where it is in one
            mode, in which these calls change nothing else.
        scores: of every mode on `samples`, and of some on `train_samples` if that differs; of
            samples one by one where that gives other outputs.
        order_effect: how much more the loader's batches differ than random ones.
        loader_order_pass: a train pass in the loader's own order, if that effect is clear.
    """

    def __init__(
        self,
        model: AuditedModel,
        samples: Samples,
        train_samples: Samples,
        reference: nn.Module | Mapping[str, Tensor] | None,
        allowed_noise: Sequence[str],
    ) -> None:
        """Run every pass and test."""
        self.model, self.samples, self.train_samples = model, samples, train_samples
        # As they are printed, too: `"drop" (dropout at net.py:12)`.
        self.allowed_noise = [plain_name(name.split(" (")[0].strip('"')) for name in allowed_noise]
        if isinstance(reference, nn.Module):
            reference = reference.state_dict()
        fitting = fit_to_names(reference or {}, model.module.state_dict())
        self.reference = {plain_name(name): tensor for name, tensor in fitting.items()}
        # The state that was handed over is evidence itself, where modes do not describe it.
        self.given_scores: dict[str, Scores] = {}
        for each in {id(s): s for s in (samples, train_samples)}.values():
            each.rows_are_samples = model.rows_are_samples(each)
        if model.changed_by_switch or model.is_mixed:
            self.given_scores[AS_GIVEN] = self._score_as_given(model.as_given())
        if model.changed_by_switch:
            self.given_scores[SWITCHED] = self._score_as_given(model.as_given(switched=True))
        if model.is_mixed:
            self.given_scores[AFTER_EVAL] = self._score_as_given(model.mode("eval"))
        if any_trains(model.module.parameters()):
            # At identity, and their own parameters do not train in a model that does.
            model.frozen |= {
                name
                for name, layer in model.norms.items()
                if (running := layer_running_moments(layer)) is not None
                and is_initial(running)
                and any_trains(layer.parameters(recurse=False)) is False
            }
        with model.mode("eval"):
            modules = model.registered.items()
            self.still_training = frozenset(name for name, m in modules if m.training)
        self.eval_trace = model.trace("eval", samples)
        self.train_trace = model.trace("train", train_samples)
        self.tests = run_eval_tests(model, samples)
        self._check_allowed()
        self.train_pass = model.run("train", train_samples.shuffled)
        self.noise_off_pass = model.run("noise_off", train_samples.shuffled)
        self.eval_pass = model.run("eval", train_samples.shuffled)
        self.scores = self._score_modes() | {
            name: found for name, found in self.given_scores.items() if name != AFTER_EVAL
        }
        if self.tests.alone_change > ALONE:
            self.scores[ONE_BY_ONE] = self._score_one_by_one()
        self.order_effect, self.is_clear_effect = order_effect(train_samples, model.seed)
        self.loader_order_pass = self.run_in_loader_order() if self.is_clear_effect else None

    def run_in_loader_order(self) -> Pass:
        """A train pass over the training batches as they come."""
        with self.model.mode("train"):
            return run_pass(self.model, lambda: iter(self.train_samples.batches))

    def _check_allowed(self) -> None:
        """Refuse a name or pattern in `allow_noise` that matches no module.

        Raises:
            AuditError: with the nearest names.
        """
        names = [*self.model.modules, *(source.layer for source in self.eval_trace.sources)]
        for pattern in self.allowed_noise:
            if not fnmatch.filter(names, pattern):
                noisy = dict.fromkeys(source.layer for source in self.train_trace.sources)
                raise AuditError(
                    f"allow_noise: no module is called {pattern!r}; "
                    f"{suggest(pattern, names)}noise is in {list_names(list(noisy)) or 'none'}"
                )

    def change_by_first_batch(self) -> float:
        """How much the batch that comes first after `train()` and `eval()` changes the outputs.

        The next forward may fill again what a switch empties. The largest change of REFILLS tries,
        so that a chance hit, which matters where that is a number or two, is no measure.
        """
        switched = self.given_scores[SWITCHED].outputs
        return max(
            output_change(
                switched, self._score_as_given(self.model.as_given(switched=True), first).outputs
            )
            for first in self.samples.batches[1 : 1 + REFILLS]
        )

    def _score_as_given(
        self, mode: AbstractContextManager[None], first: Batch | None = None
    ) -> Scores:
        """Scores of the batches as they come, after a forward of another one if that is given."""
        with mode:
            if first is not None:
                call(self.model.module, first.inputs)
            batches = self.samples.batches
            return run_pass(self.model, lambda: iter(batches), measure=False).scores

    def _score_one_by_one(self) -> Scores:
        """Scores of eval mode with every sample in a batch of its own."""
        single = self.samples.alone(len(self.eval_scores.outputs))
        with self.model.mode("eval"):
            return run_pass(self.model, lambda: iter(single), measure=False).scores

    @cached_property
    def loss_alone(self) -> Gain | None:
        """What samples lose in batches of their own; None if these change nothing."""
        if ONE_BY_ONE not in self.scores:
            return None
        together = f"batches of {self.samples.shuffled_size} instead of single samples"
        return Gain.between(self.scores[ONE_BY_ONE], self.eval_scores, together)

    def _score_modes(self) -> dict[str, Scores]:
        """Scores of every mode; a mode that does not run on the samples becomes a note."""
        passes = (self.train_pass, self.noise_off_pass, self.eval_pass)
        on_train_samples = dict(zip(SCORE_NAMES.values(), (p.scores for p in passes), strict=True))
        if not self.has_train_loader:
            return on_train_samples
        scores = {}
        for mode, name in SCORE_NAMES.items():
            try:
                with self.model.mode(mode):
                    found = run_pass(self.model, self.samples.shuffled, measure=False)
                scores[name] = found.scores
            except CANNOT_RUN as error:
                if mode == "eval":
                    raise
                reason = (str(error).splitlines() or [""])[0]
                self.model.notes.append(
                    f"{name} could not be scored on the loader's samples: {reason}"
                )
        for name in ("train mode", "eval mode"):
            scores[f"{name}, training data"] = on_train_samples[name]
        return scores

    @property
    def gap(self) -> Gain:
        """From eval mode to the better mode with batch statistics."""
        return Gain.between(self.eval_scores, self.best_scores, self.best_mode)

    @property
    def has_train_loader(self) -> bool:
        return self.train_samples is not self.samples

    @property
    def eval_scores(self) -> Scores:
        """Scores of plain eval mode on `samples`."""
        return self.scores[SCORE_NAMES["eval"]]

    @property
    def best_scores(self) -> Scores:
        """Of the modes with batch statistics, the lower loss; eval mode's own without labels."""
        return self._best[0]

    @property
    def best_mode(self) -> str:
        """The name of what `best_scores` are of."""
        return self._best[1]

    @cached_property
    def _best(self) -> tuple[Scores, str]:
        modes = [SCORE_NAMES["train"], SCORE_NAMES["noise_off"]]
        found = [(self.scores[name], name) for name in modes if name in self.scores]
        known = [(scores, name) for scores, name in found if scores.loss is not None]
        default = (self.eval_scores, SCORE_NAMES["train"])
        return min(known, key=lambda pair: pair[0].loss or 0.0, default=default)


def any_trains(parameters: Iterable[nn.Parameter]) -> bool | None:
    """Whether any of these parameters trains; None without parameters."""
    flags = [parameter.requires_grad for parameter in parameters]
    return any(flags) if flags else None
