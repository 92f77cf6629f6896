"""`vshift audit`."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Annotated, Literal

import typer

from vshift.cli.options import DEVICES, Device
from vshift.cli.streams import echo, tell, tell_to_open, waiting
from vshift.errors import VShiftError
from vshift.tables import width_of


def audit(
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODEL",
            help="torchvision:NAME, timm:NAME, FILE.py:FACTORY, FILE.pt2 or a run folder.",
        ),
    ],
    data: Annotated[
        str,
        typer.Option(
            "--data",
            metavar="SOURCE",
            help="An image folder, torchvision:NAME@FOLDER, random, FILE.py:LOADER; "
            "test or train for a run.",
        ),
    ],
    train_data: Annotated[
        str | None,
        typer.Option("--train-data", metavar="SOURCE", help="Training data, if it differs."),
    ] = None,
    weights: Annotated[
        Path | None,
        typer.Option(
            "--weights",
            metavar="FILE",
            help="A state dict: .safetensors, .pt or .pth; of a torchvision model also DEFAULT.",
        ),
    ] = None,
    reference: Annotated[
        Path | None,
        typer.Option("--reference", metavar="FILE", help="An earlier state dict to compare with."),
    ] = None,
    form: Annotated[
        Literal["table", "md", "json"],
        typer.Option("--format", metavar="table|md|json", help="Format of the findings."),
    ] = "table",
    report: Annotated[
        Path | None, typer.Option("--report", metavar="FILE.html", help="Also write a page.")
    ] = None,
    fix: Annotated[
        Path | None,
        typer.Option("--fix", metavar="OUT.safetensors", help="Write repaired weights."),
    ] = None,
    fail_on: Annotated[
        str | None,
        typer.Option(
            "--fail-on",
            metavar="SEVERITY",
            help="Exit code 3 from this severity on: info, low, medium, high.",
        ),
    ] = None,
    allow_noise: Annotated[
        list[str] | None,
        typer.Option(
            "--allow-noise",
            metavar="NAME",
            help="A module whose noise in eval is intended; repeatable.",
        ),
    ] = None,
    samples: Annotated[
        int,
        typer.Option(
            "--samples", metavar="N", help="Samples to use, in whole batches, at least 8 of them."
        ),
    ] = 512,
    batches: Annotated[
        int | None,
        typer.Option("--batches", metavar="N", help="Batches to use instead, at least 2."),
    ] = None,
    batch_size: Annotated[
        int | None,
        typer.Option(
            "--batch-size", metavar="N", min=1, help="Of images, as in training.", show_default="32"
        ),
    ] = None,
    size: Annotated[
        int, typer.Option("--size", metavar="N", min=1, help="Images' height and width.")
    ] = 224,
    normalise: Annotated[
        str,
        typer.Option(
            "--normalise", metavar="imagenet|half|none", help="Of images: imagenet, half or none."
        ),
    ] = "imagenet",
    classes: Annotated[
        int | None, typer.Option("--classes", metavar="N", min=1, help="Of a library's classifier.")
    ] = None,
    seed: Annotated[
        int, typer.Option("--seed", metavar="SEED", help="Of the noise and the images' order.")
    ] = 0,
    device: Annotated[
        Device, typer.Option("--device", metavar=DEVICES, help="Where to run.")
    ] = "auto",
) -> None:
    """Explain why a model is fine in train() and bad in eval(): which layer, and what helps."""
    from vshift.auditing import command
    from vshift.auditing.inputs import ImageOptions
    from vshift.runs.files import is_stdout, write_named
    from vshift.train.device import choose_device

    if fix is not None and fix.suffix != ".safetensors" and not is_stdout(fix):
        raise VShiftError(f"--fix: {fix}: the file's name must end in .safetensors")
    with waiting(f"auditing {model}"):
        result, loaded = command.run_audit(
            model,
            data,
            train_data=train_data,
            weights=weights,
            reference=reference,
            classes=classes,
            samples=samples,
            batches=batches,
            batch_size=batch_size,
            images=ImageOptions(size=size, normalise=normalise, seed=seed),
            allow_noise=allow_noise or [],
            fail_on=fail_on,
            device=str(choose_device(device)),
        )
    width = width_of(sys.stdout)
    text = partial(result.to_text, min(width or 100, 100), terminal=width is not None)
    forms: dict[str, Callable[[], str]] = {
        "table": text,
        "md": result.to_markdown,
        "json": result.to_json,
    }
    # Files first: whoever reads stdout may stop reading it.
    if report is not None:
        training = "" if train_data is None else f", training data: `{train_data}`"
        made = [f"Data: `{data}`{training}.", f"Made by `{shlex.join(['vshift', *sys.argv[1:]])}`."]
        write_named(report, "--report", result.to_html(model, made).encode())
    if fix is not None:
        tell(command.write_fixed(result, loaded, fix, weights))
    echo(forms[form]())
    if report is not None and form == "table" and not is_stdout(report):
        tell_to_open(report)
    if fail_on is not None and result.fails(fail_on):
        raise typer.Exit(3)
