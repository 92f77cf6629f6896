"""A config file, the files that its `base:` names, and `--set` → a `Config`; and back to YAML."""

from __future__ import annotations

import codecs
import os
import re
import unicodedata
from collections.abc import Sequence
from dataclasses import replace
from functools import reduce
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from vshift.config.identity import TAG_KEYS, is_file_reference, upgrade
from vshift.config.own import absolute, with_sources
from vshift.config.problems import explain
from vshift.config.schema import FILE_KEYS, NAME_LENGTH, RESERVED, Config
from vshift.config.shipped import find_config, shipped
from vshift.config.yaml12 import MAX_DEPTH, Node, SourceLocation, from_python, parse, to_yaml
from vshift.errors import ConfigError
from vshift.text import did_you_mean, one_line, show_value

AnyPath = str | os.PathLike[str]
MAX_BYTES = 1_000_000
MAX_BASES = 20  # in one list, and in one chain


def load(path: AnyPath, sets: Sequence[str] = (), seed: int | None = None) -> Config:
    """Read, merge, override and validate a config.

    Args:
        sets: `key=value` texts of `--set`, applied in order after the bases.
        seed: replaces the config's seeds.

    Raises:
        ConfigError: one line per problem.
    """
    return build(gather(path, sets, None if seed is None else [seed]))


def gather(path: AnyPath, sets: Sequence[str] = (), seeds: Sequence[int] | None = None) -> Node:
    """Everything that makes up a config, not yet validated: bases, file, `--set`, seeds, name."""
    path = find_config(Path(path), os.fspath(path))
    tree = resolve(path)
    if path.with_name("run.json").is_file():  # a run folder's, maybe of an older version
        old = tree.to_python()
        if (new := upgrade(old)) != old:  # its values lose their locations
            tree = from_python(new, SourceLocation(tree.location.source))
    tree = _apply(tree, sets)
    if "name" not in tree.value:
        tree = put(tree, ["name"], from_python(_name_of(path), tree.location))
    if seeds is not None:
        location = SourceLocation("--seed " + " --seed ".join(str(seed) for seed in seeds))
        tree = put(tree, ["seeds"], from_python(list(seeds), location))
    return tree


def build(tree: Node) -> Config:
    """Validate a tree.

    Files of one's own are read, and never run.
    """
    try:
        config = Config.model_validate(tree.to_python())
    except ValidationError as error:
        raise ConfigError(*explain(error, tree)) from None
    return with_sources(config, lambda key: f"{_location(tree, key)}: {key}")


def _location(tree: Node, key: str) -> SourceLocation:
    """Where a dotted key is written, or else the section that it belongs to."""
    node = tree
    for part in key.split("."):
        child = node.child(int(part) if part.isdecimal() else part)
        if child is None:
            break
        node = child
    return node.location


def dump(config: Config) -> str:
    """YAML of the whole config, defaults included; `load` makes an equal config of it."""
    return to_yaml(_name_first(config.model_dump()))


def _name_first(value: Any) -> Any:
    """Sections begin with their name or kind, as people write them."""
    if not isinstance(value, dict):
        return [_name_first(item) for item in value] if isinstance(value, list) else value
    keys = sorted(value, key=lambda key: key not in ("name", "kind"))
    return {key: _name_first(value[key]) for key in keys}


# ---- files and their bases


def resolve(path: Path) -> Node:
    """The tree of a file with all its bases merged in, and without the keys about the file.

    Later bases win over earlier ones and the file wins over all. `name` is not inherited: it
    names a run folder, and two configs with one base must not share it.

    Raises:
        ConfigError: also for a file that is a base only.
    """
    if "\0" in str(path):
        raise ConfigError(f"{one_line(str(path), 300)}: not a file name")
    return _resolve(path, (), {})


def is_base(path: Path) -> bool:
    """Whether a file says `is_base: true`; False for one that cannot be read."""
    try:
        return _says_is_base(read_file(path))
    except ConfigError:
        return False


def _says_is_base(tree: Node) -> bool:
    node = tree.child("is_base")
    if node is not None and not isinstance(node.value, bool):
        what = f"{show_value(node.value)} is not true or false"
        raise ConfigError(f"{node.location}: is_base: {what}")
    return node is not None and node.value


