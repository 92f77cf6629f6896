"""`vshift train`: every seed of a config, each in its run folder."""

from __future__ import annotations

import shlex
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import torch

from vshift.config.own_code import describe_error, own_frames
from vshift.config.schema import Config
from vshift.data import ImageSet, load
from vshift.errors import Damaged, Interrupted, RunError, RunLost, Stopped, TrainingFailed
from vshift.runs import RunFolder, next_action, number, prepare, run_path
from vshift.runs.schema import TimingRow
from vshift.text import format_duration, format_number, pluralize
from vshift.train.checkpointer import Checkpointer
from vshift.train.context import TrainingContext
from vshift.train.device import choose_device, configure, device_name
from vshift.train.fast_steps import TRAIN_STEPS, make_train_step, works_on
from vshift.train.loop import train
from vshift.train.progress import Reporter
from vshift.train.rehearsal import rehearse
from vshift.train.signals import NO_STOP, StopSignal, catch_stop_signals
from vshift.train.timing import Timing
from vshift.train.trial import PRECISIONS, Choice, choose

_THEN = ", then "  # between the devices of a run that was resumed on another one
_STOPPING = "stopping after this step, with a checkpoint; Ctrl-C again stops at once"


def train_seeds(
    config: Config,
    runs_dir: Path,
    fresh: bool,
    reporter: Reporter,
    since: float | None = None,
) -> None:
    """Train each of the config's seeds that is not done yet.

    Data and network are made before anything is written, so that an error leaves no trace.

    Args:
        since: `time.perf_counter()` when the command began, for the first seed's `timing`.

    Raises:
        TrainingFailed: after the last seed, if a run diverged.
        VShiftError: the device, data or network that the config asks for is not available.
    """
    timing = Timing(since)
    waiting, diverged, is_new = [], [], False
    for seed in config.seeds:
        path = run_path(runs_dir, config.name, seed)
        action = "new" if fresh else next_action(RunFolder(path), config)
        if action == "done":
            reporter.say(f"note: {path} is done; --fresh trains it again")
        elif action == "diverged":
            diverged.append(seed)
        else:
            waiting.append(seed)
            is_new |= action == "new"
    if waiting:
        device = choose_device(config.hardware.device)
        configure(config.hardware, device)
        images = load(config.data, device)
        if images.note:
            reporter.say(f"note: {images.note}")
        rehearse(TrainingContext(config, waiting[0], images))
    choice = Choice(config.hardware)
    if is_new:
        choice = choose(config, images, reporter.say)
    with catch_stop_signals(lambda: reporter.say(_STOPPING)) as stop:
        for seed in waiting:
            if stop.requested:
                raise Interrupted(
                    f"{config.name}: stopped before seed {seed}; repeat the command to train it",
                    stop.exit_code,
                )
            status = train_one(
                config, seed, images, runs_dir, fresh, reporter, stop, timing, choice
            )
            if status == "diverged":
                diverged.append(seed)
            timing = Timing()
    if len(diverged) < len(config.seeds):
        reporter.say(f"next: vshift compare {shlex.quote(str(runs_dir))}")
    if diverged:
        raise TrainingFailed(
            f"{config.name}: the loss became NaN or infinite with seed "
            f"{', '.join(str(seed) for seed in diverged)}; what was measured until then is kept. "
            "Try a lower learning rate or a warm-up; --fresh trains the run again"
        )


def train_one(
    config: Config,
    seed: int,
    images: ImageSet,
    runs_dir: Path,
    fresh: bool,
    reporter: Reporter,
    stop: StopSignal = NO_STOP,
    timing: Timing | None = None,
    choice: Choice | None = None,
) -> str:
    """Train one run in its folder, from prepare to finish; returns its status.

    Args:
        timing: the run's stopwatch; by default a new one.
        choice: what a new run makes of `hardware.precision: auto`; None takes the config's word.

    Raises:
        Interrupted: `stop` or a KeyboardInterrupt ended it; it can be resumed.
        RunLost: its folder failed: a full disk, a deleted folder, another process.
    """
    choice = choice or Choice(config.hardware)
    threads = choice.hardware.threads or torch.get_num_threads()
    hardware = choice.hardware.model_copy(update={"threads": threads})
    folder, action = prepare(runs_dir, config, seed, fresh, hardware)
    if action in ("done", "diverged"):
        return action
    device = images.train.images.device
    started, timing = time.perf_counter(), timing or Timing()
    status = "failed"
    try:
        with _explained(folder, config):
            if action == "new":
                config = config.model_copy(update={"hardware": choice.hardware})
                if choice.trial is not None:
                    folder.update_run(trial=choice.trial.speeds)
            config = _as_it_began(folder, config, reporter)
            folder.update_run(
                device=_devices(folder, device_name(device), reporter),
                threads=torch.get_num_threads(),
                classes=len(images.classes) or None,
            )
            status = train_in(folder, config, seed, images, reporter, stop, timing)
    except Interrupted:
        status = "interrupted"
        raise
    finally:
        reporter.stop()
        # Where the disk itself failed, its own error is already on the way up.
        with suppress(RunError):
            if folder.is_held:
                folder.mark_finished(
                    status,
                    **_speed(folder, time.perf_counter() - started),
                    timing=timing.row(folder.run.get("timing")).to_dict(),
                )
        folder.close()
    reporter.say(f"{folder.path}: {status} {_in_words(timing.row())}")
    return status


