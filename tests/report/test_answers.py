"""The answers in words say what the numbers say."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from scipy import stats

from tests.factory import config_of, dropout, make_run, summary_of
from tests.report.study import LAYERS
from vshift.compare.statistics import holm
from vshift.report.answers import cards
from vshift.report.effects import against_baseline, recovered
from vshift.report.page import left_out, same_note
from vshift.report.sentences import Card
from vshift.report.study import Study, collect
from vshift.report.tables import configs_table
from vshift.runs import find_runs

BASE, LAST_BN = [10.0, 10.6, 9.5], [40.0, 40.6, 39.5]


def told(study: Study) -> dict[str, tuple[Card, str]]:
    return {card.id: (card, " ".join(card.text)) for card in cards(study)}


def test_which_layout_loses_and_how_much(study: Study) -> None:
    card, text = told(study)["loss"]
    assert (
        card.answer
        == "arm-bn-0.5: +30.00 points (95 % CI +28.75 to +31.25), significant, p < 0.001"
    )
    assert "The largest difference is that of <b>arm-bn-0.5</b> (rate 0.5): <b>30.00</b>" in text
    assert "(40.03 % against 10.03 %)" in text
    assert "<b>before_last_bn</b> +1.97 to +30.00" in text
    assert (
        "At the same strength, the test error of <b>before_last_bn</b> minus that of "
        "<b>before_last_conv</b>: +26.00 at rate 0.5 (p < 0.001)"
    ) in text.replace("&lt;", "<")


def test_which_differences_are_significant(study: Study) -> None:
    card, text = told(study)["significance"]
    assert card.answer == "3 of 3"
    assert "p &lt; 0.001" in text
    assert "Not tested (one seed): &lt;script&gt;" in text


def test_a_difference_that_is_not_significant_names_the_seeds_it_takes(tmp_path: Path) -> None:
    for name, noise, errors in (("a", None, (10.0, 11.0)), ("b", dropout(0.5), (10.5, 12.0))):
        for seed, error in enumerate(errors):
            make_run(tmp_path, name, seed, 100 - error, config=config_of(name, noise))
    card, text = told(collect(find_runs([tmp_path])))["significance"]
    assert card.answer == "None of 1"
    assert "<b>b</b> +0.75 (p = 0.504; about 24 seeds per config would be needed)" in text


def test_a_headline_has_the_largest_loss_with_its_test_and_the_largest_significant_one(
    tmp_path: Path,
) -> None:
    errors = {"none": (10.0, 10.1, 10.2), "a": (12.0, 12.1, 12.2), "b": (11.0, 40.0, 25.0)}
    noises = {"none": None, "a": dropout(0.1), "b": dropout(0.5)}
    for name, seeds in errors.items():
        for seed, error in enumerate(seeds):
            make_run(tmp_path, name, seed, 100 - error, config=config_of(name, noises[name]))
    card, text = told(collect(find_runs([tmp_path])))["loss"]
    largest = stats.ttest_ind(errors["b"], errors["none"], equal_var=False)
    low, high = largest.confidence_interval()
    assert card.answer == (
        f"b: +15.23 points (95 % CI −{-low:.2f} to +{high:.2f}), not significant, "
        f"p = {largest.pvalue:.3f}. Significant: a +2.00, p < 0.001"
    )
    assert "The largest difference is that of <b>b</b> (rate 0.5): <b>15.23</b>" in text
    assert "The largest significant one is that of <b>a</b> (rate 0.1): <b>2.00</b>" in text


def test_one_seed_cannot_be_tested(tmp_path: Path) -> None:
    make_run(tmp_path, "a", config=config_of("a"))
    make_run(tmp_path, "b", 0, 80.0, config=config_of("b", dropout(0.5)))
    found = told(collect(find_runs([tmp_path])))
    assert found["significance"][0].answer == "None can be tested"
    assert found["loss"][0].answer == "b: +10.00 points, not tested (one seed)"


def test_where_the_shift_begins(study: Study) -> None:
    card, text = told(study)["begin"]
    assert card.answer == f"{LAYERS[1]} (layer 2 of 4) in arm-bn-0.5"
    assert (
        "ratio of 2.50: ×\xa02.50 from the noise in front of it, ×\xa01.00 from elsewhere" in text
    )
    assert f"<b>before_last_conv</b>: first at {LAYERS[2]}." in text
    assert "no noise" not in text


def test_a_shift_elsewhere_than_in_the_worst_config_is_told_by_name(tmp_path: Path) -> None:
    """The config that loses most has no shift; two others have the same strength."""
    for name, accuracy, epochs, ratio in (
        ("none", 90.0, 3, 1.0), ("long", 85.0, 4, 1.3), ("short", 70.0, 3, 1.0)
    ):  # fmt: skip
        noise = None if name == "none" else dropout(0.3)
        row = {"epoch": epochs, "index": 0, "layer": "bn1", "shift_ratio": ratio}
        make_run(
            tmp_path, name, config=config_of(name, noise, epochs), layers=[row],
            summary=summary_of(accuracy, shift_ratio_mean=ratio),
        )  # fmt: skip
    card, text = told(collect(find_runs([tmp_path])))["begin"]
    assert card.answer == "bn1 (layer 1 of 1) in long"
    assert "first at bn1 (long) and at no layer (short)." in text


def test_a_noisy_ratio_is_no_beginning(tmp_path: Path) -> None:
    """1.2 ± 0.1 is above 1.05, and not three standard errors above 1."""
    rows = [
        {"epoch": 3, "index": i, "layer": f"l{i}", "shift_ratio": 1.2, "shift_ratio_se": se}
        for i, se in enumerate((0.1, 0.05))
    ]
    make_run(tmp_path, "a", layers=rows, config=config_of("a", dropout(0.5)))
    card, _ = told(collect(find_runs([tmp_path])))["begin"]
    assert card.answer == "l1 (layer 2 of 2) in a"


def test_whether_the_prediction_held(study: Study) -> None:
    card, text = told(study)["prediction"]
    assert card.answer == "Yes: 10 of 10 checks agree"
    assert "checked 10 times: in each run at each layer that the noise reaches through at" in text
    assert "In <b>10</b> of 10 the measured ratio" in text
    # P(|t| < 3) with 3 degrees
    assert (
        "exact prediction about 94 % would: a measurement has an error, and a standard error "
        "from 4 b" in text
    )
    assert "no prediction" not in text


def test_layers_without_a_prediction_are_counted(tmp_path: Path) -> None:
    row = {"epoch": 3, "shift_ratio": 2.0, "noise_before": True, "local_ratio": 2.0}
    told_of = {"local_ratio_se": 0.01, "predicted_ratio": 2.0, "predicted_ratio_se": 0.01,
               "predicted_exact": True}  # fmt: skip
    rows = [{**row, "index": 0, "layer": "l0", **told_of}]
    rows += [{**row, "index": i, "layer": f"l{i}"} for i in (1, 2)]
    rows += [{**row, "index": 3, "layer": "l3", "noise_before": False}]
    idle = {"local_ratio": 1.0, "local_ratio_se": 0.0, "predicted_ratio": 1.0}  # of rate 0
    rows += [{**row, "index": 4, "layer": "l4", **told_of, **idle, "predicted_ratio_se": 0.0}]
    rough = {**told_of, "predicted_ratio": 2.5, "predicted_exact": False}
    rows += [{**row, "index": 5, "layer": "l5", **rough}]
    make_run(tmp_path, "a", layers=rows, config=config_of("a", dropout(0.5)))
    _, text = told(collect(find_runs([tmp_path])))["prediction"]
    assert "checked 1 time:" in text
    assert "For 2 more layers after noise there is no prediction." in text
    assert "Not counted: 1 check where the formula is approximate, up to 20.00 % off." in text


def test_a_prediction_that_is_off_is_said_to_be(tmp_path: Path) -> None:
    rows = [
        {"epoch": 3, "index": i, "layer": f"l{i}", "shift_ratio": 2.0, "noise_before": True,
         "local_ratio": 2.0, "local_ratio_se": 0.01, "predicted_ratio": 1.6,
         "predicted_ratio_se": 0.01, "predicted_exact": True}
        for i in range(4)
    ]  # fmt: skip
    make_run(tmp_path, "a", layers=rows, config=config_of("a", dropout(0.5)))
    card, text = told(collect(find_runs([tmp_path])))["prediction"]
    assert card.answer == "Not everywhere: 0 of 4 checks agree"
    assert "25.00 % off" in text


def test_what_recalibration_recovers(study: Study) -> None:
    card, text = told(study)["recalibration"]
    assert card.answer == "20.02 of 30.00 points in arm-bn-0.5"
    assert "In arm-bn-0.5 by method: precise +20.02 and swap −1.00." in text
    gained = {gain.group.label: gain for gain in recovered(study)}
    paired = stats.ttest_rel(LAST_BN, [error / 2 for error in LAST_BN])
    interval = paired.confidence_interval()
    gain = gained["arm-bn-0.5"]
    assert gain.found.p_value == pytest.approx(paired.pvalue)
    assert (gain.found.low, gain.found.high) == pytest.approx((interval.low, interval.high))
    p_values = [g.found.p_value for g in gained.values()]
    assert gain.found.p == dict(zip(gained, holm(p_values), strict=True))["arm-bn-0.5"]
    assert gain.found.tests == 4  # the evil arm has one seed
    assert "(95 % CI +19.33 to +20.70). That is significant (p &lt; 0.001)." in text
    assert "What is left, 9.98 points of test error, is what the noise costs in training." in text
    assert "Significant, the other configs:" in text
    assert "Methods: precise, averages over training batches with noise off" in card.fine
    assert "; swap, each layer’s input in eval mode" in card.fine


def test_more_is_recovered_than_was_lost(tmp_path: Path) -> None:
    for name, noise, accuracy in (("a", None, 90.0), ("b", dropout(0.5), 86.5)):
        path = make_run(tmp_path, name, 0, accuracy, config=config_of(name, noise))
        methods = [("none", accuracy), ("precise", 92.0)]
        rows = [{"method": method, "test_accuracy": value} for method, value in methods]
        (path / "recalibration.json").write_text(json.dumps({"methods": rows}))
    card, text = told(collect(find_runs([tmp_path])))["recalibration"]
    assert card.answer == "all 3.50 points and 2.00 more in b, not tested"
    assert (
        "recovers all of the 3.50 points of test error that <b>b</b> lost, and <b>2.00</b> more"
        in text
    )


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
    assert left_out(study) == ["1 not finished (running, or killed): a seed 0."]


def test_a_loss_without_classes_is_told_as_one(tmp_path: Path) -> None:
    for name, noise, losses in (("a", None, (0.5, 0.51)), ("b", dropout(0.5), (0.7, 0.73))):
        for seed, loss in enumerate(losses):
            summary = {**summary_of(), "test_accuracy": None, "test_error": None, "test_loss": loss}
            make_run(tmp_path, name, seed, summary=summary, config=config_of(name, noise))
    card, text = told(collect(find_runs([tmp_path])))["loss"]
    assert re.fullmatch(r"b: \+0\.2100 \(95 % CI .*\), significant, p = 0\.029", card.answer)
    assert "of test loss more than" in text


def twice(folder: Path) -> Study:
    """A baseline, an arm at two rates, and one of them again under another name."""
    arms = {
        "none": (None, (10.0, 10.6, 9.5)),
        "low": (dropout(0.3), (20.0, 20.5, 19.9)),
        "high": (dropout(0.5), (40.0, 40.6, 39.5)),
        "high-again": (dropout(0.5), (40.0, 40.6, 39.5)),
    }
    rows = [
        {"epoch": 3, "index": 0, "layer": "l", "shift_ratio": 1.5, "noise_before": True,
         "local_ratio": 1.5, "local_ratio_se": 0.01, "predicted_ratio": 1.5,
         "predicted_ratio_se": 0.01, "predicted_exact": True}
    ]  # fmt: skip
    for name, (noise, errors) in arms.items():
        for seed, error in enumerate(errors):
            config = config_of(noise=noise)
            make_run(folder, name, seed, 100 - error, config=config, layers=rows if noise else [])
    return collect(find_runs([folder]))


def test_one_training_under_two_names_counts_once(tmp_path: Path) -> None:
    study = twice(tmp_path)
    effects = {e.group.label: e for e in against_baseline(study)}
    assert effects["high"].found.tests == 2
    assert effects["high"].found.p == effects["high-again"].found.p
    found = told(study)
    assert found["significance"][0].answer == "2 of 2"
    assert "high and high-again are the same trainings and count once." in found["significance"][1]
    note = "high and high-again are the same trainings: their marks cover each other."
    assert same_note(study) == note
    assert "checked 6 times" in found["prediction"][1]  # not 9


def test_the_largest_ratio_is_the_tables(tmp_path: Path) -> None:
    """Two seeds whose largest ratios lie in different layers: 3 and 4, and 3.5 is their mean."""
    for seed, ratios in enumerate(((3.0, 1.0), (2.8, 4.0))):
        rows = [
            {"epoch": 3, "index": i, "layer": f"l{i}", "shift_ratio": ratio, "shift_ratio_se": 0.01}
            for i, ratio in enumerate(ratios)
        ]
        summary = summary_of(shift_ratio_max=max(ratios), shift_ratio_max_layer=f"l{seed}")
        config = config_of(noise=dropout(0.5))
        make_run(tmp_path, "a", seed, config=config, layers=rows, summary=summary)
    study = collect(find_runs([tmp_path]))
    card, text = told(study)["begin"]
    assert card.answer == "l0 (layer 1 of 2) in a"
    assert (
        "Its largest ratio is 3.50 (the mean over seeds of each run’s largest), most often at "
        "<b>l0</b>." in text
    )
    table = configs_table(study)
    cells = {
        column.heading: cell.text
        for column, cell in zip(table.columns, table.lines[0].cells, strict=True)
    }
    assert (cells["largest\nshift ratio"], cells["layer of the\nlargest ratio"]) == ("3.500", "l0")
    assert study.comparison.rows[0]["shift_ratio_max"] == 3.5
    assert "mean over seeds of each run’s largest" in configs_table(study).caption


def test_without_a_baseline_it_says_why(tmp_path: Path) -> None:
    for name in ("a", "b"):
        make_run(tmp_path, name, config=config_of() | {"epochs": 3 + (name == "b")})
    text = told(collect(find_runs([tmp_path])))["loss"][1]
    assert "Several configs have no noise: a and b. Name a baseline with <code>--baseline" in text
    unfinished = tmp_path / "unfinished"
    make_run(unfinished, "clean", status="running", config=config_of())
    make_run(unfinished, "noisy", config=config_of(noise=dropout(0.5)))
    text = told(collect(find_runs([unfinished])))["loss"][1]
    assert "Without noise is clean, and none of its runs is done." in text
    assert "lowest" not in text


def test_layouts_are_tested_against_each_other_where_there_is_no_baseline(tmp_path: Path) -> None:
    for position, errors in (("bn", (20.0, 20.5, 19.8)), ("conv", (12.0, 12.6, 12.1))):
        noise = {**dropout(0.5), "position": f"before_last_{position}"}
        for seed, error in enumerate(errors):
            make_run(tmp_path, position, seed, 100 - error, config=config_of(noise=noise))
    card, text = told(collect(find_runs([tmp_path])))["significance"]
    assert card.answer == "1 of 1"
    assert "<b>bn</b> against conv +7.87 (95 % CI" in text


def test_p_is_said_with_and_without_the_correction(tmp_path: Path) -> None:
    """The weaker of two: with Holm's correction not significant, alone it would be."""
    for name, noise, errors in (
        ("none", None, (10.0, 10.6, 9.5)),
        ("a", dropout(0.3), (11.4, 12.2, 11.3)),
        ("b", dropout(0.5), (12.0, 13.9, 9.9)),
    ):
        for seed, error in enumerate(errors):
            make_run(tmp_path, name, seed, 100 - error, config=config_of(name, noise))
    study = collect(find_runs([tmp_path]))
    raw = {
        name: stats.ttest_ind(errors, (10.0, 10.6, 9.5), equal_var=False).pvalue
        for name, errors in (("a", (11.4, 12.2, 11.3)), ("b", (12.0, 13.9, 9.9)))
    }
    found = told(study)
    card, text = found["significance"]
    assert f"p = {2 * raw['a']:.3f}, alone {raw['a']:.3f}" in text
    assert "corrected for the 2 comparisons of this page (Holm)" in card.fine
    assert "Significant: <b>a</b> (next answer)." in found["loss"][1]


