"""What several test modules need."""

import pytest
import torch

from tests.soak.harness import Trainer, fork_server


@pytest.fixture(scope="session")
def server():
    """Forks training processes; see tests/soak/server.py."""
    with fork_server() as process:
        yield process


@pytest.fixture
def trainer(server):
    """Starts `vshift` in processes of its own, which can be killed."""
    started = Trainer(server)
    yield started
    started.end()


@pytest.fixture(scope="module")
def one_thread():
    """Tests run side by side: PyTorch threads that spin against each other are slow."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
