"""`vshift audit`: from options to an audit, and to the files that it writes."""

from __future__ import annotations

import re
import sys
from contextlib import redirect_stdout
from dataclasses import replace
from pathlib import Path

from torch import nn

from vshift.auditing.audit import audit
from vshift.auditing.findings.base import list_layers
from vshift.auditing.guard import check_usable, seed_everything, unwrap
from vshift.auditing.inputs import (
    NORMALISATIONS,
    ImageOptions,
    class_folders,
    is_library,
    load_model,
    load_source,
    read_state,
)
from vshift.auditing.names import find_prefix
from vshift.auditing.report import Audit
from vshift.auditing.samples import AuditError, UnknownBatch
from vshift.auditing.severity import SEVERITIES
from vshift.config.own_code import own_frames
from vshift.errors import VShiftError
from vshift.runs.files import write_named
from vshift.text import pluralize

# PyTorch's messages, and what to do about them with a model and a loader.
_ADVICE = (
    ("unexpected keyword|missing .* required", "a batch that is a mapping gives its entries by "
     "name, without `label`, `labels`, `target` and `targets`"),
    ("Guard failed|dynamic_shapes", "export the program with `dynamic_shapes`, or give batches of "
     "the size it was exported with"),
    ("identify image|truncated", "remove or replace that image"),
    ("shape|size|channels|multiplied|dimension", "--size and --classes change the images' size and "
     "the classifier of torchvision:NAME and timm:NAME"),
)  # fmt: skip


def run_audit(
    spec: str,
    data: str,
    *,
    train_data: str | None,
    weights: Path | None,
    reference: Path | None,
    classes: int | None,
    samples: int,
    batches: int | None,
    batch_size: int | None,
    images: ImageOptions,
    allow_noise: list[str],
    fail_on: str | None,
    device: str,
) -> tuple[Audit, nn.Module]:
    """Load what the command line names and audit it; what the user's code prints goes to stderr.

    Raises:
        AuditError: something named is missing, unknown or does not fit.
    """
    if fail_on is not None and fail_on not in SEVERITIES:
        raise AuditError(f"--fail-on is one of {', '.join(SEVERITIES)}, not {fail_on!r}")
    if images.normalise not in NORMALISATIONS:
        raise AuditError(
            f"--normalise is one of {', '.join(NORMALISATIONS)}, not {images.normalise!r}"
        )
    if classes is not None and not is_library(spec):
        raise AuditError(
            "--classes is for torchvision:NAME and timm:NAME; a model of your own is built "
            f"with its classes already, leave it out for {spec}"
        )
    run = Path(spec) if Path(spec).is_dir() else None
    if run is not None and batch_size is not None:
        raise AuditError(
            "--batch-size: a run's own images come in the batch size that it was trained with; "
            "leave it out"
        )
    images = images if batch_size is None else replace(images, batch_size=batch_size)
    with redirect_stdout(sys.stderr):
        numbering = class_folders(train_data) if class_folders(data) else None
        loader = load_source(data, images, run, classes=numbering)
        train_loader = None
        if train_data is not None:
            train_loader = load_source(train_data, images, run, "--train-data")
        seed_everything(images.seed)
        model = load_model(spec, weights, classes)
        check_usable(unwrap(model))
        model = model.to(device)
        try:
            result = audit(
                model,
                loader,
                train_loader=train_loader,
                reference=None if reference is None else read_state(reference),
                allow_noise=allow_noise,
                samples=samples,
                batches=batches,
                seed=images.seed,
            )
        except UnknownBatch as error:
            raise AuditError(
                f"{error}; on the command line, --data FILE.py:FUNCTION can yield (inputs, labels)"
            ) from error
        except VShiftError:
            raise
        except Exception as error:  # whatever the model or the loader raises
            reason = (str(error).splitlines() or [""])[0]
            advice = [advice for words, advice in _ADVICE if re.search(words, reason)]
            advice = [a for a in advice if is_library(spec) or not a.startswith("--size")]
            sentence = f"{spec} does not run on {data}: {type(error).__name__}: "
            sentence += "; ".join([reason, *advice[:1]])
            raise AuditError("\n".join([sentence, *own_frames(error)])) from error
    if weights is None and is_library(spec):
        more = "No --weights were given: these are the values that the model is built with."
        findings = [
            replace(f, found=f"{f.found}\n{more}") if f.code == "never_updated" else f
            for f in result.findings
        ]
        result = replace(result, findings=findings)
    return result, model


def write_fixed(result: Audit, model: nn.Module, path: Path, weights: Path | None = None) -> str:
    """Write the model's weights with repaired buffers as .safetensors; what was done, in words.

    Args:
        weights: the file they came from, whose prefix before all names is kept.

    Raises:
        RunError: the file cannot be written.
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
    # Not save_file, whose file only the owner may read.
    write_named(path, "--fix", save(named))
    layers = list(dict.fromkeys(name.rpartition(".")[0] for name in changed))
    count = pluralize(len(layers), "layer")
    return f"wrote {path}: buffers of {count} changed ({list_layers(layers)})"
