"""What `vshift audit MODEL` may name: a library's architecture, a factory, a program, a run."""

from __future__ import annotations

import importlib.util
import inspect
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from torch import nn

from vshift.auditing.samples import AuditError
from vshift.auditing.weights import load_weights, read_state
from vshift.text import did_you_mean

if TYPE_CHECKING:
    from vshift.train.evaluate import TrainingContext

ALLOWED = (
    "torchvision:NAME, timm:NAME, FILE.py:FACTORY, FILE.pt2 (an exported program), or a run folder"
)


def load_model(spec: str, weights: Path | None = None, classes: int | None = None) -> nn.Module:
    """Build the model that a specification names, and load weights into it.

    Args:
        weights: a state dict as .safetensors, or as what torch.save wrote, read without executing
            code; see `vshift.auditing.weights`.
        classes: of a library's classifier.

    Raises:
        AuditError: an unknown name, a file that does not hold what it should.
    """
    model = _build(spec, classes)
    if weights is not None:
        load_weights(model, read_state(weights), weights)
    return model


def _build(spec: str, classes: int | None) -> nn.Module:
    if is_library(spec):
        kind, _, name = spec.partition(":")
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
        return opened_run(Path(spec)).model
    raise AuditError(f"{spec!r} names no model{_meant(spec)}; allowed are {ALLOWED}")


def is_library(spec: str) -> bool:
    """Whether a library builds this model, and not the user's file or a run."""
    kind, _, name = spec.partition(":")
    return kind in ("torchvision", "timm") and bool(name)


def _meant(spec: str) -> str:
    """What a word without a colon was probably meant to be."""
    if spec.endswith(".py"):
        return f": add the factory's name, {spec}:NAME"
    from torchvision import models

    return f": torchvision:{spec}?" if spec in models.list_models() else ""


def opened_run(path: Path) -> TrainingContext:
    """The network of a finished run, with its data.

    Raises:
        AuditError: no run folder.
        RunError: not finished, or damaged.
    """
    from vshift.train.recalibrate import open_run

    if not (path / "run.json").is_file():
        inside = sorted(found.parent for found in path.glob("**/seed-*/run.json"))
        hint = f", for instance {inside[0]}" if inside else ""
        raise AuditError(f"{path} is no run; a run is a folder <runs-dir>/<name>/seed-<n>{hint}")
    return open_run(path)


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
        if "weights_backbone" in inspect.signature(models.get_model_builder(name)).parameters:
            options["weights_backbone"] = None  # nothing is downloaded
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
    with _blamed_on(spec):
        return value()


@contextmanager
def _blamed_on(what: str) -> Iterator[None]:
    """The user's code runs here: what it raises, an exit included, is told in one line."""
    arguments, sys.argv = sys.argv, [what.rpartition(":")[0] or what]
    try:
        yield
    except SystemExit as error:
        raise AuditError(
            f"{what} ended itself with sys.exit({error.code!r}); put what the file does as a "
            'script under `if __name__ == "__main__":`'
        ) from error
    except Exception as error:
        reason = (str(error).splitlines() or [""])[0]
        raise AuditError(f"{what} raised {type(error).__name__}: {reason}") from error
    finally:
        sys.argv = arguments


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
        with _blamed_on(str(path)):
            spec.loader.exec_module(module)
    except AuditError:
        del sys.modules[spec.name]
        raise
    finally:
        sys.path.remove(str(path.parent))
    _EXECUTED[path] = module
    return module
