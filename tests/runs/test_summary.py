"""What a run's rows come to."""

import math
from dataclasses import replace

from tests.runs.test_schema import layer
from vshift.runs.schema import LayerRow
from vshift.runs.summary import error_of, main_cause, summarize_layers, with_errors


def test_the_summary_of_layers_is_over_finite_ratios() -> None:
    found = summarize_layers([layer("a", 1.5), layer("b", None), layer("c", 2.5)])
    assert {key: value for key, value in found.items() if value is not None} == {
        "shift_ratio_mean": 2.0,
        "shift_ratio_max": 2.5,
        "shift_ratio_max_layer": "c",
        "bn_layers": 3,
    }
    nothing = summarize_layers([layer("a", math.inf), layer("b", math.nan)])
    assert nothing["shift_ratio_mean"] is nothing["shift_ratio_max_layer"] is None
    assert summarize_layers([])["bn_layers"] == 0


def test_errors_are_100_minus_accuracies() -> None:
    assert error_of(98.5) == 1.5
    assert error_of(None) is None
    found = with_errors({"test_loss": 1.0, "test_accuracy": 80.0, "validation_accuracy": None})
    assert found["test_error"] == 20.0
    assert found["validation_error"] is None


def test_the_word_of_a_run_is_that_of_most_of_its_shift() -> None:
    def row(ratio: float | None, cause: str | None) -> LayerRow:
        return replace(layer("bn", ratio), cause=cause)

    assert main_cause([row(2.0, "lag"), row(1.1, "shift"), row(1.0, None)]) == "lag"
    assert main_cause([row(2.0, "lag"), row(2.0, "shift")]) == "both"
    assert main_cause([row(1.5, "both"), row(1.1, "shift")]) == "both"
    assert main_cause([row(1.0, None), row(None, None)]) is None
    assert summarize_layers([])["shift_ratio_cause"] is None
