"""Everything that was measured, in one place, for the functions that draw conclusions."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property

from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm

from vshift.auditing.moments import (
    LayerStats,
    Ratio,
    apart,
    kept_moments,
    noise_floor,
    ratio,
    threshold,
)
from vshift.auditing.noise import Source, Traced
from vshift.auditing.probes import Pass, Probes, Subject
from vshift.auditing.samples import Samples
from vshift.auditing.scores import Scores
from vshift.shift.stats import Moments


@dataclass
class Tests:
    """What the repeat test and the batch-mates test showed; None and 0 are healthy.

    Attributes:
        repeat_at: the first module whose output differs between two passes over one batch.
        repeat_change: of the model's output, relative; see `output_change`.
        mates_at, mates_change: the same with other samples in the rest of the batch.
    """

    repeat_at: str | None = None
    repeat_change: float = 0.0
    mates_at: str | None = None
    mates_change: float = 0.0


@dataclass
class Case:
    """One model, one loader, and all that was measured.

    Attributes:
        samples: of the loader; what scores are taken on.
        probed: of the training loader where there is one, else the same: what A, B and C ran on.
        trained, evaluated: noise traced in training mode and in eval mode.
        all_scores: of every mode on `samples`, and of some on `probed` where that differs.
        as_given: a pass A in the loader's own order where its batches are no random samples.
        reference: a state dict to compare with.
        allowed: names of modules whose noise in eval mode is wanted.
        awake: registered modules that are in training mode after the model's own eval().
        blamed: layers whose buffers a finding has explained already, with its code.
    """

    subject: Subject
    samples: Samples
    probed: Samples
    probes: Probes
    trained: Traced
    evaluated: Traced
    all_scores: Mapping[str, Scores]
    tests: Tests
    has_train_loader: bool = False
    as_given: Pass | None = None
    order_effect: float = 1.0
    reference: Mapping[str, Tensor] | None = None
    allowed: tuple[str, ...] = ()
    awake: frozenset[str] = frozenset()
    blamed: dict[str, str] = field(default_factory=dict)

    @property
    def scores(self) -> Scores:
        """Of plain eval mode on `samples`."""
        return self.all_scores["eval mode"]

    @cached_property
    def layers(self) -> dict[str, _BatchNorm]:
        """Every batch norm that ran in training mode, in forward order."""
        norms, stats = self.subject.norms, self.probes.trained.stats
        order = [name for name in self.trained.order if name in norms and name in stats]
        return {n: norms[n] for n in [*order, *(n for n in stats if n not in order and n in norms)]}

    @cached_property
    def kept(self) -> dict[str, Moments]:
        """The running statistics of the layers that keep some."""
        found = {name: kept_moments(layer) for name, layer in self.layers.items()}
        return {name: moments for name, moments in found.items() if moments is not None}

    def stats(self, name: str) -> LayerStats:
        """Of pass A."""
        return self.probes.trained.stats[name]

    @cached_property
    def judged(self) -> list[str]:
        """Layers whose buffers should be what pass A shows: finite, and moving in training."""
        return [
            name
            for name, kept in self.kept.items()
            if name not in self.subject.frozen and finite(kept) and self.stats(name).calls > 0
        ]

    @cached_property
    def distance(self) -> dict[str, float]:
        """`apart` of the running statistics and pass A."""
        return {n: apart(self.kept[n], self.seen(n), self.layers[n].eps) for n in self.judged}

    @cached_property
    def limit(self) -> dict[str, float]:
        """The distance above which a layer's buffers are wrong."""
        return {n: threshold(self.layers[n], self.stats(n)) for n in self.judged}

    @cached_property
    def floor(self) -> dict[str, float]:
        return {n: noise_floor(self.layers[n], self.stats(n)) for n in self.judged}

    def seen(self, name: str) -> Moments:
        """What a moving average should hold: pass A's statistics, averaged over batches."""
        return self.stats(name).average()

    @cached_property
    def off(self) -> list[str]:
        """Judged layers whose running statistics are not what they are trained with."""
        return [
            n
            for n in self.judged
            if self.distance[n] > self.limit[n] and n not in self.re_estimated
        ]

    @cached_property
    def shifted(self) -> dict[str, Ratio]:
        """Layers that noise reaches and whose variance it clearly changes, with the local ratio."""
        return {n: r for n in self.judged if self.noise_of(n) and (r := self.local(n)).clear}

    @cached_property
    def re_estimated(self) -> list[str]:
        """Layers whose running statistics are those without noise, B's, and not A's.

        No training leaves such; re-estimation does, and then eval mode meets what it remembers.
        """
        quiet = self.probes.quiet.stats
        far = {
            n: apart(self.kept[n], quiet[n].average(), self.layers[n].eps)
            for n in self.judged
            if n in quiet and (n in self.shifted or self.distance[n] > self.limit[n])
        }
        return [n for n, d in far.items() if d <= self.limit[n] and d < 0.5 * self.distance[n]]

    def open(self) -> list[str]:
        """Those among them for which no finding has been made yet."""
        return [name for name in self.off if name not in self.blamed]

    def noise_of(self, name: str) -> list[Source]:
        """The noise that reaches a layer through no other BN."""
        return self.trained.arriving.get(name, [])

    def local(self, name: str) -> Ratio:
        """Variance with noise on over noise off, on batch statistics."""
        return self._ratio(self.probes.trained, self.probes.quiet, name)

    def inherited(self, name: str) -> Ratio:
        """Variance on batch statistics over plain eval mode, noise off."""
        return self._ratio(self.probes.quiet, self.probes.plain, name)

    def _ratio(self, over: Pass, under: Pass, name: str) -> Ratio:
        if name not in over.stats or name not in under.stats:
            return Ratio(math.nan, math.nan)
        return ratio(over.stats[name], under.stats[name])


def finite(moments: Moments) -> bool:
    """Whether a layer can normalise by these: no inf, no NaN, no negative variance."""
    bad = ~moments.mean.isfinite() | ~moments.variance.isfinite() | (moments.variance < 0)
    return not bool(bad.any())
