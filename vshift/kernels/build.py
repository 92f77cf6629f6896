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
from contextlib import suppress
from pathlib import Path

import torch  # its libraries are loaded before the kernels ask for OpenMP

from vshift.cache import cache_folder, remove_old, replacing

SOURCE = Path(__file__).with_name("kernels.cpp")
MARCH = "VSHIFT_MARCH"  # the compiler's word for another processor than this one
# Of PyTorch's, oneDNN's and MKL's operations, and of the kernels.
CAPPED_BY = ("ATEN_CPU_CAPABILITY", "ONEDNN_MAX_CPU_ISA", "MKL_ENABLE_INSTRUCTIONS", MARCH)
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
    words = [*machine(), *flags, version, torch.__version__]
    name = "kernels-" + hashlib.sha256("\0".join(words).encode()).hexdigest()[:16]
    folder = cache_folder() / "native"
    found: list[Path] = []
    with suppress(OSError):  # a folder that one may not look into is as good as an empty one
        found = sorted(folder.glob(f"{name}-*.so"))
    for path in found:
        try:
            return _load(path)
        except OSError:  # damaged, or removed by another process that found it so
            with suppress(OSError):
                path.unlink()
    return _load_made(compiler, flags, folder, name)


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


def _load_made(compiler: str, flags: list[str], folder: Path, name: str) -> ctypes.CDLL:
    """Compile in the folder where the library belongs, or where that fails in a temporary one."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        remove_old(folder, "build-*")
        return _load(_compile(compiler, flags, folder, name))
    except OSError:  # a cache that cannot be written to
        with tempfile.TemporaryDirectory(prefix="vshift-") as temporary:
            try:
                return _load(_compile(compiler, flags, Path(temporary), name))
            except OSError as error:
                raise KernelsMissing(f"the compiled kernels do not load: {error}") from error


def _compile(compiler: str, flags: list[str], folder: Path, name: str) -> Path:
    """Compile into `<name>-<checksum>.so`, which appears at once and whole."""
    with tempfile.TemporaryDirectory(dir=folder, prefix="build-") as temporary:
        objects, made = Path(temporary) / "kernels.o", Path(temporary) / "kernels.so"
        _run([compiler, *flags, "-c", str(SOURCE), "-o", str(objects)])
        # Linked without -fopenmp: its symbols are those that PyTorch has loaded already.
        undefined = ["-undefined", "dynamic_lookup"] if platform.system() == "Darwin" else []
        _run([compiler, "-shared", *undefined, str(objects), "-o", str(made)])
        path = folder / f"{name}-{_checksum(made)}.so"
        with replacing(path) as new:
            shutil.copyfile(made, new)
    return path


def _checksum(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()[:16]


def _load(path: Path) -> ctypes.CDLL:
    """Load a library whose checksum is the one in its name: a truncated one kills the process.

    Raises:
        OSError: it is damaged, or is no library with our functions.
    """
    if not path.stem.endswith(f"-{_checksum(path)}"):
        raise OSError(f"{path} is damaged")
    loaded = ctypes.CDLL(str(path))
    for name, arguments in _SIGNATURES.items():
        try:
            function = getattr(loaded, name)
        except AttributeError as error:
            raise OSError(str(error)) from error
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
    word = os.environ.get(MARCH) or "native"
    return [f"-mcpu={word}" if platform.machine() in ("arm64", "aarch64") else f"-march={word}"]


def _openmp_flag(version: str) -> list[str]:
    """-fopenmp where PyTorch has loaded the runtime that this compiler calls, else one thread."""
    entry = "__kmpc_fork_call" if "clang" in version else "GOMP_parallel"
    return ["-fopenmp"] if hasattr(ctypes.CDLL(None), entry) else []


def machine() -> list[str]:
    """What decides how fast the kernels and PyTorch's own operations are here: the kernels' source,
    the processor with its flags, and what PyTorch may use of them."""
    words = [SOURCE.read_text("utf-8"), *(os.environ.get(name, "") for name in CAPPED_BY)]
    try:
        lines = Path("/proc/cpuinfo").read_text("utf-8", "replace").splitlines()
    except OSError:
        return [*words, platform.machine(), platform.processor()]
    wanted = ("model name", "flags", "Features")
    return [*words, *dict.fromkeys(line for line in lines if line.startswith(wanted))]
