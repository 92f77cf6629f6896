"""The network, batches, optimizer, objective and running sums of one run."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager
from functools import cached_property
from itertools import islice

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from vshift.config.batches import has_single_values, lone_images
from vshift.config.networks import Autoencoder
from vshift.config.norm import BatchRenorm
from vshift.config.schema import Config
from vshift.data import ImageSet, Part, plain_stream, train_stream
from vshift.errors import ConfigError
from vshift.networks.build import build
from vshift.networks.noise import Noise
from vshift.networks.norm import BatchNorm
from vshift.shift.modes import restoring_state
from vshift.shift.noise_graph import noise_in_front
from vshift.shift.sites import Site, bn_sites, find_sites
from vshift.shift.stats import TrainingLog, batch_norms
from vshift.text import pluralize
from vshift.train.average import WeightAverage, shares
from vshift.train.objective import MetricAccumulator, make_objective
from vshift.train.optimizer import Optimizer, make_optimizer
from vshift.train.progress import Reporter
from vshift.train.schedule import learning_rates
from vshift.train.timing import PHASES, Phase, Timing

# Images per batch in eval mode, where the size changes no result: on a CPU the activations stay in
# its caches, which was 1.2 times as fast as 1,000 in bf16 and 1.7 times in float32.
TEST_BATCH = {"cpu": 125, "cuda": 1000}
MAX_STEPS = 10**8  # per run; each has its learning rate in a list

Batches = Callable[[], Iterable[tuple[Tensor, Tensor]]]


def derive_seed(seed: int, epoch: int, purpose: str) -> int:
    """A 32-bit seed for one purpose in one epoch; other arguments give an unrelated one.

    32 bits because PyTorch's CPU generator uses no more of a seed.
    """
    digest = hashlib.blake2b(f"{seed}/{epoch}/{purpose}".encode(), digest_size=4).digest()
    return int.from_bytes(digest, "little")


def build_model(config: Config, images: ImageSet, seed: int) -> nn.Module:
    """The config's network for these images, with the seed's initial weights, on the CPU.

    Raises:
        ConfigError, DataError: the config's network or batches do not fit the images.
    """
    model = build(
        config,
        classes=images.outputs,
        channels=images.channels,
        size=images.size,
        seed=derive_seed(seed, 0, "weights"),
    )
    if config.measure.monte_carlo_bn and not batch_norms(model):
        raise ConfigError(
            "measure.monte_carlo_bn: it samples BN statistics, and this network has no BN layer; "
            "0 turns it off"
        )
    batch_size = config.data.batch_size
    steps = config.epochs * -(-len(images.train) // batch_size)
    if steps > MAX_STEPS:
        raise ConfigError(
            f"epochs: {pluralize(config.epochs, 'epoch')} are {steps:,} steps; at most "
            f"{MAX_STEPS:,}"
        )
    if isinstance(config.norm, BatchRenorm) and steps <= config.norm.plain_steps:
        raise ConfigError(
            f"norm.plain_steps: a run of {pluralize(steps, 'step')} ends before batch renorm "
            f"begins, after {config.norm.plain_steps:,} steps of plain BN; for instance "
            f"{{plain_steps: {steps // 10}, dmax_steps: {steps // 2}, "
            f"rmax_steps: {steps * 4 // 5}}}, the paper's proportions"
        )
    counts = (len(part) if part else 0 for part in (images.train, images.validation, images.test))
    problem = lone_images(config, *counts)
    if problem and (has_single_values(config) or _meets_single_values(model, images)):
        raise ConfigError(problem)
    return model


@torch.no_grad()
def _meets_single_values(model: nn.Module, images: ImageSet) -> bool:
    """Whether a BN layer of the network gets one value per channel and image."""
    found: list[int] = []
    hooks = [
        layer.register_forward_pre_hook(lambda _, inputs: found.append(inputs[0][0, 0].numel()))
        for layer in model.modules()
        if isinstance(layer, _BatchNorm)
    ]
    try:
        with restoring_state(model):
            model.eval()
            model(torch.zeros(2, images.channels, images.size, images.size))
    except ValueError:  # of a layer that tests on batch statistics, in groups of one
        if 1 not in found:
            raise
    finally:
        for hook in hooks:
            hook.remove()
    return 1 in found


def measured_sites(config: Config, model: nn.Module, images: ImageSet) -> list[Site]:
    """The sites that `measure.sites` asks for, in the network as it was built.

    Raises:
        ConfigError: it names a module that there is not.
    """
    wanted = config.measure.sites
    if wanted == "bn":
        return bn_sites(model)
    device = next(model.parameters()).device
    example = torch.zeros(2, images.channels, images.size, images.size, device=device)
    return find_sites(model, [wanted] if isinstance(wanted, str) else wanted, example)


def images_of(batches: Batches) -> Callable[[], Iterator[Tensor]]:
    """The images of batches without their labels, as the statistics of any network take them."""
    return lambda: (images for images, _ in batches())


class TrainingContext:
    """One run's network with everything that trains and evaluates it, built once.

    Args:
        check_stop: called after every step and before every batch of an evaluation, so that a
            signal can interrupt an evaluation that takes minutes; what it raises ends the run.
        say: shows a person a note.
        reporter: shows the phases of an evaluation; by default nothing does.
        timing: the run's stopwatch; by default a new one.

    Attributes:
        model: with the seed's initial weights, on the images' device.
        stream: the augmented training batches.
        rates: the learning rate of every step of the run.
        average: of the weights over the steps; None if not wanted.
        metrics: of the training batches of the present epoch.
        sites: the places in the network that are measured.
        layer_log: their statistics in the same batches; None if not wanted.
    """

    def __init__(
        self,
        config: Config,
        seed: int,
        images: ImageSet,
        check_stop: Callable[[], None] = lambda: None,
        say: Callable[[str], None] = lambda text: None,
        timing: Timing | None = None,
        reporter: Reporter | None = None,
    ) -> None:
        self.config, self.seed, self.images = config, seed, images
        self.check_stop, self.say = check_stop, say
        self.reporter = reporter or Reporter(quiet=True)
        self.timing = timing or Timing()
        self.device = images.train.images.device
        model = build_model(config, images, seed)
        self.model = model.to(self.device)
        self.stream = train_stream(images, config.data.batch_size, config.data.augment)
        self.optimizer: Optimizer = make_optimizer(self.model, config.optimizer)
        base, steps = config.optimizer.learning_rate, self.stream.steps
        self.rates = learning_rates(config.schedule, base, config.epochs, steps)
        self.average = (
            WeightAverage(self.model, shares(config.average, len(self.rates), steps))
            if config.average
            else None
        )
        self.objective = make_objective(config, images)
        self.metrics = self.make_metrics()
        self.sites = measured_sites(config, self.model, images)
        self.layer_log = TrainingLog(self.model, self.sites) if config.measure.every else None

    def make_metrics(self) -> MetricAccumulator:
        """Sums for the scores of one part of the images, or of an epoch."""
        # An autoencoder predicts pixels, whatever targets the images have.
        is_coder = isinstance(self.config.network, Autoencoder)
        return MetricAccumulator(self.device, None if is_coder else self.images.target_std)

    def enter_phase(self, phase: Phase) -> None:
        """Begin a phase of the run: the stopwatch counts it, and a terminal shows it."""
        self.timing.enter(phase)
        self.reporter.phase(PHASES[phase])

    def enter_epoch(self, epoch: int) -> bool:
        """Bring the network into the state of an epoch of training, counted from 1.

        It depends on the epoch alone, so it needs no place in a checkpoint.

        Returns:
            Whether anything changed, which a captured step has to be captured anew for.
        """
        changed = [
            module.enter_epoch(epoch)
            for module in self.model.modules()
            if isinstance(module, BatchNorm | Noise)
        ]
        return any(changed)

    @property
    def precision(self) -> str:
        """The precision of convolutions and matrix products; `auto` that nobody resolved is bf16.

        See `vshift.train.trial.choose`.
        """
        return "float32" if self.config.hardware.precision == "float32" else "bf16"

    def autocast(self) -> AbstractContextManager[object]:
        """bf16 in convolutions and matrix products; with float32 nothing, and on a GPU PyTorch's
        default: TF32 in convolutions, float32 in matrix products."""
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bf16")

    @cached_property
    def bn_layers(self) -> dict[str, _BatchNorm]:
        """The BN layers that keep running statistics, by name."""
        return batch_norms(self.model)

    @cached_property
    def noisy_layers(self) -> frozenset[str] | None:
        """The BN layers with noise in front of them; None where the network cannot be traced."""
        try:
            found = noise_in_front(self.model)
        except ValueError:
            return None
        return frozenset(name for name, noise in found.items() if noise)

    def augmented(self, epoch: int, limit: int | None) -> Batches:
        """Training batches with crop and flip, the same at every call; all with limit None."""
        seed = derive_seed(self.seed, epoch, "measure")
        count = self.stream.steps if limit is None else min(limit, self.stream.steps)
        return lambda: self._checked(islice(self.stream.epoch(seed), limit), count)

    def plain(self, part: Part, limit: int | None = None) -> Batches:
        """A part's images as they are, shuffled, in batches of the training's size.

        Files come class by class: in that order a batch would be no random sample, and its
        statistics one class's.
        """
        size = self.config.data.batch_size
        if len(part) % size == 1:  # one image alone has no batch statistics in an mlp
            size += 1
        stream = plain_stream(self.images, part, size)
        seed = derive_seed(self.seed, 0, "shuffle")
        count = stream.steps if limit is None else min(limit, stream.steps)
        return lambda: self._checked(islice(stream.epoch(seed), limit), count)

    def to_test(self, part: Part) -> Iterable[tuple[Tensor, Tensor]]:
        """Every image of a part, for scores in eval mode."""
        if getattr(self.config.norm, "eval_statistics", "running") == "batch":
            return self.plain(part)()  # the score depends on who is in a batch
        size = TEST_BATCH[self.device.type]
        return self._checked(plain_stream(self.images, part).plain(size), -(-len(part) // size))

    def _checked(
        self, batches: Iterable[tuple[Tensor, Tensor]], count: int
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """The batches, `count` of them: each is shown, and a stop signal ends the pass."""
        for done, batch in enumerate(batches, 1):
            self.check_stop()
            yield batch
            self.reporter.batch(done, count)
