"""Severity is what a repair measurably gives back."""

import math

import pytest
import torch

from vshift.auditing.severity import (
    Gain,
    Scorer,
    Scores,
    format_change,
    output_change,
    p_of_fall,
)


def scores(losses, hits=None, outputs=None):
    rows = torch.tensor(losses, dtype=torch.float64)
    right = None if hits is None else torch.tensor(hits, dtype=torch.float64)
    return Scores(rows, right, torch.zeros(len(rows), 2) if outputs is None else outputs)


@pytest.mark.parametrize(
    ("after", "word"),
    [(2.0, "info"), (2.5, "info"), (1.96, "low"), (1.7, "medium"), (0.9, "high")],
)
def test_by_loss(after, word):
    assert Gain.between(scores([2.0] * 50), scores([after] * 50), "x").severity == word


def test_a_change_within_two_standard_errors_is_info():
    torch.manual_seed(0)
    before, after = torch.rand(20), torch.rand(20)
    found = Gain.between(scores((before + 0.05).tolist()), scores(after.tolist()), "x")
    assert found.loss_error == pytest.approx(
        float((before - after).std()) / math.sqrt(20), rel=1e-5
    )
    assert found.severity == "info"


def test_accuracy_counts_though_the_loss_rises():
    before = scores([1.0] * 100, [1.0] * 60 + [0.0] * 40)
    after = scores([1.2] * 100, [1.0] * 90 + [0.0] * 10)
    found = Gain.between(before, after, "x")
    assert found.severity == "high"
    assert "accuracy rises from 60 to 90 % (± 5)" in found.in_words()
    one = scores([1.2] * 100, [1.0] * 61 + [0.0] * 39)
    assert Gain.between(before, one, "x").severity == "info"  # one image is no gain


def test_half_of_next_to_nothing_is_little():
    """A change below 0.01 nats is none, and what is above counts against 0.1 nats at least."""
    before = scores([0.0024] * 50, [1.0] * 50)
    assert Gain.between(before, scores([0.0002] * 50, [1.0] * 50), "x").severity == "info"
    before = scores([0.03] * 50, [1.0] * 50)
    assert Gain.between(before, scores([0.015] * 50, [1.0] * 50), "x").severity == "medium"
    assert Gain.between(scores([0.0024] * 50), scores([0.0002] * 50), "x").severity == "high"


def test_nan_that_becomes_finite_is_high():
    bad = torch.full((4, 2), math.nan)
    found = Gain.between(Scores(None, None, bad), Scores(None, None, torch.zeros(4, 2)), "x")
    assert found.severity == "high"


def test_outputs_are_compared_with_their_own_spread():
    before = torch.tensor([[0.0], [2.0]])
    assert output_change(before, before + 0.5) == pytest.approx(0.5)
    assert output_change(before, before) == 0
    assert output_change(before, before * math.nan) == math.inf
    found = Gain.between(Scores(None, None, before), Scores(None, None, before + 0.2), "doing it")
    assert found.severity == "medium"
    assert found.in_words() == "doing it: the output changes by 20.0 %"


def test_labels_that_are_none_are_not_scored():
    for labels in (torch.tensor([0.5, 1.0]), torch.tensor([0, 9]), torch.zeros(2, 2).long()):
        scorer = Scorer()
        scorer.add(torch.zeros(2, 3), labels)
        assert scorer.take().loss is None


@pytest.mark.parametrize(
    ("change", "words"),
    [(0.2, "20.0 %"), (544.69, "545 times its spread"), (math.inf, "more than can be measured")],
)
def test_a_change_in_words(change, words):
    assert format_change(change) == words


@pytest.mark.parametrize(
    ("labels", "why"),
    [
        (torch.tensor([0.5, 1.0]), "of float32, not whole numbers"),
        (torch.tensor([0, 9]), "a label is 9, and the model has 3 classes"),
        (torch.zeros(2, 2).long(), r"their shape is [2, 2] and the output's [2, 3]"),
    ],
)
def test_why_labels_were_not_used_is_kept(labels, why):
    scorer = Scorer()
    scorer.add(torch.zeros(2, 3), labels)
    assert why in scorer.take().unused


def test_one_batch_that_cannot_be_scored_leaves_all_without_a_score():
    """A mean over the batches that happen to have small labels would be of another set."""
    scorer = Scorer()
    scorer.add(torch.zeros(2, 3), torch.tensor([0, 1]))
    scorer.add(torch.zeros(2, 3), torch.tensor([0, 5]))
    assert scorer.take().loss is None
    assert scorer.take().accuracy is None


def test_dense_labels_are_averaged_over_the_places_that_count():
    torch.manual_seed(0)
    output, labels = torch.randn(2, 3, 4, 5), torch.randint(3, (2, 4, 5))
    labels[0, 0, 0], labels[1, :, 2] = 255, -100
    scorer = Scorer()
    scorer.add(output, labels)
    found = scorer.take()
    for i in range(2):
        counts = (labels[i] != 255) & (labels[i] != -100)
        logits, target = output[i].movedim(0, -1)[counts], labels[i][counts]
        expected = torch.nn.functional.cross_entropy(logits, target)
        assert float(found.losses[i]) == pytest.approx(float(expected), rel=1e-6)
        assert float(found.hits[i]) == pytest.approx(
            float((logits.argmax(1) == target).float().mean())
        )


def test_dense_outputs_are_thinned_out():
    scorer = Scorer()
    scorer.add(torch.randn(2, 3, 100, 100), None)
    assert scorer.take().outputs.shape[1] <= 4096
    assert isinstance(Gain.between(scorer.take(), scorer.take(), "x"), Gain)


def test_batches_that_differ_are_no_clear_loss_and_a_loss_in_each_of_them_is():
    """Two modes without a difference, but for what all samples of a batch have in common."""
    generator = torch.Generator().manual_seed(0)
    false, by_samples, found, tries = 0, 0, 0, 2000
    for _ in range(tries):
        shared = torch.randn(8, 1, generator=generator, dtype=torch.float64)
        falls = 0.2 * (shared + torch.randn(8, 32, generator=generator, dtype=torch.float64))
        after, before = torch.zeros(256, dtype=torch.float64), falls.flatten()
        sizes = [32] * 8
        scored = [Scores(x, None, torch.zeros(256, 2), None, sizes) for x in (after, before)]
        false += p_of_fall(*scored) < 0.0005
        by_samples += before.mean() > 3.3 * before.std() / 16
        found += (
            p_of_fall(scored[0], Scores(before + 1.0, None, scored[0].outputs, None, sizes))
            < 0.0005
        )
    assert false <= 5  # one is expected
    assert by_samples > 0.05 * tries
    assert found > 0.98 * tries


def test_few_batches_are_tested_by_their_samples():
    torch.manual_seed(0)
    before, after = torch.rand(64).double() + 0.5, torch.rand(64).double()
    outputs = torch.zeros(64, 2)
    p = p_of_fall(
        Scores(after, None, outputs, None, [32, 32]), Scores(before, None, outputs, None, [32, 32])
    )
    assert p < 0.0005
