"""What `vshift audit MODEL` may name: a library's architecture, a factory, a program, a run."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from vshift.auditing.samples import AuditError
from vshift.errors import did_you_mean

ALLOWED = (
    "torchvision:NAME, timm:NAME, FILE.py:FACTORY, FILE.pt2 (an exported program), or a run folder"
)


def load_model(spec: str, weights: Path | None = None, classes: int | None = None) -> nn.Module:
    """Build the model that a specification names, and load weights into it.

    Args:
        weights: a state dict as .safetensors, or as what torch.save wrote, read without executing
            code. Keys `state_dict`, `model` or `model_state_dict` around it are looked into.
        classes: of a library's classifier.

    Raises:
        AuditError: an unknown name, a file that does not hold what it should.
    """
    model = _build(spec, classes)
    if weights is not None:
        load_weights(model, read_state(weights), weights)
    return model


def _build(spec: str, classes: int | None) -> nn.Module:
    kind, _, name = spec.partition(":")
    if kind in ("torchvision", "timm") and name:
        return _from_library(kind, name, {} if classes is None else {"num_classes": classes})
    if spec.endswith(".pt2"):
        from vshift.auditing.exported import load_program

        return load_program(Path(spec))
    if ".py:" in spec:
        made = call_in_file(spec)
        if not isinstance(made, nn.Module):
            raise AuditError(f"{spec} returned a {type(made).__name__}, not a torch.nn.Module")
        return made
    if Path(spec).is_dir():
        from vshift.repair import open_run

        return open_run(Path(spec)).model
    raise AuditError(f"{spec!r} names no model; allowed are {ALLOWED}")


def _from_library(library: str, name: str, options: dict[str, Any]) -> nn.Module:
    names, make = _torchvision() if library == "torchvision" else _timm()
    if name not in names:
        hint = did_you_mean(name, names)
        raise AuditError(f"{library} has no model {name!r}" + (f"; {hint}" if hint else ""))
    try:
        return make(name, **options)
    except (TypeError, ValueError, RuntimeError) as error:
        raise AuditError(f"{library}:{name} cannot be built: {error}") from error


def _torchvision() -> tuple[list[str], Callable[..., nn.Module]]:
    from torchvision import models

    def make(name: str, **options: Any) -> nn.Module:
        if name in ("googlenet", "inception_v3"):
            options["init_weights"] = False  # minutes of truncated normal numbers
        made: nn.Module = models.get_model(name, weights=None, **options)
        return made

    return list(models.list_models()), make


def _timm() -> tuple[list[str], Callable[..., nn.Module]]:
    try:
        import timm
    except ImportError as error:
        raise AuditError(
            f"timm models need timm ({error}); install it with `pip install 'vshift[timm]'`"
        ) from error

    def make(name: str, **options: Any) -> nn.Module:
        made: nn.Module = timm.create_model(name, pretrained=False, **options)
        return made

    return list(timm.list_models()), make


def call_in_file(spec: str) -> Any:
    """The value of FILE.py:NAME, called if it can be: the file is code and runs as the user asked.

    Raises:
        AuditError: no such file, no such name, or an exception in it.
    """
    file, _, name = spec.rpartition(":")
    path = Path(file).expanduser()
    if not path.is_file():
        raise AuditError(f"there is no file {path}")
    module = _executed(path)
    if not hasattr(module, name):
        public = [word for word in vars(module) if not word.startswith("_")]
        hint = did_you_mean(name, public)
        raise AuditError(f"{path} has no {name!r}" + (f"; {hint}" if hint else ""))
    value = getattr(module, name)
    if not callable(value) or isinstance(value, nn.Module):
        return value
    try:
        return value()
    except Exception as error:
        raise AuditError(f"{spec} raised {type(error).__name__}: {error}") from error


_EXECUTED: dict[Path, ModuleType] = {}


def _executed(path: Path) -> ModuleType:
    """A file's module; one file is run once, so that model and loader share what it makes."""
    path = path.resolve()
    if path in _EXECUTED:
        return _EXECUTED[path]
    spec = importlib.util.spec_from_file_location(f"_vshift_audit_{path.stem}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look themselves up there
    sys.path.insert(0, str(path.parent))
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        del sys.modules[spec.name]
        raise AuditError(f"{path} raised {type(error).__name__}: {error}") from error
    finally:
        sys.path.remove(str(path.parent))
    _EXECUTED[path] = module
    return module


def read_state(path: Path) -> dict[str, Tensor]:
    """A state dict from a file, on the CPU, without executing code.

    Raises:
        AuditError: missing, damaged, or holding more than tensors and plain containers.
    """
    if not path.is_file():
        raise AuditError(f"there is no file {path}")
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return dict(load_file(path))
        found = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # unpickling damaged bytes raises many kinds
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise AuditError(
            f"{path} cannot be read without executing code: {reason}; save a state dict, "
            "`torch.save(model.state_dict(), …)`, or .safetensors"
        ) from error
    return _state_in(found, path)


def _state_in(found: Any, path: Path) -> dict[str, Tensor]:
    for key in ("state_dict", "model_state_dict", "model"):
        if isinstance(found, Mapping) and isinstance(found.get(key), Mapping):
            return _state_in(found[key], path)
    tensors = {k: v for k, v in found.items() if isinstance(v, Tensor)} if _maps(found) else {}
    if not tensors:
        raise AuditError(f"{path} holds no state dict, but a {type(found).__name__}")
    return tensors


def _maps(found: Any) -> bool:
    return isinstance(found, Mapping)


def load_weights(model: nn.Module, state: dict[str, Tensor], path: Path) -> None:
    """Load a state dict whose parameters are complete; missing buffers are what an audit is for.

    Raises:
        AuditError: parameters that are missing, unknown names, or other shapes.
    """
    state = {
        name.removeprefix("module.").removeprefix("_orig_mod."): t for name, t in state.items()
    }
    try:
        missing, unknown = model.load_state_dict(state, strict=False)
    except RuntimeError as error:
        raise AuditError(f"{path} does not fit the model: {str(error).splitlines()[-1]}") from error
    parameters = {name for name, _ in model.named_parameters()}
    problems = [f"lacks {name}" for name in missing if name in parameters]
    problems += [f"has an unknown {name}" for name in unknown]
    if problems:
        raise AuditError(f"{path} does not fit the model: it {', '.join(problems[:3])}")
