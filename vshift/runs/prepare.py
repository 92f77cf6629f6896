"""Decide what training has to do in a run folder: begin, resume or nothing."""

from __future__ import annotations

import platform
import subprocess
import sys
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from vshift._version import __version__
from vshift.errors import RunError, VShiftError
from vshift.runs import files
from vshift.runs.folder import CONFIG, RUN, SOURCE, RunFolder, now
from vshift.runs.read import number
from vshift.text import first_lines, list_names, to_json

if TYPE_CHECKING:
    from vshift.config.schema import Config, Hardware

Action = Literal["new", "resume", "done", "diverged"]
_SHOWN = 12
_LEFT_OPEN = {"precision", "step", "threads"}  # by `auto` or null; run.json has what they became
_REMEDIES = (
    "give this one another name (--set name=…) or another --runs-dir, "
    "or replace that run with --fresh"
)


def run_path(runs_dir: Path | str, name: str, seed: int) -> Path:
    return Path(runs_dir) / name / f"seed-{seed}"


def prepare(
    runs_dir: Path | str,
    config: Config,
    seed: int,
    fresh: bool = False,
    hardware: Hardware | None = None,
) -> tuple[RunFolder, Action]:
    """Make or open the run folder of a config with one seed, and return what is to be done in it.

    `new`: config.yaml and run.json are written, and nothing else exists. `resume`: there is a
    checkpoint. In both cases the status is `running` and other processes are kept out until
    `close`. `done` and `diverged`: finished, nothing was changed.

    Args:
        hardware: for a new run's config.yaml, the config's section with what it leaves open filled
            in, because results are bit-identical only with the same precision and threads.

    Raises:
        RunError: the folder holds another config's run, is in use or damaged, or cannot be written;
            it is behind a link, or no run.
    """
    from vshift.config.own import copies

    kept, contents = copies(config, SOURCE)  # maybe from this folder, which is cleared first
    path = run_path(runs_dir, config.name, seed)
    files.refuse_links(Path(runs_dir), path)
    folder = RunFolder.create(path)
    folder.lock()
    try:
        folder.refuse_other_files()
        if fresh:
            folder.clear()
        action = next_action(folder, config)
        if action == "new":
            folder.clear()
            _write_new(folder, config, seed, hardware or config.hardware, kept, contents)
        elif action == "resume":
            resumes = round(number(folder.run.get("resumes")) or 0)
            folder.update_run(status="running", finished=None, resumes=resumes + 1)
    except BaseException:
        folder.close()
        raise
    if action in ("done", "diverged"):
        folder.close()
    return folder, action


def _write_new(
    folder: RunFolder,
    config: Config,
    seed: int,
    hardware: Hardware,
    kept: Config,
    contents: Mapping[str, bytes],
) -> None:
    """Write what a run begins with: copies of the user's files, config.yaml and run.json.

    Args:
        kept, contents: of `vshift.config.own.copies`.
    """
    from vshift.config import config_hash, dump

    own = {"seeds": [seed], "grid": None, "zip": None, "arms": None, "hardware": hardware}
    folder.write_source(contents)
    folder.write_config(dump(kept.model_copy(update=own)))
    folder.write_run(
        {
            "status": "running",
            "name": config.name,
            "seed": seed,
            "config_hash": config_hash(config),
            "started": now(),
            "finished": None,
            "seconds": None,
            "images_per_second": None,
            "device": None,
            "data": config.data.name,
            "precision": hardware.precision,
            "precision_asked": config.hardware.precision,
            "step": hardware.step,
            "step_asked": config.hardware.step,
            "threads": hardware.threads,
            **versions(),
            **_versions_of(config),
            "git": git_commit(),
        }
    )


