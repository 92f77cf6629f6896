"""Config files on disk: reading one, and joining it with the files that its `base:` names."""

from __future__ import annotations

import os
from dataclasses import replace
from functools import reduce
from pathlib import Path

from vshift.config.reader import read
from vshift.config.tree import Node, clean, merge, show
from vshift.errors import ConfigError
from vshift.text import did_you_mean

MAX_BYTES = 1_000_000
MAX_BASES = 20  # in one list, and in one chain


def read_file(path: Path) -> Node:
    """The tree of one file, whose top is a mapping.

    Raises:
        ConfigError: for a file that is missing, unreadable, too large, not UTF-8 or not a mapping.
    """
    source = clean(str(path), 300)
    tree = read(_text(path, source), source)
    if tree.value is None:
        raise ConfigError(
            f"{source}: the file is empty; a config holds at least data, network, epochs"
        )
    if not isinstance(tree.value, dict):
        raise ConfigError(
            f"{tree.place}: a config is a mapping (`key: value` lines), not {show(tree.value)}"
        )
    return tree


def _text(path: Path, source: str) -> str:
    data = _bytes(path, source)
    if len(data) > MAX_BYTES:
        raise ConfigError(f"{source}: larger than {MAX_BYTES // 1_000_000} MB; is it a config?")
    if data.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise ConfigError(f"{source}: the text is UTF-16; save it as UTF-8")
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        before = data[: error.start]
        line, column = before.count(b"\n") + 1, error.start - before.rfind(b"\n")
        bad = data[error.start]
        raise ConfigError(
            f"{source}:{line}:{column}: byte 0x{bad:02x} is not UTF-8; save the file as UTF-8"
        ) from None


def _bytes(path: Path, source: str) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(MAX_BYTES + 1)
    except FileNotFoundError:
        raise ConfigError(f"{source}: no such file{_nearest(path)}") from None
    except IsADirectoryError:
        raise ConfigError(f"{source}: a folder, not a config file{_nearest(path)}") from None
    except PermissionError:
        raise ConfigError(f"{source}: may not be read (permission denied)") from None
    except OSError as error:
        raise ConfigError(f"{source}: cannot be read: {error.strerror}") from None


def _nearest(path: Path) -> str:
    """A hint from the names around a path that is wrong."""
    folder = path if path.is_dir() else path.parent
    try:
        names = sorted(p.name for p in folder.iterdir() if p.suffix in (".yaml", ".yml"))
    except OSError:
        return f"; there is no folder {clean(str(folder), 300)}"
    hint = did_you_mean(path.name, names) or did_you_mean(f"{path.name}.yaml", names)
    if hint and folder != path:
        return clean(f"; {hint}")
    if not names:
        return ""
    what = "it" if folder == path else "the folder"
    return clean(f"; {what} holds {', '.join(names[:5])}{', …' * (len(names) > 5)}")


def resolve(path: Path) -> Node:
    """The tree of a file with all its bases merged in, and without the key `base`.

    Later bases win over earlier ones and the file wins over all. `name` is not inherited: it
    names a run folder, and two configs with one base must not share it.
    """
    if "\0" in str(path):
        raise ConfigError(f"{clean(str(path), 300)}: not a file name")
    return _resolve(path, (), {})


def _resolve(path: Path, chain: tuple[Path, ...], done: dict[str, Node]) -> Node:
    real = os.path.realpath(path)
    if real not in done:
        own = read_file(path)
        below = [_base(node, base, (*chain, path), done) for node, base in _bases(own, path)]
        done[real] = _without(reduce(merge, [*below, own]), own)
    return done[real]


def _without(tree: Node, own: Node) -> Node:
    """The merged tree without `base`, and with `name` only if the file itself gives one."""
    drop = {"base"} if "name" in own.value else {"base", "name"}
    return replace(tree, value={k: v for k, v in tree.value.items() if k not in drop})


def _bases(tree: Node, path: Path) -> list[tuple[Node, Path]]:
    """The files that `base` names, as paths from the file that names them."""
    node = tree.value.get("base")
    if node is None or node.value is None:
        return []
    entries = node.value if isinstance(node.value, list) else [node]
    if len(entries) > MAX_BASES:
        raise ConfigError(f"{node.place}: base: {len(entries)} files; at most {MAX_BASES}")
    wrong = [e for e in entries if not isinstance(e.value, str) or not e.value.strip()]
    if wrong:
        raise ConfigError(
            *(
                f"{e.place}: base: {show(e.value)} is not a path; write one path or a list"
                for e in wrong
            )
        )
    return [(e, Path(os.path.normpath(path.parent / Path(e.value)))) for e in entries]


def _base(node: Node, path: Path, chain: tuple[Path, ...], done: dict[str, Node]) -> Node:
    reals = [os.path.realpath(file) for file in chain]
    if os.path.realpath(path) in reals:
        files = " → ".join(str(file) for file in (*chain, path))
        raise ConfigError(
            clean(f"{node.place}: base: the files name each other in a circle: {files}")
        )
    if len(chain) > MAX_BASES:
        raise ConfigError(
            f"{node.place}: base: more than {MAX_BASES} files, each the base of the next"
        )
    try:
        return _resolve(path, chain, done)
    except ConfigError as error:
        whole = (
            clean(str(path), 300) + ": "
        )  # the file is missing, a folder, …: say who asked for it
        raise ConfigError(
            *(f"{node.place}: base: {p}" if p.startswith(whole) else p for p in error.problems)
        ) from None
