"""Learning rates against PyTorch's own schedulers."""

import itertools
import math

import pytest
import torch
from torch.optim import lr_scheduler

from vshift.config.training import Constant, Cosine, MultiStep, OneCycle, OwnSchedule
from vshift.errors import ConfigError
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


@pytest.mark.parametrize("warmup", [0.01, 0.25, 0.5, 0.6, 1, 1.9, 2, 3.3])
@pytest.mark.parametrize("name", ["constant", "multistep", "cosine"])
def test_warm_up_is_pytorchs(name, warmup):
    """LinearLR for the nearest whole number of steps, and then what it hands over to."""
    warm = round(warmup * STEPS)
    schedule = {
        "constant": Constant(name="constant", warmup=warmup),
        "multistep": MultiStep(name="multistep", milestones=[4], factor=0.1, warmup=warmup),
        "cosine": Cosine(name="cosine", final=0.01, warmup=warmup),
    }[name]
    after = {
        "constant": lambda o: lr_scheduler.ConstantLR(o, 1.0),
        "multistep": lambda o: lr_scheduler.MultiStepLR(o, [4 * STEPS - warm]),
        "cosine": lambda o: lr_scheduler.CosineAnnealingLR(o, EPOCHS * STEPS - warm, 0.01),
    }[name]

    def make(optimizer):
        if not warm:
            return after(optimizer)
        linear = lr_scheduler.LinearLR(optimizer, 1 / warm, total_iters=warm - 1)
        return lr_scheduler.SequentialLR(optimizer, [linear, after(optimizer)], [warm])

    ours = learning_rates(schedule, BASE, EPOCHS, STEPS)
    assert ours == pytest.approx(torch_rates(make))
    assert max(ours) == BASE


@pytest.mark.parametrize(("epochs", "steps"), [(1, 1), (1, 10), (2, 1), (3, 3), (7, 10)])
def test_no_schedule_exceeds_its_learning_rate(epochs, steps):
    """Whatever the shares of steps are; one of them made one-cycle divide by zero."""
    shares = [0.001, 0.01, 0.1, 0.2, 0.25, 1 / 3, 0.5, 0.7, 0.9, 0.999]
    schedules = [OneCycle(name="onecycle", pct_start=share) for share in shares]
    for share, final in itertools.product([*shares, 1.0], [0.0, 0.05]):
        warmup = share * epochs
        schedules += [
            Constant(name="constant", warmup=warmup),
            MultiStep(name="multistep", milestones=[], warmup=warmup),
            Cosine(name="cosine", final=final, warmup=warmup),
        ]
    for schedule in schedules:
        rates = learning_rates(schedule, BASE, epochs, steps)
        assert len(rates) == epochs * steps
        assert all(math.isfinite(rate) and 0 <= rate <= BASE for rate in rates), schedule


def test_one_cycle_that_rises_in_one_step_starts_at_its_peak():
    rates = learning_rates(OneCycle(name="onecycle", pct_start=0.1), BASE, 1, 10)
    assert rates[0] == BASE
    assert sorted(rates, reverse=True) == rates


MINE = """
def halves(step, steps, every=2):
    return 0.5 ** (step * every // steps)

def by_epoch(epoch, epochs):
    return 1 - epoch / epochs

def odd(step):
    return "high" if step else 1

def fails(step):
    return 1 / (3 - step)

class Named:
    pass
"""


@pytest.fixture
def mine(tmp_path):
    (tmp_path / "mine.py").write_text(MINE)
    return lambda name, **args: OwnSchedule(name=f"{tmp_path}/mine.py:{name}", args=args)


def test_a_schedule_of_ones_own_gives_factors(mine):
    """The same numbers as PyTorch's LambdaLR."""
    total = EPOCHS * STEPS
    ours = learning_rates(mine("halves"), BASE, EPOCHS, STEPS)
    assert ours == torch_rates(
        lambda o: lr_scheduler.LambdaLR(o, lambda s: 0.5 ** (2 * s // total))
    )
    thirds = learning_rates(mine("halves", every=3), BASE, EPOCHS, STEPS)
    assert thirds[-1] == BASE / 4
    by_epoch = learning_rates(mine("by_epoch"), BASE, EPOCHS, STEPS)
    assert by_epoch[::STEPS] == pytest.approx([BASE * (1 - e / EPOCHS) for e in range(EPOCHS)])
    assert by_epoch[STEPS - 1] == BASE


@pytest.mark.parametrize(
    ("name", "args", "reason"),
    [
        (
            "odd",
            {},
            r"mine.py:odd gave 'high' at step 1; a factor of the learning",
        ),
        ("halves", {"evry": 3}, r"args\.evry: .*takes no 'evry'; did you mean `every`"),
        ("Named", {"a": 1}, r"args\.a: .*Named takes no 'a'"),
        ("fails", {}, r"mine.py:fails: ZeroDivisionError: .*\n  .*mine\.py:12, in fails"),
        ("halfes", {}, r"mine\.py has no 'halfes'; did you mean `halves`"),
    ],
)
def test_what_gives_no_factor_is_refused(mine, name, args, reason):
    with pytest.raises(ConfigError, match=reason):
        learning_rates(mine(name, **args), BASE, EPOCHS, STEPS)


def test_warm_up_rises_linearly_to_the_rate_and_hands_over():
    ours = learning_rates(Constant(name="constant", warmup=2), BASE, EPOCHS, STEPS)
    warm = 2 * STEPS
    assert ours[:warm] == pytest.approx([BASE * (i + 1) / warm for i in range(warm)])
    assert ours[warm:] == [BASE] * (len(ours) - warm)
    cosine = learning_rates(Cosine(name="cosine", warmup=2), BASE, EPOCHS, STEPS)
    assert cosine[warm] == BASE
    assert cosine[-1] < 0.01
