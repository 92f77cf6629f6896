"""The block order: the words of `network.block`, and where a noise position puts its word.

A block's residual branch is a list of operations. `preresnet` writes its own as
`bn relu conv3x3 bn relu conv3x3`; a config may write another, and a noise `position` is short for
inserting the word `noise` somewhere in that list. This module knows words only, no tensors: it is
what `vshift check` uses, and must not import torch.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Literal, get_args

from vshift.text import pluralize, suggest

Order = tuple[str, ...]
BlockPosition = Literal["before_last_bn", "before_last_conv", "before_bn", "after_bn"]
HeadPosition = Literal["before_pool", "before_classifier"]  # once, after all blocks
Position = Literal[BlockPosition, HeadPosition]
BLOCK_POSITIONS: tuple[str, ...] = get_args(BlockPosition)
POSITIONS: tuple[str, ...] = get_args(Position)

ACTIVATIONS = ("relu", "leaky_relu", "elu", "gelu", "silu", "tanh", "sigmoid")
POOLS = ("maxpool", "avgpool")
OF_BRANCHES = ("attention", "add")  # what the tokens of a vit's branch do, and where it ends
_WORDS = (
    *(*ACTIVATIONS, *POOLS, "pool", "conv", "conv1x1", "conv3x3", "fc", "bn", "gn", "noise"),
    *OF_BRANCHES,
)
_CONV = re.compile(r"conv([1357])x\1")
_NOISE = re.compile(r"noise([1-9][0-9]?)?")
_SHORT = {"conv": "conv3x3", "pool": "maxpool"}
MAX_WORDS = 64


def is_conv(word: str) -> bool:
    """Whether a word is a linear map with weights: a convolution, or the mlp's `fc`."""
    return word.startswith("conv") or word == "fc"


def kernel(word: str) -> int:
    """The side of a convolution's kernel: 3 for `conv3x3`."""
    match = _CONV.fullmatch(word)
    if match is None:
        raise ValueError(f"`{word}` is not a convolution")
    return int(match[1])


def is_noise(word: str) -> bool:
    return _NOISE.fullmatch(word) is not None


def noise_index(word: str) -> int:
    """Which entry of `network.noise` a word stands for, from 0: `noise2` is the second entry."""
    return int(word.removeprefix("noise") or 1) - 1


def parse(text: str) -> Order:
    """`"bn relu conv noise"` → `("bn", "relu", "conv3x3", "noise")`.

    Raises:
        ValueError: naming every word that is not an operation, and what is allowed.
    """
    words = text.split()
    if not words:
        raise ValueError("the block order is empty; write for instance `bn relu conv3x3`")
    if len(words) > MAX_WORDS:
        raise ValueError(f"the block order has {len(words)} operations; at most {MAX_WORDS}")
    order = tuple(_SHORT.get(word, word) for word in words)
    for word in order:
        known = word in _WORDS or _CONV.fullmatch(word) or _NOISE.fullmatch(word)
        if not known:
            raise ValueError(
                f"`{word}` is not an operation; {suggest(word, _WORDS)}"
                "allowed: conv1x1, conv3x3, conv5x5, conv7x7, fc, attention, add, bn, gn, noise, "
                "noise2…, "
                f"{', '.join(POOLS)}, {', '.join(ACTIVATIONS)}"
            )
    return order


def check(
    order: Order, *, linear: Literal["conv", "fc"], may_pool: bool, branched: bool, what: str
) -> None:
    """Refuse an order that cannot work in a network of this kind.

    Args:
        linear: the kind of weight layer the network's tensors allow.
        may_pool: whether a pooling word has a place (only where nothing is added to the result).
        branched: whether the block is a number of branches, each ended by `add`, and may hold
            `attention`.
        what: the network in a message: `a preresnet`.

    Raises:
        ValueError: with the reason.
    """
    weights = [word for word in order if is_conv(word)]
    if branched:
        branches(order)
    elif strange := [word for word in order if word in OF_BRANCHES]:
        raise ValueError(f"`{strange[0]}` does not fit {what}; it is an operation of a vit")
    elif not weights:
        example = "fc" if linear == "fc" else "conv3x3"
        raise ValueError(
            f"no {linear}: the block must change the number of channels, and only a {linear} does; "
            f"add for instance {example}"
        )
    for word in weights:
        if (word == "fc") != (linear == "fc"):
            use = "fc" if linear == "fc" else "conv1x1 or conv3x3"
            raise ValueError(f"`{word}` does not fit {what}; use {use}")
    pools = [word for word in order if word in POOLS]
    if pools and not may_pool:
        raise ValueError(
            f"`{pools[0]}` does not fit {what}: the branch's result is joined with a shortcut of "
            "the same size, and the stage's first convolution already halves the image; remove it"
        )
    if len(pools) > 1:
        raise ValueError("more than one pool in a block; a stage halves the image once")


