"""Parts of one's own, named by reference: `my_model.py:MyNet`, `package.module:object`.

Reading a config never runs a user's file: what it needs to know of one (whether the object is
there, what else the file imports) comes from its syntax tree. `vshift.config.own_code` runs it, for
those who train, inspect or audit.
"""

from __future__ import annotations

import ast
import functools
import hashlib
import importlib.machinery
import importlib.util
import os
import stat
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, TypeVar

from pydantic import AfterValidator, Field

from vshift.config.identity import TAG_KEYS, is_file_reference
from vshift.config.section import Section
from vshift.errors import ConfigError
from vshift.installed import is_installed
from vshift.text import did_you_mean, one_line, show_value

FORMS = ("file.py:object", "package.module:object")
MAX_BYTES = 10_000_000  # of a file


def _well_formed(reference: str) -> str:
    module, _, name = reference.rpartition(":")
    dotted = all(part.isidentifier() for part in module.split("."))
    if not name.isidentifier() or not (dotted or module.endswith(".py")):
        raise ValueError(f"{show_value(reference)} is not a reference; write {' or '.join(FORMS)}")
    return reference


Reference = Annotated[str, AfterValidator(_well_formed)]


class OwnPart(Section):
    """What every part by reference shares. Each declares its `name` or `kind`, a Reference."""

    section: ClassVar[str] = ""  # of the config, in which it may stand
    forms: ClassVar[tuple[str, ...]] = FORMS
    libraries: ClassVar[tuple[str, ...]] = ()  # whose names the part may have: `torchvision:…`

    args: dict[str, Any] = Field(
        {}, description="Keyword arguments that the object is called with."
    )
    source: Annotated[str, Field(pattern="^[0-9a-f]{16}$")] | None = Field(
        None,
        description="Hash of the file and of the files beside it that it imports; filled in. If it "
        "is given, other files are refused.",
    )

    @property
    def tag_key(self) -> str:
        """The key that holds the reference."""
        return next(key for key in TAG_KEYS if key in type(self).model_fields)

    @property
    def reference(self) -> str:
        """The object, as the config names it."""
        return str(getattr(self, self.tag_key))

    @property
    def is_of_library(self) -> bool:
        """Whether it names a library's model or data set: `torchvision:resnet18`."""
        return self.reference.rpartition(":")[0] in self.libraries


# ---- parts of a config

AnySection = TypeVar("AnySection", bound=Section)


def with_parts(
    section: AnySection, change: Callable[[str, OwnPart], OwnPart], path: str = ""
) -> AnySection:
    """A config or a section of one, with every part by reference in it changed.

    Args:
        change: (the part's dotted key, the part) → what takes its place.
        path: the section's own dotted key.
    """
    changed = {}
    for name in type(section).model_fields:
        value, key = getattr(section, name), f"{path}.{name}" if path else name
        if isinstance(value, list):
            changed[name] = [_changed(item, change, f"{key}.{i}") for i, item in enumerate(value)]
        else:
            changed[name] = _changed(value, change, key)
    fresh = {name: value for name, value in changed.items() if value != getattr(section, name)}
    return section.model_copy(update=fresh) if fresh else section


def _changed(value: Any, change: Callable[[str, OwnPart], OwnPart], key: str) -> Any:
    value = change(key, value) if isinstance(value, OwnPart) else value
    return with_parts(value, change, key) if isinstance(value, Section) else value


def own_parts(config: Section) -> dict[str, OwnPart]:
    """Every part by reference of a config, by dotted key."""
    found: dict[str, OwnPart] = {}

    def note(key: str, part: OwnPart) -> OwnPart:
        found[key] = part
        return part

    with_parts(config, note)
    return found


