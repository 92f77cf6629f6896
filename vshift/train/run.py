"""`vshift train`: every seed of a config, each in its run folder."""

from __future__ import annotations

import time
from contextlib import suppress
from pathlib import Path

import torch

from vshift.config.schema import Config
from vshift.data import ImageSet, load
from vshift.errors import Damaged, Interrupted, RunError, RunLost, Stopped, TrainingFailed
from vshift.runs import RunFolder, next_action, number, prepare, run_path
from vshift.text import pluralize
from vshift.train import signals
from vshift.train.device import choose_device, configure, device_name
from vshift.train.loop import build_model, train
from vshift.train.progress import Reporter

_NOTED = "stopping behind this step, with a checkpoint; Ctrl-C again stops at once"


def train_seeds(config: Config, runs_dir: Path, fresh: bool, reporter: Reporter) -> None:
    """Train each of the config's seeds that is not done yet.

    Data and network are made before anything is written, so that an error leaves no trace.

    Raises:
        TrainingFailed: after the last seed, if a run diverged.
        VShiftError: what the config asks for cannot be had.
    """
    waiting = [
        seed for seed in config.seeds if not _settled(config, seed, runs_dir, fresh, reporter)
    ]
    diverged = [
        seed
        for seed in config.seeds
        if seed not in waiting
        and next_action(RunFolder(run_path(runs_dir, config.name, seed)), config) == "diverged"
    ]
    if waiting:
        device = choose_device(config.hardware.device)
        configure(config.hardware, device)
        images = load(config.data, device)
        build_model(config, images, waiting[0])
    with signals.catch_stop_signals("" if reporter.quiet else _NOTED) as stop:
        for seed in waiting:
            if stop.requested:
                raise Interrupted(
                    f"{config.name}: stopped before seed {seed}; the same command goes on with it",
                    stop.exit_code,
                )
            if train_one(config, seed, images, runs_dir, fresh, reporter, stop) == "diverged":
                diverged.append(seed)
    if diverged:
        raise TrainingFailed(
            f"{config.name}: the loss became NaN or infinite with seed "
            f"{', '.join(str(seed) for seed in diverged)}; what was measured until then is kept. "
            "Try a lower learning rate or a warm-up; --fresh trains the run again"
        )


def _settled(config: Config, seed: int, runs_dir: Path, fresh: bool, reporter: Reporter) -> bool:
    """Whether a seed needs no training; says so."""
    path = run_path(runs_dir, config.name, seed)
    action = "new" if fresh else next_action(RunFolder(path), config)
    if action == "done":
        reporter.say(f"{path} is done; --fresh trains it again")
    return action in ("done", "diverged")


def train_one(
    config: Config,
    seed: int,
    images: ImageSet,
    runs_dir: Path,
    fresh: bool,
    reporter: Reporter,
    stop: signals.StopSignal = signals.NO_STOP,
) -> str:
    """One run from prepare to finish; returns its status.

    Raises:
        Interrupted: `stop` or a KeyboardInterrupt ended it; the same command goes on.
        RunLost: its folder failed: a full disk, a deleted folder, another process.
    """
    folder, action = prepare(runs_dir, config, seed, fresh, torch.get_num_threads())
    if action in ("done", "diverged"):
        return action
    device = images.train.images.device
    began = time.perf_counter()
    status = "failed"
    try:
        _same_threads(folder, reporter)
        folder.update_run(device=device_name(device), threads=torch.get_num_threads())
        status = train(config, seed, images, folder, reporter, stop)
    except (KeyboardInterrupt, Stopped) as stopped:
        status = "interrupted"
        raise _interrupted(folder, stopped) from None
    except torch.OutOfMemoryError as error:
        raise TrainingFailed(
            f"{folder.path}: the GPU's memory is full; lower data.batch_size. {error}"
        ) from error
    except Damaged:
        raise
    except RunError as error:
        raise RunLost(str(error)) from error
    finally:
        reporter.stop()
        # Where the disk itself failed, its own error is already on the way up.
        with suppress(RunError):
            if folder.is_held:
                folder.mark_finished(status, **_speed(folder, time.perf_counter() - began))
        folder.close()
    hint = f"; next: vshift compare {runs_dir}" if status == "done" else ""
    reporter.say(f"{folder.path}: {status}{hint}")
    return status


def _interrupted(folder: RunFolder, stopped: KeyboardInterrupt | Stopped) -> Interrupted:
    waited = isinstance(stopped, Stopped) and not stopped.at_once
    place = "there" if waited else "its last checkpoint"
    code = stopped.exit_code if isinstance(stopped, Stopped) else 130
    return Interrupted(f"{folder.path}: interrupted; the same command goes on from {place}", code)


def _same_threads(folder: RunFolder, reporter: Reporter) -> None:
    """Go on with the number of threads that the run began with: others round differently."""
    threads = folder.run.get("threads")
    if isinstance(threads, int) and 0 < threads < 4096 and threads != torch.get_num_threads():
        reporter.say(f"{folder.path}: with {pluralize(threads, 'thread')}, as it began")
        torch.set_num_threads(threads)


def _speed(folder: RunFolder, seconds: float) -> dict[str, float | None]:
    """Seconds over all attempts, and training images a second over all epochs."""
    speeds = [number(row.get("images_per_second")) for row in folder.metrics()]
    slowness = [1 / speed for speed in speeds if speed]
    return {
        "seconds": (number(folder.run.get("seconds")) or 0.0) + seconds,
        "images_per_second": len(slowness) / sum(slowness) if slowness else None,
    }
