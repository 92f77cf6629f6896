"""`vshift.audit`: why a model is fine in train() and bad in eval()."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from vshift.auditing import (
    causes_batches,
    causes_buffers,
    causes_dummies,
    causes_mixes,
    causes_modes,
    causes_other,
    causes_own,
)
from vshift.auditing.case import Case
from vshift.auditing.findings import Draft, Finding, by_harm, settled
from vshift.auditing.guard import (
    check_usable,
    random_state_kept,
    run_eagerly,
    unwrapped,
)
from vshift.auditing.measuring import measured
from vshift.auditing.probes import make_subject
from vshift.auditing.repairs import Repair, try_repairs
from vshift.auditing.result import Audit, Noise, layer_rows, unknowns
from vshift.auditing.samples import AuditError, Unpack, collect, unpack
from vshift.auditing.scores import Loss, Scores, gain
from vshift.shift.stats import Moments

# The specific causes before the general ones; their repairs are tried in this order.
CAUSES: tuple[Callable[[Case], Iterator[Draft]], ...] = (
    causes_buffers.nonfinite,
    causes_modes.bn_wrong_mode,
    causes_modes.bn_out_of_reach,
    causes_modes.noise_in_eval,
    causes_modes.batch_dependent,
    causes_other.input_differs,
    causes_other.drift,
    causes_batches.several_distributions,
    causes_batches.batches_not_random,
    causes_buffers.never_updated,
    causes_batches.momentum_high,
    causes_batches.tiny_batches,
    causes_mixes.initial_bias,
    causes_dummies.polluted,
    causes_buffers.stale,
    causes_other.variance_below_eps,
    causes_own.instance_norm,
    causes_own.spectral_norm,
    causes_own.noise_scale,
    causes_own.output_nonfinite,
    causes_other.variance_shift,
    causes_buffers.slightly_stale,
)


def audit(
    model: nn.Module,
    loader: Iterable[Any],
    *,
    train_loader: Iterable[Any] | None = None,
    reference: nn.Module | Mapping[str, Tensor] | None = None,
    loss: Loss | None = None,
    unpack: Unpack = unpack,
    allow_noise: Sequence[str] = (),
    batches: int | None = 32,
    seed: int = 0,
) -> Audit:
    """Find out why a model behaves differently in train() and in eval(), and what repairs it.

    Parameters, buffers, modes, hooks and random states are afterwards bit for bit as before, errors
    included. Costs about three forward passes over the samples, with a train_loader three more over
    the loader's, and one for each finding. The parameters are copied once, and the samples of
    `batches` batches are kept in memory.

    Args:
        model: any module; compiled and DDP-wrapped ones are looked into.
        loader: batches [N, …], (inputs, labels) or mappings; two at least, of the size used in
            training. Labels [N] of whole numbers with outputs [N, classes] give loss (mean
            cross-entropy, nats) and accuracy (percent); without labels severity is by the output.
        train_loader: training inputs; statistics are then taken from these, and scores of every
            mode from `loader`, which tells inputs that differ from statistics that are wrong.
        reference: an earlier state of the same network, as a module or a state dict.
        loss: (output, labels) → a number or [N], instead of cross-entropy.
        unpack: from one batch to (inputs, labels or None); inputs that are a mapping are given to
            the model as keyword arguments, a tuple or list as positional ones.
        allow_noise: names of modules, or patterns, whose noise in eval mode is wanted.
        batches: use the first so many of each loader; None is all.
        seed: of the noise and of the order of the samples.

    Returns:
        Findings by harm, one row for each BN layer, the noise found, and what cannot be known.

    Raises:
        AuditError: fewer than two batches, no input or output tensor, a TorchScript module, or one
            without values.
        Exception: whatever the model or a loader raises in eval mode.

    Source: Li, Chen, Hu and Yang, CVPR 2019 (variance shift); Wu & Johnson 2021 (arXiv 2105.07576,
    re-estimated statistics).
    """
    model = unwrapped(model)
    check_usable(model)
    loaders = [loader] if train_loader is None else [loader, train_loader]
    with random_state_kept(loaders), torch.no_grad(), run_eagerly(model):
        device = next((t.device for t in [*model.parameters(), *model.buffers()]), None)
        device = device or torch.device("cpu")
        samples = collect(loader, device, batches, unpack, seed)
        probed = samples
        if train_loader is not None:
            probed = collect(train_loader, device, batches, unpack, seed, "train_loader")
        subject = make_subject(model, seed, loss)
        try:
            case = measured(subject, samples, probed, reference, tuple(allow_noise))
            return _concluded(case)
        finally:
            subject.guard.restore()


def _concluded(case: Case) -> Audit:
    drafts = [draft for cause in CAUSES for draft in cause(case)]
    findings: list[Finding] = []
    chain: list[Repair] = []
    scores = case.scores
    fixed: dict[str, Moments] = {}
    buffers: dict[str, Tensor] = {}
    for draft in drafts:
        measured = None
        if draft.repair is not None:
            after = try_repairs(case.subject, case.samples, [*chain, draft.repair]).scores
            measured = gain(scores, after, draft.repair.words)
            if draft.minor and measured.loss_before is None and _undoes(draft.repair, fixed):
                continue
            if measured.severity != "info":
                chain.append(draft.repair)
                scores = after
                fixed.update(draft.repair.statistics)
                buffers.update(draft.repair.buffers)
        if draft.minor and (measured is None or measured.severity == "info"):
            case.subject.notes += [draft.minor] if isinstance(draft.minor, str) else []
            continue
        findings.append(settled(draft, measured))
    return Audit(
        findings=by_harm(findings),
        layers=layer_rows(case, findings),
        noise=Noise(case.trained.sources, case.evaluated.sources, case.trained.at_output),
        tests=case.tests,
        scores={name: found.to_dict() for name, found in _with_repaired(case, scores)},
        notes=[*case.subject.notes, *unknowns(case, findings)],
        fixed=fixed,
        buffers=buffers,
    )


def _undoes(repair: Repair, fixed: Mapping[str, Moments]) -> bool:
    """Whether an earlier repair has set all these layers: without labels, an output that moves
    back again is no gain."""
    return bool(repair.statistics) and repair.statistics.keys() <= fixed.keys()


def _with_repaired(case: Case, repaired: Scores) -> Iterator[tuple[str, Scores]]:
    """The scores by name, those of the repaired model behind eval mode's."""
    for name, found in case.all_scores.items():
        yield name, found
        if name == "eval mode":
            yield "eval mode, repaired", repaired


__all__ = ["AuditError", "audit"]
