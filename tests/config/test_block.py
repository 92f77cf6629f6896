"""Block orders: words, what is refused, and where every position puts its noise."""

from typing import Any

import pytest
from pydantic import ValidationError

from tests.configs import make_config
from vshift.config import block


def order_of(position: str | list[str] | None, **network: Any) -> str:
    noise = {"kind": "dropout", "rate": 0.5, "position": position}
    return " ".join(make_config(network={"noise": noise, **network}).network.order)


def message(**network: Any) -> str:
    with pytest.raises(ValidationError) as error:
        make_config(network={"name": "preresnet", "depth": 20, **network})
    (item,) = error.value.errors()
    return str(item["ctx"]["error"])


# the orders are written by hand, N stands for noise1
FAMILIES: list[tuple[dict[str, Any], dict[str, str]]] = [
    ({"name": "preresnet", "depth": 20}, {
        "before_last_bn": "bn relu conv3x3 N bn relu conv3x3",
        "before_last_conv": "bn relu conv3x3 bn relu N conv3x3",
        "before_bn": "N bn relu conv3x3 N bn relu conv3x3",
        "after_bn": "bn relu N conv3x3 bn relu N conv3x3",
        "before_classifier": "bn relu conv3x3 bn relu conv3x3"}),
    ({"name": "preresnet", "depth": 164}, {
        "before_last_bn": "bn relu conv1x1 bn relu conv3x3 N bn relu conv1x1",
        "before_last_conv": "bn relu conv1x1 bn relu conv3x3 bn relu N conv1x1",
        "before_bn": "N bn relu conv1x1 N bn relu conv3x3 N bn relu conv1x1",
        "after_bn": "bn relu N conv1x1 bn relu N conv3x3 bn relu N conv1x1",
        "before_classifier": "bn relu conv1x1 bn relu conv3x3 bn relu conv1x1"}),
    ({"name": "resnet", "depth": 110}, {
        "before_last_bn": "conv3x3 bn relu conv3x3 N bn",
        "before_last_conv": "conv3x3 bn relu N conv3x3 bn",
        "before_bn": "conv3x3 N bn relu conv3x3 N bn",
        "after_bn": "conv3x3 bn relu N conv3x3 bn N",
        "before_classifier": "conv3x3 bn relu conv3x3 bn"}),
    ({"name": "resnet", "depth": 18}, {"before_last_bn": "conv3x3 bn relu conv3x3 N bn"}),
    ({"name": "resnet", "depth": 164}, {
        "before_last_bn": "conv1x1 bn relu conv3x3 bn relu conv1x1 N bn",
        "before_last_conv": "conv1x1 bn relu conv3x3 bn relu N conv1x1 bn"}),
    ({"name": "wrn", "depth": 28}, {
        "before_last_bn": "bn relu conv3x3 N bn relu conv3x3",
        "before_last_conv": "bn relu conv3x3 bn relu N conv3x3",
        "after_bn": "bn relu N conv3x3 bn relu N conv3x3"}),
    ({"name": "resnext", "depth": 29}, {
        "before_last_bn": "conv1x1 bn relu conv3x3 bn relu conv1x1 N bn",
        "before_last_conv": "conv1x1 bn relu conv3x3 bn relu N conv1x1 bn",
        "before_bn": "conv1x1 N bn relu conv3x3 N bn relu conv1x1 N bn",
        "after_bn": "conv1x1 bn relu N conv3x3 bn relu N conv1x1 bn N"}),
    ({"name": "densenet", "depth": 100}, {
        "before_last_bn": "bn relu conv1x1 N bn relu conv3x3",
        "before_last_conv": "bn relu conv1x1 bn relu N conv3x3",
        "before_bn": "N bn relu conv1x1 N bn relu conv3x3"}),
    ({"name": "densenet", "depth": 40, "bottleneck": False}, {
        "before_last_bn": "N bn relu conv3x3",
        "before_last_conv": "bn relu N conv3x3"}),
    ({"name": "vgg", "depth": 16}, {
        "before_last_bn": "conv3x3 N bn relu maxpool",
        "before_last_conv": "N conv3x3 bn relu maxpool",
        "after_bn": "conv3x3 bn relu N maxpool",
        "before_classifier": "conv3x3 bn relu maxpool"}),
    ({"name": "mlp"}, {
        "before_last_bn": "fc N bn relu",
        "before_last_conv": "N fc bn relu",
        "before_bn": "fc N bn relu",
        "after_bn": "fc bn relu N"}),
]  # fmt: skip
CASES = [(net, position, want) for net, wants in FAMILIES for position, want in wants.items()]


