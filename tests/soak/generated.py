"""Random configs, drawn from the schema itself, so that a new key is in them as soon as it exists.

They are small: tens of images, one or two epochs, the smallest network of each family.
"""

from __future__ import annotations

import types
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from hypothesis import strategies as st
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from vshift.config import networks
from vshift.config.data import Shapes
from vshift.config.own import OwnPart
from vshift.config.schema import Config

Strategy = st.SearchStrategy[Any]
MOST = 8  # above its lower bound, a whole number that nothing else is said of
FLOATS = (0.0, 1e-30, 1e-6, 0.1, 0.5, 1.0, 3.0, 1e6, 1e30)

_FULLY_CONNECTED = {
    "widths": st.lists(st.sampled_from([1, 2, 8, 9]), min_size=1, max_size=3),
    "block": st.sampled_from(
        ["fc bn relu", "fc relu", "fc gn relu", "bn fc relu", "fc noise bn relu", "bn fc bn noise"]
    ),
}
NETWORKS: dict[type, dict[str, Strategy]] = {
    networks.MLP: _FULLY_CONNECTED,
    networks.Autoencoder: _FULLY_CONNECTED,
    networks.PreResNet: {"depth": st.just(8)},
    networks.ResNet: {"depth": st.just(8)},
    networks.WRN: {"depth": st.just(10), "width": st.just(1)},
    networks.ResNeXt: {
        "depth": st.just(11), "cardinality": st.sampled_from([1, 2]), "base_width": st.just(2),
    },
    networks.DenseNet: {
        "depth": st.just(10), "bottleneck": st.booleans(), "growth_rate": st.sampled_from([1, 4]),
    },
    networks.VGG: {"depth": st.just(11), "width": st.just(1 / 64)},
    networks.ViT: {
        "depth": st.sampled_from([1, 2]), "width": st.sampled_from([8, 12]), "patch": st.just(8),
        "heads": st.sampled_from([1, 2, 3]),
    },
}  # fmt: skip
# What is always there, and what is drawn in another way than from its type.
GIVEN: dict[type, dict[str, Strategy]] = {
    Config: {
        "name": st.just("generated"),
        # Half of them fully connected: they are quick, and single values are where it is tight.
        "network": st.sampled_from([networks.MLP] * len(NETWORKS) + [*NETWORKS]).flatmap(
            lambda family: section(family)
        ),
        "data": st.deferred(lambda: section(Shapes)),
        "epochs": st.integers(1, 2),
    },
    Shapes: {
        "train": st.integers(10, 40),
        "test": st.integers(10, 20),
        "batch_size": st.integers(2, 45),
    },
    **NETWORKS,
}
DRAWN: dict[str, Strategy] = {
    "seeds": st.just([0]),
    "threads": st.just(1),
    "device": st.sampled_from(["auto", "cpu"]),
    "step": st.sampled_from(["auto", "eager", "fused"]),  # compiling takes a minute
    "train_limit": st.none() | st.integers(1, 30),
    "test_limit": st.none() | st.integers(1, 12),
    "validation": st.integers(0, 12),
    **dict.fromkeys(("grid", "zip", "arms", "args", "source"), st.nothing()),
}
ALWAYS = {"position"}  # without which noise is refused, mostly
OPTIONAL = {"block"}  # of what is given


def configs() -> Strategy:
    """A config's content, as YAML would give it; not all are valid."""
    return section(Config)


@cache  # it is drawn from a thousand times
def section(model: type[BaseModel]) -> Strategy:
    """Its required keys, and a few of the others."""
    given = GIVEN.get(model, {})
    fields = {
        field.alias or name: given.get(name, DRAWN.get(name, of_type(field.annotation, [field])))
        for name, field in model.model_fields.items()
    }
    always = {
        field.alias or name
        for name, field in model.model_fields.items()
        if field.is_required() or name in ALWAYS or (name in given and name not in OPTIONAL)
    }
    others = [key for key in fields if key not in always and not fields[key].is_empty]
    chosen = st.lists(st.sampled_from(others), max_size=3, unique=True) if others else st.just([])
    return chosen.flatmap(
        lambda more: st.fixed_dictionaries({key: fields[key] for key in [*sorted(always), *more]})
    )


def of_type(annotation: Any, about: Sequence[Any]) -> Strategy:
    """Values of a type, within the bounds that stand beside it; nothing for free text."""
    origin, inner = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return of_type(inner[0], [*about, *inner[1:]])
    if origin in (Union, types.UnionType):
        return st.one_of([of_type(one, about) for one in inner])
    if origin is Literal:
        return st.sampled_from(inner)
    bounds = _bounds(about)
    if origin is list:
        least, most = bounds.get("min_length", 0), bounds.get("max_length", 3)
        items = of_type(inner[0], [])
        if items.is_empty:
            return st.nothing()
        return st.lists(items, min_size=least, max_size=max(least, min(most, 3)))
    if annotation is types.NoneType:
        return st.none()
    if annotation is bool:
        return st.booleans()
    if annotation is int:
        least = bounds.get("ge", bounds.get("gt", -1) + 1)
        most = bounds.get("le", bounds.get("lt", least + MOST + 1) - 1)
        return st.integers(least, min(most, least + MOST))
    if annotation is float:
        return _floats(bounds)
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return st.nothing() if issubclass(annotation, OwnPart) else section(annotation)
    return st.nothing()


def _bounds(about: Sequence[Any]) -> dict[str, Any]:
    """`ge`, `gt`, `le`, `lt`, `min_length` and `max_length`, where they are given."""
    found: dict[str, Any] = {}
    for item in about:
        inside = item.metadata if isinstance(item, FieldInfo) else [item]
        for constraint in inside:
            for key in ("ge", "gt", "le", "lt", "min_length", "max_length"):
                if (value := getattr(constraint, key, None)) is not None:
                    found[key] = value
    return found


def _floats(bounds: Mapping[str, Any]) -> Strategy:
    def fits(value: float) -> bool:
        return (
            value >= bounds.get("ge", value)
            and value <= bounds.get("le", value)
            and ("gt" not in bounds or value > bounds["gt"])
            and ("lt" not in bounds or value < bounds["lt"])
        )

    ends = [bounds[key] for key in ("ge", "le", "gt", "lt") if key in bounds]
    return st.sampled_from([value for value in dict.fromkeys([*FLOATS, *ends]) if fits(value)])
