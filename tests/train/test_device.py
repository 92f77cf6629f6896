"""How the device is set up, as far as it shows without a GPU."""

import pytest
import torch

from tests.configs import make_config
from vshift.config.schema import Hardware
from vshift.data import load
from vshift.errors import TrainingFailed
from vshift.train.device import configure
from vshift.train.loop import TrainStep
from vshift.train.progress import Reporter
from vshift.train.run import train_one

CUDA = torch.device("cuda")


@pytest.fixture
def settings(monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", False)
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", "")
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG")
    yield
    torch.use_deterministic_algorithms(False)


def test_a_gpus_kernels_are_the_fastest_unless_they_must_be_deterministic(settings):
    configure(Hardware(), CUDA)
    assert torch.backends.cudnn.benchmark
    assert not torch.are_deterministic_algorithms_enabled()
    configure(Hardware(deterministic=True), CUDA)
    assert not torch.backends.cudnn.benchmark
    assert torch.are_deterministic_algorithms_enabled()


def test_on_a_cpu_nothing_changes(settings):
    configure(Hardware(deterministic=True), torch.device("cpu"))
    assert not torch.are_deterministic_algorithms_enabled()


def test_an_operation_that_has_no_deterministic_form_is_told_of(tmp_path, monkeypatch):
    def refused(step, images, labels):
        raise RuntimeError(
            "avg_pool3d_backward_cuda does not have a deterministic implementation, but "
            "you set 'torch.use_deterministic_algorithms(True)'. You can turn off determinism"
        )

    monkeypatch.setattr(TrainStep, "__call__", refused)
    hardware = {"device": "cpu", "precision": "float32", "step": "eager", "deterministic": True}
    config = make_config(hardware=hardware, network={"name": "mlp", "widths": [8]})
    images = load(config.data, torch.device("cpu"))
    with pytest.raises(TrainingFailed) as caught:
        train_one(config, 0, images, tmp_path, False, Reporter(quiet=True))
    assert str(caught.value) == (
        f"{tmp_path / 'test' / 'seed-0'}: hardware.deterministic: avg_pool3d_backward_cuda "
        "does not have a deterministic implementation; without that key the network trains, and a "
        "resumed run ends in other last bits"
    )