@pytest.mark.parametrize(("network", "position", "want"), CASES)
def test_every_position_of_every_family(network: dict[str, Any], position: str, want: str) -> None:
    assert order_of(position, **network) == want.replace("N", "noise1")


def test_parse_writes_short_words_out() -> None:
    assert block.parse(" bn  relu conv\npool noise noise2 conv5x5 fc gn") == (
        "bn", "relu", "conv3x3", "maxpool", "noise", "noise2", "conv5x5", "fc", "gn",
    )  # fmt: skip


@pytest.mark.parametrize(
    ("text", "start"),
    [
        ("", "the block order is empty; write for instance `bn relu conv3x3`"),
        ("bn " * 65, "the block order has 65 operations; at most 64"),
        ("bn relv conv", "`relv` is not an operation; did you mean `relu`? allowed: conv1x1, "),
        ("conv2x2", "`conv2x2` is not an operation; did you mean `conv"),
        ("conv3x1", "`conv3x1` is not an operation; "),
        ("noise0", "`noise0` is not an operation; did you mean `noise`?"),
        ("BN", "`BN` is not an operation; did you mean `bn`? "),
    ],
)
def test_words_that_are_refused(text: str, start: str) -> None:
    with pytest.raises(ValueError, match=r"operation|empty") as error:
        block.parse(text)
    assert str(error.value).startswith(start)


@pytest.mark.parametrize(
    ("network", "text"),
    [
        ({"block": "bn relu"}, "no conv: the block must change the number of channels, and only a "
         "conv does; add for instance conv3x3"),
        ({"block": "bn relu fc"}, "`fc` does not fit a preresnet; use conv1x1 or conv3x3"),
        ({"block": "conv bn maxpool"}, "`maxpool` does not fit a preresnet: the branch's result is "
         "joined with a shortcut of the same size, and the stage's first convolution already "
         "halves "
         "the image; remove it"),
        ({"name": "vgg", "depth": 11, "block": "conv maxpool avgpool"},
         "more than one pool in a block; a stage halves the image once"),
        ({"block": "bn conv noise"}, "the block order says `noise`, but network.noise has 0 "
         "entries; "
         "describe the noise there, for instance {kind: dropout, rate: 0.5}"),
        ({"block": "bn conv noise3", "noise": {"kind": "dropout", "rate": 0}},
         "the block order says `noise3`, but network.noise has 1 entry; describe the noise there, "
         "for instance {kind: dropout, rate: 0.5}"),
        ({"noise": {"kind": "dropout", "rate": 0}}, "noise has no place: give it a position "
         "(before_last_bn, before_last_conv, before_bn, after_bn, before_pool, before_classifier), "
         "names of modules (before, after), or write `noise` in network.block"),
        ({"block": "conv relu", "noise": {"kind": "dropout", "rate": 0, "position": "before_bn"}},
         "position before_bn needs a bn in the block order, and `conv3x3 relu` has none"),
        ({"noise": {"kind": "dropout", "rate": 0, "position": ["before_bn", "before_bn"]}},
         "a position is listed twice"),
    ],
)  # fmt: skip
def test_orders_that_are_refused(network: dict[str, Any], text: str) -> None:
    assert message(**network) == text


def test_an_mlp_refuses_convolutions() -> None:
    with pytest.raises(ValidationError, match="`conv3x3` does not fit a mlp; use fc"):
        make_config(network={"name": "mlp", "block": "conv bn relu"})
    with pytest.raises(ValidationError, match="no fc: the block must change"):
        make_config(network={"name": "mlp", "block": "bn relu"})


def test_the_second_of_two_entries_without_a_place_is_named() -> None:
    one = {"kind": "dropout", "rate": 0, "position": "before_bn"}
    text = message(noise=[one, {"kind": "dropout", "rate": 0}])
    assert text.startswith("noise2 has no place: give it a position (")
    assert text.endswith("or write `noise2` in network.block")