def _resolve(path: Path, chain: tuple[Path, ...], resolved: dict[str, Node]) -> Node:
    """Resolve a file that the last of `chain` names as its base; `resolved` is by real path."""
    real = os.path.realpath(path)
    if real in resolved:
        return resolved[real]
    tree = _with_norm_section(_with_absolute_files(read_file(path), path.parent))
    if _says_is_base(tree) and not chain:
        raise ConfigError(
            f"{tree.value['is_base'].location}: is_base: this file is a base of others and is not "
            f"run by itself; run a config with `base: {one_line(path.name)}`, or write one"
        )
    base = tree.child("base") or Node(None, tree.location)
    entries = base.value if isinstance(base.value, list) else [base]
    entries = [] if base.value is None else entries
    if len(entries) > MAX_BASES:
        raise ConfigError(f"{base.location}: base: {len(entries)} files; at most {MAX_BASES}")
    problems = [
        f"{entry.location}: base: {show_value(entry.value)} is not a path; write one path or a list"
        for entry in entries
        if not isinstance(entry.value, str) or not entry.value.strip()
    ]
    if problems:
        raise ConfigError(*problems)
    chain, bases = (*chain, path), []
    for entry in entries:
        below = find_config(Path(os.path.normpath(path.parent / entry.value)), entry.value)
        where = f"{entry.location}: base"
        if os.path.realpath(below) in [os.path.realpath(file) for file in chain]:
            files = " → ".join(str(file) for file in (*chain, below))
            raise ConfigError(one_line(f"{where}: the files name each other in a circle: {files}"))
        if len(chain) > MAX_BASES:
            raise ConfigError(f"{where}: more than {MAX_BASES} files, each the base of the next")
        try:
            bases.append(_resolve(below, chain, resolved))
        except ConfigError as error:
            whole = f"{one_line(str(below), 300)}: "  # no such file, …: say who asked for it
            lines = (f"{where}: {x}" if x.startswith(whole) else x for x in error.problems)
            raise ConfigError(*lines) from None
    merged = reduce(merge, [*bases, tree])
    dropped = {*FILE_KEYS} if "name" in tree.value else {*FILE_KEYS, "name"}
    kept = {key: node for key, node in merged.value.items() if key not in dropped}
    resolved[real] = replace(merged, value=kept)
    return resolved[real]


def _with_absolute_files(node: Node, folder: Path, key: str = "") -> Node:
    """The tree with references to files made absolute; `key` is the node's own, maybe dotted."""
    *above, last = key.split(".")
    if "args" in (*above, last):
        return node
    if isinstance(node.value, dict):
        children = node.value.items()
        inside = {name: _with_absolute_files(child, folder, name) for name, child in children}
        return replace(node, value=inside)
    if isinstance(node.value, list):
        items = [_with_absolute_files(child, folder, key) for child in node.value]
        return replace(node, value=items)
    if last in TAG_KEYS and is_file_reference(node.value):
        return replace(node, value=absolute(node.value, folder))
    return node


def _with_norm_section(tree: Node) -> Node:
    """The tree with `norm: layer` as the section that it is short for, so that it merges as one."""
    norm = tree.child("norm")
    if norm is None or not isinstance(norm.value, str) or ":" in norm.value:
        return tree
    section = replace(norm, value={"kind": replace(norm, key=None)})
    return replace(tree, value={**tree.value, "norm": section})


def read_file(path: Path) -> Node:
    """The tree of one file, whose top is a mapping.

    Raises:
        ConfigError: for a file that is missing, unreadable, too large, not UTF-8 or not a mapping.
    """
    source = one_line(str(path), 300)
    try:
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
    except OSError as error:
        match error:
            case FileNotFoundError():
                why = f"no such file{_nearest(path)}"
            case IsADirectoryError():
                why = f"a folder, not a config file{_nearest(path)}; vshift sweep takes folders"
            case PermissionError():
                why = "may not be read (permission denied)"
            case _:
                why = f"cannot be read: {error.strerror}"
        raise ConfigError(f"{source}: {why}") from None
    if len(data) > MAX_BYTES:
        raise ConfigError(f"{source}: larger than {MAX_BYTES // 1_000_000} MB; is it a config?")
    if data.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise ConfigError(f"{source}: the text is UTF-16; save it as UTF-8")
    try:
        tree = parse(data.removeprefix(codecs.BOM_UTF8).decode(), source)
    except UnicodeDecodeError as error:
        before = data[: error.start]
        line, column = before.count(b"\n") + 1, error.start - before.rfind(b"\n")
        what = f"byte 0x{data[error.start]:02x} is not UTF-8; save the file as UTF-8"
        raise ConfigError(f"{source}:{line}:{column}: {what}") from None
    if tree.value is None:
        what = "the file is empty; a config holds at least data, network, epochs"
        raise ConfigError(f"{source}: {what}")
    if not isinstance(tree.value, dict):
        what = f"a config is a mapping (`key: value` lines), not {show_value(tree.value)}"
        raise ConfigError(f"{tree.location}: {what}")
    return tree


def _nearest(path: Path) -> str:
    """A hint from the names around a path that is wrong."""
    folder = path if path.is_dir() else path.parent
    ours = did_you_mean(path.as_posix(), shipped())
    try:
        names = sorted(p.name for p in folder.iterdir() if p.suffix in (".yaml", ".yml"))
    except OSError:
        return f"; {ours or f'there is no folder {one_line(str(folder), 300)}'}"
    hint = did_you_mean(path.name, names) or did_you_mean(f"{path.name}.yaml", names) or ours
    if hint and folder != path:
        return one_line(f"; {hint}")
    if not names:
        return ""
    what = "it" if folder == path else "the folder"
    return one_line(f"; {what} holds {', '.join(names[:5])}{', …' * (len(names) > 5)}")


