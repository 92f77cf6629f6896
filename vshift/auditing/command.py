"""`vshift audit`: from options to an audit, and to the files that it writes."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from contextlib import redirect_stdout
from dataclasses import dataclass, field, replace
from pathlib import Path

from torch import nn

from vshift.auditing.audit import audit
from vshift.auditing.findings import Finding
from vshift.auditing.findings.base import list_layers
from vshift.auditing.guard import check_usable, seed_everything, unwrap
from vshift.auditing.inputs import (
    NORMALISATIONS,
    ImageOptions,
    find_prefix,
    is_library,
    load_model,
    load_source,
    read_state,
)
from vshift.auditing.report import Audit
from vshift.auditing.samples import AuditError
from vshift.auditing.severity import SEVERITIES
from vshift.errors import VShiftError
from vshift.text import pluralize


@dataclass(frozen=True)
class AuditOptions:
    """The command line's options, by name."""

    model: str
    data: str
    train_data: str | None = None
    weights: Path | None = None
    reference: Path | None = None
    classes: int | None = None
    batches: int = 16
    images: ImageOptions = field(default_factory=ImageOptions)
    allow_noise: tuple[str, ...] = ()
    fail_on: str | None = None
    device: str = "cpu"

    def check(self) -> None:
        """Refuse words that no option knows.

        Raises:
            AuditError: which, and what is allowed.
        """
        if self.fail_on is not None and self.fail_on not in SEVERITIES:
            raise AuditError(f"--fail-on is one of {', '.join(SEVERITIES)}, not {self.fail_on!r}")
        if self.images.normalise not in NORMALISATIONS:
            raise AuditError(
                f"--normalise is one of {', '.join(NORMALISATIONS)}, not {self.images.normalise!r}"
            )
        if self.classes is not None and not is_library(self.model):
            raise AuditError(
                "--classes is for torchvision:NAME and timm:NAME; a model of your own is built "
                f"with its classes already, leave it out for {self.model}"
            )


def run_audit(options: AuditOptions) -> tuple[Audit, nn.Module]:
    """Load what is named and audit it; what the user's code prints goes to stderr.

    Raises:
        AuditError: something named is missing or does not fit.
    """
    options.check()
    with redirect_stdout(sys.stderr):
        run = Path(options.model) if Path(options.model).is_dir() else None
        loader = load_source(options.data, options.images, run)
        train_loader = None
        if options.train_data is not None:
            train_loader = load_source(options.train_data, options.images, run, "--train-data")
        seed_everything(options.images.seed)
        model = load_model(options.model, options.weights, options.classes)
        check_usable(unwrap(model))
        model = model.to(options.device)
        reference = None if options.reference is None else read_state(options.reference)
        try:
            result = audit(
                model,
                loader,
                train_loader=train_loader,
                reference=reference,
                allow_noise=options.allow_noise,
                batches=options.batches,
                seed=options.images.seed,
            )
        except VShiftError:
            raise
        except Exception as error:  # whatever the model or the loader raises
            reason = (str(error).splitlines() or [""])[0]
            advice = [advice for words, advice in _ADVICE if re.search(words, reason)]
            raise AuditError(
                f"{options.model} does not run on {options.data}: {type(error).__name__}: "
                + "; ".join([reason, *advice[:1]])
            ) from error
    if options.weights is None and is_library(options.model):
        result = replace(result, findings=[_without_weights(f) for f in result.findings])
    return result, model


def _without_weights(finding: Finding) -> Finding:
    """Say with `never_updated` that no weights were given."""
    if finding.code != "never_updated":
        return finding
    prefix = "No --weights were given: these are the values that the model is built with."
    return replace(finding, message=f"{prefix} {finding.message}")


# What PyTorch's messages mean for somebody who has a model and a loader.
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


def render(result: Audit, form: str) -> str:
    """The audit as `table`, `md` or `json`."""
    forms = {"table": result.to_text, "md": result.to_markdown, "json": result.to_json}
    return forms[form]()


def write_page(result: Audit, title: str, path: Path) -> None:
    """Write the report as one HTML file."""
    page = result.to_html(title)
    _write(path, "--report", lambda: path.write_text(page, encoding="utf-8"))


def write_fixed(result: Audit, model: nn.Module, path: Path, weights: Path | None = None) -> str:
    """Write the model's weights with repaired buffers as .safetensors; what was done, in words.

    Args:
        weights: the file they came from, whose prefix before all names is kept.

    Raises:
        AuditError: the file cannot be written.
    """
    from safetensors.torch import save

    before, state = model.state_dict(), result.fixed_state(model)
    changed = [
        name
        for name, new in state.items()
        if not bool(((new == before[name]) | (new.isnan() & before[name].isnan())).all())
    ]
    if not changed:
        return f"{path} was not written: no change of buffers that it could hold gained anything"
    prefix = "" if weights is None else find_prefix(read_state(weights), state)
    named = {prefix + name: tensor.contiguous() for name, tensor in state.items()}
    # Not save_file, which leaves a file that nobody else may read.
    _write(path, "--fix", lambda: path.write_bytes(save(named)))
    layers = list(dict.fromkeys(name.rpartition(".")[0] for name in changed))
    count = pluralize(len(layers), "layer")
    return f"wrote {path}: buffers of {count} changed ({list_layers(layers)})"


def _write(path: Path, flag: str, write: Callable[[], object]) -> None:
    """Write into a folder that is made if it is missing."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write()
    except OSError as error:
        raise AuditError(f"{flag}: {path} cannot be written: {error.strerror or error}") from error
