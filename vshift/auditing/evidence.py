"""Everything that is measured of a model before conclusions are drawn, and the distances used.

The train pass judges the running statistics: with batch statistics everywhere, a layer's input does
not depend on the buffers of the layers before it.
"""

from __future__ import annotations

import fnmatch
import math
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from functools import cached_property
from itertools import chain, islice

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from vshift.auditing.comparisons import run_eval_tests
from vshift.auditing.passes import (
    CANNOT_RUN,
    AuditedModel,
    LayerStats,
    Mode,
    Pass,
    rms,
    run_pass,
)
from vshift.auditing.repairs import Repair, applied
from vshift.auditing.samples import AuditError, Samples, order_effect
from vshift.auditing.severity import Gain, Scores
from vshift.auditing.trace import NoiseSource, plain_name
from vshift.shift.stats import (
    Estimate,
    Moments,
    averaged_batches,
    jackknife,
    layer_running_moments,
    to_float64,
)
from vshift.text import list_names, suggest

TRIED_BATCHES = 8  # of a train pass that tries a repair
RELEVANT_CHANGE = 0.05  # relative change of a variance that is worth reporting

# Names of the scores, in the order in which they are shown.
SCORE_NAMES: dict[Mode, str] = {
    "train": "train mode",
    "noise_off": "batch statistics, noise off",
    "eval": "eval mode",
}
REPAIRED = "eval mode, repaired"
# Scores of the loader's batches as they come.
AS_GIVEN = "as given"
SWITCHED = "as given, after train() and eval()"
AFTER_EVAL = "in eval mode"


