"""The forward and backward pass through `torch.compile`."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from vshift.shift.modes import restoring_state
from vshift.train.device import autocast
from vshift.train.step import EagerStep


class CannotCompile(Exception):
    """Why a faster step does not work here, in a line."""


class CompiledStep(EagerStep):
    """An EagerStep whose network is compiled for the batches of full size.

    The last, smaller batch of an epoch runs eagerly: a second compilation would cost more than it
    gives. Noise comes from the compiler's own generator, so it has the same distribution as the
    eager step's and other values; without noise the losses agree within rounding.
    """

    name = "compiled"

    def __init__(self, *words: Any, **options: Any) -> None:
        super().__init__(*words, **options)
        self._compiled = compile_network(self.model)
        self._full: torch.Size | None = None
        self.forward = self._by_size

    def _by_size(self, images: Tensor) -> Tensor:
        output: Tensor = (self._compiled if images.shape == self._full else self.model)(images)
        return output

    def prepare(self, images: Tensor, labels: Tensor) -> None:
        """Compile for batches of this shape, by one pass that leaves no trace.

        Raises:
            CannotCompile: with the compiler's reason.
        """
        self._full = images.shape
        try:
            with restoring_state(self.model):
                self.model.train()
                with autocast(images.device, self.precision):
                    output = self.forward(images).float()
                self.objective(output, images, labels)[0].backward()  # type: ignore[no-untyped-call]
        except Exception as error:  # whatever a compiler raises, there is a step without it
            raise CannotCompile(first_line(error)) from error
        finally:
            self.optimizer.zero_grad()


def compile_network(model: nn.Module) -> Any:
    """`torch.compile` for one shape of batches. Logging reads what BN writes, no hook is needed."""
    return torch.compile(model, dynamic=False)


def first_line(error: BaseException) -> str:
    """An error in a line: its kind and the first words of its message."""
    lines = [line for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0] if lines else 'no message'}"