def discard(runs_dir: Path | str, name: str, seed: int) -> None:
    """Remove a run's files, as `--fresh` does, without starting it again.

    Raises:
        RunError: a process trains in the folder, or it is behind a link or no run.
    """
    folder = RunFolder(run_path(runs_dir, name, seed))
    if not folder.path.is_dir():
        return
    files.refuse_links(Path(runs_dir), folder.path)
    folder.lock()
    try:
        folder.refuse_other_files()
        folder.clear()
    finally:
        folder.close()


def next_action(folder: RunFolder, config: Config) -> Action:
    """The action that `prepare` would return; writes nothing, the folder need not exist."""
    if not folder.has(CONFIG) and not folder.has(RUN):
        folder.refuse_other_files()
        return "new"
    run = folder.run
    _refuse_another_config(folder, config, run)
    if run.get("status") == "done" and folder.has_summary:
        return "done"
    if run.get("status") == "diverged":
        return "diverged"
    return "resume" if folder.checkpoints() else "new"


def _refuse_another_config(folder: RunFolder, config: Config, run: dict[str, Any]) -> None:
    from vshift.config import config_hash, differences, load
    from vshift.config.own import copies
    from vshift.config.schema import Hardware

    path = folder.path
    if not folder.has(CONFIG):
        if run.get("config_hash") == config_hash(config):
            return
        raise RunError(
            f"{path} holds another config's run, and its {CONFIG} is missing; {_REMEDIES}"
        )
    try:
        old = load(path / CONFIG)
    except (VShiftError, UnicodeDecodeError) as error:
        raise RunError(
            f"{path} holds a run whose {CONFIG} cannot be read; {_REMEDIES}\n{error}"
        ) from error
    # As a run folder names them: a module of the working folder is a file there.
    changed = differences(*(copies(each, SOURCE)[0] for each in (old, config)))
    for key, value in config.hardware.model_dump(include=_LEFT_OPEN).items():
        if value == Hardware.model_fields[key].default:  # a resumed run keeps its own
            changed.pop(f"hardware.{key}", None)
    if not changed:
        return
    lines = [
        _changed_source(path, key, old, config)
        or f"  {key}: {to_json(before)} there, {to_json(after)} now"
        for key, (before, after) in changed.items()
    ]
    keys = "this key differs" if len(changed) == 1 else "these keys differ"
    heading = f"{path} holds another config's run; {keys}:"
    raise RunError("\n".join([heading, *first_lines(lines, _SHOWN, "  and {:,} more"), _REMEDIES]))


def _changed_source(path: Path, key: str, old: Config, new: Config) -> str:
    """The line for a part of one's own whose files changed; empty for other keys."""
    from vshift.config.own import changed_files, own_parts

    section, _, last = key.rpartition(".")
    before, after = own_parts(old).get(section), own_parts(new).get(section)
    if last != "source" or before is None or after is None:
        return ""
    files = changed_files(before, after)
    return f"  {key}: {list_names(files)} changed since; {path / SOURCE} has what it was"


def versions() -> dict[str, str | None]:
    """The versions of python, torch, torchvision and vshift, without importing torch."""
    return {
        "python": platform.python_version(),
        "torch": _version("torch"),
        "torchvision": _version("torchvision"),
        "vshift": __version__,
    }


def _versions_of(config: Config) -> dict[str, str | None]:
    """The versions of further libraries whose models a config names."""
    from vshift.config.own import own_parts

    parts = [part for part in own_parts(config).values() if part.is_of_library]
    return {name: _version(name) for name in (part.reference.split(":")[0] for part in parts)}


def _version(package: str) -> str | None:
    loaded = getattr(sys.modules.get(package), "__version__", None)
    if loaded is not None:
        return str(loaded)
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def git_commit() -> str | None:
    """The commit checked out in the current folder's repository; None without one."""
    try:
        answer = subprocess.run(
            ["git", "rev-parse", "HEAD"], capture_output=True, encoding="utf-8", errors="replace",
            timeout=5, check=True,
        )  # fmt: skip
    except (OSError, subprocess.SubprocessError):
        return None
    return answer.stdout.strip() or None
