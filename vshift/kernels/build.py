"""Compiles `kernels.cpp` once per machine, into the user's cache folder, and loads it.

Threads are those of PyTorch's own OpenMP runtime: a second runtime would bring a second set of
threads, and two sets that spin for work on the same cores are slower than one thread.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from pathlib import Path

import torch  # its libraries are loaded before the kernels ask for OpenMP

from vshift.cache import cache_folder

SOURCE = Path(__file__).with_name("kernels.cpp")
_FLAGS = ["-std=c++17", "-O3", "-fPIC", "-fno-math-errno", "-fno-trapping-math", "-w"]


class KernelsMissing(Exception):
    """The kernels are not available on this machine; the message says why in a few words."""


@functools.cache
def library() -> ctypes.CDLL:
    """The compiled kernels, loaded.

    Raises:
        KernelsMissing: no C++ compiler, or it fails, or what it made cannot be loaded.
    """
    compiler = find_compiler()
    version = _run([compiler, "--version"])
    flags = [*_FLAGS, *_native_flag(), *_openmp_flag(version)]
    words = [SOURCE.read_text("utf-8"), *flags, version, _processor(), torch.__version__]
    key = hashlib.sha256("\0".join(words).encode()).hexdigest()[:16]
    path = cache_folder() / "native" / f"kernels-{key}.so"
    try:
        return _load(path)
    except OSError:  # not there yet, or damaged
        return _load_made(compiler, flags, path)


def find_compiler() -> str:
    """The C++ compiler: $CXX, or the first of c++, g++ and clang++ that exists.

    Raises:
        KernelsMissing: there is none.
    """
    wanted = os.environ.get("CXX")
    for name in [wanted] if wanted else ["c++", "g++", "clang++"]:
        if found := shutil.which(name):
            return found
    raise KernelsMissing(
        f"CXX={wanted} is not a program" if wanted else "no C++ compiler (c++, g++ or clang++)"
    )


def _load_made(compiler: str, flags: list[str], path: Path) -> ctypes.CDLL:
    """Compile beside the place where the library belongs, and move it there whole."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        return _load(_compile(compiler, flags, path))
    except OSError:  # a cache that cannot be written to
        with tempfile.TemporaryDirectory(prefix="vshift-") as folder:
            try:
                return _load(_compile(compiler, flags, Path(folder) / path.name))
            except OSError as error:
                raise KernelsMissing(f"the compiled kernels do not load: {error}") from error


def _compile(compiler: str, flags: list[str], path: Path) -> Path:
    with tempfile.TemporaryDirectory(dir=path.parent, prefix="build-") as folder:
        objects, made = Path(folder) / "kernels.o", Path(folder) / "kernels.so"
        _run([compiler, *flags, "-c", str(SOURCE), "-o", str(objects)])
        # Linked without -fopenmp: its symbols are those that PyTorch has loaded already.
        undefined = ["-undefined", "dynamic_lookup"] if platform.system() == "Darwin" else []
        _run([compiler, "-shared", *undefined, str(objects), "-o", str(made)])
        os.replace(made, path)
    return path


def _load(path: Path) -> ctypes.CDLL:
    loaded = ctypes.CDLL(str(path))
    for name, arguments in _SIGNATURES.items():
        function = getattr(loaded, name)
        function.argtypes, function.restype = arguments, None
    return loaded


_P, _N, _I, _F, _D = (
    ctypes.c_void_p,
    ctypes.c_int64,
    ctypes.c_int,
    ctypes.c_float,
    ctypes.c_double,
)
_KEY, _WORD = ctypes.c_uint64, ctypes.c_uint32
_SIGNATURES: dict[str, list[type]] = {
    "vshift_random": [_KEY, _KEY, _P],
    "vshift_multiply": [_P, _P, _N, _I, _I, _KEY, _F, _WORD, _I],
    "vshift_norm_forward": [_P, _P, _N, _N, _I, _P, _P, _D, _P, _P, _P, _P, _I, _I],
    "vshift_norm_backward": [_P, _P, _P, _N, _N, _I, _D, *[_P] * 6, _I, _I],
    "vshift_affine": [_P, _P, _N, _N, _I, _P, _P, _I, _I],
}


def _run(command: list[str]) -> str:
    try:
        done = subprocess.run(
            command,
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            timeout=300,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise KernelsMissing(f"{command[0]} does not run: {error}") from error
    if done.returncode:
        first = (done.stderr.strip() or done.stdout.strip() or "no message").splitlines()[0]
        raise KernelsMissing(f"{command[0]} fails: {first}")
    return done.stdout


def _native_flag() -> list[str]:
    """Everything that this processor can do; the cache's name says which one it is."""
    return ["-mcpu=native" if platform.machine() in ("arm64", "aarch64") else "-march=native"]


def _openmp_flag(version: str) -> list[str]:
    """-fopenmp where PyTorch has loaded the runtime that this compiler calls, else one thread."""
    entry = "__kmpc_fork_call" if "clang" in version else "GOMP_parallel"
    return ["-fopenmp"] if hasattr(ctypes.CDLL(None), entry) else []


def _processor() -> str:
    """The processor's flags, which decide what `-march=native` means."""
    try:
        lines = Path("/proc/cpuinfo").read_text("utf-8", "replace").splitlines()
    except OSError:
        return f"{platform.machine()} {platform.processor()}"
    return next((line for line in lines if line.startswith(("flags", "Features"))), "")