def merge(below: Node, above: Node, *, top: bool = True) -> Node:
    """Deep merge; `above` wins. Mappings are joined, lists and scalars replaced.

    A section whose `name` or `kind` differs is replaced too: the depth of a base's preresnet means
    nothing to the wrn that a file puts in its place. The config's own `name` is no kind.
    """
    if not isinstance(below.value, dict) or not isinstance(above.value, dict):
        return above
    for tag in () if top else ("name", "kind"):
        one, two = below.child(tag), above.child(tag)
        if one and two and one.value != two.value:
            return above
    joined = dict(below.value)
    for key, node in above.value.items():
        joined[key] = merge(joined[key], node, top=False) if key in joined else node
    return replace(above, value=joined)


# ---- --set


def _apply(tree: Node, sets: Sequence[str]) -> Node:
    """The tree with every `--set key=value` put in; all malformed ones in one error."""
    problems: list[str] = []
    for text in sets:
        key, equals, value = text.partition("=")
        source, key = one_line(f"--set {text}", 120), key.strip()
        try:
            if not equals:
                what = "no `=`; write --set key=value, for instance --set epochs=5"
                raise ConfigError(f"{source}: {what}")
            if (top := key.split(".")[0]) in FILE_KEYS:
                raise ConfigError(f"{source}: `{top}` is read before --set; write it in a file")
            node = _with_absolute_files(parse(value, source, inline=True), Path.cwd(), key)
            tree = put(tree, split_key(key, source), replace(node, key=node.location))
        except ConfigError as error:
            problems += error.problems
    if problems:
        raise ConfigError(*problems)
    return tree


def split_key(key: str, source: object) -> list[str]:
    """The parts of a dotted key. What follows `grid.`, `zip.`, `arms.<arm>.` is one key."""
    parts = key.split(".", {"grid": 1, "zip": 1, "arms": 2}.get(key.split(".")[0], -1))
    if not all(part and part == part.strip() for part in parts):
        what = f"`{one_line(key, 60)}` is not a" if key else "no"
        raise ConfigError(f"{source}: {what} dotted key such as network.noise.rate")
    if len(parts) > MAX_DEPTH:
        raise ConfigError(f"{source}: a key of {len(parts)} parts; at most {MAX_DEPTH}")
    return parts


def put(tree: Node, keys: Sequence[str], node: Node, above: tuple[str, ...] = ()) -> Node:
    """The tree with `node` at a dotted key; missing mappings on the way are created.

    Args:
        above: the keys of the tree itself, for messages.

    Raises:
        ConfigError: the key leads through a scalar or past a list's end.
    """
    if not keys:
        return node
    key, rest, name = keys[0], keys[1:], ".".join(above)
    if isinstance(tree.value, list):
        entries, last = list(tree.value), len(tree.value) - 1
        what = ""
        if not re.fullmatch(r"[0-9]{1,6}", key, re.ASCII):
            what = f"`{name}` is a list; say which entry, for instance `{name}.0`"
        elif last < 0:
            what = f"`{name}` is an empty list"
        elif int(key) > last:
            what = f"`{name}` has entries 0 to {last}; there is no {key}"
        if what:
            raise ConfigError(one_line(f"{node.start}: {what}"))
        entries[int(key)] = put(entries[int(key)], rest, node, (*above, key))
        return replace(tree, value=entries)
    if tree.value is None:
        tree = Node({}, node.location, node.key or tree.key)
    if not isinstance(tree.value, dict):
        what = f"`{name}` is {show_value(tree.value)}, which has no keys"
        raise ConfigError(one_line(f"{node.start}: {what}"))
    below = tree.value.get(key) or Node(None, node.location, node.key)
    return replace(tree, value={**tree.value, key: put(below, rest, node, (*above, key))})


def _name_of(path: Path) -> str:
    """The name of a config that has none, from its file's.

    Raises:
        ConfigError: letters would be lost, and two files might get one name.
    """
    lost = [char for char in _plain(path.stem) if char.isalnum() and not char.isascii()]
    if lost:
        raise ConfigError(
            f"{one_line(str(path), 300)}: the file's name cannot name a run folder, for the sake "
            f"of `{''.join(lost[:10])}`; give the config one with `name:` (letters a to z, digits, "
            "and . _ = + - after the first)"
        )
    return folder_name(path.stem)


def _plain(text: str) -> str:
    """The text with `ä` as `a`: letters without their accents."""
    parts = unicodedata.normalize("NFKD", text)
    return "".join(char for char in parts if not unicodedata.combining(char))


def folder_name(text: str) -> str:
    """The nearest text that can name a run folder."""
    safe = re.sub(r"[^A-Za-z0-9._=+-]+", "_", _plain(text)).lstrip("._=+-")
    safe = f"run-{safe}" if RESERVED.fullmatch(safe) else safe
    return safe[:NAME_LENGTH] or "run"
