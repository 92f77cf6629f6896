"""The Lightning callback in a real Lightning training."""

import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from examples.minimal import InputMoments, norms
from examples.patients import Net, data
from vshift.runs import find_runs

with warnings.catch_warnings(action="ignore"):  # what it imports warns of itself
    pl = pytest.importorskip("pytorch_lightning", reason="the development tools are not installed")
    from vshift.integrations.lightning import VarianceCallback

EPOCHS = 2


def loader(seed: int) -> DataLoader:
    batches = data(seed, 128)
    images, labels = (torch.cat(parts) for parts in zip(*batches, strict=True))
    return DataLoader(TensorDataset(images, labels), 32)


class System(pl.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.net = Net(before_bn2=nn.Dropout(0.5))

    def forward(self, x):
        return self.net(x)

    def training_step(self, batch, _):
        return F.cross_entropy(self(batch[0]), batch[1])

    def validation_step(self, batch, _):
        self.log("val_acc", (self(batch[0]).argmax(1) == batch[1]).float().mean())

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.05, momentum=0.9)


def fit(system: System, *callbacks) -> pl.Trainer:
    torch.manual_seed(1)
    with warnings.catch_warnings(action="ignore"):  # of workers, and of Slurm where there is one
        trainer = pl.Trainer(
            max_epochs=EPOCHS, accelerator="cpu", callbacks=list(callbacks), logger=False,
            enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
        )  # fmt: skip
        trainer.fit(system, loader(0), loader(1))
    return trainer


@pytest.fixture(scope="module")
def watched(tmp_path_factory):
    runs = tmp_path_factory.mktemp("runs")
    callback = VarianceCallback(
        runs / "lightning" / "seed-3", metrics=lambda seen: {"test_accuracy": 100 * seen["val_acc"]}
    )
    system = System()
    return system, callback, fit(system, callback), runs


def test_the_run_is_saved_and_logged(watched):
    _, callback, trainer, runs = watched
    (run,) = find_runs([runs])
    assert (run.name, run.seed, run.status) == ("lightning", 3, "done")
    assert {row.layer for row in callback.probe.rows if row.noise_before} == {"net.bn2"}
    assert run.summary["test_accuracy"] == pytest.approx(
        100 * float(trainer.callback_metrics["val_acc"])
    )
    logged = float(trainer.callback_metrics["shift_ratio_max"])
    assert logged == pytest.approx(run.summary["shift_ratio_max"])
    assert len(callback.probe.rows) == 3 * EPOCHS


def test_its_numbers_are_those_of_the_batches_that_ran():
    """Against hooks on the inputs of BN, which a probe does without."""

    class Hooks(pl.Callback):
        def on_train_epoch_start(self, trainer, pl_module):
            self.moments = InputMoments(pl_module)

        def on_train_batch_start(self, *_):
            self.moments.__enter__()

        def on_train_batch_end(self, *_):
            self.moments.__exit__()

    hooks, callback, system = Hooks(), VarianceCallback(), System()
    fit(system, hooks, callback)
    rows = callback.probe.frame().query(f"epoch == {EPOCHS}").set_index("layer")
    for name, layer in norms(system).items():
        seen = hooks.moments.variance(name)
        assert rows.train_variance[name] == pytest.approx(float(seen.mean()), rel=1e-4)
        assert rows.running_variance[name] == pytest.approx(float(layer.running_var.mean()))


def test_it_changes_nothing_and_saves_nothing_without_a_folder(watched, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    plain, silent = System(), System()
    fit(plain)
    callback = VarianceCallback()
    fit(silent, callback)
    for key, value in plain.state_dict().items():
        assert torch.equal(value, silent.state_dict()[key])
    assert not list(tmp_path.iterdir())
