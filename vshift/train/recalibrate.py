"""`vshift recalibrate`: BN statistics of a finished run, re-estimated beside it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from vshift.config import load as load_config
from vshift.data import load as load_images
from vshift.errors import RunError
from vshift.runs import PROBE, RunFolder
from vshift.runs.files import Row
from vshift.train.context import TrainingContext
from vshift.train.device import choose_device, configure
from vshift.train.final import mode_rows, recalibrations
from vshift.train.monte_carlo import monte_carlo_rows
from vshift.train.progress import Reporter
from vshift.train.scores import test_scores


def open_run(
    path: Path, sets: Sequence[str] = (), reporter: Reporter | None = None
) -> TrainingContext:
    """The trained network of a finished run with its data.

    Args:
        sets: changes of its config, as with `--set`; they must not change the network.

    Raises:
        RunError: the run is not finished, its checkpoint is missing or damaged, or a VarianceProbe
            saved it, without a network.
    """
    folder = RunFolder.open(path)
    if folder.run.get("source") == PROBE:
        raise RunError(
            f"{path} holds what a VarianceProbe measured, and no network or weights; audit or "
            "recalibrate the model itself: `vshift.audit(model, loader)`, "
            "`vshift.recalibrate(model, loader)`, or `vshift audit FILE.py:FACTORY --weights …`"
        )
    if folder.status != "done":
        raise RunError(
            f"{path}: this run is {folder.status or 'no run'}, not done; "
            f"`vshift train {path / 'config.yaml'}` with the same --runs-dir finishes it"
        )
    config = load_config(path / "config.yaml", sets)
    device = choose_device(config.hardware.device)
    configure(config.hardware, device)
    images = load_images(config.data, device)
    context = TrainingContext(config, config.seeds[0], images, reporter=reporter)
    try:
        context.model.load_state_dict(folder.load_checkpoint()["model"])
    except (KeyError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        raise RunError(f"{path}: the checkpoint does not fit this config: {reason}") from error
    context.enter_epoch(config.epochs)
    return context


def recalibrate_run(path: Path, sets: Sequence[str], reporter: Reporter | None = None) -> list[Row]:
    """Re-estimate by every method, test, and write the results beside the run.

    The config's sections recalibration and measure, changed by `sets`, say what is done. The
    checkpoint and what training wrote stay as they are.

    Returns:
        A row for the run as it was trained (method `none`), one per method, and one each with
        measure.monte_carlo and measure.monte_carlo_bn (methods of these names).
    """
    context = open_run(path, sets, reporter)
    folder = RunFolder(path)
    if not context.bn_layers:
        raise RunError(f"{path}: the network has no BN layer to recalibrate")
    context.enter_phase("test")
    before = {"method": "none", **test_scores(context)}
    rows, states = recalibrations(context, context.config.recalibration)
    context.enter_phase("measure")
    modes = mode_rows(context, states) if context.config.measure.modes else []
    rows += monte_carlo_rows(context)
    with folder.writing():
        if modes:
            folder.write_modes(modes)
        folder.write_recalibration([before, *rows], states)
    return [before, *rows]
