"""The answers in words say what the numbers say."""

from __future__ import annotations

from pathlib import Path

import pytest
from scipy import stats

from tests.factory import config_of, dropout, make_run, summary_of
from tests.report.study import EVIL
from vshift.report import words
from vshift.report.data import Study, collect
from vshift.report.effects import against_baseline, between_layouts
from vshift.report.gains import gains
from vshift.report.prose import Card, joined, listed, say
from vshift.report.story import cards
from vshift.runs import find_runs

BASE, LAST_BN = [10.0, 10.6, 9.5], [40.0, 40.6, 39.5]


def told(study: Study) -> dict[str, tuple[Card, str]]:
    return {card.id: (card, " ".join(card.text)) for card in cards(study)}


def test_differences_are_welchs(study: Study) -> None:
    effects = {e.group.label: e for e in against_baseline(study)}
    effect = effects["arm-bn-0.5"]
    assert effect.value == pytest.approx(30.0)
    expected = stats.ttest_ind(LAST_BN, BASE, equal_var=False)
    interval = expected.confidence_interval()
    assert effect.found.low == pytest.approx(interval.low)
    assert effect.found.high == pytest.approx(interval.high)
    assert effect.found.p_value == pytest.approx(expected.pvalue)
    assert effect.tests == 3  # the evil arm has one seed
    assert not effects[EVIL].testable


def test_which_layout_loses_and_how_much(study: Study) -> None:
    card, text = told(study)["loss"]
    assert card.answer == "before_last_bn: +30.00 points"
    assert "<b>arm-bn-0.5</b> loses most" in text
    assert "40.03 % against 10.03 %; 95 % CI +28.75 to +31.25" in text
    assert "<b>before_last_bn</b> +1.97 to +30.00" in text
    assert "<b>before_last_bn</b> costs more than <b>before_last_conv</b>: +26.00 at 0.5*" in text


def test_layouts_are_compared_at_the_same_variance_only(study: Study) -> None:
    pairs = between_layouts(study)
    assert [(e.group.label, e.other.label) for e in pairs] == [("arm-bn-0.5", "arm-conv-0.5")]
    assert pairs[0].real


def test_what_is_more_than_chance(study: Study) -> None:
    card, text = told(study)["chance"]
    assert card.answer == "3 of 3 are"
    assert "p &lt; 0.001" in text
    assert "With one seed only, so not tested: &lt;script&gt;" in text


def test_a_difference_that_chance_could_make_names_the_seeds_it_takes(tmp_path: Path) -> None:
    for name, noise, errors in (("a", None, (10.0, 11.0)), ("b", dropout(0.5), (10.5, 12.0))):
        for seed, error in enumerate(errors):
            make_run(tmp_path, name, seed, 100 - error, config=config_of(name, noise))
    card, text = told(collect(find_runs([tmp_path])))["chance"]
    assert card.answer == "0 of 1 are"
    assert "<b>b</b> +0.75 (about 24 seeds a side would tell)" in text


def test_one_seed_cannot_tell(tmp_path: Path) -> None:
    make_run(tmp_path, "a", config=config_of("a"))
    make_run(tmp_path, "b", 0, 80.0, config=config_of("b", dropout(0.5)))
    found = told(collect(find_runs([tmp_path])))
    assert found["chance"][0].answer == "One seed cannot tell"
    assert "no confidence interval from one seed" in found["loss"][1]


def test_where_the_shift_begins(study: Study) -> None:
    card, text = told(study)["begin"]
    assert card.answer == "s1.b1.bn2, layer 2 of 4"
    assert "ratio 2.50: 2.50 from the noise in front of it, 1.00 inherited" in text
    assert "<b>before_last_conv</b>: from s2.b1.bn1 on." in text
    assert "<b>no noise</b>: at no layer." in text


def test_a_noisy_ratio_is_no_beginning(tmp_path: Path) -> None:
    """1.2 ± 0.1 is above 1.05, and not three standard errors above 1."""
    rows = [
        {"epoch": 3, "index": i, "layer": f"l{i}", "shift_ratio": 1.2, "shift_ratio_se": se}
        for i, se in enumerate((0.1, 0.05))
    ]
    make_run(tmp_path, "a", layers=rows, config=config_of("a", dropout(0.5)))
    card, _ = told(collect(find_runs([tmp_path])))["begin"]
    assert card.answer == "l1, layer 2 of 2"