def with_sources(config: AnySection, where: Callable[[str], str]) -> AnySection:
    """A config whose parts by reference have their `source`.

    Args:
        where: a dotted key → how messages name its place.

    Raises:
        ConfigError: a file or an object that is not there, or a `source` that is not the file's.
    """
    problems: list[str] = []

    def change(key: str, part: OwnPart) -> OwnPart:
        try:
            found = None if part.is_of_library else source_hash(part.reference)
        except ValueError as error:
            problems.append(one_line(f"{where(f'{key}.{part.tag_key}')}: {error}"))
            return part
        if part.source not in (None, found):
            file = part.reference.rpartition(":")[0]
            problems.append(
                one_line(
                    f"{where(f'{key}.source')}: {file}, or a file that it imports, is not what "
                    f"was hashed ({found} now, {part.source} there); put it back, or leave source "
                    "out to take it as it is"
                )
            )
        return part if part.source == found else part.model_copy(update={"source": found})

    config = with_parts(config, change)
    if problems:
        raise ConfigError(*problems)
    return config


def copies(config: AnySection, folder: str) -> tuple[AnySection, dict[str, bytes]]:
    """What a run keeps of the files of a config's parts, so that its config.yaml trains anywhere.

    Files of installed packages are left out: their versions are known.

    Args:
        folder: of the copies, as the config is to name it.

    Returns:
        The config with references to the copies; and path of a copy in the folder → content.

    Raises:
        ConfigError: a file has changed since the config was read.
    """
    files: dict[str, bytes] = {}
    below: dict[Path, str] = {}

    def change(key: str, part: OwnPart) -> OwnPart:
        if part.is_of_library:
            return part
        path, found = located(part.reference), sources(part.reference)
        if part.source not in (None, hash_of(found)):
            raise ConfigError(f"{path}: changed since the config was read; repeat the command")
        if is_installed(path):
            return part
        root = import_root(path)
        # A folder for each root, as two may have files of one name.
        place = below.setdefault(root, f"{len(below) + 1}/" if below else "")
        files.update({place + file: content for file, content in found.items()})
        copy = f"{folder}/{place}{path.relative_to(root).as_posix()}"
        name = part.reference.rpartition(":")[2]
        return part.model_copy(update={part.tag_key: f"{copy}:{name}"})

    return with_parts(config, change), files


def changed_files(one: OwnPart, other: OwnPart) -> list[str]:
    """The files, by their path from where Python imports them, in which two sources differ."""
    a, b = sources(one.reference), sources(other.reference)
    return sorted(file for file in a.keys() | b.keys() if a.get(file) != b.get(file))


# ---- files, read and not run


def absolute(reference: str, folder: Path) -> str:
    """A reference to a file, made independent of the folder that it is relative to."""
    return os.path.abspath(folder / os.path.expanduser(reference))


def source_hash(reference: str) -> str:
    """16 hex digits of the file that a reference names and of the files beside it that it imports.

    Raises:
        ValueError: with the reason, if there is no such file or object.
    """
    return hash_of(sources(reference))


def hash_of(files: Mapping[str, bytes]) -> str:
    digest = hashlib.sha256()
    for name, content in files.items():
        digest.update(f"{name}\0{len(content)}\0".encode() + content)
    return digest.hexdigest()[:16]


def sources(reference: str) -> dict[str, bytes]:
    """The file that a reference names and, recursively, the files beside it that it imports.

    "Beside" is below the folder that Python would import the file from. Of an installed package it
    is the one file.

    Returns:
        Path from that folder, with slashes → content; sorted.

    Raises:
        ValueError: there is no such file or object, or the file is no Python.
    """
    name = reference.rpartition(":")[2]
    path = located(reference)
    root = import_root(path)
    names = _read(path)[1].names
    if names is not None and name not in names:
        public = sorted(word for word in names if not word.startswith("_"))
        hint = did_you_mean(name, public) or f"it has {', '.join(public[:8]) or 'no names'}"
        raise ValueError(f"{path} has no {name!r}; {hint}")
    found: dict[Path, bytes] = {}
    waiting = [path]
    while waiting:
        file = waiting.pop()
        if file in found:
            continue
        found[file], syntax = _read(file)
        if not is_installed(path):
            waiting += _beside(root, file, syntax.imports)
    return {file.relative_to(root).as_posix(): found[file] for file in sorted(found)}


def import_root(path: Path) -> Path:
    """The folder from which Python imports a file: the first one above it that is no package."""
    folder = path.parent
    while (folder / "__init__.py").is_file() and folder != folder.parent:
        folder = folder.parent
    return folder