def test_the_written_order_is_the_order() -> None:
    block = "bn relu conv1x1 bn relu conv3x3 noise bn relu conv1x1"
    written = order_of(None, name="preresnet", depth=164, block=block)
    assert written == order_of("before_last_bn", name="preresnet", depth=164)


def test_several_positions_and_several_entries() -> None:
    assert order_of(["before_last_bn", "before_last_conv"], name="resnet", depth=20) == (
        "conv3x3 bn relu noise1 conv3x3 noise1 bn"
    )
    noises = [
        {"kind": "dropout", "rate": 0.1, "position": "before_last_bn"},
        {"kind": "uout", "beta": 0.1, "position": ["before_last_bn", "before_classifier"]},
        {"kind": "gaussian", "rate": 0.5},
    ]
    network = make_config(
        network={"name": "resnet", "noise": noises, "block": "conv bn relu noise3 conv bn"}
    ).network
    assert " ".join(network.order) == "conv3x3 bn relu noise3 conv3x3 noise1 noise2 bn"
    assert network.noises_at("before_classifier") == (1,)
    assert network.noises_at("before_pool") == ()


def test_patterns_are_places_and_leave_the_block_as_it_is() -> None:
    noises = [
        {"kind": "dropout", "rate": 0.1, "before": "stage*.bn2"},
        {"kind": "dropout", "rate": 0.1, "position": "before_bn", "after": ["stem", "head.relu1"]},
    ]
    network = make_config(network={"name": "preresnet", "noise": noises}).network
    assert " ".join(network.order) == "noise2 bn relu conv3x3 noise2 bn relu conv3x3"
    assert network.noises[0].places == ("before stage*.bn2",)
    assert network.noises[1].places == ("before_bn", "after stem", "after head.relu1")


def test_an_mlp_has_no_pool() -> None:
    noise = {"kind": "dropout", "rate": 0.1, "position": "before_pool"}
    with pytest.raises(
        ValidationError, match="before_pool: a mlp has no pool; use before_classifier"
    ):
        make_config(network={"name": "mlp", "noise": noise})


def test_positions_overlook_gn() -> None:
    net = {"name": "preresnet", "block": "bn relu conv gn relu conv"}
    assert order_of("before_last_bn", **net) == "noise1 bn relu conv3x3 gn relu conv3x3"
    assert order_of("before_last_conv", **net) == "bn relu conv3x3 gn relu noise1 conv3x3"
    assert order_of("after_bn", **net) == "bn relu noise1 conv3x3 gn relu conv3x3"
    with pytest.raises(ValidationError, match="position before_bn needs a bn in the block order"):
        order_of("before_bn", name="preresnet", block="gn relu conv")


def test_noise_variances() -> None:
    """By hand: rate/(1−rate), σ², β²/3; a `rate` elsewhere means dropout's variance."""
    noises = [
        {"kind": "dropout", "rate": 0.2, "position": "before_bn"},
        {"kind": "gaussian", "sigma": 0.5, "position": "before_bn"},
        {"kind": "gaussian", "rate": 0.5, "position": "before_bn"},
        {"kind": "uniform", "beta": 0.6, "position": "before_bn"},
        {"kind": "uout", "rate": 0.75, "position": "before_bn"},
        {"kind": "stochastic_depth", "rate": 0.2, "position": "before_bn"},
    ]
    network = make_config(network={"name": "preresnet", "noise": noises}).network
    assert [n.variance for n in network.noises] == pytest.approx([0.25, 0.25, 1.0, 0.12, 3.0, 0.25])


def test_words() -> None:
    assert block.kernel("conv7x7") == 7
    with pytest.raises(ValueError, match="`bn` is not a convolution"):
        block.kernel("bn")
    assert [block.noise_index(w) for w in ("noise", "noise1", "noise12")] == [0, 0, 11]
    assert not block.is_noise("noise0")
    assert block.is_conv("fc")


def test_noise_with_two_places_is_refused() -> None:
    order = block.parse("bn relu conv noise bn relu conv")
    with pytest.raises(ValueError, match=r"noise has two places: network\.block says `noise` and"):
        block.place(order, [["before_last_bn"]])
    head = block.place(order, [["before_classifier"]])  # the head is no place in the block
    assert head.count("noise1") == 1