def test_whether_the_prediction_held(study: Study) -> None:
    card, text = told(study)["prediction"]
    assert card.answer == "Yes: 100 % within 3 s.e."
    assert "<b>10</b> of 10 layers" in text
    assert "leave 94 % there (errors from 4 batches)" in text  # P(|t| < 3) with 3 degrees


def test_a_prediction_that_is_off_is_said_to_be(tmp_path: Path) -> None:
    rows = [
        {"epoch": 3, "index": i, "layer": f"l{i}", "shift_ratio": 2.0, "noise_before": True,
         "local_ratio": 2.0, "local_ratio_se": 0.01, "predicted_ratio": 1.6,
         "predicted_ratio_se": 0.01, "predicted_exact": True}
        for i in range(4)
    ]  # fmt: skip
    make_run(tmp_path, "a", layers=rows, config=config_of("a", dropout(0.5)))
    card, text = told(collect(find_runs([tmp_path])))["prediction"]
    assert card.answer == "Not everywhere: 0 % within 3 s.e."
    assert "25.00 % off" in text


def test_what_recalibration_gave_back(study: Study) -> None:
    card, text = told(study)["recalibration"]
    assert card.answer == "20.02 of 30.00 points"
    assert "There by method: precise +20.02 and swap −1.00." in text
    gained = {gain.group.label: gain for gain in gains(study)}
    paired = stats.ttest_rel(LAST_BN, [error / 2 for error in LAST_BN])
    assert gained["arm-bn-0.5"].p == pytest.approx(paired.pvalue)
    assert "More than chance" in text


def test_nothing_measured_says_which_key_would(tmp_path: Path) -> None:
    make_run(tmp_path)
    found = told(collect(find_runs([tmp_path])))
    assert "measure.every: 0" in found["begin"][1]
    assert "measure.explain_batches" in found["prediction"][1]
    assert "recalibration.methods" in found["recalibration"][1]
    assert "--baseline" in found["loss"][1]


def test_no_run_is_done(tmp_path: Path) -> None:
    make_run(tmp_path, status="running")
    study = collect(find_runs([tmp_path]))
    assert told(study)["loss"][0].answer == "No run is done yet"
    assert words.left_out(study) == ["1 not finished (running, or killed): a seed 0."]


def test_images_from_a_folder_are_never_passed_off_as_a_data_set(tmp_path: Path) -> None:
    config = config_of("a")
    config["data"] = {"name": "imagefolder", "root": "/x/cifar10", "train_limit": 4000}
    make_run(tmp_path, config=config)
    study = collect(find_runs([tmp_path]))
    assert words.data_names(study) == ["images in the folder “cifar10”, no published data set"]
    text = " ".join(words.data_sentences(study))
    assert "Limited to 4,000 training images." in text
    assert "do not set these numbers beside published ones" in text


def test_a_part_of_cifar10_is_not_comparable_either(tmp_path: Path) -> None:
    config = config_of("a")
    config["data"] = {"name": "cifar10", "train_limit": 4000, "test_limit": None}
    make_run(tmp_path, config=config)
    study = collect(find_runs([tmp_path]))
    assert words.data_names(study) == ["CIFAR-10"]
    assert "not comparable with published" in " ".join(words.data_sentences(study))


def test_runs_that_do_not_count_are_counted_and_named(study: Study) -> None:
    text = " ".join(words.left_out(study))
    assert "1 diverged (the loss became NaN or infinite): arm-diverged seed 1." in text
    assert "arm-running seed 0" in text
    assert "1 damaged: arm-damaged seed 0." in text


def test_sentences_escape_what_they_name() -> None:
    assert say("{} is", "<b>") == "&lt;b&gt; is"
    assert joined(["<", "b", "c"]) == "&lt;, b and c"
    assert listed(str(i) for i in range(12)).endswith("9 and 2 more (see the table)")


def test_a_loss_without_classes_is_told_as_one(tmp_path: Path) -> None:
    for name, noise, losses in (("a", None, (0.5, 0.51)), ("b", dropout(0.5), (0.7, 0.73))):
        for seed, loss in enumerate(losses):
            summary = {**summary_of(), "test_accuracy": None, "test_error": None, "test_loss": loss}
            make_run(tmp_path, name, seed, summary=summary, config=config_of(name, noise))
    card, text = told(collect(find_runs([tmp_path])))["loss"]
    assert card.answer == "before_last_bn: +0.2100"
    assert "of test loss more than" in text
