"""`vshift audit`: from words on the command line to a report and an exit code."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from contextlib import redirect_stdout
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from torch import Tensor

from vshift.auditing.audit import audit
from vshift.auditing.findings import listed
from vshift.auditing.guard import check_usable, seed_everything, unwrapped
from vshift.auditing.models import is_library, load_model
from vshift.auditing.result import Audit
from vshift.auditing.samples import AuditError
from vshift.auditing.scores import SEVERITIES
from vshift.auditing.sources import NORMALISATIONS, Reading, load_source
from vshift.auditing.text import as_markdown, as_text
from vshift.auditing.weights import prefix_of, read_state
from vshift.errors import VShiftError
from vshift.text import pluralize

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True)
class Request:
    """What the command line asks for."""

    model: str
    data: str
    train_data: str | None = None
    weights: Path | None = None
    reference: Path | None = None
    classes: int | None = None
    batches: int = 16
    reading: Reading = field(default_factory=Reading)
    allow_noise: tuple[str, ...] = ()
    device: str = "cpu"


def run_audit(request: Request) -> tuple[Audit, nn.Module]:
    """Load what is named and audit it; what the user's code prints goes to stderr.

    Raises:
        AuditError: something named is not there or does not fit.
    """
    with redirect_stdout(sys.stderr):
        return _run_audit(request)


def _run_audit(request: Request) -> tuple[Audit, nn.Module]:
    if request.reading.normalise not in NORMALISATIONS:
        raise AuditError(
            f"--normalise is one of {', '.join(NORMALISATIONS)}, not {request.reading.normalise!r}"
        )
    if request.classes is not None and not is_library(request.model):
        raise AuditError(
            "--classes is for torchvision:NAME and timm:NAME; a model of your own is built with "
            f"its classes already, leave it out for {request.model}"
        )
    run = Path(request.model) if Path(request.model).is_dir() else None
    loader = load_source(request.data, request.reading, run)
    train = None
    if request.train_data is not None:
        train = load_source(request.train_data, request.reading, run, "--train-data")
    seed_everything(request.reading.seed)
    model = load_model(request.model, request.weights, request.classes)
    check_usable(unwrapped(model))
    model = model.to(request.device)
    reference = None if request.reference is None else read_state(request.reference)
    try:
        found = audit(
            model,
            loader,
            train_loader=train,
            reference=reference,
            allow_noise=request.allow_noise,
            batches=request.batches,
            seed=request.reading.seed,
        )
    except VShiftError:
        raise
    except Exception as error:  # whatever the model or the loader raises
        reason = (str(error).splitlines() or [""])[0]
        raise AuditError(
            f"{request.model} does not run on {request.data}: {type(error).__name__}: {reason}"
            f"{_advice(reason)}"
        ) from error
    return (found if request.weights or not is_library(request.model) else _untrained(found)), model


def _untrained(found: Audit) -> Audit:
    """Says with never_updated that nobody gave any weights."""
    told = "No --weights were given: these are the values that the model is built with."
    findings = [
        replace(f, message=f"{told} {f.message}") if f.code == "never_updated" else f
        for f in found.findings
    ]
    return replace(found, findings=findings)


# What PyTorch's words mean for somebody who has a model and a loader.
_ADVICE = (
    ("unexpected keyword|missing .* required", "a batch that is a mapping gives its entries by "
     "name, without `label`, `labels`, `target` and `targets`"),
    ("should be the same|same dtype|expected scalar type|dtype", "inputs and parameters need one "
     "type of numbers: convert the one or the other in your file"),
    ("Guard failed|dynamic_shapes", "export the program with `dynamic_shapes`, or give batches of "
     "the size it was exported with"),
    ("identify image|truncated", "remove or replace that image"),
    ("shape|size|channels|multiplied|dimension", "--size and --classes change the images' size and "
     "the classifier"),
)  # fmt: skip


def _advice(reason: str) -> str:
    found = [advice for words, advice in _ADVICE if re.search(words, reason)]
    return f"; {found[0]}" if found else ""


def rendered(found: Audit, form: str) -> str:
    """The audit as `table`, `md` or `json`."""
    if form == "json":
        return found.to_json()
    return as_markdown(found) if form == "md" else as_text(found)


def write_fixed(found: Audit, model: nn.Module, path: Path, weights: Path | None = None) -> str:
    """The model's weights with repaired statistics, as .safetensors; what was done, in a sentence.

    Args:
        weights: the file they came from, whose prefix before all names is kept.

    Raises:
        AuditError: the file cannot be written.
    """
    from safetensors.torch import save

    before, state = model.state_dict(), found.fixed_state(model)
    changed = [name for name, tensor in state.items() if not _equal(tensor, before[name])]
    if not changed:
        return f"{path} was not written: no change of buffers that it could hold gave anything back"
    layers = dict.fromkeys(name.rpartition(".")[0] for name in changed)
    prefix = "" if weights is None else prefix_of(read_state(weights), state)
    named = {prefix + name: tensor.contiguous() for name, tensor in state.items()}
    # Not save_file, which leaves a file that nobody else may read.
    _write(path, "--fix", lambda: path.write_bytes(save(named)))
    count = pluralize(len(layers), "layer")
    return f"wrote {path}: buffers of {count} changed ({listed(list(layers))})"


def _equal(a: Tensor, b: Tensor) -> bool:
    return bool(((a == b) | (a.isnan() & b.isnan())).all())


def _write(path: Path, option: str, write: Callable[[], object]) -> None:
    """Into a folder that is made if it is missing."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write()
    except OSError as error:
        raise AuditError(
            f"{option}: {path} cannot be written: {error.strerror or error}"
        ) from error


def check_severity(word: str | None) -> None:
    """Refuse a word for --fail-on that is no severity."""
    if word is not None and word not in SEVERITIES:
        raise AuditError(f"--fail-on is one of {', '.join(SEVERITIES)}, not {word!r}")


def write_page(found: Audit, title: str, path: Path) -> None:
    """The report as one HTML file."""
    from vshift.auditing.page import as_page

    page = as_page(found, title)
    _write(path, "--report", lambda: path.write_text(page, encoding="utf-8"))
