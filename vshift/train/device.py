"""Where a run runs, and in which precision."""

from __future__ import annotations

import platform
from contextlib import AbstractContextManager

import torch

from vshift.config.schema import Hardware
from vshift.errors import ConfigError
from vshift.text import pluralize


def choose_device(wanted: str) -> torch.device:
    """`auto`, `cpu` or `cuda` → a device that is there.

    Raises:
        ConfigError: CUDA is asked for and there is none, with what PyTorch says about it.
    """
    if wanted == "cpu" or (wanted == "auto" and not torch.cuda.is_available()):
        return torch.device("cpu")
    if not torch.cuda.is_available():
        built = torch.version.cuda
        reason = (
            f"PyTorch {torch.__version__} is built for CUDA {built} and finds no GPU or driver"
            if built
            else f"PyTorch {torch.__version__} is a build without CUDA"
        )
        raise ConfigError(
            f"hardware.device: cuda is not available: {reason}; "
            "use --device cpu, or --device auto to take a GPU where there is one"
        )
    return torch.device("cuda", torch.cuda.current_device())


def device_name(device: torch.device) -> str:
    """What run.json says of the device, for instance `cuda: NVIDIA H100 80GB HBM3`."""
    if device.type == "cuda":
        return f"cuda: {torch.cuda.get_device_name(device)}"
    threads = pluralize(torch.get_num_threads(), "thread")
    return f"cpu: {platform.processor() or platform.machine()}, {threads}"


def configure(hardware: Hardware, device: torch.device) -> None:
    """Set the process up for a run: threads, and TF32 off where float32 is asked for."""
    if hardware.threads is not None:
        torch.set_num_threads(hardware.threads)
    if device.type == "cuda":
        torch.backends.cudnn.benchmark = True


def autocast(device: torch.device, precision: str) -> AbstractContextManager[object]:
    """bf16 in convolutions and matrix products, or nothing with float32."""
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16")