def branches(order: Order) -> list[Order]:
    """The residual branches of a block order in which `add` adds a branch's input to its output.

    Raises:
        ValueError: a branch without an operation, or operations after the last `add`.
    """
    found: list[Order] = []
    rest = order
    while "add" in rest:
        end = rest.index("add")
        found, rest = [*found, rest[:end]], rest[end + 1 :]
    if rest or not found:
        raise ValueError(
            f"the block order ends in `{order[-1]}`; `add` ends a branch, and the last word of the "
            "block must be one"
        )
    if any(all(is_noise(word) for word in branch) for branch in found):
        raise ValueError("a branch without an operation: `add` needs one before it")
    return found


def place(order: Order, noises: Sequence[Sequence[str]]) -> Order:
    """The order with a word `noise1`, `noise2`, … at every place in the block that is named.

    Args:
        order: the order as written; `noise` in it stands for the first entry.
        noises: for each entry of `network.noise` its `places`, of which positions in the block
            count (empty: it sits where `block` says).

    Raises:
        ValueError: a position that this order does not have, an entry that is placed nowhere, or a
            noise word without an entry.
    """
    result = [f"noise{noise_index(word) + 1}" if is_noise(word) else word for word in order]
    written = {noise_index(word) for word in order if is_noise(word)}
    undescribed = sorted(written - set(range(len(noises))))
    if undescribed:
        raise ValueError(
            f"the block order says `{_noise_word(undescribed[0])}`, but network.noise has "
            f"{pluralize(len(noises), 'entry', 'entries')}; describe the noise there, for instance "
            "{kind: dropout, rate: 0.5}"
        )
    for index, places in enumerate(noises):
        name, word = f"noise{index + 1 if len(noises) > 1 else ''}", _noise_word(index)
        inside = [place for place in places if place in BLOCK_POSITIONS]
        if not places and index not in written:
            raise ValueError(
                f"{name} has no place: give it a position ({', '.join(POSITIONS)}), names of "
                f"modules (before, after), or write `{word}` in network.block"
            )
        if index in written and inside:
            raise ValueError(
                f"{name} has two places: network.block says `{word}` and the position "
                f"{', '.join(inside)}; keep one of them"
            )
        for position in inside:
            for at in sorted(_places(result, position), reverse=True):
                result.insert(at, f"noise{index + 1}")
    return tuple(result)


def _noise_word(index: int) -> str:
    return f"noise{index + 1}" if index else "noise"


def _places(order: Sequence[str], position: str) -> list[int]:
    """The indices of `order` at which a position inserts its word.

    `gn` is no BN: it has no statistics that a shift could spoil, and no position looks at it.
    """
    norms = [i for i, word in enumerate(order) if word == "bn"]
    weights = [i for i, word in enumerate(order) if is_conv(word)]
    if position == "before_last_conv" and weights:
        return weights[-1:]
    if not norms or position == "before_last_conv":
        what = "conv" if position == "before_last_conv" else "bn"
        raise ValueError(
            f"position {position} needs a {what} in the block order, and `{' '.join(order)}` has "
            "none"
        )
    if position == "before_last_bn":
        return norms[-1:]
    if position == "before_bn":
        return norms
    if position == "after_bn":
        follows = [set(order[i + 1 : i + 2]) & set(ACTIVATIONS) for i in norms]
        return [i + (2 if activation else 1) for i, activation in zip(norms, follows, strict=True)]
    raise ValueError(f"`{position}` is not a position; allowed: {', '.join(POSITIONS)}")
