"""A compiled step against the eager one, and what it says of a compiler that fails."""

import pytest
import torch

from tests.train.test_fast_steps import LEFT_OVER, context_of, trained
from vshift.train.compiled_step import CannotCompile, CompiledStep
from vshift.train.fast_steps import make_train_step


def test_an_error_that_pytorch_got_over_is_not_the_reason(monkeypatch):
    """A cache that misses raises KeyError inside PyTorch, and what fails then has it as context."""

    def broken(model):
        def forward(images):
            try:
                torch.testing.assert_close(1, 2)
            except AssertionError as inside:
                inside.__traceback__ = inside.__traceback__.tb_next
                raise ValueError("backend raised:\nOutOfMemory: smem") from None

        return forward

    monkeypatch.setattr("vshift.train.compiled_step.compile_network", broken)
    with pytest.raises(CannotCompile, match=r"^ValueError: backend raised: OutOfMemory: smem \("):
        CompiledStep(context_of()).prepare()


def test_the_compiled_step_agrees_within_rounding():
    """A real compilation, without noise; few steps, so that rounding has not grown."""
    sections = {"network": {"name": "mlp", "widths": [16]}, "data": {**LEFT_OVER, "train": 100}}
    results = []
    for kind in ("compiled", "eager"):
        context = context_of(**sections)
        said = []
        step = make_train_step(kind, context, said.append)
        assert (step.name, said) == (kind, [])
        results.append(trained(step, epochs=1))
    assert results[0][0][0].loss == pytest.approx(results[1][0][0].loss, rel=1e-4)
    for name, moments in results[1][1].items():
        torch.testing.assert_close(
            results[0][1][name].variance, moments.variance, rtol=1e-3, atol=1e-4
        )
