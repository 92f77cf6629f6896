"""What a family of networks says of itself."""

from typing import Any

import pytest

from tests.configs import make_config


@pytest.mark.parametrize(
    ("network", "label", "halvings"),
    [
        ({"name": "preresnet", "depth": 20}, "preresnet-20", 2),
        ({"name": "resnet", "depth": 18}, "resnet-18", 3),
        ({"name": "resnet", "depth": 20}, "resnet-20", 2),
        ({"name": "wrn", "depth": 28, "width": 10}, "wrn-28-10", 2),
        ({"name": "resnext", "depth": 29}, "resnext-29-8-64", 2),
        ({"name": "densenet", "depth": 100}, "densenet-100-12", 2),
        ({"name": "vgg", "depth": 16, "width": 0.5}, "vgg-16-0.5", 5),
        ({"name": "mlp", "widths": [64, 32]}, "mlp-64-32", 0),
        ({"name": "autoencoder", "widths": [8]}, "autoencoder-8", 0),
    ],
)
def test_a_family_says_its_size(network: dict[str, Any], label: str, halvings: int) -> None:
    config = make_config(network=network)
    assert (config.network.size_label, config.network.halvings) == (label, halvings)