def located(reference: str) -> Path:
    """The file that a reference names; a module's is in the working folder or installed."""
    module = reference.rpartition(":")[0]
    if is_file_reference(reference):
        return Path(os.path.abspath(module))
    first, *rest = module.split(".")
    finder = importlib.machinery.PathFinder
    spec = finder.find_spec(first, [os.getcwd()]) or importlib.util.find_spec(first)
    if spec is None:
        raise ValueError(
            f"there is no module {first!r} in the working folder and none is installed"
        )
    for part in rest:
        spec = finder.find_spec(part, list(spec.submodule_search_locations or []))
        if spec is None:
            raise ValueError(f"there is no module {module!r}: {first!r} has no {part!r}")
    if spec.origin is None or not spec.origin.endswith(".py"):
        raise ValueError(f"{module!r} is no Python file")
    return Path(spec.origin)


class _Syntax:
    """What a file's syntax tree says: the names that it defines, and the modules that it imports.

    Attributes:
        names: None where they cannot be known, as after `from x import *`.
        imports: (level of a relative import, module, imported name or "").
    """

    def __init__(self, tree: ast.Module) -> None:
        names = set(_defined(tree.body))
        self.names = None if {"*", "__getattr__"} & names else names
        self.imports: list[tuple[int, str, str]] = []
        for node in ast.walk(tree):
            if isinstance(node, ast.Import):
                self.imports += [(0, alias.name, "") for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                module = node.module or ""
                self.imports += [(node.level, module, alias.name) for alias in node.names]


def _defined(body: Iterable[ast.AST]) -> Iterator[str]:
    """The names that statements define at the top of a file, also under `if` and `try`."""
    for node in body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield node.name
        elif isinstance(node, ast.Import | ast.ImportFrom):
            yield from (alias.asname or alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            for target in ast.walk(node):
                if isinstance(target, ast.Name) and isinstance(target.ctx, ast.Store):
                    yield target.id
        else:  # an `if`, a `try` and its clauses, a `with`; others have none of these
            for inner in ("body", "orelse", "handlers", "finalbody"):
                yield from _defined(getattr(node, inner, ()))


def _read(path: Path) -> tuple[bytes, _Syntax]:
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            raise ValueError(f"{path} is no file")
        if status.st_size > MAX_BYTES:
            raise ValueError(f"{path}: larger than {MAX_BYTES // 1_000_000} MB; is it Python?")
        content = path.read_bytes()
    except FileNotFoundError:
        folder = path.parent
        near = [f.name for f in folder.glob("*.py")] if folder.is_dir() else []
        hint = did_you_mean(path.name, near)
        raise ValueError(f"there is no file {path}{'; ' if hint else ''}{hint}") from None
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror}") from None
    return content, _syntax(path, content)


@functools.lru_cache(maxsize=1000)
def _syntax(path: Path, content: bytes) -> _Syntax:
    try:
        with warnings.catch_warnings(action="ignore"):
            return _Syntax(ast.parse(content))
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        line = getattr(error, "lineno", None)
        where = f"{path}:{line}" if line else str(path)
        raise ValueError(f"{where}: not valid Python: {getattr(error, 'msg', error)}") from None


def _beside(root: Path, file: Path, imports: list[tuple[int, str, str]]) -> Iterator[Path]:
    """The files below `root` that Python runs for a file: its packages' own, and its imports'."""
    packages = [folder for folder in file.parents if folder.is_relative_to(root) and folder != root]
    yield from (folder / "__init__.py" for folder in packages)
    for level, module, name in imports:
        words = [word for word in (*module.split("."), name) if word and word != "*"]
        folder = root if not level else file.parents[level - 1]
        if not folder.is_relative_to(root) or (not level and words[0] in sys.stdlib_module_names):
            continue
        places = [folder.joinpath(*words[:count]) for count in range(len(words) + 1)]
        for place in places:
            inside = [] if place == root else [place / "__init__.py", place.with_suffix(".py")]
            yield from (path for path in inside if path.is_file())
