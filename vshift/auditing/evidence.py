"""Running statistics judged by what was measured: which layers are off, and what explains them.

The train pass judges the running statistics: with batch statistics everywhere, a layer's input does
not depend on the buffers of the layers before it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from itertools import chain, islice

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from vshift.auditing.distances import (
    expected_lag,
    is_clear,
    is_initial,
    is_usable,
    largest_by_chance,
    largest_healthy,
    noise_floor,
    standardized_distance,
    variance_ratio,
)
from vshift.auditing.measurements import Measurements
from vshift.auditing.passes import AuditedModel, LayerStats, run_pass
from vshift.auditing.repairs import Repair, applied
from vshift.auditing.samples import Samples
from vshift.auditing.severity import Gain
from vshift.auditing.trace import NoiseSource
from vshift.shift.stats import (
    Estimate,
    Moments,
    layer_running_moments,
    to_float64,
)

TRIED_BATCHES = 8  # of a train pass that tries a repair
FALSE_ALARMS = 0.001  # audits in which one of all layers is off by chance


class Evidence(Measurements):
    """What was measured, what it says of each layer, and what is explained so far.

    Attributes:
        explained_by: the code of the finding that explains a layer's running statistics.
        following: layers whose buffers are right, and which are off as a fault before them changes
            their input in training mode too.
        fitting_in_order: layers that are right for the loader's batches as they come, and are off
            only where their samples are mixed.
        repairs: those that have helped so far, and belong to a finding.
        repaired_scores: of eval mode with all of these.
        is_accounted: whether there is a grave finding for which no repair could be tried.
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
        super().__init__(model, samples, train_samples, reference, allowed_noise)
        self.explained_by: dict[str, str] = {}
        self.following: set[str] = set()
        self.fitting_in_order: set[str] = set()
        self.repairs: list[Repair] = []
        self.repaired_scores, self.is_accounted = self.eval_scores, False
        # Batches may differ on purpose by what only the network sees, such as attacks.
        doubtful = [name for name in self.mismatched if not is_initial(self.running[name])]
        if doubtful and not self.is_clear_effect and train_samples.rows_are_samples:
            in_order = self.run_in_loader_order()
            self.fitting_in_order = {
                name
                for name in doubtful
                if (found := in_order.average(name)) is not None
                and self.distance_to(found, name) <= self.limit[name]
            }

    @property
    def gap_left(self) -> Gain:
        """The same from eval mode with the repairs so far."""
        return Gain.between(self.repaired_scores, self.best_scores, self.best_mode)

    @property
    def is_gap_open(self) -> bool:
        """Whether the findings so far leave more than half of what eval mode loses."""
        gap, left = self.gap.fall, self.gap_left.fall
        return not self.is_accounted and gap is not None and (left or 0.0) > 0.5 * max(gap, 0.0)

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
        """Standard deviation of the distance in a healthy layer."""
        return {n: noise_floor(self.layers[n], self.train_stats(n)) for n in self.judged}

    @cached_property
    def limit(self) -> dict[str, float]:
        """The distance above which a layer's buffers are wrong."""
        return {name: largest_healthy(floor) for name, floor in self.noise_floor.items()}

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
        """Layers that are off by more than lag and noise explain, but by less than the limit.

        None where chance explains each of them. Many small errors do harm together: whether these
        do, only the scores tell.
        """
        off = [
            name
            for name in self.judged
            if self._exceeds(name, 2 * self.noise_floor[name])
            and self.distance[name] <= self.limit[name]
            and name not in (*self.re_estimated, *self.following)
        ]
        p = FALSE_ALARMS / max(len(self.judged), 1)
        by_chance = {n: largest_by_chance(self.layers[n], self.train_stats(n), p) for n in off}
        return off if any(self._exceeds(n, chance) for n, chance in by_chance.items()) else []

    def _exceeds(self, name: str, noise: float) -> bool:
        """Whether a layer is off by more than this noise and the lag of its averages."""
        return self.distance[name] > math.hypot(expected_lag(self.layers[name]), noise)

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
        return variance_ratio(self.train_pass, self.noise_off_pass, name)

    def inherited_ratio(self, name: str) -> Estimate:
        """Variance on batch statistics over plain eval mode, noise off."""
        return variance_ratio(self.noise_off_pass, self.eval_pass, name)

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
