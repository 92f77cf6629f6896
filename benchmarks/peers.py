"""Three training loops as people write them: what `vshift bench --peers` races vshift against.

Each function below is one loop, complete and to be read by itself. It gets the work and returns a
function that trains for one epoch, last and smaller batch included, and gives the mean loss. All
train the same network with the same recipe as vshift: crop of 4 pixels and flip, cross-entropy,
SGD with momentum, weights in float32. Only how they do it differs.
"""

from __future__ import annotations

import signal
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import Compose, Normalize, RandomCrop, RandomHorizontalFlip, ToTensor

CROP = 4
Epoch = Callable[[], float]


@dataclass(frozen=True)
class Work:
    """A training task: `images` uint8 [N, H, W, 3] and `labels` int64 [N] on the CPU.

    `model` is a network of PyTorch's own layers on the CPU (see `plain_network.py`); `mean` and
    `std` of the channels are in 0..1; `precision` is float32 or bf16 by autocast.
    """

    model: nn.Module
    images: Tensor
    labels: Tensor
    mean: tuple[float, ...]
    std: tuple[float, ...]
    batch: int
    device: torch.device
    precision: str

    def autocast(self) -> torch.autocast:
        enabled = self.precision == "bf16"
        return torch.autocast(self.device.type, torch.bfloat16, enabled=enabled)

    def optimizer(self, *, fused: bool | None = None) -> torch.optim.SGD:
        parameters = self.model.parameters()
        return torch.optim.SGD(parameters, 0.01, momentum=0.9, weight_decay=1e-4, fused=fused)


class Images(Dataset[tuple[Tensor, int]]):
    """Like torchvision's CIFAR10: an array in memory, each image through PIL and transforms."""

    def __init__(self, work: Work) -> None:
        self.pixels: NDArray[np.uint8] = work.images.numpy()
        self.labels: list[int] = work.labels.tolist()
        self.transform = Compose(
            [
                RandomCrop(work.images.shape[1], padding=CROP),
                RandomHorizontalFlip(),
                ToTensor(),
                Normalize(work.mean, work.std),
            ]
        )

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.transform(Image.fromarray(self.pixels[index])), self.labels[index]


def ignore_stop_signals(worker: int) -> None:
    """Ctrl-C and SIGTERM reach a DataLoader's workers too, and are their parent's to answer."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)


def plain(work: Work) -> Epoch:
    """(a) The loop most people run: in float32 (TF32 on a GPU), a DataLoader with 2 workers.

    `loss.item()` in every step is part of it.
    """
    cuda = work.device.type == "cuda"
    if cuda:
        torch.set_float32_matmul_precision("high")
    model = work.model.to(work.device).train()
    optimizer = work.optimizer()
    loader = DataLoader(
        Images(work),
        batch_size=work.batch,
        shuffle=True,
        num_workers=2,
        persistent_workers=True,
        pin_memory=cuda,
        worker_init_fn=ignore_stop_signals,
    )

    def epoch() -> float:
        total = 0.0
        for images, labels in loader:
            images = images.to(work.device, non_blocking=True)
            labels = labels.to(work.device, non_blocking=True)
            optimizer.zero_grad()
            with work.autocast():
                loss = F.cross_entropy(model(images), labels)
            loss.backward()
            optimizer.step()
            total += loss.item() * len(labels)
        return total / len(work.labels)

    return epoch


def crop_and_flip(padded: Tensor, chosen: Tensor, size: int) -> Tensor:
    """Random crops, half of them mirrored, of the images `chosen` [B], in one gather.

    [N, H, W, C] → [B, size, size, C].
    """
    count, device = len(chosen), padded.device
    along = torch.arange(size, device=device)
    top, left = torch.randint(padded.shape[1] - size + 1, (2, count, 1), device=device)
    flip = torch.rand(count, 1, device=device) < 0.5
    rows = top + along
    columns = left + torch.where(flip, along.flip(0), along)
    return padded[chosen[:, None, None], rows[:, :, None], columns[:, None, :]]


def bf16(work: Work) -> Epoch:
    """(b) bf16 autocast, channels_last, images on the device, one gather to crop and flip."""
    device, size = work.device, work.images.shape[1]
    model = work.model.to(device).to(memory_format=torch.channels_last).train()
    optimizer = work.optimizer()
    images = F.pad(work.images.to(device), (0, 0, CROP, CROP, CROP, CROP))
    labels = work.labels.to(device)
    mean = 255 * torch.tensor(work.mean, device=device)
    std = 255 * torch.tensor(work.std, device=device)

    def epoch() -> float:
        total = torch.zeros((), device=device)
        for chosen in torch.randperm(len(images), device=device).split(work.batch):
            pixels = crop_and_flip(images, chosen, size)
            x = ((pixels.float() - mean) / std).permute(0, 3, 1, 2)
            optimizer.zero_grad()
            with work.autocast():
                loss = F.cross_entropy(model(x), labels[chosen])
            loss.backward()
            optimizer.step()
            total += loss.detach() * len(chosen)
        return float(total) / len(images)

    return epoch


def airbench(work: Work) -> Epoch:
    """(c) Like Keller Jordan's airbench: compiled, an epoch's images augmented at once.

    `max-autotune` (with CUDA graphs) on a GPU, the default mode on a CPU. Airbench leaves out each
    epoch's last, smaller batch; here it runs uncompiled, as a second compilation would cost more.
    Airbench keeps its weights in float16; here they stay in float32, or it were another recipe.
    """
    device, size = work.device, work.images.shape[1]
    model = work.model.to(device).to(memory_format=torch.channels_last).train()
    mode = "max-autotune" if device.type == "cuda" else "default"
    compiled = torch.compile(model, mode=mode, dynamic=False)
    optimizer = work.optimizer(fused=True)
    mean = 255 * torch.tensor(work.mean, device=device)
    std = 255 * torch.tensor(work.std, device=device)
    # Black borders in the normalised values, once and for all epochs.
    bordered = F.pad(work.images.to(device), (0, 0, CROP, CROP, CROP, CROP))
    kept = torch.bfloat16 if work.precision == "bf16" else torch.float32
    padded = torch.cat([((p.float() - mean) / std).to(kept) for p in bordered.split(1000)])
    labels = work.labels.to(device)

    def epoch() -> float:
        total = torch.zeros((), device=device)
        order = torch.randperm(len(padded), device=device)
        images = crop_and_flip(padded, order, size).permute(0, 3, 1, 2)
        for x, y in zip(images.split(work.batch), labels[order].split(work.batch), strict=True):
            forward = compiled if len(y) == work.batch else model
            optimizer.zero_grad(set_to_none=True)
            with work.autocast():
                loss = F.cross_entropy(forward(x), y)
            loss.backward()
            optimizer.step()
            total += loss.detach() * len(y)
        return float(total) / len(padded)

    return epoch


PEERS = {"plain": plain, "bf16": bf16, "airbench": airbench}
TITLES = {
    "plain": "(a) plain {} loop",
    "bf16": "(b) {}, channels_last",
    "airbench": "(c) airbench-style, {}",
}
# As people write them; each also joins in the precision that is faster on the device.
OWN_PRECISION = {"plain": "float32", "bf16": "bf16", "airbench": "bf16"}