def test_what_is_recovered_without_significance_is_no_headline_without_that(tmp_path: Path) -> None:
    for name, noise, after in (("none", None, 10.0), ("a", dropout(0.5), None)):
        for seed, error in enumerate((10.0, 10.6, 9.5) if noise is None else (40.0, 46.0, 41.0)):
            rows = [
                {"method": "none", "test_accuracy": 100 - error},
                {"method": "precise", "test_accuracy": 100 - (after or (39.0, 30.0, 40.5)[seed])},
            ]
            config = config_of(name, noise)
            path = make_run(tmp_path, name, seed, 100 - error, config=config)
            (path / "recalibration.json").write_text(json.dumps({"methods": rows}))
    card, text = told(collect(find_runs([tmp_path])))["recalibration"]
    assert card.answer == "5.83 of 32.30 points in a, not significant"
    assert "That is not significant (p = " in text


def test_where_most_is_recovered_is_told_before_where_most_is_lost(tmp_path: Path) -> None:
    """Seen: a headline of −0.02 points, of a loss that no statistics cause."""
    for name, noise, before, after in (("none", None, 10.0, 10.0), ("a", dropout(0.5), 30.0, 30.0),
                                       ("b", dropout(0.3), 20.0, 12.0)):  # fmt: skip
        for seed, more in enumerate((0.0, 0.2, 0.1)):
            rows = [
                {"method": "none", "test_accuracy": 100 - before - more},
                {"method": "precise", "test_accuracy": 100 - after - more / 2},
            ]
            path = make_run(
                tmp_path, name, seed, 100 - before - more, config=config_of(name, noise)
            )
            (path / "recalibration.json").write_text(json.dumps({"methods": rows}))
    card, _ = told(collect(find_runs([tmp_path])))["recalibration"]
    assert card.answer == "8.05 of 10.00 points in b"


