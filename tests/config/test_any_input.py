"""Whatever the text: a Config or a ConfigError; and dump → load gives the same config back."""

from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from tests.config.conftest import GOOD
from vshift.config import Config, config_hash, differences, dump, expand, load
from vshift.config.load import build
from vshift.config.yaml12 import SourceLocation, from_python, parse
from vshift.errors import ConfigError

many = settings(
    max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
RICH = f"""{GOOD}name: x
seeds: [0, 1]
norm: {{kind: batch, momentum: 0.1}}
schedule: {{name: multistep, milestones: [1]}}
grid: {{network.noise.rate: [0.1, 0.3]}}
arms: {{deep: {{network.depth: 20}}}}
"""
KEYS = [
    "name", "kind", "seeds", "data", "network", "norm", "noise", "optimizer", "schedule", "epochs",
    "measure", "hardware", "grid", "zip", "arms", "base", "depth", "rate", "position", "block",
    "root", "widths", "milestones", "eval_epochs", "augment", "network.noise.rate", "one", "list",
    "preresnet",
]  # fmt: skip
WORDS = [
    "preresnet", "wrn", "vgg", "mlp", "batch", "dropout", "uout", "shapes", "imagefolder", "sgd",
    "multistep", "before_bn", "all", "bn relu conv noise", "", "1e-3", "no", "\x1b[1m", "a\nb",
]  # fmt: skip
scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.sampled_from(WORDS),
    st.text(max_size=8),
)
keys = st.sampled_from(KEYS) | st.text(max_size=5)
values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(keys, inner, max_size=5),
    max_leaves=15,
)


def attempt(function: Any, *args: Any) -> None:
    """Anything but a ConfigError fails the test; its lines must be fit for a terminal."""
    try:
        function(*args)
    except ConfigError as error:
        problems = error.problems
    else:
        return
    assert problems
    for line in problems:
        assert line.isprintable()
        assert len(line) <= 1000


@many
@given(st.dictionaries(keys, values, max_size=8))
def test_any_nested_dict(content: dict[str, Any]) -> None:
    attempt(build, from_python(content, SourceLocation("f")))
    good = yaml.safe_load(GOOD)
    attempt(build, from_python({**good, **content}, SourceLocation("f")))


@many
@given(st.sampled_from(["data", "network", "norm", "schedule", "measure"]), values, keys, values)
def test_any_value_in_any_section(section: str, value: Any, key: str, inner: Any) -> None:
    good = {"norm": {}, "schedule": {}, "measure": {}, **yaml.safe_load(GOOD)}
    attempt(build, from_python({**good, section: value}, SourceLocation("f")))
    attempt(
        build, from_python({**good, section: {**good[section], key: inner}}, SourceLocation("f"))
    )


@many
@given(
    st.lists(
        st.tuples(
            st.integers(0, len(RICH)),
            st.integers(0, 6),
            st.text(alphabet="{}[]:,-&*!|>'\"%@`#?~<.\n\t aé1\0\x1b", max_size=4)
            | st.text(max_size=2),
        ),
        max_size=4,
    )
)
def test_any_mutated_text(write: Any, cuts: list[tuple[int, int, str]]) -> None:
    text = RICH
    for start, length, new in cuts:
        text = text[:start] + new + text[start + length :]
    Path("m.yaml").write_bytes(text.encode(errors="surrogatepass"))
    attempt(load, "m.yaml")
    attempt(expand, "m.yaml")


@many
@given(st.text(max_size=40))
def test_any_text(text: str) -> None:
    attempt(parse, text, "f")


@many
@given(st.binary(max_size=60))
def test_any_bytes(write: Any, data: bytes) -> None:
    Path("b.yaml").write_bytes(data)
    attempt(load, "b.yaml")


@many
@given(
    st.lists(
        st.text(max_size=20) | st.builds("{}={}".format, keys, st.text(max_size=9)), max_size=3
    )
)
def test_any_set(write: Any, sets: list[str]) -> None:
    attempt(load, "good.yaml", sets)
    attempt(expand, "good.yaml", sets)


position = st.sampled_from(["before_last_bn", "before_last_conv", "before_bn", "after_bn"])
rate = st.floats(0, 1, exclude_max=True)
noise = st.fixed_dictionaries(
    {"kind": st.sampled_from(["dropout", "gaussian", "uout"]), "rate": rate, "position": position},
    optional={"unit": st.sampled_from(["element", "channel", "sample"])},
) | st.fixed_dictionaries(
    {
        "kind": st.sampled_from(
            ["stochastic_depth", "classic_dropout", "scaled_dropout", "alpha_dropout", "dropblock"]
        ),
        "rate": rate,
        "position": position,
    }
)
networks = st.fixed_dictionaries(
    {"name": st.sampled_from(["preresnet", "resnet", "resnext", "densenet", "vgg", "mlp"])},
    optional={"noise": noise | st.lists(noise, min_size=1, max_size=3), "bias": st.booleans()},
)
no_nul = st.characters(exclude_characters="\0", exclude_categories=["Cs"])
texts = st.text(no_nul, min_size=1, max_size=12) | st.sampled_from(
    ["no", "1e-3", "012", "0o17", "~", "null", ".inf", "a: b", "- a", "#", "'", '"', "<<", "=", "%"]
)
data = st.fixed_dictionaries(
    {"name": st.just("imagefolder"), "root": texts, "train_folder": texts, "test_folder": texts}
) | st.fixed_dictionaries({"name": st.just("shapes"), "seed": st.integers(0, 2**70)})
positive = st.floats(min_value=0, exclude_min=True, allow_infinity=False)
configs = st.fixed_dictionaries(
    {"name": st.from_regex(r"\A[a-z0-9][a-z0-9._=+-]{0,20}\Z"), "data": data, "network": networks,
     "epochs": st.integers(1, 100_000)},
    optional={
        "seeds": st.lists(st.integers(0, 2**32 - 1), min_size=1, max_size=3, unique=True),
        "norm": st.fixed_dictionaries(
            {"kind": st.just("batch"), "eps": positive},
            optional={"ghost": st.none() | st.integers(1, 999),
                      "update_running_stats": st.booleans(),
                      "eval_statistics": st.sampled_from(["running", "batch"])},
        ),
        "optimizer": st.fixed_dictionaries({"learning_rate": positive}),
        "schedule": st.fixed_dictionaries({"name": st.just("onecycle"), "peak": positive}),
        "grid": st.dictionaries(
            st.sampled_from(KEYS),
            st.lists(texts | st.integers() | positive | st.none(), min_size=1, max_size=3),
            min_size=1,
            max_size=2,
        ),
    },
)  # fmt: skip


@many
@given(configs)
def test_dump_then_load_gives_the_same(write: Any, content: dict[str, Any]) -> None:
    try:
        config = Config.model_validate(content)
    except ValidationError as error:
        pytest.fail(str(error))
    again = load(write("again.yaml", dump(config)))
    assert again == config
    assert dump(again) == dump(config)
    assert config_hash(again) == config_hash(config)
    assert differences(again, config) == {}
