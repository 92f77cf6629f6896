"""The mode matrix on networks whose answers are known."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from tests.shift.test_modes import everything, net
from vshift.networks.noise import Dropout
from vshift.networks.norm import BatchNorm
from vshift.shift.mode_matrix import mode_costs, mode_matrix, monte_carlo, monte_carlo_bn
from vshift.shift.modes import bn_state, modes
from vshift.shift.recalibration import estimate_statistics


class Threshold(nn.Module):
    """[N, 1] → logits of `x < 0` and `x ≥ 0`, sure of it."""

    def forward(self, x):
        return 10 * torch.cat([-x, x], dim=1)


def signs():
    """Balanced classes at −1 and 1, moved up by 5: only BN's mean tells them apart."""
    labels = torch.tensor([0, 1] * 50)
    return 2.0 * labels[:, None] - 1 + 5, labels


def stale_net():
    """Perfect on batch statistics; its running mean of 0 calls everything class 1."""
    return nn.Sequential(nn.BatchNorm1d(1), Threshold())


def score(model, *batches):
    """A scoring function by hand: mean cross-entropy in float64 and accuracy in percent."""

    def scores():
        x, y = (torch.cat(part) for part in zip(*batches, strict=True))
        logits = torch.cat([model(images) for images, _ in batches]).double()
        accuracy = 100 * float((logits.argmax(1) == y).double().mean())
        loss = float(nn.functional.cross_entropy(logits, y))
        return {"loss": loss, "accuracy": accuracy, "count": len(x)}

    return scores


def test_stale_statistics_cost_half_and_are_recovered():
    model, (x, y) = stale_net(), signs()
    new = estimate_statistics(model, lambda: [x], "layerwise")
    rows = mode_matrix(model, score(model, (x[:60], y[:60]), (x[60:], y[60:])), {"layerwise": new})
    accuracy = {(row["noise"], row["statistics"]): row["accuracy"] for row in rows}
    for noise in ("on", "off"):
        assert accuracy[noise, "batch"] == 100
        assert accuracy[noise, "running"] == 50
        assert accuracy[noise, "layerwise"] == 100
    assert {row["count"] for row in rows} == {100}
    assert mode_costs(rows) == {"recovered.layerwise": 50}


def test_noise_costs_what_the_binomial_says():
    """Dropout of a sure input leaves 0 with probability ½, a tie that goes to class 0."""
    x = torch.ones(4000, 1)
    model = nn.Sequential(Dropout(1.0), Threshold())
    scores = score(model, (x, torch.ones(4000, dtype=torch.long)))
    rows = mode_matrix(model, scores, {"precise": {}}, seed=1)
    # Four standard errors of a share of one half in 4000.
    assert mode_costs(rows)["noise_cost"] == pytest.approx(50, abs=400 * math.sqrt(0.25 / 4000))
    assert rows == mode_matrix(model, scores, {"precise": {}}, seed=1)
    assert rows != mode_matrix(model, scores, {"precise": {}}, seed=2)


def test_costs_come_from_statistics_that_fit_and_not_from_the_batchs():
    """(noise, statistics): accuracy. Batch statistics may fit worse than all others."""
    found = {
        ("on", "batch"): 60.0, ("on", "running"): 70.0, ("on", "precise"): 58.0,
        ("off", "batch"): 62.0, ("off", "running"): 73.0, ("off", "precise"): 78.0,
    }  # fmt: skip
    rows = [{"noise": n, "statistics": s, "accuracy": a} for (n, s), a in found.items()]
    assert mode_costs(rows) == {"noise_cost": 8.0, "recovered.precise": 5.0}


def labelled(seed=0):
    g = torch.Generator().manual_seed(seed)
    return [
        (torch.randn(n, 3, 8, 8, generator=g), torch.randint(2, (n,), generator=g)) for n in (8, 5)
    ]


def flat_net():
    return nn.Sequential(*net(), nn.AdaptiveAvgPool2d(1), nn.Flatten())


def test_rows_come_for_every_combination_and_the_model_stays():
    model = flat_net()
    before, state = everything(model), torch.random.get_rng_state()
    rows = mode_matrix(model, score(model, *labelled()), {"same": bn_state(model)})
    found = [(row["noise"], row["statistics"]) for row in rows]
    names = ("batch", "running", "same")
    assert found == [(noise, name) for noise in ("on", "off") for name in names]
    assert rows[1] == {**rows[2], "statistics": "running"}
    assert everything(model) == before
    assert torch.equal(torch.random.get_rng_state(), state)


def test_the_model_stays_after_an_error():
    model = flat_net()
    before, state = everything(model), torch.random.get_rng_state()
    new = {name: tensor + 1 for name, tensor in bn_state(model).items()}
    batches = [*labelled(), (torch.ones(2, 7, 8, 8), torch.zeros(2))]
    for call in (
        lambda: mode_matrix(model, score(model, *batches), {"new": new}),
        lambda: monte_carlo(model, lambda: batches),
    ):
        with pytest.raises(RuntimeError):
            call()
    assert everything(model) == before
    assert torch.equal(torch.random.get_rng_state(), state)


