"""The callback in a real training of Hugging Face's Trainer."""

import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from examples.patients import Net, data
from vshift.runs import find_runs

with warnings.catch_warnings(action="ignore"):
    transformers = pytest.importorskip(
        "transformers", reason="the development tools are not installed"
    )
    pytest.importorskip("accelerate", reason="the development tools are not installed")
    from vshift.integrations.huggingface import VarianceCallback


class Model(nn.Module):
    """With the arguments and the output that the Trainer expects."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.net = Net(before_bn2=nn.Dropout(0.5))

    def forward(self, pixel_values, labels=None):
        logits = self.net(pixel_values)
        found = {"logits": logits}
        return found if labels is None else {"loss": F.cross_entropy(logits, labels), **found}


def items(seed: int) -> list[dict[str, torch.Tensor]]:
    pairs = [
        (x, y) for images, labels in data(seed, 128) for x, y in zip(images, labels, strict=True)
    ]
    return [{"pixel_values": x, "labels": y} for x, y in pairs]


def train(folder, *callbacks) -> Model:
    arguments = transformers.TrainingArguments(
        str(folder), num_train_epochs=2, per_device_train_batch_size=32, eval_strategy="epoch",
        save_strategy="no", report_to="none", use_cpu=True, disable_tqdm=True, seed=0,
    )  # fmt: skip
    model = Model()
    with warnings.catch_warnings(action="ignore"):
        transformers.Trainer(
            model, arguments, train_dataset=items(0), eval_dataset=items(1), callbacks=[*callbacks]
        ).train()
    return model


def test_it_saves_the_run_and_changes_nothing(tmp_path):
    callback = VarianceCallback(
        tmp_path / "runs" / "trainer" / "seed-0",
        metrics=lambda seen: {"test_loss": seen["eval_loss"]},
    )
    watched, plain = train(tmp_path / "a", callback), train(tmp_path / "b")
    for key, value in plain.state_dict().items():
        assert torch.equal(value, watched.state_dict()[key])
    (run,) = find_runs([tmp_path / "runs"])
    assert run.status == "done"
    assert run.summary["shift_ratio_max"] > 1
    assert run.summary["test_loss"] > 0
    assert len(callback.probe.rows) == 3 * 2
    assert all(row.eval_variance is not None for row in callback.probe.rows)
    assert {row.layer for row in callback.probe.rows if row.noise_before} == {"net.bn2"}
