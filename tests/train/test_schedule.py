"""Learning rates against PyTorch's own schedulers."""

import pytest
import torch
from torch.optim import lr_scheduler

from vshift.config.training import Constant, Cosine, MultiStep, OneCycle
from vshift.train.schedule import learning_rates

EPOCHS, STEPS, BASE = 6, 7, 0.1


def torch_rates(make):
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=BASE)
    scheduler = make(optimizer)
    rates = []
    for _ in range(EPOCHS * STEPS):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return rates


@pytest.mark.parametrize("pct_start", [0.1, 0.3, 0.9])
def test_one_cycle(pct_start):
    ours = learning_rates(
        OneCycle(name="onecycle", peak=0.2, pct_start=pct_start), BASE, EPOCHS, STEPS
    )
    reference = torch_rates(
        lambda o: lr_scheduler.OneCycleLR(o, 0.2, total_steps=EPOCHS * STEPS, pct_start=pct_start)
    )
    assert ours == pytest.approx(reference)
    assert max(ours) == pytest.approx(0.2, rel=0.05)


def test_one_cycle_peaks_at_the_base_rate_by_default_and_works_for_one_step():
    assert max(learning_rates(OneCycle(name="onecycle"), 0.4, 10, 10)) == pytest.approx(
        0.4, rel=1e-3
    )
    assert learning_rates(OneCycle(name="onecycle"), 0.4, 1, 1) == [pytest.approx(0.4 / 25 / 1e4)]


def test_cosine():
    ours = learning_rates(Cosine(name="cosine", final=0.01), BASE, EPOCHS, STEPS)
    reference = torch_rates(lambda o: lr_scheduler.CosineAnnealingLR(o, EPOCHS * STEPS, 0.01))
    assert ours == pytest.approx(reference)


def test_multistep():
    schedule = MultiStep(name="multistep", milestones=[2, 4], factor=0.1)
    ours = learning_rates(schedule, BASE, EPOCHS, STEPS)
    reference = torch_rates(lambda o: lr_scheduler.MultiStepLR(o, [2 * STEPS, 4 * STEPS]))
    assert ours == pytest.approx(reference)


def test_warm_up_rises_linearly_to_the_rate_and_hands_over():
    ours = learning_rates(Constant(name="constant", warmup=2), BASE, EPOCHS, STEPS)
    warm = 2 * STEPS
    assert ours[:warm] == pytest.approx([BASE * (i + 1) / warm for i in range(warm)])
    assert ours[warm:] == [BASE] * (len(ours) - warm)
    cosine = learning_rates(Cosine(name="cosine", warmup=2), BASE, EPOCHS, STEPS)
    assert cosine[warm] == BASE
    assert cosine[-1] < 0.01