def test_what_cannot_be_scored_is_refused():
    model = flat_net()
    with pytest.raises(ValueError, match="'running' names"):
        mode_matrix(model, score(model, *labelled()), {"running": bn_state(model)})
    with pytest.raises(ValueError, match="no batches to predict"):
        monte_carlo(model, list)
    with pytest.raises(ValueError, match="at least 2 passes, not 1"):
        monte_carlo(model, labelled, passes=1)


def test_monte_carlo_spread_is_binomial():
    """A dropped input gives probability ½, a kept one (at rate ¼: 4/3) gives σ(2·10·4/3) ≈ 1."""
    x, y = torch.ones(50, 1), torch.ones(50, dtype=torch.long)
    model = nn.Sequential(nn.Dropout(0.25), Threshold())
    passes = 400
    found = monte_carlo(model, lambda: [(x[:30], y[:30]), (x[30:], y[30:])], passes, seed=0)
    kept, high, low = 0.75, 1.0, 0.5
    sd = (high - low) * math.sqrt(kept * (1 - kept))
    mean = found.mean_probabilities[:, 1]
    assert found.mean_probabilities.shape == found.spread.shape == (50, 2)
    error = sd / math.sqrt(passes * 50)
    assert float(mean.mean()) == pytest.approx(kept * high + (1 - kept) * low, abs=4 * error)
    assert float(found.spread.square().mean()) == pytest.approx(sd**2, rel=0.05)
    # A mean of 400 draws has 1/20 of one draw's spread; its sd from 50 images is known to 10 %.
    assert float(mean.std()) == pytest.approx(sd / 20, rel=0.4)
    # The tie at ½ goes to class 0: a pass's accuracy is the share of kept inputs.
    assert found.accuracy == 100
    assert found.pass_accuracy == pytest.approx(75, abs=1)
    assert found.accuracy_sd == pytest.approx(100 * math.sqrt(0.75 * 0.25 / 50), rel=0.15)
    assert found.calibration.nll == pytest.approx(-math.log(0.875), abs=0.02)
    # All right, with confidence 7/8: Brier 2·(1/8)² and an ECE of 1/8.
    assert found.calibration.brier == pytest.approx(2 / 64, rel=0.1)
    assert found.calibration.ece == pytest.approx(12.5, abs=1)
    assert (found.passes, found.count) == (passes, 50)


def test_spread_of_two_passes_is_their_distance_over_the_root_of_two():
    model, x = nn.Sequential(nn.Dropout(0.5), Threshold()), torch.ones(50, 1)
    found = monte_carlo(model, lambda: [(x, torch.ones(50, dtype=torch.long))], passes=2)
    values = found.spread[:, 1] / (0.5 / math.sqrt(2))
    assert sorted(set(values.round(decimals=6).tolist())) == [0, 1]


def test_monte_carlo_leaves_bn_on_running_statistics_and_the_model_as_it_was():
    model = flat_net()
    before, state = everything(model), torch.random.get_rng_state()
    found = monte_carlo(model, labelled, passes=3, seed=4)
    assert everything(model) == before
    assert torch.equal(torch.random.get_rng_state(), state)
    assert found.spread.max() > 0
    again = monte_carlo(model, labelled, passes=3, seed=4)
    assert torch.equal(found.mean_probabilities, again.mean_probabilities)
    model[1].p, model[4].variance = 0.0, 0.0
    still = monte_carlo(model, labelled, passes=3)
    with modes(model, noise=False, norm="running"), torch.no_grad():
        wanted = torch.cat([model(x).double().softmax(1) for x, _ in labelled()])
    assert still.spread.max() < 1e-12
    torch.testing.assert_close(still.mean_probabilities, wanted)


# ---- Monte Carlo batch normalisation


def two_layers():
    """fc, BN, dropout, tanh, fc, BN, fc in float64 with running statistics that fit nothing."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Dropout(0.5), nn.Tanh(),
        nn.Linear(6, 5), BatchNorm(5), nn.Linear(5, 3),
    ).double()  # fmt: skip
    for layer in (model[1], model[5]):
        nn.init.normal_(layer.weight)
        nn.init.normal_(layer.bias)
        layer.running_mean.fill_(7)
    return model


def by_hand(model, x, batch):
    """Probabilities [N, 3] of x with BN on the batch's statistics, in numpy."""
    first, bn1, _, _, second, bn2, last = model
    x, batch = x.numpy(), batch.numpy()
    for linear, norm in ((first, bn1), (second, bn2)):
        weight, bias = linear.weight.detach().numpy(), linear.bias.detach().numpy()
        x, batch = x @ weight.T + bias, batch @ weight.T + bias
        mean, variance = batch.mean(0), batch.var(0)  # numpy's is the biased one
        scale, shift = norm.weight.detach().numpy(), norm.bias.detach().numpy()
        x, batch = (
            (values - mean) / np.sqrt(variance + norm.eps) * scale + shift for values in (x, batch)
        )
        if norm is bn1:
            x, batch = np.tanh(x), np.tanh(batch)
    powers = np.exp(x @ last.weight.detach().numpy().T + last.bias.detach().numpy())
    return powers / powers.sum(1, keepdims=True)


