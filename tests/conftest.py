"""What several test modules need, and the one place that decides about tests of the GPU."""

import os

import pytest
import torch


@pytest.fixture(scope="module")
def one_thread():
    """Tests run side by side: PyTorch threads that spin against each other are slow."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def pytest_runtest_setup(item):
    """Tests marked `gpu` are skipped without a CUDA device, and with VSHIFT_REQUIRE_GPU=1 fail."""
    if item.get_closest_marker("gpu") is None or torch.cuda.is_available():
        return
    if os.environ.get("VSHIFT_REQUIRE_GPU") == "1":
        pytest.fail("VSHIFT_REQUIRE_GPU=1, and there is no CUDA device", pytrace=False)
    pytest.skip("no CUDA device: run `make gpu` on a machine with one")
