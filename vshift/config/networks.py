"""The section `network`: families of networks, their size, block order and noise."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, Self

from pydantic import Field, Tag, ValidationInfo, field_validator, model_validator

from vshift.config import block as language
from vshift.config.noise import AnyNoise, Noise
from vshift.config.own import FORMS, OwnPart, Reference
from vshift.config.section import OneOrList, Section, as_list, own_or_named


class _WithNoise(Section):
    """What every network shares, also one's own."""

    if TYPE_CHECKING:
        name: str  # each declares it, after the keys that it shares: the order of a table's keys

    noise: OneOrList[Noise, Annotated[list[Noise], Field(min_length=1, max_length=16)]] | None = (
        Field(None, description="Noise in training, by kind: one entry or a list.")
    )

    @property
    def noises(self) -> tuple[AnyNoise, ...]:
        return tuple(as_list(self.noise))

    def noise_key(self, entry: AnyNoise) -> str:
        """The dotted key of one of `noises`: with its number where there are several."""
        return (
            f"network.noise.{self.noises.index(entry)}" if len(self.noises) > 1 else "network.noise"
        )


class _Network(_WithNoise):
    """The keys that every family shares. A validator sees the fields above its own."""

    own_block: ClassVar[str]
    size_keys: ClassVar[tuple[str, ...]] = ("depth",)  # what a label names after the family
    linear: ClassVar[Literal["conv", "fc"]] = "conv"
    may_pool: ClassVar[bool] = False
    branched: ClassVar[bool] = False

    bias: bool = Field(
        False, description="Bias of convolutions in blocks; before a BN it is redundant."
    )
    block: str | None = Field(
        None,
        validate_default=True,
        description="The residual branch as a list of operations, for instance "
        "`bn relu conv3x3 noise bn relu conv3x3`; default: the family's own.",
    )

    @property
    def default_block(self) -> str:
        """The family's order of operations."""
        return self.own_block

    @field_validator("block", mode="before")
    @classmethod
    def _as_text(cls, block: Any) -> Any:
        """A YAML list of words is accepted too."""
        is_words = isinstance(block, list) and all(isinstance(word, str) for word in block)
        return " ".join(block) if is_words else block

    @field_validator("block")
    @classmethod
    def _block_works(cls, block: str | None, info: ValidationInfo) -> str | None:
        if "noise" not in info.data:  # already reported
            return block
        order = language.parse(cls.own_block if block is None else block)
        name = cls.__name__.lower()
        language.check(
            order,
            linear=cls.linear,
            may_pool=cls.may_pool,
            branched=cls.branched,
            what=f"a {name}",
        )
        places = [noise.places for noise in as_list(info.data["noise"])]
        language.place(order, places)
        if cls.linear == "fc" and any("before_pool" in each for each in places):
            raise ValueError(f"position before_pool: a {name} has no pool; use before_classifier")
        return None if block is None else " ".join(order)

    @model_validator(mode="after")
    def _depth_to_grow_over(self) -> Self:
        if sum(self.stages) == 1 and any(noise.over_depth for noise in self.noises):
            raise ValueError(
                "noise.over_depth: linear begins with no noise in the first block, and there is "
                "only one; leave it out"
            )
        return self

    @property
    def stages(self) -> tuple[int, ...]:
        """The number of blocks of each stage."""
        raise NotImplementedError

    @property
    def halvings(self) -> int:
        """How often the network halves the image."""
        return 2

    @property
    def size_label(self) -> str:
        """The family with its sizes: `wrn-28-10`, `mlp-512-512`."""
        sizes = [getattr(self, key) for key in self.size_keys]
        flat = [size for value in sizes for size in (value if isinstance(value, list) else [value])]
        return "-".join([self.name, *(f"{size:g}" for size in flat)])

    @property
    def order(self) -> language.Order:
        """The block order as it runs: every noise position filled in as `noise1`, `noise2`, …"""
        text = self.default_block if self.block is None else self.block
        return language.place(language.parse(text), [noise.places for noise in self.noises])

    def noises_at(self, position: str) -> tuple[int, ...]:
        """Which entries of `noises` sit at a position of the head."""
        return tuple(i for i, noise in enumerate(self.noises) if position in noise.places)


def _is_bottleneck(depth: int, bottleneck: bool | None) -> bool:
    """110 is basic and 164 bottleneck unless the config says otherwise."""
    return bottleneck if bottleneck is not None else depth >= 164 and (depth - 2) % 9 == 0


def _fits(depth: int, step: int, rest: int, what: str) -> int:
    """Refuse a depth that is not step·n + rest with n ≥ 1."""
    if depth < step + rest or (depth - rest) % step:
        near = max(1, round((depth - rest) / step)) * step + rest
        raise ValueError(
            f"{depth} does not divide into {what}: the depth must be {step}n + {rest}; "
            f"the nearest is {near}"
        )
    return depth


