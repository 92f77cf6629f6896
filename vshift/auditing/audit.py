"""`vshift.audit`: why a model is fine in train() and bad in eval()."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

from vshift._version import __version__
from vshift.auditing.evidence import Evidence
from vshift.auditing.findings import CHECKS, Finding
from vshift.auditing.findings.base import list_layers
from vshift.auditing.guard import (
    MOST_OBJECTS,
    SavedState,
    check_usable,
    copy_of,
    preserving_random_state,
    run_eagerly,
    unwrap,
)
from vshift.auditing.measurements import REPAIRED, SCORE_NAMES
from vshift.auditing.passes import AuditedModel
from vshift.auditing.repairs import try_repairs
from vshift.auditing.report import Audit, NoiseReport, layer_rows, notes_on_unknowns
from vshift.auditing.samples import AuditError, Unpack, collect, unpack
from vshift.auditing.severity import SEVERITIES, Gain, Loss
from vshift.shift.stats import Moments


def audit(
    model: nn.Module,
    loader: Iterable[Any],
    *,
    train_loader: Iterable[Any] | None = None,
    reference: nn.Module | Mapping[str, Tensor] | None = None,
    loss: Loss | None = None,
    unpack: Unpack = unpack,
    allow_noise: Sequence[str] = (),
    samples: int | None = 1024,
    batches: int | None = None,
    seed: int = 0,
) -> Audit:
    """Find out why a model behaves differently in train() and in eval(), and what repairs it.

    A copy of the model is audited where it can be copied and memory allows it, otherwise the model
    itself. Its parameters, buffers, modes, hooks and attributes, and all random states, are
    restored bit for bit, also after an error; what could not be is said in the notes. Costs about
    three forward passes over the samples, with a train_loader three more over the loader's, and one
    per finding. The samples used are kept in memory.

    Args:
        model: any module; compiled and DDP-wrapped ones are unwrapped.
        loader: at least two batches [N, …], (inputs, labels) or mappings, of the size used in
            training. Labels [N] of whole numbers with outputs [N, classes] give loss (mean
            cross-entropy, nats) and accuracy (percent); without labels severity is by the output.
        train_loader: training inputs; statistics are then judged on these, and every mode scored on
            `loader`, which tells inputs that differ from statistics that are wrong.
        reference: an earlier state of the same network, as a module or a state dict.
        loss: (output, labels) → a number or [N], instead of cross-entropy.
        unpack: from one batch to (inputs, labels or None); inputs that are a mapping are given to
            the model as keyword arguments, a tuple or list as positional ones.
        allow_noise: names of modules, or patterns, whose noise in eval mode is wanted.
        samples: number of samples used of each loader, in whole batches, and at least 8 of them;
            None is all.
        batches: number of batches used instead.
        seed: of the noise and of the order of the samples.

    Returns:
        Findings by harm, one row per BN layer, the noise found, and what cannot be known.

    Raises:
        AuditError: fewer than two batches, no input or output tensor, a TorchScript module, or one
            without values.
        Exception: whatever the model or a loader raises in eval mode.

    Source: Li, Chen, Hu and Yang, CVPR 2019 (variance shift); Wu & Johnson 2021 (arXiv 2105.07576,
    re-estimated statistics).
    """
    if train_loader is not None and iter(loader) is train_loader:
        raise AuditError(
            "loader and train_loader are one iterator, which gives its batches once; give two "
            "loaders, or a list of the batches"
        )
    model = unwrap(model)
    check_usable(model)
    loaders = [loader] if train_loader is None else [loader, train_loader]
    with preserving_random_state(loaders), torch.no_grad(), run_eagerly(model):
        device = next((t.device for t in [*model.parameters(), *model.buffers()]), None)
        device = device or torch.device("cpu")
        given_how = (device, batches, unpack, seed)
        scored = judged = collect(loader, *given_how, enough=samples)
        if train_loader is not None:
            judged = collect(train_loader, *given_how, "train_loader", samples)
        given = SavedState(model)
        copied, why_not = copy_of(model)
        try:
            audited = AuditedModel(copied, seed, loss)
            try:
                evidence = Evidence(audited, scored, judged, reference, allow_noise)
                result = _conclude(evidence)
            finally:
                audited.saved.restore()
        finally:
            given.restore()
    is_cuda = device.type == "cuda"
    result.setup = {
        "samples": scored.count,
        "batch_size": scored.batch_size,
        "train_samples": None if judged is scored else judged.count,
        "seed": seed,
        "device": torch.cuda.get_device_name(device) if is_cuda else str(device),
        "torch": torch.__version__,
        "vshift": __version__,
    }
    if why_not:
        result.notes.append(
            f"the model could not be copied ({why_not}): it was audited itself and restored"
        )
    if given.incomplete:
        result.notes.append(
            f"the model holds more than {MOST_OBJECTS:,} objects; the rest was not saved"
        )
    if changed := given.changed_modules(model):
        result.notes.append(
            f"{list_layers(changed)} could not be restored: rebuild the model before using it"
        )
    return result


def _conclude(evidence: Evidence) -> Audit:
    """Look for every finding, and try its repair on top of those that helped so far."""
    model = evidence.model
    # All candidates before the first repair: checks see the model as it was given.
    early = [found for check in CHECKS if not check.is_late for found in check.find(evidence)]
    late = (found for check in CHECKS if check.is_late for found in check.find(evidence))
    findings: list[Finding] = []
    fixed: dict[str, Moments] = {}
    for candidate in chain(early, late):
        gain, repair = None, candidate.repair
        if repair is not None:
            repaired = try_repairs(model, evidence.samples, [*evidence.repairs, repair])
            gain = Gain.between(evidence.repaired_scores, repaired, repair.words)
            # Without labels an output that moves back again would count as a gain.
            is_undoing = repair.statistics and repair.statistics.keys() <= fixed.keys()
            if candidate.least_gain != "info" and gain.fall is None and is_undoing:
                continue
        gained = SEVERITIES.index("info" if gain is None else gain.severity)
        harms = gain is not None and gain.harms
        too_little = gained < SEVERITIES.index(candidate.least_gain)
        if too_little or (candidate.drop_if_harmful and harms):
            model.notes += filter(None, [candidate.note_if_dropped])
            continue
        if repair is not None and gained:
            evidence.repairs.append(repair)
            fixed.update(repair.statistics)
            evidence.repaired_scores = repaired
        findings.append(candidate.to_finding(gain))
        explains = candidate.explains_gap
        if explains is None:
            explains = gain is None and findings[-1].severity in ("medium", "high")
        evidence.is_accounted |= explains
    findings.sort(key=lambda finding: finding.harm, reverse=True)
    all_scores = {}
    for name, score in evidence.scores.items():
        all_scores[name] = score.to_dict()
        if name == SCORE_NAMES["eval"] and evidence.repairs:
            all_scores[REPAIRED] = evidence.repaired_scores.to_dict()
    in_training, in_eval = evidence.train_trace, evidence.eval_trace
    return Audit(
        findings=findings,
        layers=layer_rows(evidence, findings),
        noise=NoiseReport(in_training.sources, in_eval.sources, in_training.at_output),
        tests=evidence.tests,
        scores=all_scores,
        notes=[*model.notes, *notes_on_unknowns(evidence, findings)],
        gap=evidence.gap,
        fixed=fixed,
        buffers={k: value for repair in evidence.repairs for k, value in repair.buffers.items()},
    )


__all__ = ["AuditError", "audit"]
