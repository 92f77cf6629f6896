"""Code of one's own, run: imported by reference, called, and its exceptions told with its lines.

A file runs once for each content of it and of the files beside it that it imports.
"""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from types import ModuleType
from typing import Any

from vshift.config.identity import is_file_reference
from vshift.config.own import OwnPart, hash_of, import_root, located, sources
from vshift.errors import ConfigError, VShiftError
from vshift.installed import is_installed
from vshift.text import did_you_mean, one_line, pluralize, show_value

_MODULES: dict[tuple[str, str], ModuleType] = {}  # by file and hash: a file runs once
_FILES: set[str] = set()  # that were run


def import_object(reference: str) -> Any:
    """The object that a reference names. This runs the user's file.

    Raises:
        ConfigError: there is no such file or object.
    """
    module_name, _, name = reference.rpartition(":")
    try:
        path, files = located(reference), sources(reference)
    except ValueError as error:
        raise ConfigError(str(error)) from None
    key = str(path), hash_of(files)
    if key not in _MODULES:
        is_module = is_installed(path) and not is_file_reference(reference)
        with running(reference):
            _MODULES[key] = importlib.import_module(module_name) if is_module else _run(path, files)
    module = _MODULES[key]
    if not hasattr(module, name):
        hint = did_you_mean(name, [word for word in vars(module) if not word.startswith("_")])
        raise ConfigError(f"{path} has no {name!r}{hint and '; '}{hint}")
    return getattr(module, name)


def _run(path: Path, files: Iterable[str]) -> ModuleType:
    """Import a file as Python does from its root, with the files beside it as they are now."""
    root = import_root(path)
    for file in files:  # modules of another folder, or of an earlier content
        name = _module_name(Path(file))
        if name in sys.modules and not is_installed(_file_of(sys.modules[name])):
            del sys.modules[name]
    if str(root) in sys.path:
        sys.path.remove(str(root))
    sys.path.insert(0, str(root))  # it stays: functions import when they are called
    importlib.invalidate_caches()
    _FILES.update(str(root / file) for file in files)
    own = _module_name(path.relative_to(root))
    if "." in own:
        importlib.import_module(own.rpartition(".")[0])
    own = f"own_{own}" if own in sys.modules else own  # a file called as an installed package
    spec = importlib.util.spec_from_file_location(own, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[own] = module  # dataclasses look themselves up there
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[own]
        raise
    return module


def _module_name(file: Path) -> str:
    return ".".join(file.with_suffix("").parts).removesuffix(".__init__")


def _file_of(module: ModuleType) -> Path:
    return Path(getattr(module, "__file__", None) or sys.executable)


@contextmanager
def running(what: str | Callable[[BaseException], str]) -> Iterator[None]:
    """Turn an exception or exit of a user's code into a ConfigError, with that code's frames.

    What it prints goes to stderr, and it sees no arguments of the command line.

    Args:
        what: begins the message; or a function of the exception that gives it.
    """
    arguments, sys.argv = sys.argv, sys.argv[:1]
    try:
        with redirect_stdout(sys.stderr):  # ours is for data
            yield
    except VShiftError:
        raise
    except (Exception, SystemExit) as error:
        begin = what if isinstance(what, str) else what(error)
        raise ConfigError(f"{begin}: {describe_error(error)}") from error
    finally:
        sys.argv = arguments


def at_fault(parts: Iterable[OwnPart], error: BaseException) -> list[OwnPart]:
    """The parts whose code raised an exception: with a file in its innermost frame that is one's.

    None if no frame is in a file of any.
    """
    files = {part.reference: _files_of(part) for part in parts}
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        found = [part for part in parts if frame.filename in files[part.reference]]
        if found:
            return found
    return []


def _files_of(part: OwnPart) -> set[str]:
    """The files that a part's code is in; none of a library's model."""
    if part.is_of_library:
        return set()
    path = located(part.reference)
    if not is_installed(path):
        return {str(import_root(path) / file) for file in sources(part.reference)}
    target = import_object(part.reference)
    return (
        {inspect.getfile(target)} if inspect.isroutine(target) or inspect.isclass(target) else set()
    )


def describe_error(error: BaseException) -> str:
    """An exception with the frames of files that were run by reference, a line each."""
    reason = " ".join(str(error).split())
    if isinstance(error, SystemExit):
        reason += '; put what a file does as a script under `if __name__ == "__main__":`'
    lines = [f"{type(error).__name__}: {one_line(reason)}" if reason else type(error).__name__]
    return "\n".join([*lines, *own_frames(error)])


def own_frames(error: BaseException) -> list[str]:
    """The frames of an exception that are in files that were run by reference."""
    return [
        f"  {frame.filename}:{frame.lineno}, in {frame.name}: {one_line(frame.line or '', 200)}"
        for frame in traceback.extract_tb(error.__traceback__)
        if frame.filename in _FILES
    ]


def call(part: OwnPart, section: str = "", /, **offered: Any) -> Any:
    """Call a part's object with its `args`, and with those offered keywords that it asks for.

    Args:
        section: its dotted key, for messages, where that is not the part's only one.

    Raises:
        ConfigError: not callable, an argument that it does not take, or an exception in it.
    """
    target = import_object(part.reference)
    if not callable(target):
        raise ConfigError(
            f"{part.reference} is {show_value(type(target).__name__)}, which cannot be called"
        )
    given = arguments(target, part, offered, section)
    with running(part.reference):
        return target(**given)


def takes_no(part: OwnPart, name: str, allowed: Iterable[str], section: str = "") -> str:
    """A message about a key of a part's `args`, with the nearest name of those allowed."""
    key = ".".join(filter(None, (section or part.section, "args", name)))
    hint = did_you_mean(name, allowed) or f"it takes {', '.join(allowed) or 'nothing'}"
    return f"{key}: {part.reference} takes no {name!r}; {hint}"


def arguments(
    target: Callable[..., Any], part: OwnPart, offered: dict[str, Any], section: str = ""
) -> dict[str, Any]:
    """The keywords of a call: `args`, and what is offered under a name of the signature.

    Raises:
        ConfigError: an argument that it does not take, with the nearest name.
    """
    try:
        parameters = inspect.signature(target).parameters
    except (TypeError, ValueError):  # a built-in without a signature
        return dict(part.args)
    named = {
        name: parameter
        for name, parameter in parameters.items()
        if parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY)
    }
    if not any(parameter.kind == parameter.VAR_KEYWORD for parameter in parameters.values()):
        wrong = [name for name in part.args if name not in named]
        problems = [takes_no(part, name, named, section) for name in wrong]
        if problems:
            raise ConfigError(*map(one_line, problems))
    given = {**{name: value for name, value in offered.items() if name in named}, **part.args}
    missing = [
        name
        for name, p in named.items()
        if p.default is inspect.Parameter.empty and name not in given
    ]
    if missing:
        raise ConfigError(
            f"{part.reference} needs {pluralize(len(missing), 'argument')} more: "
            f"{', '.join(missing)}; write args: {{{missing[0]}: …}}"
        )
    return given
