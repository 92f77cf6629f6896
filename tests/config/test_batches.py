"""Images alone in a batch: found as PyTorch splits them, and the number that is offered works."""

import re

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vshift.config import Config
from vshift.config.batches import has_single_values, lone_images


def config_of(size, group=None, statistics="running", modes=False, **sections):
    return Config.model_validate(
        {
            "name": "a",
            "data": {"name": "shapes", "batch_size": size},
            "network": {"name": "mlp", "widths": [8]},
            "norm": {"kind": "batch", "ghost": group, "eval_statistics": statistics},
            "measure": {"modes": modes},
            "epochs": 1,
            **sections,
        }
    )


def leaves_one(images, size, group):
    """By PyTorch's own splitting."""
    batches = torch.zeros(images).split(size)
    groups = [part for batch in batches for part in batch.split(group or size)]
    return any(len(part) == 1 for part in groups)


@settings(max_examples=200, deadline=None)
@given(
    st.integers(10, 120), st.integers(0, 9), st.integers(1, 60), st.integers(2, 70),
    st.none() | st.integers(1, 40), st.sampled_from(["running", "batch"]), st.booleans(),
)  # fmt: skip
def test_it_agrees_with_torch_and_what_it_offers_works(
    train, validation, test, size, group, statistics, modes
):
    counts = {"train": train, "validation": validation, "test": test}
    problem = lone_images(config_of(size, group, statistics, modes), **counts)
    parts = [(train, size)]
    if statistics == "batch" or modes:
        parts += [(test, size + (test % size == 1))]
    if statistics == "batch" and validation:
        parts += [(validation, size + (validation % size == 1))]
    assert (problem is not None) == any(leaves_one(*part, group) for part in parts)
    for _ in range(4):  # one number at a time
        if problem is None:
            return
        offer = re.search(r"^[a-z]+\.([a-z_]+): .*try (?:[a-z_]+: )?(no groups|\d+)", problem)
        key, number = offer.groups()
        if key == "ghost":
            group = None if number == "no groups" else int(number)
        elif key == "batch_size":
            size = int(number)
        else:
            counts["test" if key == "test_limit" else key] = int(number)
        problem = lone_images(config_of(size, group, statistics, modes), **counts)
    assert problem is None


def test_only_batch_norm_in_a_fully_connected_network_is_known_to_mind():
    assert has_single_values(config_of(8))
    assert has_single_values(config_of(8, network={"name": "autoencoder", "widths": [8, 4]}))
    assert not has_single_values(config_of(8, norm={"kind": "layer"}))
    assert not has_single_values(config_of(8, network={"name": "mlp", "block": "fc relu"}))
    assert not has_single_values(config_of(8, network={"name": "preresnet", "depth": 8}))