def test_seeds_that_do_not_differ_are_not_called_one(tmp_path: Path) -> None:
    for seed in range(2):
        rows = [
            {"method": "none", "test_accuracy": 60.0},
            {"method": "precise", "test_accuracy": 59.0},
        ]
        path = make_run(tmp_path, "a", seed, 60.0, config=config_of("a", dropout(0.5)))
        (path / "recalibration.json").write_text(json.dumps({"methods": rows}))
    _, text = told(collect(find_runs([tmp_path])))["recalibration"]
    assert (
        "(no confidence interval as no two seeds differ). That is not tested (no spread)." in text
    )
    assert "one seed" not in text


def test_networks_at_chance_level_are_called_so(tmp_path: Path) -> None:
    """Of 10 classes 10 % are guessed right; the run says how many there are, or its data."""
    for seed in range(2):
        make_run(tmp_path, "none", seed, 60.0 + seed)
        make_run(tmp_path, "lost", seed, 10.1, config=config_of("lost", dropout(0.5)))
        make_run(tmp_path, "four", seed, 26.0, config=config_of("four", dropout(0.3)),
                 run={"classes": 4})  # fmt: skip
    rows = [{"method": "none", "test_accuracy": 10.1}, {"method": "precise", "test_accuracy": 60.0}]
    path = tmp_path / "lost" / "seed-0" / "recalibration.json"
    path.write_text(json.dumps({"methods": rows}))
    recovered = told(collect(find_runs([tmp_path])))["recalibration"][0].answer
    assert recovered == "49.90 points in lost (as trained at chance level), not tested"
    card, text = told(collect(find_runs([tmp_path])))["loss"]
    assert card.answer == "four and lost at chance level"
    assert "more than" not in text
    (sentence,) = [line for line in text.split(". ") if "At chance level" in line]
    assert "<b>lost</b> (89.90 %)" in sentence
    assert "<b>four</b> (74.00 %)" in sentence
    assert "none" not in sentence
