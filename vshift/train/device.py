"""Which device a run uses, and how it is set up."""

from __future__ import annotations

import ctypes
import os
import platform

import torch

from vshift.config.schema import Hardware
from vshift.errors import ConfigError
from vshift.text import pluralize


def choose_device(wanted: str) -> torch.device:
    """The device for `auto`, `cpu` or `cuda`.

    Raises:
        ConfigError: CUDA is asked for and there is none, with PyTorch's reason.
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
    """The device as run.json names it, for instance `cuda: NVIDIA H100 80GB HBM3`."""
    if device.type == "cuda":
        return f"cuda: {torch.cuda.get_device_name(device)}"
    threads = pluralize(torch.get_num_threads(), "thread")
    return f"cpu: {platform.processor() or platform.machine()}, {threads}"


def configure(hardware: Hardware, device: torch.device) -> None:
    """Set the number of CPU threads, and on a CPU keep freed memory; on a GPU let cuDNN search for
    its fastest kernels, or allow deterministic ones only."""
    if hardware.threads is not None:
        torch.set_num_threads(hardware.threads)
    if device.type != "cuda":
        keep_freed_memory()
        return
    # What is fastest is measured, and not the same in every process.
    torch.backends.cudnn.benchmark = not hardware.deterministic
    if hardware.deterministic:
        # Read by cuBLAS when it starts; PyTorch refuses to run without it.
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True)


_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # of glibc's malloc.h


def keep_freed_memory() -> None:
    """Let glibc's malloc keep what is freed, for the next step, which asks for the same again.

    By default it returns large pieces to the system, which clears every page of the next ones: in
    float32 9 % of a step of PreResNet-20 and 14 % of one of ResNet-18. Another C library is left as
    it is.
    """
    if platform.system() == "Linux" and hasattr(libc := ctypes.CDLL(None), "gnu_get_libc_version"):
        for parameter in (_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD):
            libc.mallopt(parameter, 2**30)
