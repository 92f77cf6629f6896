"""A file of models and loaders, as a user of the command line has one."""

FILE = """
import torch
from torch import nn

torch.manual_seed(0)


def net():
    return nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        nn.Dropout(0.5), nn.Linear(8, 2),
    )


def trained():
    model = net()
    with torch.no_grad():
        for _ in range(60):
            model(torch.randn(16, 3, 8, 8))
    return model


def chatty():
    print("building")
    return trained()


def nothing():
    print("no return")


def wider(width, depth=2):
    return nn.Linear(width, depth)


def not_a_model():
    return 3


def raises():
    raise ValueError("on purpose\\nand more")


loader = [(torch.randn(16, 3, 8, 8), torch.randint(2, (16,))) for _ in range(4)]
wide = [torch.randn(16, 5, 8, 8) for _ in range(4)]
one = loader[:1]
images = [x for x, _ in loader]
double = [(x.double(), y) for x, y in loader]
mapped = [{"image": x, "mask": x, "label": y} for x, y in loader]
dataset = torch.utils.data.TensorDataset(*map(torch.cat, zip(*loader)))
"""
