"""Models, loaders and weights as `vshift audit MODEL --data SOURCE --weights FILE` names them."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, IterableDataset, Subset

from vshift.auditing.names import fit_to_names
from vshift.auditing.samples import AuditError
from vshift.config import own_code
from vshift.config.data import IMAGE_FORMATS
from vshift.config.own import absolute
from vshift.data import folder
from vshift.errors import ConfigError
from vshift.networks.by_reference import LIBRARIES, library_model
from vshift.text import did_you_mean, list_names

if TYPE_CHECKING:
    from vshift.train.context import TrainingContext

MODELS = (
    "torchvision:NAME, timm:NAME, FILE.py:FACTORY, FILE.pt2 (an exported program), or a run folder"
)
SOURCES = (
    "an image folder (<folder>/<class>/), torchvision:NAME@FOLDER, random, FILE.py:LOADER, or for "
    "a run `train` or `test`"
)

# ---- models


def load_model(spec: str, weights: Path | None = None, classes: int | None = None) -> nn.Module:
    """Build the model that a specification names, and load weights into it.

    Args:
        weights: a state dict, see `read_state`; of a torchvision model also the name of its
            weights, `DEFAULT` or `IMAGENET1K_V1`, which are downloaded where they are missing.
        classes: of a library's classifier.

    Raises:
        AuditError: an unknown name, or a file that does not hold what it should.
    """
    model: nn.Module
    if is_library(spec):
        library, _, name = spec.partition(":")
        options: dict[str, Any] = {} if classes is None else {"num_classes": classes}
        if spec in ("torchvision:googlenet", "torchvision:inception_v3"):
            options["init_weights"] = False  # takes minutes, for truncated normal numbers
        try:
            model = library_model(library, name, options)
        except ValueError as error:
            raise AuditError(str(error)) from error
    elif spec.endswith(".pt2"):
        from vshift.auditing.exported import load_program

        model = load_program(Path(spec))
    elif ".py:" in spec:
        model = call_in_file(spec)
        if not isinstance(model, nn.Module):
            raise AuditError(f"{spec} returned a {type(model).__name__}, not a torch.nn.Module")
    elif Path(spec).is_dir():
        model = _open_run(Path(spec)).model
    else:
        from torchvision import models

        hint = f": torchvision:{spec}?" if spec in models.list_models() else ""
        if spec.endswith(".py"):
            hint = f": add the name of the function that makes it, {spec}:NAME"
        raise AuditError(f"{spec!r} names no model{hint}; allowed are {MODELS}")
    if weights is not None:
        state = _published_weights(spec, str(weights)) or read_state(weights)
        load_weights(model, state, weights)
    return model


def _published_weights(spec: str, name: str) -> dict[str, Tensor] | None:
    """The state dict of torchvision's weights of this name; None if there are none.

    Raises:
        AuditError: they cannot be downloaded.
    """
    library, _, model = spec.partition(":")
    if library != "torchvision" or Path(name).exists():
        return None
    from torchvision.models import get_model_weights

    published = get_model_weights(model).__members__
    if name not in published:
        if Path(name).suffix:  # a file that is missing
            return None
        names = ", ".join(published) or "none"
        raise AuditError(
            f"--weights: there is no file {name}, and torchvision's weights of {model} are {names}"
        )
    try:
        return dict(published[name].get_state_dict(progress=False))
    except OSError as error:
        raise AuditError(f"--weights: {name} of {spec} cannot be downloaded: {error}") from error


def is_library(spec: str) -> bool:
    """Whether a library builds this model, and not the user's file or a run."""
    library, _, name = spec.partition(":")
    return library in LIBRARIES and bool(name)


def _unknown_name(message: str, name: str, names: Iterable[str]) -> AuditError:
    hint = did_you_mean(name, names)
    return AuditError(f"{message}; {hint}" if hint else message)


def _open_run(path: Path) -> TrainingContext:
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
    # A copy of the network, as the audit makes one, has no use for hooks that log other sites.
    return open_run(path, ["measure.sites=bn"])


# ---- the user's own files


def call_in_file(spec: str) -> Any:
    """The value of FILE.py:NAME, called if it can be: the file is code and runs as the user asked.

    Raises:
        AuditError: no such file, no such name, or an exception in it.
    """
    try:
        value = own_code.import_object(absolute(spec, Path.cwd()))
        if not callable(value) or isinstance(value, nn.Module):
            return value
        if needed := _arguments_needed(value):
            raise AuditError(
                f"{spec} needs {list_names(needed)}, and is called without arguments; add a "
                f"function that gives them, for instance `def make(): return "
                f"{spec.rpartition(':')[2]}({needed[0]}=…)`, and name that"
            )
        with own_code.running(spec):
            return value()
    except ConfigError as error:
        raise AuditError(str(error)) from error


def _arguments_needed(function: Callable[..., Any]) -> list[str]:
    """The arguments that a function cannot be called without."""
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):  # a built-in without a signature
        return []
    unnamed = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    return [p.name for p in parameters if p.default is p.empty and p.kind not in unnamed]


