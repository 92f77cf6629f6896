"""Findings on the averaged batches: momentum, batch sizes, several or other inputs."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from functools import partial
from itertools import chain
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from vshift.auditing.distances import effective_sample_size, standardized_distance
from vshift.auditing.evidence import Evidence
from vshift.auditing.findings.base import (
    RECALIBRATE,
    BufferCheck,
    CandidateFinding,
    Check,
    plural,
    which_layers,
)
from vshift.auditing.names import in_quotes
from vshift.auditing.repairs import Repair, set_running, statistics_by_call
from vshift.auditing.samples import tensors_of
from vshift.auditing.severity import LEAST_FALL, Gain
from vshift.shift.stats import Moments, averaged_batches
from vshift.text import format_significant

SMALL_SAMPLE = 100  # n_eff below which the noise floor is above 0.1
HIGH_MOMENTUM = 0.5
USUAL_MOMENTUM = 0.1
# Standard deviations between inputs; augmentation, such as crops with borders, makes up to 0.3.
OTHER_INPUTS = 0.5


class MomentumHigh(BufferCheck):
    """Momentum so high that the running statistics are those of the last batches."""

    code = "momentum_high"
    title = "momentum is so high that only the last batches count"
    causes = (
        "a decay of 0.9, 0.99 or 0.999 of another framework copied into PyTorch, whose momentum is "
        "1 − decay"
    )
    advice = "set momentum to 0.1 or 0.01"
    remedy = RECALIBRATE

    def find(self, evidence: Evidence) -> Iterator[CandidateFinding]:
        momenta = {
            name: momentum
            for name in evidence.judged
            if (momentum := float(evidence.layers[name].momentum or 0)) >= HIGH_MOMENTUM
            and name not in evidence.explained_by
        }
        if momenta:
            layers, momentum = list(momenta), max(momenta.values())
            values = min(
                effective_sample_size(evidence.layers[n], evidence.train_stats(n).count)
                for n in layers
            )
            batches = averaged_batches(momentum)
            last = f"{format_significant(batches, 2)} batches" if batches >= 1.5 else "batch"
            yield self.candidate(
                evidence,
                layers,
                f"a momentum of {momentum:g} lets {which_layers(evidence, layers)} forget all but "
                f"the last {last}.\n"
                f"The running statistics are of {values:,.0f} values per channel only.",
                momentum=momentum,
                values=values,
            )


class TinyBatches(BufferCheck):
    """Batches with so few values that the running statistics are noise."""

    code = "tiny_batches"
    title = "batches are too small for batch norm"
    causes = "few samples per device, accumulated gradients, or a layer after global pooling"
    advice = "use larger batches, SyncBatchNorm, a lower momentum or group norm"
    remedy = "or re-estimate over many batches with `vshift.recalibrate`"

    def find(self, evidence: Evidence) -> Iterator[CandidateFinding]:
        samples = evidence.train_samples
        if samples.batch_size < 2 and not evidence.has_train_loader:
            return  # batches of one are how many people evaluate, not how they train
        counts, sizes = {}, {}
        for name in evidence.judged:
            layer = evidence.layers[name]
            scale = samples.batch_size / samples.shuffled_size
            counts[name] = max(1, round(evidence.train_stats(name).count * scale))
            sizes[name] = effective_sample_size(layer, counts[name])
            if (layer.momentum or 0) >= HIGH_MOMENTUM:
                # Momentum is to blame there: count what the batches give at a usual one.
                sizes[name] = counts[name] * averaged_batches(USUAL_MOMENTUM)
        # Statistics that are less noisy than such batches leave them are of larger ones: testing
        # in small batches says nothing about training.
        layers = [
            n
            for n, size in sizes.items()
            if evidence.layers[n].momentum
            and size < SMALL_SAMPLE
            and not evidence.distance[n] < 0.5 / math.sqrt(size)
        ]
        if layers:
            worst = min(layers, key=lambda n: sizes[n])
            noise = 1 / math.sqrt(sizes[worst])
            yield self.candidate(
                evidence,
                layers,
                f"{which_layers(evidence, layers)} {plural(layers, 'normalises', 'normalise')} by "
                f"{counts[worst]} values per channel: batches of {samples.batch_size} are too "
                "small.\n"
                "That noise alone puts running statistics off by "
                f"{format_significant(noise, 2)} standard deviations.",
                batch_size=samples.batch_size,
                values=counts[worst],
                expected_noise=noise,
            )


class SeveralDistributions(BufferCheck):
    """A layer that runs several times in a forward, with statistics that differ by call."""

    code = "several_distributions"
    title = "one batch norm is fed by several distributions"
    causes = "a layer shared by branches, domains, time steps or pyramid levels"
    advice = "give every branch a batch norm of its own, or use a norm without running statistics"

    def find(self, evidence: Evidence) -> Iterator[CandidateFinding]:
        for name in evidence.judged:
            stats = evidence.train_stats(name)
            if stats.calls < 2:
                continue
            eps = evidence.layers[name].eps
            calls = [stats.average(i) for i in range(stats.calls)]
            far = max(
                standardized_distance(a, b, eps) for i, a in enumerate(calls) for b in calls[:i]
            )
            if far > max(0.25, 4 * evidence.noise_floor[name] * math.sqrt(2)):
                noise_off = evidence.noise_off_pass.stats.get(name, stats)
                by_call = [noise_off.average(i) for i in range(noise_off.calls)]
                change = statistics_by_call(name, by_call)
                yield self.candidate(
                    evidence,
                    [name],
                    f"{in_quotes(name)} runs {stats.calls} times per forward, on inputs that "
                    f"differ by {format_significant(far, 2)} standard deviations.\n"
                    "One set of running statistics cannot fit them all.",
                    repair=Repair("giving each call its own statistics", changes=[change]),
                    calls=stats.calls,
                    between_calls=far,
                )


class BatchesNotRandom(BufferCheck):
    """Running statistics that fit the loader's own order, and not the same samples shuffled."""

    code = "batches_not_random"
    title = "training batches are no random samples"
    causes = (
        "a sampler or a loader without shuffling: one class, scene or subject per batch; or "
        "domains in turn that share a batch norm, which in eval mode normalises by the average"
    )
    advice = (
        "shuffle the training data so that each batch holds all of them, or give each domain a "
        "batch norm of its own; statistics that are re-estimated on one domain break the others"
    )

    def find(self, evidence: Evidence) -> Iterator[CandidateFinding]:
        if evidence.loader_order_pass is None:
            return
        in_order, effect = evidence.loader_order_pass.stats, evidence.order_effect
        own = _batches_like(evidence)
        if own:  # normalised by these alone in training, and by the average of all in eval mode
            layers = [
                name
                for name in evidence.judged
                if name in in_order
                and name not in evidence.explained_by
                and evidence.distance_to(in_order[name].average(batches=own), name)
                > evidence.limit[name]
            ]
        else:
            layers = [
                name
                for name in evidence.unexplained()
                if name in in_order
                and evidence.distance_to(
                    in_order[name].moving_average(evidence.layers[name].momentum), name
                )
                < 0.7 * evidence.distance[name]
            ]
        if not layers and not evidence.has_train_loader:
            evidence.model.notes.append(
                f"samples in the loader's batches resemble each other (batches differ {effect:.1f} "
                "times as much as random ones would); the audit shuffled them"
            )
            return
        within = {
            name: float(
                in_order[name].average().variance.mean() / evidence.train(name).variance.mean()
            )
            for name in layers or evidence.judged
            if name in in_order
        }
        worst = min(within, key=lambda n: within[n], default=None)
        low = within[worst] if worst is not None else math.nan
        message = (
            f"samples in a batch resemble each other: batches differ {effect:.1f} times as much as "
            "random ones would."
        )
        if worst is not None:
            message += (
                f"\nWithin a batch the variance at {in_quotes(worst)} is {100 * low:.0f} % of that "
                "over all samples."
            )
        in_order_loss = evidence.loader_order_pass.scores.loss
        shuffled_loss = evidence.train_pass.scores.loss
        least = max(LEAST_FALL, 0.1 * abs(in_order_loss or 0.0))
        if in_order_loss is not None and (shuffled_loss or 0.0) - in_order_loss > least:
            message += (
                "\nThe network uses its batch mates: shuffling alone raises the loss of train mode "
                f"from {in_order_loss:.3f} to {shuffled_loss:.3f}.\n"
                "Re-estimating helps only partly: retrain with shuffled batches."
            )
        numbers: dict[str, Any] = {
            "order_effect": effect,
            "within_over_pooled": low,
            "batches_like": len(own),
        }
        if layers and own:
            message += (
                f"\n{len(own)} of the {len(evidence.train_samples.batches)} training batches are "
                "distributed as the loader's: several domains come in turn, and share batch norms."
            )
            statistics = {n: in_order[n].average(batches=own) for n in layers}
            repair = Repair(
                "the statistics of those batches alone", changes=[set_running(statistics)]
            )
            yield self.candidate(evidence, layers, message, repair=repair, **numbers)
        elif layers:
            found = self.candidate(
                evidence, layers, message, note_if_dropped=message.replace("\n", " ").rstrip("."),
                **numbers,
            )  # fmt: skip
            if not evidence.has_train_loader:  # the same samples
                in_order_scores = evidence.loader_order_pass.scores
                found.explained = Gain.between(
                    evidence.eval_scores, in_order_scores, "train mode in the loader's order"
                )
                found.least_gain = "low" if found.explained.severity == "info" else "info"
            yield found
        else:
            yield CandidateFinding(self, None, message, numbers={"order_effect": effect})


