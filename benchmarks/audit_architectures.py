"""Audit architectures of torchvision and timm, without weights, on random images.

    python -m benchmarks.audit_architectures > table.md

Per architecture: whether the audit ends without an error; whether parameters, buffers, modes, hooks
and random states are bit-identical afterwards; noise modules (of a dropout kind, with a rate above
0, that run) and random sources found by running, functional ones too; BN layers, and how many of
them noise reaches. Two batches of 4 images. About 5 minutes on one CPU core.
"""

from __future__ import annotations

import argparse
import sys
import time
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from tests.auditing.conftest import everything
from vshift import audit


@dataclass(frozen=True)
class Architecture:
    """`functional` noise is in no module: the number of calls is said here, from the source."""

    library: str
    name: str
    size: int = 64
    options: dict[str, Any] = field(default_factory=dict)
    functional: int = 0

    def build(self) -> nn.Module:
        torch.manual_seed(0)
        if self.library == "timm":
            import timm

            return timm.create_model(self.name, pretrained=False, **self.options)
        from torchvision import models

        return models.get_model(self.name, weights=None, **self.options)  # type: ignore[no-any-return]


def tv(name: str, size: int = 64, functional: int = 0, **options: Any) -> Architecture:
    return Architecture("torchvision", name, size, options, functional)


def timm(name: str, size: int = 64, functional: int = 0, **options: Any) -> Architecture:
    return Architecture("timm", name, size, options, functional)


# These build quickly and run in the tests.
SMALL = (
    tv("squeezenet1_1"), tv("mobilenet_v3_small"), tv("shufflenet_v2_x0_5"), tv("resnet18"),
    timm("mobilenetv3_small_050", drop_path_rate=0.2), timm("test_vit", 160, drop_path_rate=0.2),
)  # fmt: skip
ALL = (
    *SMALL,
    tv("resnet34"), tv("resnet50"), tv("wide_resnet50_2"), tv("resnext50_32x4d"),
    tv("densenet121"), tv("densenet121", functional=58, drop_rate=0.1), tv("densenet169"),
    tv("vgg11_bn"), tv("vgg13_bn"), tv("vgg11"), tv("alexnet"),
    tv("googlenet", init_weights=False), tv("inception_v3", 96, init_weights=False),
    tv("mobilenet_v2"), tv("mobilenet_v3_large"), tv("mnasnet0_5"), tv("mnasnet1_0"),
    tv("shufflenet_v2_x1_0"), tv("squeezenet1_0"),
    tv("efficientnet_b0"), tv("efficientnet_b1"), tv("efficientnet_v2_s"),
    tv("regnet_x_400mf"), tv("regnet_y_400mf"), tv("regnet_y_800mf"),
    tv("convnext_tiny"), tv("vit_b_32", image_size=64), tv("swin_t"), tv("swin_v2_t"),
    tv("maxvit_t", 224),
    timm("resnet26", drop_path_rate=0.1), timm("resnet50", drop_rate=0.2, functional=1),
    timm("resnext26ts"), timm("seresnet33ts"), timm("resnest14d"), timm("efficientnet_b0",
    drop_path_rate=0.2), timm("efficientnet_lite0", drop_rate=0.2, functional=1),
    timm("mobilenetv3_large_100", drop_rate=0.2, functional=1),
    timm("regnetx_002"), timm("regnety_002"), timm("densenet121"), timm("dla34"),
    timm("res2net50_14w_8s"), timm("hrnet_w18_small"), timm("ghostnet_050"), timm("repvgg_a0"),
    timm("convnext_atto", drop_path_rate=0.1), timm("vit_tiny_patch16_224", img_size=64,
    drop_path_rate=0.1, drop_rate=0.1), timm("deit_tiny_patch16_224", img_size=64,
    attn_drop_rate=0.1, functional=12), timm("mixer_s32_224", 224, drop_path_rate=0.1),
    timm("resnetv2_50"), timm("resnet18", drop_block_rate=0.1), timm("levit_128s", 224),
)  # fmt: skip


@torch.no_grad()
def declared(model: nn.Module, images: torch.Tensor) -> int:
    """Modules that say themselves that they are noise, with a rate above 0, and that run in eval.

    Some are never called, such as the drop path of a block without a skip connection; auxiliary
    heads run in training only.
    """
    kinds = ("Dropout", "DropPath", "StochasticDepth", "DropBlock", "AlphaDropout")
    noises = [
        module
        for module in model.modules()
        if type(module).__name__.startswith(kinds) and _rate(module) > 0
    ]
    ran: set[int] = set()
    handles = [m.register_forward_pre_hook(lambda m, _: ran.add(id(m))) for m in noises]
    model.eval()(images)
    model.train()
    for handle in handles:
        handle.remove()
    return len(ran)


def _rate(module: nn.Module) -> float:
    for name in ("p", "drop_prob"):
        if getattr(module, name, None) is not None:
            return float(getattr(module, name))
    return 0.0


def examine(architecture: Architecture) -> dict[str, Any]:
    """One row."""
    model = architecture.build()
    images = torch.randn(2, 4, 3, architecture.size, architecture.size)
    noises = declared(model, images[0])
    before = everything(model)
    began = time.perf_counter()
    found = audit(model, list(images))
    seconds = time.perf_counter() - began
    options = ", ".join(
        f"{k}={v}"
        for k, v in architecture.options.items()
        if k not in ("init_weights", "img_size", "image_size")
    )
    return {
        "architecture": f"{architecture.library}:{architecture.name}"
        + (f" ({options})" if options else ""),
        "unchanged": everything(model) == before,
        "declared": noises,
        "functional": architecture.functional,
        "found": len(found.noise.training),
        "live": len(found.noise.eval),
        "norms": len(found.layers),
        "reached": sum(bool(row["noise"]) for row in found.layers),
        "seconds": seconds,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--small", action="store_true", help="The ones of the tests only.")
    torch.set_num_threads(1)
    print(
        "| architecture | bit-identical | noise modules | found by running | BN "
        "| reached by noise |"
    )
    print("| :-- | :-- | --: | --: | --: | --: |")
    for architecture in SMALL if parser.parse_args().small else ALL:
        try:
            row = examine(architecture)
        except Exception as error:  # a table of what works has to say what does not
            print(f"| {architecture.library}:{architecture.name} | {error!r:.80} | | | | |")
            continue
        same = "yes" if row["unchanged"] else "**no**"
        print(
            f"| {row['architecture']} | {same} | {row['declared']} | {row['found']} | "
            f"{row['norms']} | {row['reached']} |",
            flush=True,
        )
        print(f"{row['architecture']}: {row['seconds']:.1f} s, live {row['live']}", file=sys.stderr)


if __name__ == "__main__":
    main()
