"""How long an epoch would take here, from some steps on random images."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from itertools import count

import torch

from vshift.config.data import Drawn
from vshift.config.own import own_parts
from vshift.config.schema import Config
from vshift.data import ImageSet, Part, counts, describe, load
from vshift.data.images import image_set
from vshift.data.load import open_source, selected
from vshift.errors import VShiftError
from vshift.train.context import TrainingContext
from vshift.train.device import choose_device, configure, device_name
from vshift.train.fast_steps import make_train_step
from vshift.train.loop import TrainStep

LONG_ENOUGH = 1.0  # seconds of steps that are timed
BATCHES = {"cpu": 2, "cuda": 32}  # of an epoch: a CUDA graph runs several steps at once


def epoch_seconds(config: Config, threads: int | None, say: Callable[[str], None]) -> float | None:
    """Seconds of the training steps of an epoch; tests and measurements come on top.

    Nothing is downloaded or written. The first step, which prepares, is not timed.

    Args:
        threads: CPU threads, where the config does not say.

    Returns:
        None where the images are not here, or code of the user's own would have to run.
    """
    if own_parts(config):
        return None
    before = torch.get_num_threads()
    try:
        device = choose_device(config.hardware.device)
        images = _few_images(config, BATCHES[device.type]).to(device)
        total = _training_images(config)
        torch.set_num_threads(threads or before)
        configure(config.hardware, device)
        say(f"timing some training steps of {config.network.size_label} on {device_name(device)} …")
        # As many steps as the run has, so that what depends on their number fits.
        epochs = min(math.ceil(config.epochs * total / len(images.train)), 100_000)
        context = TrainingContext(config.model_copy(update={"epochs": epochs}), 0, images)
        context.model.train()
        context.enter_epoch(1)
        step = make_train_step(config.hardware.step, context, say)
        return _seconds_per_step(step, device) * math.ceil(total / config.data.batch_size)
    except VShiftError:  # which the run itself will say
        return None
    finally:
        torch.set_num_threads(before)


def _seconds_per_step(step: TrainStep, device: torch.device) -> float:
    steps = step.context.stream.steps
    began, first = 0.0, 0
    for epoch in count():
        for done in step.epoch(epoch, step.context.rates[:steps]):
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            now = time.perf_counter()
            if not began:
                began, first = now, done
            elif now - began > LONG_ENOUGH:
                return (now - began) / (epoch * steps + done - first)
    raise AssertionError("count() does not end")


def _training_images(config: Config) -> int:
    """The number of images of an epoch."""
    known = counts(config.data)
    return known[0] if known else len(selected(config.data, open_source(config.data)).train)


def _few_images(config: Config, batches: int) -> ImageSet:
    """Random images like the config's, as many as these batches take."""
    data, n = config.data, batches * config.data.batch_size
    if isinstance(data, Drawn):
        few = {"train": max(n, 10), "test": 10, "train_limit": None, "test_limit": None}
        return load(data.model_copy(update={**few, "validation": 0}))
    like = describe(data)
    pixels = torch.randint(256, (n, like.size, like.size, like.channels), dtype=torch.uint8)
    labels = torch.arange(n) % like.outputs
    names = tuple(map(str, range(like.outputs)))
    train, test = Part(pixels, labels), Part(pixels[:2], labels[:2])
    return image_set("random", names, train, None, test)