# ---- data

NORMALISATIONS: dict[str, tuple[tuple[float, ...], tuple[float, ...]]] = {
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "half": ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
    "none": ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0)),
}
_SPLITS = {"train", "training", "val", "valid", "validation", "dev", "test", "testing", "eval"}


@dataclass(frozen=True)
class ImageOptions:
    """How images become inputs: [N, 3, size, size], normalised, in batches, in a seeded order."""

    batch_size: int = 32
    size: int = 224
    normalise: str = "imagenet"
    seed: int = 0


class RepeatableLoader:
    """A loader that gives the same batches each time it is iterated."""

    def __init__(self, make: Callable[[], Iterable[Any]]) -> None:
        self._make = make

    def __iter__(self) -> Iterator[Any]:
        return iter(self._make())


def load_source(
    spec: str,
    options: ImageOptions,
    run: Path | None = None,
    flag: str = "--data",
    classes: Sequence[str] | None = None,
) -> Iterable[Any]:
    """The loader that a specification names.

    Args:
        run: the run folder under audit, for `train` (augmented) and `test`.
        classes: the class folders of the training images, whose numbers an image folder's classes
            get; default: its own.
        flag: the command-line option that named it, for messages.

    Raises:
        AuditError: an unknown name, a folder without images, an exception in the user's file.
    """
    if spec == "random":
        # Normal numbers, without labels; any number of batches.
        shape = (options.batch_size, 3, options.size, options.size)

        def random_images() -> Iterator[Tensor]:
            generator = torch.Generator().manual_seed(options.seed)
            while True:
                yield torch.randn(shape, generator=generator)

        return RepeatableLoader(random_images)
    if run is not None and spec in ("train", "test"):
        context = _open_run(run)
        if spec == "train":
            return RepeatableLoader(context.augmented(context.config.epochs, None))
        return RepeatableLoader(context.plain(context.images.test))
    if spec.startswith("torchvision:"):
        name, _, root = spec.removeprefix("torchvision:").partition("@")
        return _batches(_torchvision_set(name, root or ".", options, flag), options)
    if ".py:" in spec:
        value = call_in_file(spec)
        if isinstance(value, Dataset) and not isinstance(value, IterableDataset):
            return _batches(value, options)
        if isinstance(value, Mapping) or not hasattr(value, "__iter__"):
            raise AuditError(f"{spec} gave a {type(value).__name__}, not a loader of batches")
        loader: Iterable[Any] = value
        return loader
    if Path(spec).expanduser().is_dir():
        return _batches(_image_folder(Path(spec).expanduser(), options, flag, classes), options)
    if spec.endswith(".py"):
        raise AuditError(
            f"{flag}: add the name of the loader, or of a function that returns it, {spec}:NAME"
        )
    raise AuditError(f"{flag}: {spec!r} is none of {SOURCES}")


def _transform(options: ImageOptions) -> Any:
    from torchvision import transforms as T

    return T.Compose(
        [
            T.Lambda(lambda image: image.convert("RGB")),
            T.Resize(options.size),
            T.CenterCrop(options.size),
            T.ToTensor(),
            T.Normalize(*NORMALISATIONS[options.normalise]),
        ]
    )


class _ImageFiles(Dataset[tuple[Tensor, int]]):
    """Images of files with their classes, decoded when asked for."""

    def __init__(self, files: Sequence[tuple[Path, int]], options: ImageOptions, flag: str) -> None:
        self.files, self.transform, self.flag = files, _transform(options), flag

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        path, label = self.files[index]
        try:
            with folder.opened(path) as image:
                return self.transform(image), label
        except Exception as error:  # Pillow's decoders raise nearly anything on damaged files
            reason = folder.reason_of(error)
            raise AuditError(
                f"{self.flag}: cannot read {path}: {reason}; replace or delete it"
            ) from error


def class_folders(spec: str | None) -> list[str] | None:
    """The class folders of a source that is an image folder; None of others."""
    if spec is None or ":" in spec or not Path(spec).expanduser().is_dir():
        return None
    return folder.subfolders(Path(spec).expanduser())


def _image_folder(
    path: Path, options: ImageOptions, flag: str, classes: Sequence[str] | None = None
) -> _ImageFiles:
    try:
        names = folder.subfolders(path)
        if names and {name.lower() for name in names} <= _SPLITS:
            raise AuditError(
                f"{flag}: {path} holds {', '.join(names)}, which are no classes; name one of them, "
                f"{path / names[0]}"
            )
        files = [[path / name / file for file in folder.image_files(path / name)] for name in names]
    except OSError as error:
        raise AuditError(f"{flag}: cannot list {error.filename}: {error.strerror}") from error
    empty = [name for name, found in zip(names, files, strict=True) if not found]
    if empty or not names:
        where = f"{path} has no class folders"
        if empty:
            where = f"the class folders {list_names(empty)} in {path} have no images"
        raise AuditError(
            f"{flag}: {where} ({', '.join(sorted(IMAGE_FORMATS))}); put every class's images into "
            f"a folder of its own, {path}/<class>/"
        )
    numbers = list(names if classes is None else classes)
    if unknown := [name for name in names if name not in numbers]:
        raise AuditError(
            f"{flag}: {path} has the class {'folders' if len(unknown) > 1 else 'folder'} "
            f"{list_names(unknown)}, which --train-data does not have "
            f"({list_names(numbers)}): the model's outputs are numbered by the training folders"
        )
    labelled = zip(names, files, strict=True)
    pairs = [(file, numbers.index(name)) for name, found in labelled for file in found]
    return _ImageFiles(pairs, options, flag)