class InputDiffers(Check):
    """The loader's inputs differ from the training loader's, channel by channel."""

    code = "input_differs"
    title = "inputs in eval differ from those in training"
    causes = "another normalisation, value range, channel order or resolution"
    advice = "use one preprocessing for both"

    def find(self, evidence: Evidence) -> Iterator[CandidateFinding]:
        inputs = _both_inputs(evidence)
        if inputs is None or _batches_like(evidence):
            return
        ours, training = map(_channel_moments, inputs)
        distance = standardized_distance(ours, training, 1e-12)
        shapes = [tuple(batches[0].shape[1:]) for batches in inputs]
        limit = _limit(inputs)
        if not (distance > limit or shapes[0] != shapes[1]):
            return
        variance = training.variance.clamp(min=1e-12)
        ratio = float((ours.variance.mean() / training.variance.mean().clamp(min=1e-12)).sqrt())
        moved = float(((ours.mean - training.mean) / variance.sqrt()).abs().max())
        scale = (training.variance / ours.variance.clamp(min=1e-12)).sqrt()
        shift = training.mean - ours.mean * scale

        def rescale(x: Tensor) -> Tensor:
            if not x.is_floating_point() or x.ndim < 2 or x.shape[1] != len(scale):
                return x
            shape = [1, -1, *[1] * (x.ndim - 2)]
            return (x * scale.to(x).view(shape) + shift.to(x).view(shape)).to(x.dtype)

        yield CandidateFinding(
            self,
            None,
            f"the loader's inputs have {format_significant(ratio, 3)} times the standard deviation "
            "of the training "
            f"loader's, and means up to {format_significant(moved, 2)} standard deviations away."
            + f"\nTheir shapes are {shapes[0]} and {shapes[1]}."
            * (shapes[0] != shapes[1]),
            numbers={"distance": distance, "limit": limit, "shapes": [list(s) for s in shapes]},
            repair=Repair(
                "rescaling each channel to the training loader's",
                change_inputs=partial(pytree.tree_map_only, Tensor, rescale),
            ),
        )


