"""What a kind of noise says of itself: strength, noise variance and words."""

from typing import Any

import pytest

from tests.configs import make_config
from vshift.config.noise import _BY_KIND, read_noise

DROPOUT = {"kind": "dropout", "rate": 0.5, "position": "before_last_bn"}


@pytest.mark.parametrize(
    ("entry", "key", "text", "variance", "phrase"),
    [
        ({"kind": "dropout", "rate": 0.5}, "rate", "0.5", 1.0, "dropout at rate"),
        ({"kind": "gaussian", "sigma": 0.5}, "sigma", "σ 0.5", 0.25, "Gaussian noise with σ"),
        ({"kind": "gaussian", "rate": 0.2}, "rate", "0.2", 0.25,
         "Gaussian noise as strong as dropout at rate"),
        ({"kind": "uout", "beta": 0.3}, "beta", "β 0.3", 0.03, "uniform noise (Uout) with β"),
        ({"kind": "uniform", "rate": 0.5}, "rate", "0.5", 1.0,
         "uniform noise (Uout) as strong as dropout at rate"),
        ({"kind": "stochastic_depth", "rate": 0.2}, "rate", "0.2", 0.25,
         "stochastic depth at rate"),
        ({"kind": "classic_dropout", "rate": 0.2}, "rate", "0.2", 0.25,
         "classic dropout (scaled in testing, not in training) at rate"),
        ({"kind": "dropblock", "rate": 0.2, "size": 3}, "rate", "0.2", 0.25, "DropBlock at rate"),
        ({"kind": "not yet", "sigma": 0.5, "new": 1}, "sigma", "σ 0.5", 0.2, "not yet with σ"),
    ],
)  # fmt: skip
def test_a_kind_says_how_strong_it_is(
    entry: dict[str, Any], key: str, text: str, variance: float, phrase: str
) -> None:
    noise = read_noise(entry)
    assert (noise.strength_key, noise.strength_text, noise.phrase) == (key, text, phrase)
    assert noise.strength == entry[key]
    if entry["kind"] != "not yet":
        assert noise.variance == pytest.approx(variance)


@pytest.mark.parametrize("kind", _BY_KIND)
def test_every_kind_has_a_name_and_is_silent_at_strength_0(kind: str) -> None:
    noise = read_noise({"kind": kind, "rate": 0.0, "position": "before_bn"})
    assert type(noise).label
    assert (noise.strength, noise.variance, noise.places) == (0.0, 0.0, ("before_bn",))


@pytest.mark.parametrize(
    "entry",
    [
        {},
        {"kind": None, "rate": 0.5},
        {"kind": [1], "rate": 0.5},
        {"kind": "dropout", "rate": "x"},
        {"kind": "dropout", "rate": 2, "position": 3},
        {"kind": "dropout", "rate": float("nan")},
        {"kind": "gaussian", "sigma": 1, "rate": 0.5},
        {"kind": "gaussian"},
    ],
)
def test_what_cannot_be_read_is_left_out(entry: dict[str, Any]) -> None:
    noise = read_noise(entry)
    assert isinstance(noise.phrase, str)
    assert isinstance(noise.strength_text, str)
    assert noise.variance >= 0


def test_an_unknown_key_of_a_known_kind_is_left_out() -> None:
    noise = read_noise({"kind": "dropout", "rate": 0.5, "unit": "channel", "since": 3})
    assert noise == read_noise({"kind": "dropout", "rate": 0.5, "unit": "channel"})
    assert noise.unit == "channel"  # type: ignore[attr-defined]


def test_the_whole_run_is_one_config_however_it_is_written() -> None:
    plain = make_config(network={"name": "preresnet", "depth": 8, "noise": DROPOUT})
    always = {**DROPOUT, "from": 0, "until": 1}
    assert make_config(network={"name": "preresnet", "depth": 8, "noise": always}) == plain
    early = {**DROPOUT, "from": 0, "until": 0.3}
    config = make_config(network={"name": "preresnet", "depth": 8, "noise": early}, epochs=10)
    (entry,) = config.network.noises
    assert (entry.span, entry.epochs(10)) == ((0.0, 0.3), range(1, 4))
    assert [list(entry.epochs(total)) for total in (1, 2, 5)] == [[], [1], [1, 2]]


def test_noise_of_ones_own_is_named_with_its_arguments():
    entry = {"kind": "/somewhere/my_noise.py:Mine", "args": {"sigma": 0.5}, "before": "bn"}
    noise = read_noise(entry)
    assert noise.phrase == "noise of one’s own (my_noise.py:Mine, sigma 0.5)"
    assert noise.strength is None  # not 0, which is no noise