def _torchvision_set(name: str, root: str, options: ImageOptions, flag: str) -> Any:
    from PIL import EpsImagePlugin
    from torchvision import datasets

    EpsImagePlugin.gs_binary = False  # a file that holds PostScript does not start Ghostscript
    names = [n for n in datasets.__all__ if n[0].isupper()]
    if name not in names:
        raise _unknown_name(f"torchvision has no data set {name!r}", name, names)
    make: Any = getattr(datasets, name)
    transform = _transform(options)
    try:
        if name == "FakeData":
            size = (3, options.size, options.size)
            return make(size=512, image_size=size, transform=transform)
        return make(root, transform=transform)
    except (TypeError, RuntimeError, OSError, ValueError) as error:
        raise AuditError(
            f"{flag} torchvision:{name}@{root}: {error}; name its folder after @"
        ) from error


def _batches(dataset: Any, options: ImageOptions) -> DataLoader[Any]:
    """Batches in a random order that the seed decides; a smaller rest is dropped."""
    generator = torch.Generator().manual_seed(options.seed)
    order = torch.randperm(len(dataset), generator=generator).tolist()
    size = min(options.batch_size, max(1, len(order) // 2))
    return DataLoader(Subset(dataset, order), size, drop_last=True)


# ---- weights

# Keys under which training loops save a state dict, the most common first.
_STATE_KEYS = ("state_dict", "model_state_dict", "model", "net", "network", "weights", "params")


def read_state(path: Path) -> dict[str, Tensor]:
    """A state dict from .safetensors or from what torch.save wrote, on the CPU.

    A nested one is found under the usual keys, or if a single entry holds tensors.

    Raises:
        AuditError: missing, damaged, or holding more than tensors and plain containers, whose
            loading would execute code.
    """
    if not path.is_file():
        raise AuditError(f"there is no file {path}")
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return dict(load_file(path))
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # unpickling damaged bytes raises many kinds
        # Not PyTorch's own message, which recommends loading the file unsafely.
        message = str(error)
        if "TorchScript" in message:
            reason = "it is a TorchScript archive"
        elif named := re.search(r"GLOBAL ([\w.]+)", message):
            reason = f"it holds more than tensors, {named[1]}"
        elif "weights_only" in message or type(error) in (KeyError, EOFError, IndexError):
            reason = "it is no checkpoint, or a damaged one"
        else:
            reason = (message.splitlines() or [type(error).__name__])[0]
        raise AuditError(
            f"{path} cannot be read without executing code: {reason}; save a state dict, "
            "`torch.save(model.state_dict(), …)`, or .safetensors"
        ) from error
    return _find_state(content, path)


def _find_state(content: Any, path: Path) -> dict[str, Tensor]:
    if not isinstance(content, Mapping):
        raise AuditError(f"{path} holds no state dict, but a {type(content).__name__}")
    for key in _STATE_KEYS:
        if isinstance(content.get(key), Mapping):
            return _find_state(content[key], path)
    tensors = {str(k): v for k, v in content.items() if isinstance(v, Tensor)}
    if tensors:
        return tensors
    nested = [
        value
        for value in content.values()
        if isinstance(value, Mapping) and any(isinstance(v, Tensor) for v in value.values())
    ]
    if len(nested) == 1:
        return _find_state(nested[0], path)
    keys = ", ".join(f"`{key}`" for key in list(content)[:6]) or "nothing"
    raise AuditError(f"{path} holds no state dict, but {keys}")


def load_weights(model: nn.Module, state: Mapping[str, Tensor], path: Path) -> None:
    """Load a state dict whose parameters are complete; missing buffers are what an audit is for.

    Raises:
        AuditError: missing parameters, unknown names, or other shapes.
    """
    own = model.state_dict()
    state = fit_to_names(state, own)
    parameters = {name for name, _ in model.named_parameters()}
    problems = [
        f"{name} is {list(state[name].shape)} in the file and {list(own[name].shape)} in the model"
        for name in own
        if name in state and state[name].shape != own[name].shape
    ]
    missing = [name for name in own if name in parameters and name not in state]
    unknown = [name for name in state if name not in own]
    for words, names in (("it lacks", missing), ("it has an unknown", unknown)):
        if names:
            problems.append(f"{words} {list_names(names, 1)}")
    if problems:
        raise AuditError(f"{path} does not fit the model: {'; '.join(problems[:3])}")
    model.load_state_dict(state, strict=False)
