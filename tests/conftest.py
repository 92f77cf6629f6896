"""What several test modules need."""

import pytest
import torch


@pytest.fixture(scope="module")
def one_thread():
    """Tests run side by side: PyTorch threads that spin against each other are slow."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