class Evidence:
    """One model, one loader, and all that was measured of them.

    Attributes:
        samples: of the loader; modes are scored on these.
        train_samples: of the training loader, if there is one; otherwise the same object. The
            three passes run on these.
        reference: an earlier state dict to compare with, under the model's names; empty for none.
        allowed_noise: names and patterns of modules whose noise in eval mode is wanted.
        explained_by: the code of the finding that explains a layer's running statistics.
        following: layers whose buffers are right, and which are off as a fault before them changes
            their input in training mode too.
        still_training: modules that are in training mode after the model's own eval().
        train_trace, eval_trace: noise traced in training mode and in eval mode.
        given_scores: of the model as given, and after `train()` and `eval()`; {} where it is in one
            mode, in which these calls change nothing else.
        scores: of every mode on `samples`, and of some on `train_samples` if that differs.
        repaired_scores: of eval mode with all repairs that have helped so far.
        is_accounted: whether there is a grave finding for which no repair could be tried.
        order_effect: how much more the loader's batches differ than random ones.
        fitting_in_order: layers that are right for the loader's batches as they come, and are off
            only where their samples are mixed.
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
        self.explained_by: dict[str, str] = {}
        self.following: set[str] = set()
        self.fitting_in_order: set[str] = set()
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
        self.loader_order_pass: Pass | None = None
        self.order_effect, self.is_clear_effect = order_effect(train_samples, model.seed)
        if self.is_clear_effect or (self.mismatched and train_samples.rows_are_samples):
            with model.mode("train"):
                in_order = run_pass(model, lambda: iter(train_samples.batches))
            if self.is_clear_effect:
                self.loader_order_pass = in_order
            else:  # batches may differ on purpose by what only the network sees, such as attacks
                self.fitting_in_order = {
                    name
                    for name in self.mismatched
                    if (found := in_order.average(name)) is not None
                    and self.distance_to(found, name) <= self.limit[name]
                }

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

    def _score_as_given(self, mode: AbstractContextManager[None]) -> Scores:
        with mode:
            batches = self.samples.batches
            return run_pass(self.model, lambda: iter(batches), measure=False).scores

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

    repaired_scores: Scores
    is_accounted = False

    @property
    def gap(self) -> Gain:
        """From eval mode to the better mode with batch statistics."""
        return Gain.between(self.eval_scores, self.best_scores, self.best_mode)

    @property
    def gap_left(self) -> Gain:
        """The same from eval mode with the repairs so far."""
        return Gain.between(self.repaired_scores, self.best_scores, self.best_mode)

    @property
    def has_open_gap(self) -> bool:
        """Whether eval mode is worse by more than the findings so far account for."""
        if self.is_accounted or self.gap.fall is None or self.gap_left.fall is None:
            return False
        is_grave = self.gap_left.severity in ("medium", "high")
        return is_grave and self.gap_left.fall > 0.5 * self.gap.fall

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
        """What `best_scores` are of, for a sentence."""
        return self._best[1]

    @cached_property
    def _best(self) -> tuple[Scores, str]:
        words: dict[Mode, str] = {"train": "train mode", "noise_off": "train mode without noise"}
        found = [(self.scores.get(SCORE_NAMES[mode]), text) for mode, text in words.items()]
        known = [(s, text) for s, text in found if s is not None and s.loss is not None]
        default = (self.eval_scores, "train mode")
        return min(known, key=lambda pair: pair[0].loss or 0.0, default=default)

    # ---- layers and their statistics

    @cached_property
    def layers(self) -> dict[str, _BatchNorm]:
        """Every batch norm that ran in training mode, in forward order."""
        norms, stats = self.model.norms, self.train_pass.stats
        order = dict.fromkeys(chain(self.train_trace.order, stats))
        return {name: norms[name] for name in order if name in norms and name in stats}

    @cached_property
    def running(self) -> dict[str, Moments]:
        """The running statistics of the layers that keep some."""
        moments = {name: layer_running_moments(layer) for name, layer in self.layers.items()}
        return {name: running for name, running in moments.items() if running is not None}

    def train_stats(self, name: str) -> LayerStats:
        return self.train_pass.stats[name]

    def train(self, name: str) -> Moments:
        """The statistics that a moving average should hold: the train pass's, averaged."""
        return self.train_stats(name).average()

    def noise_reaching(self, name: str) -> list[NoiseSource]:
        """The noise that reaches a layer through no other BN."""
        return self.train_trace.arriving.get(name, [])

    def batches_tracked(self, name: str) -> int | None:
        tracked = self.layers[name].num_batches_tracked
        return None if tracked is None else int(tracked)

    def reference_moments(self, name: str) -> Moments | None:
        """A layer's running statistics in the reference; None if it has none of this shape."""
        mean, variance = (
            self.reference.get(f"{name}.{key}".removeprefix("."))
            for key in ("running_mean", "running_var")
        )
        if mean is None or variance is None or mean.shape != self.running[name].mean.shape:
            return None
        return Moments(to_float64(mean), to_float64(variance))

    def has_reference_statistics(self, name: str) -> bool:
        """Whether a layer's running mean is still the reference's, bit for bit."""
        reference = self.reference_moments(name)
        return reference is not None and torch.equal(reference.mean, self.running[name].mean)

    # ---- judging the running statistics

    @cached_property
    def judged(self) -> list[str]:
        """Layers whose buffers should agree with the train pass: finite, and moving in training.

        Not those that a forward makes anew: whatever they hold is no training's.
        """
        return [
            name
            for name, running in self.running.items()
            if name not in (*self.model.frozen, *self.model.tracker.built) and is_usable(running)
        ]

    @cached_property
    def distance(self) -> dict[str, float]:
        """Standardized distance between the running statistics and the train pass."""
        return {name: self.distance_to(self.train(name), name) for name in self.judged}

    def distance_to(self, moments: Moments, name: str) -> float:
        """Standardized distance between a layer's running statistics and these."""
        return standardized_distance(self.running[name], moments, self.layers[name].eps)

    @cached_property
    def noise_floor(self) -> dict[str, float]:
        """Standard deviation of the distance in a healthy layer, by theory and by this loader.

        Values of one image are not independent. So the spread between the loader's own batches
        counts as well, with the moving average's weight and the audit's own number of batches.
        """
        floors = {}
        for name in self.judged:
            layer, stats = self.layers[name], self.train_stats(name)
            share = 0.0 if layer.momentum is None else 1 / averaged_batches(layer.momentum)
            measured = stats.spread(layer.eps) * math.sqrt(share + 1 / len(stats))
            theory = 1 / math.sqrt(effective_sample_size(layer, stats.count))
            floors[name] = theory if math.isnan(measured) else max(theory, measured)
        return floors

    @cached_property
    def limit(self) -> dict[str, float]:
        """The distance above which a layer's buffers are wrong: four standard deviations."""
        return {name: max(0.1, 4 * floor) for name, floor in self.noise_floor.items()}

    @property
    def mismatched(self) -> list[str]:
        """Judged layers whose running statistics are not those they are trained with."""
        return [
            name
            for name in self.judged
            if self.distance[name] > self.limit[name]
            and name not in (*self.re_estimated, *self.following, *self.fitting_in_order)
        ]

    @property
    def slightly_off(self) -> list[str]:
        """Layers that are off by more than the noise explains, but by less than the limit.

        Many small errors do harm together: whether these do, only the scores tell.
        """
        return [
            name
            for name in self.judged
            if 2 * self.noise_floor[name] < self.distance[name] <= self.limit[name]
            and name not in self.re_estimated
            and name not in self.following
        ]

    def follow(self, layers: Iterable[str]) -> None:
        """Note that these layers' buffers are right, as a fault before them changes their input."""
        self.following |= set(layers)

    def train_distances(self, repair: Repair) -> dict[str, float]:
        """The distances of the judged layers in a train pass with a repair, over a few batches."""
        with applied(self.model, "train", [repair]):
            found = run_pass(
                self.model, lambda: islice(self.train_samples.shuffled(), TRIED_BATCHES)
            )
            measured = {name: found.average(name) for name in self.judged}
            return {n: self.distance_to(m, n) for n, m in measured.items() if m is not None}

    def unexplained(self) -> list[str]:
        """The mismatched layers that no finding explains yet."""
        return [name for name in self.mismatched if name not in self.explained_by]

    def claim(self, layers: Sequence[str], code: str) -> None:
        """Note that a finding explains these layers' buffers; the first claim counts."""
        for name in layers:
            self.explained_by.setdefault(name, code)

    @cached_property
    def re_estimated(self) -> list[str]:
        """Layers whose running statistics are those of the noise-off pass, not of the train pass.

        Training never leaves such statistics; re-estimation does, and then they agree with eval
        mode.
        """
        return [
            name
            for name in self.judged
            if (name in self.shifted or self.distance[name] > self.limit[name])
            and (noise_off := self.noise_off_pass.average(name)) is not None
            and (distance := self.distance_to(noise_off, name)) <= self.limit[name]
            and distance < 0.5 * self.distance[name]
        ]

    # ---- variance shift

    @cached_property
    def shifted(self) -> dict[str, Estimate]:
        """Layers that noise reaches and whose variance it clearly changes, with the local ratio."""
        return {
            name: ratio
            for name in self.judged
            if self.noise_reaching(name) and is_clear(ratio := self.local_ratio(name))
        }

    def local_ratio(self, name: str) -> Estimate:
        """Variance with noise on over noise off, on batch statistics."""
        return _variance_ratio(self.train_pass, self.noise_off_pass, name)

    def inherited_ratio(self, name: str) -> Estimate:
        """Variance on batch statistics over plain eval mode, noise off."""
        return _variance_ratio(self.noise_off_pass, self.eval_pass, name)

    @cached_property
    def inheriting(self) -> list[str]:
        """Layers whose buffers are right and that no noise shifts, but whose eval input differs."""
        return [
            name
            for name in self.judged
            if name not in self.shifted
            and name not in self.mismatched
            and (moments := self.eval_pass.average(name)) is not None
            and not self.distance_to(moments, name) <= self.limit[name]  # NaN is far too
        ]


