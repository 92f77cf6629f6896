"""What loaders may give, and what of it is refused."""

import pytest
import torch

from examples.patients import Net, data, trained
from vshift import audit
from vshift.auditing import AuditError


@pytest.mark.parametrize(
    ("loader", "words"),
    [
        ([], "gave 0 batches"),
        (data(0)[:1], "gave 1 batch;"),
        ([("a", 1), ("b", 2)], "no input tensor"),
        ([torch.zeros(1, 3, 8, 8)] * 2, "at least 4"),
    ],
)
def test_loaders_that_cannot_be_judged_are_refused(loader, words):
    with pytest.raises(AuditError, match=words):
        audit(Net(), loader)


def test_inputs_by_keyword_and_by_position():
    class Two(Net):
        def forward(self, x, scale):
            return super().forward(x * scale[:, None, None, None])

    torch.manual_seed(0)
    model, batches = Two(), data(0, 64)
    by_name = [{"x": x, "scale": torch.ones(len(x)), "labels": y} for x, y in batches]
    by_place = [((x, torch.ones(len(x))), y) for x, y in batches]
    assert audit(model, by_name).to_dict() == audit(model, by_place).to_dict()


def test_what_loaders_give():
    """Mappings with a name that forward() does not know, and NumPy arrays, are the same inputs."""
    model, batches = trained(0)
    plain = audit(model, batches).to_dict()
    named = [{"image": x, "label": y, "path": ["a"] * len(x)} for x, y in batches]
    assert audit(model, named).to_dict() == plain
    assert audit(model, [(x.numpy(), y.numpy()) for x, y in batches]).to_dict() == plain
    assert audit(model, iter([[x, y, "more"] for x, y in batches])).to_dict() == plain


def test_single_samples_are_put_together_and_that_is_told():
    model, batches = trained(0)
    images, labels = (torch.cat(parts) for parts in zip(*batches[:2], strict=True))
    notes = audit(model, list(zip(images.split(1), labels.split(1), strict=True))).notes
    assert any("single samples; 8 of them were put together" in note for note in notes)
