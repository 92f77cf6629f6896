"""Findings about modes: what eval() does not reach, noise that stays on, batch dependence."""

from __future__ import annotations

from collections.abc import Iterator
from fnmatch import fnmatch

from vshift.auditing.case import Case
from vshift.auditing.findings import Draft, listed
from vshift.auditing.noise import Source
from vshift.auditing.repairs import Repair
from vshift.auditing.scores import in_words, word_of_change

FUNCTIONAL = {
    "dropout",
    "dropout1d",
    "dropout2d",
    "dropout3d",
    "alpha_dropout",
    "feature_alpha_dropout",
    "feature_dropout",
    "scaled_dot_product_attention",
    "multi_head_attention_forward",
}


def bn_wrong_mode(case: Case) -> Iterator[Draft]:
    """Registered batch norms in training mode after eval()."""
    layers = [n for n in case.evaluated.calls if n in case.awake]
    if layers:
        yield Draft(
            "bn_wrong_mode",
            layers[0],
            f"After model.eval() {_many(layers, 'batch norm')} still in training mode "
            f"({listed(layers)}): every forward normalises by its own batch and moves the buffers.",
            layers,
            {"batch_mates_change": case.tests.mates_change},
            Repair("putting them into eval mode", quiet=layers),
        )


def bn_out_of_reach(case: Case) -> Iterator[Draft]:
    """Batch norms that run, are no children of the model, and are in training mode."""
    names = case.subject.names
    layers = [
        n
        for n in case.evaluated.calls
        if n in names.hidden and n not in names.built and case.subject.norms[n].training
    ]
    built = [n for n in case.evaluated.calls if n in names.built]
    if layers or built:
        found = [*layers, *built]
        yield Draft(
            "bn_out_of_reach",
            found[0],
            f"{_many(found, 'batch norm')} not among the model's modules ({listed(found)}), so "
            "eval() does not reach them and no checkpoint holds them.",
            found,
            {"made_in_forward": bool(built)},
            Repair("putting them into eval mode", quiet=layers, hidden=bool(built)),
        )


def noise_in_eval(case: Case) -> Iterator[Draft]:
    """Noise that runs in eval mode: by a wrong mode, out of reach, or live in the forward."""
    names = case.subject.names
    sources = [s for s in case.evaluated.sources if not _allowed(s, case)]
    wrong = [s for s in sources if s.layer in case.awake and s.layer]
    hidden = [s for s in sources if s.layer in names.hidden]
    live = [s for s in sources if s not in wrong and s not in hidden]
    if wrong:
        yield _noise_draft(
            case,
            "noise_wrong_mode",
            wrong,
            "still in training mode after model.eval()",
            Repair("putting it into eval mode", quiet=[s.layer for s in wrong]),
        )
    if hidden:
        yield _noise_draft(
            case,
            "noise_out_of_reach",
            hidden,
            "not among the model's modules, so eval() does not reach it",
            Repair("switching it off", hidden=True, silence=True),
        )
    if live:
        can = all(s.function in FUNCTIONAL for s in live)
        repair = Repair("switching it off", silence=True) if can else None
        yield _noise_draft(case, "noise_live", live, "random in eval mode", repair)
    elif not case.evaluated.sources and case.tests.repeat_at is not None:
        yield _unseen_noise(case)


def _noise_draft(
    case: Case, code: str, sources: list[Source], what: str, repair: Repair | None
) -> Draft:
    change = case.tests.repeat_change
    return Draft(
        code,
        sources[0].layer,
        f"{listed([s.placed for s in sources])}: {what}. Two passes over the same batch differ by "
        f"{_of_output(change)}.{_reaching(case, sources)}",
        [s.layer for s in sources],
        {
            "functions": [s.function for s in sources],
            "places": [s.place for s in sources],
            "repeat_change": change,
        },
        repair,
        severity=word_of_change(change),
    )


def _of_output(change: float) -> str:
    return f"{in_words(change)} of the output" if change < 10 else in_words(change)


def _reaching(case: Case, sources: list[Source]) -> str:
    """That noise which no mode switches off hides the shift of variance that it may cause."""
    reached = [n for n in case.judged if any(s in sources for s in case.noise_of(n))]
    if not reached:
        return ""
    return (
        f" It reaches {listed(reached)} in both modes alike: whether it shifts the variance there "
        "can only be seen once it follows the mode; audit again then."
    )


def _unseen_noise(case: Case) -> Draft:
    """Outputs differ, and no random operation of PyTorch was seen."""
    layer, change = case.tests.repeat_at, case.tests.repeat_change
    return Draft(
        "noise_live",
        layer,
        f"Two passes over the same batch in eval mode differ by {_of_output(change)}, "
        f"first at {layer or 'the model'}, though no random operation of PyTorch ran: the "
        "randomness is Python's or NumPy's, or state kept between calls.",
        [layer or ""],
        {"functions": [], "repeat_change": change},
        severity=word_of_change(change),
    )


def _allowed(source: Source, case: Case) -> bool:
    return any(
        fnmatch(source.layer, pattern) or source.layer.startswith(f"{pattern}.")
        for pattern in case.allowed
    )


def batch_dependent(case: Case) -> Iterator[Draft]:
    """The batch-mates test failed, and no batch norm in the wrong mode explains it."""
    where = case.tests.mates_at
    norms = case.subject.norms
    without = [n for n in case.evaluated.calls if n in norms and norms[n].running_var is None]
    own = [n for n in case.evaluated.calls if getattr(norms.get(n), "evaluate", "") == "batch"]
    layers = list(dict.fromkeys([*without, *own]))
    if where is None or (not layers and _explained(where, case)):
        return
    culprit = layers[0] if layers else where
    stats = case.probes.quiet.stats
    repair = Repair(
        "giving them the statistics of all batches",
        statistics={n: stats[n].average() for n in layers if n in stats},
    )
    yield Draft(
        "batch_dependent",
        culprit,
        f"The same samples with other batch mates give outputs that differ by "
        f"{in_words(case.tests.mates_change)}, first at {culprit or 'the model'}"
        + (": it keeps no running statistics." if layers else "."),
        layers or [culprit],
        {"batch_mates_change": case.tests.mates_change},
        repair if layers else None,
        severity=word_of_change(case.tests.mates_change),
    )


def _explained(where: str, case: Case) -> bool:
    hidden = {n for n in case.subject.names.hidden if n in case.subject.norms}
    return where in case.awake or where in hidden


def _many(layers: list[str], what: str) -> str:
    return f"{len(layers)} {what}{'s are' if len(layers) > 1 else ' is'}"
