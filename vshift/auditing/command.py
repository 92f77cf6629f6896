"""`vshift audit`: from words on the command line to a report and an exit code."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from vshift.auditing.audit import audit
from vshift.auditing.guard import seed_everything
from vshift.auditing.models import load_model, read_state
from vshift.auditing.result import Audit
from vshift.auditing.samples import AuditError
from vshift.auditing.scores import SEVERITIES
from vshift.auditing.sources import NORMALISATIONS, Reading, load_source
from vshift.auditing.text import as_markdown, as_text
from vshift.errors import VShiftError

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
    """Load what is named and audit it.

    Raises:
        AuditError: something named is not there or does not fit.
    """
    if request.reading.normalise not in NORMALISATIONS:
        raise AuditError(
            f"--normalise is one of {', '.join(NORMALISATIONS)}, not {request.reading.normalise!r}"
        )
    run = Path(request.model) if Path(request.model).is_dir() else None
    loader = load_source(request.data, request.reading, run)
    train = None
    if request.train_data is not None:
        train = load_source(request.train_data, request.reading, run)
    seed_everything(request.reading.seed)
    model = load_model(request.model, request.weights, request.classes).to(request.device)
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
            f"{request.model} does not run on {request.data}: {type(error).__name__}: {reason}; "
            "--size and --classes change the images' size and the classifier"
        ) from error
    return found, model


def rendered(found: Audit, form: str) -> str:
    """The audit as `table`, `md` or `json`."""
    if form == "json":
        return found.to_json()
    return as_markdown(found) if form == "md" else as_text(found)


def write_fixed(found: Audit, model: nn.Module, path: Path) -> str:
    """The model's weights with repaired statistics, as .safetensors; what was done, in a sentence.

    Raises:
        AuditError: nothing gave anything back, or the file cannot be written.
    """
    from safetensors.torch import save_file

    if not found.fixed:
        return f"{path} was not written: no change of running statistics gave anything back"
    state = {name: tensor.contiguous() for name, tensor in found.fixed_state(model).items()}
    try:
        save_file(state, path)
    except OSError as error:
        raise AuditError(f"--fix: {path} cannot be written: {error.strerror or error}") from error
    return f"wrote {path}: running statistics of {len(found.fixed)} batch norms changed"


def check_severity(word: str | None) -> None:
    """Refuse a word for --fail-on that is no severity."""
    if word is not None and word not in SEVERITIES:
        raise AuditError(f"--fail-on is one of {', '.join(SEVERITIES)}, not {word!r}")


def write_page(found: Audit, title: str, path: Path) -> None:
    """The report as one HTML file."""
    from vshift.auditing.page import as_page

    try:
        path.write_text(as_page(found, title), encoding="utf-8")
    except OSError as error:
        raise AuditError(f"--report: {path} cannot be written: {error.strerror}") from error
