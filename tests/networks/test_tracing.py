"""The traced graph."""

import pytest
import torch
from torch import nn

from vshift.config.noise import Dropout as DropoutSection
from vshift.networks.noise import make_noise
from vshift.networks.placement import place_noise
from vshift.networks.tracing import Graph


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))
        self.relu = nn.ReLU()

    def forward(self, x):
        return self.relu(self.relu(self.body(x)) + 1)


def test_noise_of_hooks_is_in_the_graph_where_it_is_called():
    model = Net()
    noise = DropoutSection(
        kind="dropout", rate=0.5, before=["body.1", "body"], after=["body", "relu"]
    )
    place_noise(model, [noise], make_noise, channels=3, size=4)
    nodes = [str(n.target) for n in Graph(model).nodes if n.op == "call_module"]
    assert nodes == [
        "body.0.noise1",  # before body
        "body.0",
        "body.1.noise1",
        "body.1",
        "body.0.noise2",  # after body
        "relu",
        "relu.noise1",
        "relu",
        "relu.noise1",
    ]


def test_a_change_in_place_that_the_graph_would_miss_is_refused():
    class Adds(Net):
        def forward(self, x):
            y = self.body(x)
            y.add_(1)
            return self.relu(y)

    with pytest.raises(ValueError, match="the forward changes body_1 by add_ and uses it after"):
        Graph(Adds())


def test_a_forward_that_depends_on_values_is_refused():
    class Odd(nn.Module):
        def forward(self, x):
            return x if torch.sum(x) > 0 else -x

    with pytest.raises(ValueError, match=r"the model cannot be traced by torch\.fx: symbolically"):
        Graph(Odd())