@contextmanager
def _explained(folder: RunFolder, config: Config) -> Iterator[None]:
    """Inside, what ends a run is raised as an error for people, with the run's folder."""
    try:
        yield
    except (KeyboardInterrupt, Stopped) as stopped:
        saved = isinstance(stopped, Stopped) and not stopped.at_once
        raise Interrupted(
            f"{folder.path}: interrupted; repeat the command to resume from "
            + ("there" if saved else "its last checkpoint"),
            stopped.exit_code if isinstance(stopped, Stopped) else 130,
        ) from None
    except torch.OutOfMemoryError as error:
        raise TrainingFailed(
            f"{folder.path}: the GPU's memory is full; lower data.batch_size. {error}"
        ) from error
    except Damaged:
        raise
    except RunError as error:
        raise RunLost(str(error)) from error
    except Exception as error:  # raised again, unless code of the user's own is at fault
        if config.hardware.deterministic and "deterministic implementation" in str(error):
            raise TrainingFailed(
                f"{folder.path}: hardware.deterministic: {str(error).split(',')[0]}; without that "
                "key the network trains, and a resumed run ends in other last bits"
            ) from error
        if not own_frames(error):
            raise
        raise TrainingFailed(f"{folder.path}: {describe_error(error)}") from error


def train_in(
    folder: RunFolder,
    config: Config,
    seed: int,
    images: ImageSet,
    reporter: Reporter,
    stop: StopSignal = NO_STOP,
    timing: Timing | None = None,
) -> str:
    """Train in a prepared folder, from its last checkpoint if there is one.

    Args:
        stop: checked after every step and before every batch of an evaluation; once requested,
            the run writes a checkpoint and raises `Stopped`.

    Returns:
        `done` or `diverged`.
    """

    def check_stop() -> None:
        folder.pulse()
        if stop.requested:
            raise stop.stopped()

    def say(text: str) -> None:
        reporter.say(f"note: {folder.path}: {text}")

    context = TrainingContext(config, seed, images, check_stop, say, timing, reporter)
    if context.layer_log is not None and context.noisy_layers is None:
        say(
            "torch.fx cannot trace this network; which noise reaches a layer, and its predictions, "
            "are left out"
        )
    checkpointer = Checkpointer(folder, context, reporter.say)
    resumed = checkpointer.restore()
    context.enter_epoch(checkpointer.epoch + 1)
    # Resume with the step that the run began with, where it works on this device.
    earlier = str(folder.run.get("step"))
    keep = resumed and works_on(earlier, context.device.type)
    train_step = make_train_step(earlier if keep else config.hardware.step, context, reporter.say)
    if resumed and earlier in TRAIN_STEPS and earlier != train_step.name:
        say(f"began with the {earlier} step, which does not work here; now {train_step.name}")
    folder.update_run(precision=context.precision, step=train_step.name)
    return train(context, train_step, checkpointer, folder, reporter)


def _as_it_began(folder: RunFolder, config: Config, reporter: Reporter) -> Config:
    """The config with the precision that the run began with, on as many threads: others round
    differently."""
    threads, precision = folder.run.get("threads"), folder.run.get("precision")
    if isinstance(threads, int) and 0 < threads < 4096 and threads != torch.get_num_threads():
        reporter.say(f"note: {folder.path}: with {pluralize(threads, 'thread')}, as it began")
        torch.set_num_threads(threads)
    if precision not in PRECISIONS:
        return config
    hardware = config.hardware.model_copy(update={"precision": precision})
    return config.model_copy(update={"hardware": hardware})


def _devices(folder: RunFolder, now: str, reporter: Reporter) -> str:
    """What run.json names as the device: all that trained the run, in turn."""
    earlier = folder.run.get("device")
    if not isinstance(earlier, str) or earlier.split(_THEN)[-1] == now:
        return earlier if isinstance(earlier, str) else now
    reporter.say(
        f"warning: {folder.path}: began on {earlier}, resumes on {now}: other last bits than there"
    )
    return earlier + _THEN + now


def _in_words(spent: TimingRow) -> str:
    """`in 4 min, 86 % of it training steps`."""
    total = sum(value for key, value in spent.to_dict().items() if key != "steps_share")
    share = format_number(spent.steps_share, 0)
    return f"in {format_duration(total)}, {share} % of it training steps"


def _speed(folder: RunFolder, seconds: float) -> dict[str, float | None]:
    """Seconds over all attempts, and training images per second over all epochs."""
    speeds = [number(row.get("images_per_second")) for row in folder.metrics()]
    slowness = [1 / speed for speed in speeds if speed]
    return {
        "seconds": (number(folder.run.get("seconds")) or 0.0) + seconds,
        "images_per_second": len(slowness) / sum(slowness) if slowness else None,
    }
