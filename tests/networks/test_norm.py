"""Our batch norm against PyTorch's, and the statistics it shows against float64 by hand."""

import pytest
import torch
from torch import nn

from vshift.networks.norm import BatchNorm


@pytest.mark.parametrize("momentum", [0.1, 0.01, 1.0, 0.0, None])
@pytest.mark.parametrize("shape", [(32, 8), (16, 8, 6, 6)])
def test_equals_torch_batch_norm_over_several_batches(momentum, shape):
    torch.manual_seed(0)
    ours = BatchNorm(8, momentum=momentum)
    reference = (nn.BatchNorm1d if len(shape) == 2 else nn.BatchNorm2d)(8, momentum=momentum)
    for _ in range(5):
        x = torch.randn(shape) * 3 + 2
        x1, x2 = x.clone().requires_grad_(), x.clone().requires_grad_()
        y1, y2 = ours(x1), reference(x2)
        torch.testing.assert_close(y1, y2)
        (y1**3).sum().backward()
        (y2**3).sum().backward()
        torch.testing.assert_close(x1.grad, x2.grad)
    for name, buffer in reference.state_dict().items():
        torch.testing.assert_close(ours.state_dict()[name], buffer)
    torch.testing.assert_close(ours.eval()(x), reference.eval()(x))


def test_its_state_dict_is_that_of_torch_batch_norm():
    assert list(BatchNorm(4).state_dict()) == list(nn.BatchNorm2d(4).state_dict())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("channels_last", [False, True])
def test_batch_statistics_against_float64(dtype, channels_last):
    """At mean/sd = 50 a naive E[x²] − E[x]² in float32 would be visibly wrong."""
    torch.manual_seed(0)
    x = (torch.randn(64, 8, 16, 16) * 0.5 + 25).to(dtype)
    if channels_last:
        x = x.to(memory_format=torch.channels_last)
    layer = BatchNorm(8)
    layer(x)
    exact = x.double()
    torch.testing.assert_close(layer.batch_mean.double(), exact.mean((0, 2, 3)), rtol=1e-5, atol=0)
    unbiased = exact.var((0, 2, 3), correction=1)
    torch.testing.assert_close(layer.batch_var.double(), unbiased, rtol=1e-4, atol=0)


def test_buffers_stay_float32_under_autocast():
    layer = BatchNorm(8)
    with torch.autocast("cpu", torch.bfloat16):
        layer(torch.randn(4, 8, 5, 5).bfloat16())
    assert {b.dtype for n, b in layer.named_buffers() if "batches" not in n} == {torch.float32}


def test_eval_mode_changes_no_buffer():
    layer = BatchNorm(8).eval()
    before = {name: b.clone() for name, b in layer.named_buffers()}
    layer(torch.randn(4, 8, 5, 5))
    assert all(torch.equal(before[name], b) for name, b in layer.named_buffers())


def test_a_single_value_and_a_wrong_shape_are_refused():
    with pytest.raises(ValueError, match="Expected more than 1 value per channel"):
        BatchNorm(8)(torch.randn(1, 8))
    with pytest.raises(ValueError, match=r"expected \[N, C\] or \[N, C, H, W\], got \[1, 8, 3\]"):
        BatchNorm(8)(torch.randn(1, 8, 3))