def test_monte_carlo_bn_predicts_with_each_batch_s_statistics_and_noise_off():
    model = two_layers()
    x, y = torch.randn(11, 4).double(), torch.randint(3, (11,))
    training = [torch.randn(8, 4).double() for _ in range(3)]
    before, state = everything(model), torch.random.get_rng_state()
    found = monte_carlo_bn(model, lambda: [(x[:6], y[:6]), (x[6:], y[6:])], lambda: training)
    wanted = np.stack([by_hand(model, x, batch) for batch in training])
    np.testing.assert_allclose(found.mean_probabilities, wanted.mean(0), rtol=1e-6)
    np.testing.assert_allclose(found.spread, wanted.std(0, ddof=1), rtol=1e-5, atol=1e-9)
    accuracies = 100 * (wanted.argmax(2) == y.numpy()).mean(1)
    assert found.pass_accuracy == pytest.approx(accuracies.mean())
    assert found.accuracy_sd == pytest.approx(accuracies.std(ddof=1))
    assert found.calibration.nll == pytest.approx(
        -np.log(wanted.mean(0)[range(11), y.numpy()]).mean(), rel=1e-6
    )
    assert (found.passes, found.count) == (3, 11)
    assert everything(model) == before
    assert torch.equal(torch.random.get_rng_state(), state)


def test_the_batch_itself_is_predicted_as_in_training_without_noise():
    model, batch = two_layers(), torch.randn(8, 4).double()
    labels = torch.zeros(8, dtype=torch.long)
    found = monte_carlo_bn(model, lambda: [(batch, labels)], lambda: [batch, batch])
    with modes(model, noise=False, norm="batch"), torch.no_grad():
        wanted = model(batch).softmax(1)
    torch.testing.assert_close(found.mean_probabilities, wanted, rtol=1e-6, atol=1e-9)
    assert found.spread.max() < 1e-12


@pytest.mark.parametrize("size", [16, 64])
def test_monte_carlo_bn_samples_a_normal_mean_of_variance_one_in_m(size):
    """Of standard normal inputs, x = 0 becomes −mean/sd, so its logit has variance 1/M·(1 + …)."""
    passes, g = 3000, torch.Generator().manual_seed(size)
    model = nn.Sequential(nn.BatchNorm1d(1, affine=False, eps=1e-12), Logits()).double()
    training = [torch.randn(size, 1, generator=g).double() for _ in range(passes)]
    x, y = torch.zeros(1, 1).double(), torch.zeros(1, dtype=torch.long)
    found = monte_carlo_bn(model, lambda: [(x, y)], lambda: training)
    # −mean/sd is t/√(M − 1) with M − 1 degrees of freedom: variance 1/(M − 3). A small logit z
    # becomes the probability ½ + z/4.
    wanted = math.sqrt(1 / (size - 3)) / 4
    # Four standard errors of a standard deviation, and the sigmoid's curvature.
    assert float(found.spread[0, 1]) == pytest.approx(wanted, rel=4 / math.sqrt(2 * passes) + 0.02)


class Logits(nn.Module):
    """[N, 1] → [N, 2] logits whose difference is x."""

    def forward(self, x):
        return torch.cat([torch.zeros_like(x), x], dim=1)


def test_what_monte_carlo_bn_cannot_sample_is_refused():
    model = flat_net()
    images = [images for images, _ in labelled()]
    with pytest.raises(ValueError, match="at least 2 passes, not 1"):
        monte_carlo_bn(model, labelled, lambda: images[:1])
    with pytest.raises(ValueError, match="no batches to predict"):
        monte_carlo_bn(model, list, lambda: images)
    with pytest.raises(ValueError, match="no BN layer that keeps running statistics"):
        monte_carlo_bn(nn.Sequential(nn.Flatten()), labelled, lambda: images)


def test_monte_carlo_of_numbers_by_hand():
    """Inverted dropout of x gives 0 or x/(1 − rate): mean x and variance x²·rate/(1 − rate)."""
    x, rate, passes = torch.tensor([[1.0], [3.0]]), 0.25, 4000
    targets = torch.tensor([[1.5], [3.0]])
    model = nn.Dropout(rate)
    found = monte_carlo(model, lambda: [(x[:1], targets[:1]), (x[1:], targets[1:])], passes)
    variance = x.double().square() * rate / (1 - rate)
    torch.testing.assert_close(found.spread.square(), variance, rtol=0.1, atol=0)
    assert ((found.mean - x).abs() < 4 * (variance / passes).sqrt()).all()
    assert torch.equal(found.targets, targets.double())
    # A pass's error is bias² + variance, averaged over the two inputs.
    wanted = float(((x - targets).double().square() + variance).mean())
    assert found.pass_errors.shape == (passes, 1)
    assert float(found.pass_errors.mean()) == pytest.approx(wanted, rel=0.05)
