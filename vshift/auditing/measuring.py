"""All that is measured of a model before anything is concluded."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn
from torch.fx import GraphModule

from vshift.auditing.case import Case, Tests
from vshift.auditing.guard import seed_everything
from vshift.auditing.moments import kept_moments
from vshift.auditing.noise import Traced, digests, first_difference, trace
from vshift.auditing.order import order_effect
from vshift.auditing.probes import CANNOT_RUN, Mode, Pass, Probes, Subject, run_pass, run_probes
from vshift.auditing.samples import Batch, Samples
from vshift.auditing.scores import Scores, output_change
from vshift.auditing.weights import fitted

TRACED = 8  # samples that are enough to see where noise goes
QUIET = "batch statistics, noise off"
MODES: dict[str, Mode] = {
    "train mode": "as_trained",
    QUIET: "noise_off",
    "eval mode": "evaluated",
}


def _state(
    reference: nn.Module | Mapping[str, Tensor] | None, model: nn.Module
) -> Mapping[str, Tensor] | None:
    """The reference's tensors under the model's names."""
    if reference is None:
        return None
    state = reference.state_dict() if isinstance(reference, nn.Module) else reference
    return fitted(state, model.state_dict())


def measured(
    subject: Subject,
    samples: Samples,
    probed: Samples,
    reference: nn.Module | Mapping[str, Tensor] | None,
    allowed: tuple[str, ...],
) -> Case:
    """Run every probe and test, and put together what causes are told from.

    Args:
        samples: what modes are scored on; `probed`, what statistics are judged on: the same object,
            or the training loader's.
        reference: an earlier state of the same network, if there is one.
        allowed: names and patterns of modules whose noise in eval mode is meant.
    """
    few, few_trained = (
        next(iter(part.probed())).head(_traced(subject)) for part in (samples, probed)
    )
    _freeze_on_purpose(subject)
    with subject.mode("evaluated"):
        awake = frozenset(n for n, m in subject.model.named_modules() if m.training)
        seed_everything(subject.seed)
        evaluated = trace(subject.model, few, subject.watch)
    trained = trace_training(subject, few_trained)
    tests = _tests(subject, samples)
    probes = run_probes(subject, probed)
    separate = probed is not samples
    case = Case(
        subject,
        samples,
        probed,
        probes,
        trained,
        evaluated,
        _scores(subject, samples, probes, separate),
        tests,
        separate,
        allowed=allowed,
        awake=awake,
        reference=_state(reference, subject.model),
    )
    case.order_effect, found = order_effect(probed, subject.seed)
    if found:
        case.as_given = _as_given(subject, probed)
    return case


def _traced(subject: Subject) -> int | None:
    """Samples that are traced; a program exported for one batch size takes whole batches only."""
    return None if isinstance(subject.model, GraphModule) else TRACED


def _freeze_on_purpose(subject: Subject) -> None:
    """Batch norms at identity whose parameters do not train, in a model that does, are meant so."""
    if not any(p.requires_grad for p in subject.model.parameters()):
        return
    for name, layer in subject.norms.items():
        kept, own = kept_moments(layer), list(layer.parameters(recurse=False))
        if kept is None or not own or any(p.requires_grad for p in own):
            continue
        if bool((kept.mean == 0).all() and (kept.variance == 1).all()):
            subject.frozen |= {name}


def trace_training(subject: Subject, few: Batch) -> Traced:
    """Noise in training mode; where the model's own train() cannot run, in leaf modules."""
    seed_everything(subject.seed)
    try:
        with subject.mode("as_trained"):
            return trace(subject.model, few, subject.watch)
    except CANNOT_RUN:
        if subject.leaves_only:
            raise
    subject.switch_leaves()
    return trace_training(subject, few)


def _tests(subject: Subject, samples: Samples) -> Tests:
    """The same batch twice; and the same samples with other batch mates."""
    batch = next(iter(samples.probed()))
    with subject.mode("evaluated"):
        seed_everything(subject.seed)
        one, first = digests(subject.model, batch, subject.watch, batch.count)
        two, second = digests(subject.model, batch, subject.watch, batch.count)
    tests = Tests(first_difference(one, two), output_change(first, second))
    mates = samples.other_mates()
    if mates is not None:
        a, b, rows = mates
        found = []
        for part in (a, b):
            with subject.mode("evaluated"):
                seed_everything(subject.seed)
                found.append(digests(subject.model, part, subject.watch, rows))
        tests.mates_at = first_difference(found[0][0], found[1][0])
        tests.mates_change = output_change(found[0][1], found[1][1])
    return tests


def _scores(
    subject: Subject, samples: Samples, probes: Probes, separate: bool
) -> dict[str, Scores]:
    """Of every mode on the same samples, those of the loader; then what probes show beside that."""
    given = dict(zip(MODES, (probes.trained, probes.quiet, probes.plain), strict=True))
    if not separate:
        return {name: found.scores for name, found in given.items()}
    scores = {name: _scored(subject, samples, name) for name in MODES}
    beside = {f"{name}, training data": given[name].scores for name in MODES if name != QUIET}
    return {name: found for name, found in scores.items() if found is not None} | beside


def _scored(subject: Subject, samples: Samples, name: str) -> Scores | None:
    """None and a note where a mode does not run on these samples though it does on others."""
    with subject.mode(MODES[name]):
        try:
            return run_pass(subject, samples.probed, measure=False).scores
        except CANNOT_RUN as error:
            if MODES[name] == "evaluated":
                raise
            reason = (str(error).splitlines() or [""])[0]
            subject.notes.append(f"{name} could not be scored on the loader's samples: {reason}")
    return None


def _as_given(subject: Subject, samples: Samples) -> Pass:
    with subject.mode("as_trained"):
        return run_pass(subject, lambda: iter(samples.given))
