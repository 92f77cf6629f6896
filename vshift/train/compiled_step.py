"""Forward and backward pass through `torch.compile`."""

from __future__ import annotations

import traceback
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vshift.networks.norm import BatchRenorm
from vshift.shift.modes import restoring_state
from vshift.train.context import TrainingContext
from vshift.train.loop import TrainStep


class CannotCompile(Exception):
    """Why a faster step does not work here, in a line."""


class CompiledStep(TrainStep):
    """Forward and backward pass through `torch.compile`, for the batches of full size.

    The last, smaller batch of an epoch runs eagerly: a second compilation would cost more time
    than it saves. Noise comes from the compiler's own generator, so it has the same distribution
    as the eager step's and other values; without noise the losses agree within rounding.
    """

    name = "compiled"

    def __init__(self, context: TrainingContext) -> None:
        super().__init__(context)
        self._compiled = compile_network(context.model)
        self._full: torch.Size | None = None

    def forward(self, images: Tensor) -> Tensor:
        network = self._compiled if images.shape == self._full else self.context.model
        output: Tensor = network(images)
        return output

    def prepare(self) -> None:
        self.compile(*next(self.context.stream.epoch(0)))

    def compile(self, images: Tensor, labels: Tensor) -> None:
        """Compile for batches of this shape, by one pass that leaves no trace.

        Raises:
            CannotCompile: with the compiler's reason.
        """
        self._full = images.shape
        context = self.context
        try:
            with restoring_state(context.model):
                context.model.train()
                with context.autocast():
                    output = self.forward(images)
                loss, _ = context.objective(output.float(), images, labels)
                loss.backward()  # type: ignore[no-untyped-call]
        except Exception as error:  # whatever a compiler raises, there is a step without it
            raise CannotCompile(reason_of(error)) from error
        finally:
            context.optimizer.zero_grad()


def compile_network(model: nn.Module) -> Any:
    """`torch.compile` for one shape of batches. Logging reads what BN writes, no hook is needed.

    Batch renorm is left out: the compiler's backward pass (PyTorch 2.14) would silently compute r
    and d again, from running statistics that have moved since.
    """
    for module in model.modules():
        if isinstance(module, BatchRenorm):
            plain = torch.compiler.disable(module.forward)  # type: ignore[no-untyped-call]
            vars(module)["forward"] = plain
    return torch.compile(model, dynamic=False)


def reason_of(error: BaseException) -> str:
    """The error that began a chain, in a line, with its last place in code that is not PyTorch's.

    The end of a failed capture raises an error of its own, which hides the one that failed it. What
    PyTorch caught and got over has no place in other code and is passed by.
    """
    place = _last_place(error)
    earlier = error
    while (inside := earlier.__cause__ or earlier.__context__) is not None:
        earlier = inside
        if inner := _last_place(earlier):
            error, place = earlier, inner
    lines = [line for line in str(error).splitlines() if line.strip()] or ["no message"]
    text = " ".join(line.strip() for line in lines[: 1 + lines[0].endswith(":")])
    return f"{type(error).__name__}: {text}{f' ({place})' if place else ''}"


_NOT_OURS = str(Path(torch.__file__).parent), str(Path(traceback.__file__).parent)


def _last_place(error: BaseException) -> str:
    """`norm.py, line 31`: where an error was last in a file that is not PyTorch's or Python's."""
    frames = [
        frame
        for frame in traceback.extract_tb(error.__traceback__)
        if not frame.filename.startswith(_NOT_OURS)
    ]
    return f"{Path(frames[-1].filename).name}, line {frames[-1].lineno}" if frames else ""