def any_trains(parameters: Iterable[nn.Parameter]) -> bool | None:
    """Whether any of these parameters trains; None without parameters."""
    flags = [parameter.requires_grad for parameter in parameters]
    return any(flags) if flags else None


def fit_to_names(state: Mapping[str, Tensor], names: Iterable[str]) -> dict[str, Tensor]:
    """The state dict without the prefix that wrappers put before every name.

    DDP's `module.`, torch.compile's `_orig_mod.`, a LightningModule's attribute: whatever precedes
    all those of `names` that the state dict has.
    """
    prefix = find_prefix(state, names)
    return {k.removeprefix(prefix): t for k, t in state.items() if k.startswith(prefix)}


def find_prefix(state: Iterable[str], names: Iterable[str]) -> str:
    """The common prefix of `names` in a state dict; empty without one."""
    state, names = set(state), list(names)
    if any(name in state for name in names):
        return ""
    for name in names:
        ends = [key for key in state if key.endswith(f".{name}")]
        if ends:
            return min(ends, key=lambda key: (len(key), key))[: -len(name)]
    return ""


# ---- statistics and distances


def is_usable(moments: Moments) -> bool:
    """Whether a layer can normalise by these: no inf, no NaN, no negative variance."""
    bad = ~moments.mean.isfinite() | ~moments.variance.isfinite() | (moments.variance < 0)
    return not bool(bad.any())