_PRE = ("bn relu conv3x3 bn relu conv3x3", "bn relu conv1x1 bn relu conv3x3 bn relu conv1x1")
_POST = ("conv3x3 bn relu conv3x3 bn", "conv1x1 bn relu conv3x3 bn relu conv1x1 bn")
Depth = Annotated[int, Field(ge=1, le=2000)]
Width = Annotated[int, Field(ge=1, le=4096)]


class _ThreeStages(_Network):
    """Residual nets with stages of 16, 32 and 64 channels (4 times that after bottlenecks)."""

    other_depths: ClassVar[tuple[int, ...]] = ()
    orders: ClassVar[tuple[str, str]]

    bottleneck: bool | None = Field(
        None, description="Blocks of 1×1, 3×3, 1×1 convolutions; default: yes from depth 164."
    )
    depth: Depth = Field(
        20, description="6n + 2 (20, 32, 44, 56, 110), or 9n + 2 with bottlenecks (164)."
    )

    @field_validator("depth")
    @classmethod
    def _depth(cls, depth: int, info: ValidationInfo) -> int:
        if "bottleneck" not in info.data or depth in cls.other_depths:
            return depth
        deep = _is_bottleneck(depth, info.data["bottleneck"])
        kind = "bottleneck" if deep else "basic"
        return _fits(depth, 9 if deep else 6, 2, f"three stages of {kind} blocks")

    @property
    def stages(self) -> tuple[int, ...]:
        return ((self.depth - 2) // (9 if self.is_bottleneck else 6),) * 3

    @property
    def is_bottleneck(self) -> bool:
        return _is_bottleneck(self.depth, self.bottleneck)

    @property
    def default_block(self) -> str:
        return self.orders[self.is_bottleneck]


class PreResNet(_ThreeStages):
    """He et al. 2016 (1603.05027): BN and ReLU before each convolution."""

    own_block = _PRE[0]
    orders = _PRE
    name: Literal["preresnet"] = Field(description="Residual net, BN and ReLU first.")


class ResNet(_ThreeStages):
    """He et al. 2015 (1512.03385); depth 18 is the wide four-stage net (64 to 512 channels)."""

    own_block = _POST[0]
    orders = _POST
    other_depths = (18, 34)
    name: Literal["resnet"] = Field(description="Residual net, BN and ReLU after convolutions.")

    @property
    def stages(self) -> tuple[int, ...]:
        return {18: (2, 2, 2, 2), 34: (3, 4, 6, 3)}.get(self.depth, super().stages)

    @property
    def halvings(self) -> int:
        return len(self.stages) - 1

    @field_validator("depth")
    @classmethod
    def _four_stages_are_basic(cls, depth: int, info: ValidationInfo) -> int:
        if depth in cls.other_depths and info.data.get("bottleneck"):
            raise ValueError(f"depth {depth} has basic blocks; leave out bottleneck")
        return depth


class WRN(_Network):
    """Zagoruyko and Komodakis 2016 (1605.07146): a wide PreResNet."""

    own_block = _PRE[0]
    size_keys = ("depth", "width")
    name: Literal["wrn"] = Field(description="Wide residual net.")
    depth: Depth = Field(28, description="6n + 4.")
    width: Width = Field(10, description="Factor on the widths 16, 32, 64.")

    @field_validator("depth")
    @classmethod
    def _depth(cls, depth: int) -> int:
        return _fits(depth, 6, 4, "three stages of basic blocks")

    @property
    def stages(self) -> tuple[int, ...]:
        return ((self.depth - 4) // 6,) * 3


class ResNeXt(_Network):
    """Xie et al. 2017 (1611.05431): bottlenecks whose 3×3 convolution works in groups."""

    own_block = _POST[1]
    size_keys = ("depth", "cardinality", "base_width")
    name: Literal["resnext"] = Field(description="Residual net of grouped bottlenecks.")
    depth: Depth = Field(29, description="9n + 2.")
    cardinality: Width = Field(8, description="Number of groups.")
    base_width: Width = Field(64, description="Channels of a group in the first stage.")

    @field_validator("depth")
    @classmethod
    def _depth(cls, depth: int) -> int:
        return _fits(depth, 9, 2, "three stages of bottleneck blocks")

    @property
    def stages(self) -> tuple[int, ...]:
        return ((self.depth - 2) // 9,) * 3


class DenseNet(_Network):
    """Huang et al. 2017 (1608.06993), with bottlenecks and compression: DenseNet-BC."""

    own_block = "bn relu conv1x1 bn relu conv3x3"
    size_keys = ("depth", "growth_rate")
    name: Literal["densenet"] = Field(description="Every layer sees all layers before it.")
    bottleneck: bool = Field(True, description="A 1×1 convolution to 4k channels in each layer.")
    depth: Depth = Field(100, description="6n + 4 with bottlenecks, 3n + 4 without.")
    growth_rate: Width = Field(12, description="k: channels that each layer adds.")
    compression: float = Field(
        0.5, gt=0, le=1, description="Share of the channels that a transition keeps."
    )

    @field_validator("depth")
    @classmethod
    def _depth(cls, depth: int, info: ValidationInfo) -> int:
        if "bottleneck" not in info.data:
            return depth
        return _fits(depth, 6 if info.data["bottleneck"] else 3, 4, "three dense blocks")

    @property
    def stages(self) -> tuple[int, ...]:
        return ((self.depth - 4) // (6 if self.bottleneck else 3),) * 3

    @property
    def default_block(self) -> str:
        return self.own_block if self.bottleneck else "bn relu conv3x3"


class VGG(_Network):
    """Simonyan and Zisserman 2015 (1409.1556) with BN; pool acts at a stage's last block."""

    own_block = "conv3x3 bn relu maxpool"
    may_pool = True
    size_keys = ("depth", "width")
    name: Literal["vgg"] = Field(description="Convolutions in a row, with BN.")
    depth: Literal[11, 13, 16, 19] = Field(16, description="11, 13, 16 or 19.")
    width: float = Field(
        1.0, ge=1 / 64, le=8, description="Factor on the widths 64, 128, 256, 512, 512."
    )

    @property
    def stages(self) -> tuple[int, ...]:
        counts = {11: (1, 1, 2, 2, 2), 13: (2,) * 5, 16: (2, 2, 3, 3, 3), 19: (2, 2, 4, 4, 4)}
        return counts[self.depth]

    @property
    def halvings(self) -> int:
        return 5


class FullyConnected(_Network):
    """Hidden layers over the flattened image."""

    linear = "fc"
    size_keys = ("widths",)
    widths: list[Width] = Field(
        [512, 512], min_length=1, max_length=1000, description="Channels of each hidden layer."
    )

    @property
    def stages(self) -> tuple[int, ...]:
        return (len(self.widths),)

    @property
    def halvings(self) -> int:
        return 0


class MLP(FullyConnected):
    own_block = "fc bn relu"
    name: Literal["mlp"] = Field(description="Fully connected layers.")


class Autoencoder(FullyConnected):
    """Gives its input back: no classifier, and its test loss is the mean squared error.

    The last hidden layer is the code; position before_classifier is right after it.
    """

    own_block = "fc bn sigmoid"
    name: Literal["autoencoder"] = Field(
        description="Fully connected hidden layers and one back to the normalised pixels."
    )


class ViT(_Network):
    """Dosovitskiy et al. 2021 (2010.11929), small: no class token, the mean over tokens instead."""

    own_block = "bn attention add bn conv1x1 gelu conv1x1 add"
    size_keys = ("depth", "width", "patch")
    branched = True
    name: Literal["vit"] = Field(description="Vision transformer: attention between patches.")
    bias: bool = Field(True, description="Bias of the linear maps of every token.")
    depth: Depth = Field(6, description="Number of blocks.")
    width: Width = Field(128, description="Channels of a token; the MLP's inner ones are 4 times.")
    heads: Annotated[int, Field(ge=1, le=256)] = Field(
        4, description="Heads of the attention; must divide width."
    )
    patch: Annotated[int, Field(ge=1, le=256)] = Field(
        4, description="Side of a patch in pixels; must divide the images' size."
    )

    @field_validator("heads")
    @classmethod
    def _share_the_width(cls, heads: int, info: ValidationInfo) -> int:
        width = info.data.get("width", heads)
        if width % heads:
            fitting = ", ".join(str(n) for n in range(1, min(width, 32) + 1) if width % n == 0)
            raise ValueError(f"{heads} heads do not divide a width of {width}; choose {fitting}")
        return heads

    @property
    def stages(self) -> tuple[int, ...]:
        return (self.depth,)

    @property
    def halvings(self) -> int:
        return 0


class OwnNetwork(OwnPart, _WithNoise):
    """A callable that returns an `nn.Module` for images [N, C, H, W]."""

    section = "network"
    libraries = ("torchvision", "timm")
    forms = ("torchvision:NAME", "timm:NAME", *FORMS)
    name: Reference = Field(
        description="The callable, told classes, channels and size where its signature asks."
    )
    convert: bool = Field(
        True,
        description="Let plain nn.BatchNorm layers be vshift's: the same parameters and names.",
    )

    @field_validator("noise")
    @classmethod
    def _noise_has_a_place(cls, noise: Any) -> Any:
        for index, entry in enumerate(as_list(noise)):
            if not entry.places:
                which = f"noise{index + 1}" if isinstance(noise, list) else "noise"
                raise ValueError(
                    f"{which} has no place: name modules with before or after, for instance "
                    f"{{before: '*bn2'}}, or give it a position ({', '.join(language.POSITIONS)})"
                )
        return noise

    @property
    def size_label(self) -> str:
        """The object's name: `MyNet`, `resnet18`."""
        return self.name.rpartition(":")[2]

    @property
    def block(self) -> None:
        """None: it has no block order."""

    @property
    def order(self) -> language.Order:
        """Empty: its code decides."""
        return ()


Family = PreResNet | ResNet | WRN | ResNeXt | DenseNet | VGG | ViT | MLP | Autoencoder
Network = Annotated[
    Annotated[Family, Field(discriminator="name"), Tag("named")]
    | Annotated[OwnNetwork, Tag("own")],
    own_or_named("name"),
]
