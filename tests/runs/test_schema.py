"""The columns of a run folder's files, declared once."""

from dataclasses import replace
from pathlib import Path

from vshift.runs.schema import (
    EPOCH_COLUMNS,
    LAYER_COLUMNS,
    SUMMARY_COLUMNS,
    EpochRow,
    LayerRow,
    describe_columns,
    fill_document,
)


def layer(name: str, ratio: float | None) -> LayerRow:
    return LayerRow(
        epoch=1, index=0, layer=name, channels=4, noise_before=False, train_variance=1.0,
        running_variance=1.0, shift_ratio=ratio,
    )  # fmt: skip


def test_rows_are_written_in_the_order_of_their_columns() -> None:
    row = layer("bn1", 1.5).to_dict()
    assert list(row) == list(LAYER_COLUMNS)
    assert list(row)[:9] == [
        "epoch", "index", "layer", "channels", "noise_before", "train_variance",
        "running_variance", "eval_variance", "shift_ratio",
    ]  # fmt: skip
    assert row["eval_variance"] is None


def test_a_run_without_validation_images_has_no_such_columns() -> None:
    numbers = {"epoch": 1, "step": 3, "learning_rate": 0.1, "train_loss": 2.0, "seconds": 1.0}
    row = EpochRow(
        **numbers, train_accuracy=None, test_loss=2.0, test_accuracy=None, images_per_second=9.0
    )
    assert "validation_loss" not in row.to_dict()
    assert row.to_dict()["test_accuracy"] is None
    with_both = EpochRow(
        **numbers, train_accuracy=1.0, test_loss=2.0, test_accuracy=2.0, images_per_second=9.0,
        validation_loss=2.5, validation_accuracy=3.0,
    )  # fmt: skip
    of_numbers = [f"{part}_{what}" for part in ("train", "test", "validation")
                  for what in ("rmse", "r2")]  # fmt: skip
    assert list(with_both.to_dict()) == [key for key in EPOCH_COLUMNS if key not in of_numbers]
    regression = replace(with_both, **dict.fromkeys(of_numbers, 1.0) | {"test_r2": None}).to_dict()
    assert list(regression) == list(EPOCH_COLUMNS)
    autoencoder = replace(with_both, validation_accuracy=None).to_dict()
    assert autoencoder["validation_accuracy"] is None


def test_every_column_says_what_it_is() -> None:
    for columns in (LAYER_COLUMNS, EPOCH_COLUMNS, SUMMARY_COLUMNS):
        assert all(column.meaning and key == column.key for key, column in columns.items())
        assert len(describe_columns(columns).splitlines()) == 2 + len(columns)


def test_the_document_has_every_column() -> None:
    """`python -m vshift.runs.schema docs/run-folder.md` writes the tables."""
    document = Path(__file__).parents[2] / "docs" / "run-folder.md"
    assert document.read_text("utf-8").count("| `test_error_average_") == 1
    text = document.read_text("utf-8")
    assert fill_document(text) == text
    assert all(f"| `{key}` |" in text for key in (*LAYER_COLUMNS, *EPOCH_COLUMNS))
