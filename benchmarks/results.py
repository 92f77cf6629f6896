"""A bench's results, as its JSON file holds them: every timing, and what follows from them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from vshift.errors import VShiftError
from vshift.runs.files import write_named

IN_TURN = "one after the other"  # what several seeds at once are compared to


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_inf_nan="null")


class Series(_Record):
    """Values of single repeats, in the order in which they were taken."""

    values: list[float]
    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Series:
        return cls(values=list(values), median=median(values), low=min(values), high=max(values))


def paired(above: Series, below: Series) -> Series:
    """Ratios of what two contenders took in the same repeat."""
    return Series.of([a / b for a, b in zip(above.values, below.values, strict=True)])


class PerBound(_Record):
    """One number per bound of `bounds.py`: training images per second, or a share (0 to 1)."""

    arithmetic: float
    eager: float
    inductor: float
    ideal: float


class Bound(PerBound):
    """Bounds in images per second, from the peaks `measured` here or from a `reference`."""

    peaks: Literal["measured", "reference"]

    def shares(self, images_per_second: float) -> PerBound:
        bounds = self.model_dump(exclude={"peaks"})
        return PerBound(**{name: images_per_second / bound for name, bound in bounds.items()})


class Contender(_Record):
    """One loop's timings in one case.

    Attributes:
        kind: what `--kinds` called vshift's step; None for a peer.
        step, precision: that ran, which `auto` chose.
        peer: the peer's name; None for vshift.
        log: whether every BN layer's variance was logged; None for a peer.
        loss: mean of the last epoch, to see that all did the same work; None if it is NaN.
        peak_memory: bytes on the GPU; None on a CPU, where it is not measured.
        shares: of the bounds, with the reference peaks where there are some, else the measured.
    """

    name: str
    kind: str | None
    step: str | None
    precision: str | None = None
    peer: str | None
    log: bool | None
    setup_seconds: float
    loss: float | None
    peak_memory: int | None
    seconds: Series
    images_per_second: Series
    shares: PerBound

    @property
    def is_rival(self) -> bool:
        """Whether vshift's own contenders are compared with it: a peer, or a step of vshift's in a
        precision of its own."""
        return self.peer is not None or "-" in (self.kind or "")


class Ratio(_Record):
    """`contender`'s speed over `to`'s, repeat by repeat."""

    contender: str
    to: str
    speed: Series


class LoggingCost(_Record):
    """Time with logging over time without it, minus 1, repeat by repeat."""

    kind: str
    overhead: Series


class LeftOut(_Record):
    """A contender that was requested and not measured."""

    contender: str
    reason: str
    failed: bool


class CaseResult(_Record):
    """One race. `images` are those of one epoch, which is what each of the timings took."""

    network: str
    batch: int
    noise: str
    images: int
    parameters: int
    macs: int
    bounds: list[Bound]
    contenders: list[Contender]
    ratios: list[Ratio]
    logging: list[LoggingCost]
    left_out: list[LeftOut]
    clock_mhz: float | None

    def find(self, name: str) -> Contender | None:
        return next((c for c in self.contenders if c.name == name), None)


class DeviceInfo(_Record):
    """Where it ran.

    Attributes:
        clock_mhz: at the beginning; each case has its own, right after its race.
        load: cores that other programs kept busy right before; None if unknown.
        flops, bytes_per_second: the peaks measured there, the first in `flops_precision`.
        isa: `native`, or the instruction set that everything was capped to.
    """

    kind: Literal["cpu", "cuda"]
    name: str
    cores: int | None
    threads: int
    clock_mhz: float | None
    clock_mhz_max: float | None
    load: float | None
    flops: float
    flops_precision: str = "bf16"
    bytes_per_second: float
    isa: str = "native"


class Command(_Record):
    """`vshift train` with a config, from its start to its last line, some times over.

    Attributes:
        seconds: of wall time.
        steps_share: the part of it that was training steps, in percent, as run.json tells.
        start: seconds before the first step.
        precision, step: that ran.
    """

    name: str
    seconds: Series
    steps_share: Series
    start: Series
    precision: str
    step: str


class Results(_Record):
    """A bench: its JSON file.

    Attributes:
        steps: of an epoch, the last one smaller. `repeats`: as requested; n is in each series.
        not_raced: cases for which the time was over.
        commands: whole runs of `vshift train`.
    """

    version: Literal[1] = 1
    created: str
    device: DeviceInfo
    versions: dict[str, str | None]
    git: str | None
    steps: int
    repeats: int
    budget: float | None
    cases: list[CaseResult]
    not_raced: list[str]
    commands: list[Command] = []

    def path(self, path: Path) -> Path:
        """The file itself, or in a folder <device>.json."""
        return path / f"{slug(self.device)}.json" if path.is_dir() else path

    def write(self, path: Path) -> Path:
        """Write the JSON file, whole or not at all; into a folder as <device>.json.

        Raises:
            RunError: it cannot be written.
        """
        path = self.path(path)
        write_named(path, "--json", f"{self.model_dump_json(indent=1)}\n".encode())
        return path


def slug(device: DeviceInfo) -> str:
    """The device as a file name: `nvidia-h100-80gb-hbm3`, `intel-xeon-processor-2-threads`."""
    name = re.sub(r"\((R|TM)\)", "", device.name, flags=re.IGNORECASE)
    text = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")
    capped = "" if device.isa == "native" else f"-only-{device.isa}"
    return f"{text}-{device.threads}-threads{capped}" if device.kind == "cpu" else text


def read_results(path: Path) -> Results:
    """Read a bench's JSON file.

    Raises:
        VShiftError: it is missing or is something else.
    """
    try:
        return Results.model_validate_json(path.read_bytes())
    except OSError as error:
        raise VShiftError(f"{path}: cannot be read: {error.strerror}") from error
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(str(part) for part in first["loc"]) or "the file"
        raise VShiftError(
            f"{path}: not a file of `vshift bench --json` of this version: {where}: {first['msg']}"
        ) from None