def _both_inputs(evidence: Evidence) -> list[list[Tensor]] | None:
    """The inputs of the loader's and the training loader's batches, if channels are comparable."""
    both = (evidence.samples, evidence.train_samples)
    if not (evidence.has_train_loader and all(samples.rows_are_samples for samples in both)):
        return None
    inputs = [[tensors_of(batch.inputs)[0] for batch in samples.batches] for samples in both]
    if not all(x.is_floating_point() and x.ndim >= 2 for x in chain(*inputs)):
        return None
    return inputs if len({x.shape[1] for x in chain(*inputs)}) == 1 else None


def _batches_like(evidence: Evidence) -> list[int]:
    """The training batches whose inputs are as the loader's, where those of all batches are not.

    Some are if several domains come in turn in training, and the loader is of one of them.
    """
    inputs = _both_inputs(evidence)
    if inputs is None or not evidence.is_clear_effect:
        return []
    ours, training = map(_channel_moments, inputs)
    if standardized_distance(ours, training, 1e-12) <= _limit(inputs):
        return []
    return [
        index
        for index, x in enumerate(inputs[1])
        if standardized_distance(ours, _channel_moments([x]), 1e-12) <= _limit([[x]])
    ]


def _limit(inputs: Sequence[Sequence[Tensor]]) -> float:
    """The distance above which inputs differ by more than augmentation and their number."""
    fewest = min(sum(len(x) for x in batches) for batches in inputs)
    return max(OTHER_INPUTS, 4 / math.sqrt(fewest))


def _channel_moments(inputs: Sequence[Tensor]) -> Moments:
    """The moments of inputs [N, C, …] of several batches, by channel."""
    values = torch.cat([x.double().transpose(0, 1).flatten(1).cpu() for x in inputs], 1)
    return Moments(values.mean(1), values.var(1, correction=1))