def is_initial(moments: Moments) -> bool:
    """Whether these are exactly a new layer's running statistics."""
    return bool((moments.mean == 0).all() and (moments.variance == 1).all())


def standardized_distance(running: Moments, measured: Moments, eps: float) -> float:
    """Distance of running statistics from measured ones: the larger of two RMS over channels.

    Means: (running − measured)/√(measured variance + eps). Variances: log of the ratio, over √2.
    Both have the standard deviation 1/√n if `running` comes from n independent normal values. NaN
    if not finite.
    """
    scale = (measured.variance + eps).sqrt()
    means = rms((running.mean - measured.mean) / scale)
    variances = rms(((running.variance + eps) / (measured.variance + eps)).log() / math.sqrt(2))
    return math.nan if math.isnan(means) or math.isnan(variances) else max(means, variances)


def effective_sample_size(layer: _BatchNorm, count: int) -> float:
    """n_eff: how many values per channel the running statistics are an average of.

    With momentum m and n values per batch n(2 − m)/m; for a simple average n times the batches.
    """
    momentum = layer.momentum
    if momentum is None:
        tracked = layer.num_batches_tracked
        return count * max(1, int(tracked) if tracked is not None else 1)
    return count * averaged_batches(momentum)


def _variance_ratio(over: Pass, under: Pass, name: str) -> Estimate:
    """Ratio of channel-mean variances of two passes over the same batches, with its error."""
    if name not in over.stats or name not in under.stats:
        return Estimate(math.nan, math.nan)
    a, b = over.stats[name].levels(), under.stats[name].levels()
    size = min(len(a), len(b))
    a, b = a[:size], b[:size]
    value = a.sum() / b.sum() if float(b.sum()) > 0 else torch.full((), math.nan)
    left_out = (a.sum() - a) / (b.sum() - b)
    return jackknife(torch.cat([value.double()[None], left_out]))


def is_clear(ratio: Estimate) -> bool:
    """Whether it differs from 1 by more than RELEVANT_CHANGE and four standard errors."""
    if not (math.isfinite(ratio.value) and ratio.value > 0):
        return False
    error = ratio.error if math.isfinite(ratio.error) else 0.0
    return abs(ratio.value - 1) > max(RELEVANT_CHANGE, 4 * error)
