"""The rows of a run folder's files: every column with its meaning, unit, heading and digits.

The only place that declares them. Training and `VarianceProbe` write `LayerRow` and `EpochRow`;
the table, the report, TensorBoard and the documents read `LAYER_COLUMNS`, `EPOCH_COLUMNS` and
`SUMMARY_COLUMNS`. A column that is added here is written, shown and documented by them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import MISSING, asdict, dataclass, field, fields, replace
from typing import Any

from vshift.text import escape_control


@dataclass(frozen=True)
class Column:
    """One key of a row, for people.

    Attributes:
        heading: in tables; empty where the default tables do not show it. A newline may break it.
        unit: `%`, `nats`, `s`; empty for ratios and counts.
        digits: decimals in tables.
        priority: in a narrow terminal, columns of low priority are left out first.
        is_text: words, not numbers.
        tag: the name of its curve in TensorBoard, of a layer's column a prefix; empty for none.
        only_with: another key; where that one has no value, this one is left out of the file
            instead of being null.
        depends_on: the key of a word, such as a method, without which the value says nothing. Where
            rows have different words, tables have a column for each.
    """

    key: str
    meaning: str
    heading: str = ""
    unit: str = ""
    digits: int = 4
    priority: int = 0
    is_text: bool = False
    tag: str = ""
    only_with: str = ""
    depends_on: str = ""

    def for_each(self, words: Iterable[str]) -> list[tuple[Column, str | None]]:
        """This column alone with None, or with several words one column for each, and the word.

        Args:
            words: those of the rows that have a value; empty where a row does not say its word.
        """
        every = list(dict.fromkeys(words))
        if len(every) < 2:
            return [(self, None)]
        named = (
            (f"{self.heading}\n({escape_control(word)})" if word else self.heading, word)
            for word in every
        )
        return [(replace(self, heading=heading), word) for heading, word in named]


def _column(meaning: str, *, default: Any = MISSING, **options: Any) -> Any:
    """A field of a row with its `Column`."""
    return field(default=default, metadata={"meaning": meaning, **options})


@dataclass(frozen=True, kw_only=True)
class _Row:
    def to_dict(self) -> dict[str, Any]:
        """The row as it is written: one key per column, in order."""
        values = asdict(self)
        needs = {column.key: column.only_with for column in columns_of(type(self)).values()}
        return {k: v for k, v in values.items() if not needs[k] or values[needs[k]] is not None}


def columns_of(row: type[_Row]) -> dict[str, Column]:
    """key → Column of a class of rows, in the order of the file."""
    return {f.name: Column(key=f.name, **f.metadata) for f in fields(row)}


@dataclass(frozen=True, kw_only=True)
class LayerRow(_Row):
    """A line of `layers.jsonl`: one BN layer, or another site, at one measured epoch.

    Variances are means over channels of unbiased batch variances; ratios are of those means. Every
    `…_se` is a standard error. None where a value was not measured or cannot be known.
    """

    epoch: int = _column("completed epochs")
    index: int = _column("position among the measured sites in forward order, from 0")
    layer: str = _column("the module's name in the network", heading="layer", is_text=True)
    channels: int = _column("channels of the layer")
    noise_before: bool | None = _column("whether noise reaches the layer through no other BN")
    train_variance: float | None = _column(
        "variance of these values in training batches, averaged over the epoch",
        heading="train variance", digits=4, tag="train_variance",
    )  # fmt: skip
    running_variance: float | None = _column(
        "moving (or simple) average that BN keeps",
        heading="running variance", digits=4, tag="running_variance",
    )  # fmt: skip
    eval_variance: float | None = _column(
        "variance of the same values with the whole network in eval mode, over "
        "`measure.eval_batches` batches of augmented training data",
        default=None, heading="eval variance", digits=4, tag="eval_variance",
    )  # fmt: skip
    shift_ratio: float | None = _column(
        "max(eval/running, running/eval), a ratio of channel means (Li et al. 2019, section 4); "
        "without running statistics max(train/eval, eval/train) with the measured weights",
        default=None, heading="shift ratio", digits=3, tag="shift_ratio",
    )  # fmt: skip
    shift_ratio_se: float | None = _column("standard error of `shift_ratio`", default=None)
    kind: str = _column(
        "what is measured there: the input of a `bn`, `layer_norm`, `rms_norm`, `group_norm` or "
        "`instance_norm` layer; of an `activation`, the `logits`, or another module the `output`",
        default="bn", is_text=True,
    )  # fmt: skip
    lag_ratio: float | None = _column(
        "train/running: how far the layer's moving average lags behind training batches of the "
        "measured weights",
        default=None, heading="lag", digits=3, tag="lag_ratio",
    )  # fmt: skip
    lag_ratio_se: float | None = _column("standard error of `lag_ratio`", default=None)
    lag_free_ratio: float | None = _column(
        "the shift ratio without any layer's lag: with the statistics of those training batches "
        "as every layer's running statistics",
        default=None, heading="shift ratio without BN's lag", digits=3, tag="lag_free_ratio",
    )  # fmt: skip
    lag_free_ratio_se: float | None = _column(
        "jackknife standard error of `lag_free_ratio`", default=None
    )
    cause: str | None = _column(
        "what makes up the larger part of the shift ratio: `lag`, `shift`, or `both` where their "
        "difference is within 3 standard errors; null where neither is 3 standard errors from 1; "
        "`shift` or null without running statistics",
        default=None, is_text=True,
    )  # fmt: skip
    mean_shift: float | None = _column(
        "|train mean − eval mean| in units of the train standard deviation, mean over channels",
        default=None, heading="shift of the mean", digits=3, tag="mean_shift",
    )  # fmt: skip
    mean_shift_se: float | None = _column("jackknife standard error of `mean_shift`", default=None)
    mean_tid: float | None = _column(
        "mean train-inference discrepancy: E‖batch mean − running mean‖/‖running standard "
        "deviation‖ over training batches (Wang et al. 2022, arXiv 2210.05153)",
        default=None, heading="mean TID", digits=3, tag="mean_tid",
    )  # fmt: skip
    variance_tid: float | None = _column(
        "the same of the standard deviations", default=None,
        heading="variance TID", digits=3, tag="variance_tid",
    )  # fmt: skip
    total_ratio: float | None = _column(
        "training/eval variance: `local_ratio` × `inherited_ratio`",
        default=None, heading="total", digits=3,
    )  # fmt: skip
    total_ratio_se: float | None = _column(
        "jackknife standard error of `total_ratio`", default=None
    )
    local_ratio: float | None = _column(
        "shift by the noise in front of this layer: with it against without it, all else as "
        "in training",
        default=None, heading="local", digits=3, tag="local_ratio",
    )  # fmt: skip
    local_ratio_se: float | None = _column(
        "jackknife standard error of `local_ratio`", default=None
    )
    inherited_ratio: float | None = _column(
        "shift from the layers before: without the layer's own noise, upstream in train "
        "against eval mode",
        default=None, heading="inherited", digits=3, tag="inherited_ratio",
    )  # fmt: skip
    inherited_ratio_se: float | None = _column(
        "jackknife standard error of `inherited_ratio`", default=None
    )
    predicted_ratio: float | None = _column(
        "the local ratio from s², the weights and the noise-free input alone",
        default=None, heading="predicted", digits=3, tag="predicted_ratio",
    )  # fmt: skip
    predicted_ratio_se: float | None = _column(
        "jackknife standard error of `predicted_ratio`", default=None
    )
    predicted_exact: bool | None = _column(
        "whether the formula is exact there: one noise per channel, then at most one linear layer",
        default=None,
    )
    closed_form_ratio: float | None = _column(
        "the paper's Δ(p) or Δ(p, d), inverted, with c², v and ρ estimated from data",
        default=None, digits=3,
    )  # fmt: skip
    cos2: float | None = _column(
        "cos²θ of the linear layer whose output the BN normalises, mean over filters", default=None
    )
    dcos2: float | None = _column("d·cos²θ of the same layer, d its number of inputs", default=None)


@dataclass(frozen=True, kw_only=True)
class EpochRow(_Row):
    """A line of `metrics.jsonl`: one epoch.

    Accuracies are null where nothing is classified; RMSE and R² are there where numbers are
    predicted.
    """

    epoch: int = _column("completed epochs")
    step: int = _column("optimizer steps since the start of the run")
    learning_rate: float = _column("learning rate of the epoch's last step", tag="learning_rate")
    train_loss: float = _column(
        "mean loss over the epoch's batches, in train mode", unit="nats", tag="loss/train"
    )
    train_accuracy: float | None = _column(
        "accuracy on the same batches", unit="%", digits=2, tag="accuracy/train"
    )
    train_rmse: float | None = _column(
        "root of the mean squared error on the same batches, in the target's own unit",
        default=None, tag="rmse/train", only_with="train_rmse",
    )  # fmt: skip
    train_r2: float | None = _column(
        "share of the target's variance that is explained on the same batches: 1 − squared error "
        "/ squared distance from the mean",
        default=None, tag="r2/train", only_with="train_rmse",
    )  # fmt: skip
    test_loss: float | None = _column(
        "loss on the test images, in eval mode", unit="nats", tag="loss/test"
    )
    test_accuracy: float | None = _column(
        "accuracy on the test images, in eval mode", unit="%", digits=2, tag="accuracy/test"
    )
    test_rmse: float | None = _column(
        "RMSE on the test images, in eval mode",
        default=None, tag="rmse/test", only_with="test_rmse",
    )  # fmt: skip
    test_r2: float | None = _column(
        "R² on the test images, in eval mode", default=None, tag="r2/test", only_with="test_rmse"
    )
    test_nll: float | None = _column(
        "negative log-likelihood of the same images", default=None, unit="nats", tag="nll/test"
    )
    test_brier: float | None = _column(
        "Brier score of the same images, summed over classes: 0 to 2",
        default=None, tag="brier/test",
    )  # fmt: skip
    test_ece: float | None = _column(
        "expected calibration error of the same images, over 15 bins of the top probability",
        default=None, unit="%", digits=2, tag="ece/test",
    )  # fmt: skip
    validation_loss: float | None = _column(
        "loss on the training images held out by `data.validation`, in eval mode",
        default=None, unit="nats", tag="loss/validation", only_with="validation_loss",
    )  # fmt: skip
    validation_accuracy: float | None = _column(
        "accuracy on the same images",
        default=None, unit="%", digits=2, tag="accuracy/validation", only_with="validation_loss",
    )  # fmt: skip
    validation_rmse: float | None = _column(
        "RMSE on the same images", default=None, tag="rmse/validation", only_with="validation_rmse"
    )
    validation_r2: float | None = _column(
        "R² on the same images", default=None, tag="r2/validation", only_with="validation_rmse"
    )
    validation_nll: float | None = _column(
        "negative log-likelihood of the same images",
        default=None, unit="nats", tag="nll/validation", only_with="validation_loss",
    )  # fmt: skip
    validation_brier: float | None = _column(
        "Brier score of the same images",
        default=None, tag="brier/validation", only_with="validation_loss",
    )  # fmt: skip
    validation_ece: float | None = _column(
        "expected calibration error of the same images",
        default=None, unit="%", digits=2, tag="ece/validation", only_with="validation_loss",
    )  # fmt: skip
    seconds: float = _column("duration of the epoch, measurements included", unit="s", digits=1)
    images_per_second: float = _column(
        "training images per second, measurements excluded", digits=0, tag="images_per_second"
    )


@dataclass(frozen=True, kw_only=True)
class TimingRow(_Row):
    """`timing` in run.json: wall seconds by phase, over all attempts at the run."""

    start: float = _column(
        "before the first step: imports, images, network, and compiling where it is needed",
        unit="s",
    )
    steps: float = _column(
        "training steps, with augmentation, the log of every layer and checkpoints inside an epoch",
        unit="s",
    )
    test: float = _column("scores of test and validation images, and in train mode", unit="s")
    measure: float = _column(
        "every layer in eval mode and its explanation, the training images' scores in eval mode, "
        "and what else `measure` asks for",
        unit="s",
    )
    recalibrate: float = _column("new BN statistics, and tests with them", unit="s")
    write: float = _column("files, checkpoints and all else", unit="s")
    steps_share: float = _column("share of `steps` in the sum of these", unit="%")


# What `kind` can be in a row of layers.jsonl, each in words.
SITE_KINDS = {
    "bn": "BN layers",
    "layer_norm": "layer norms",
    "rms_norm": "RMS norms",
    "group_norm": "group norms",
    "instance_norm": "instance norms",
    "activation": "activations",
    "logits": "logits",
    "output": "other modules",
}
LAYER_COLUMNS = columns_of(LayerRow)
EPOCH_COLUMNS = columns_of(EpochRow)
TIMING_COLUMNS = columns_of(TimingRow)


def _calibration(part: str, of_what: str, mode: str = "") -> Iterator[Column]:
    yield Column(f"{part}_nll{mode}", f"negative log-likelihood {of_what}", "", "nats", 4)
    yield Column(f"{part}_brier{mode}", f"Brier score {of_what}: 0 to 2", "", "", 4)
    yield Column(f"{part}_ece{mode}", f"expected calibration error {of_what}", "", "%", 2)


def _monte_carlo(method: str, how: str) -> Iterator[Column]:
    mean = "of the mean prediction of these passes"
    yield Column(f"{method}_passes", f"passes over the test images with {how}", "", "", 0)
    yield Column(f"{method}_accuracy", f"accuracy {mean}", "", "%", 2)
    yield Column(f"{method}_loss", f"cross-entropy {mean}", "", "nats", 4)
    yield from _calibration(method, mean)
    yield Column(f"{method}_pass_accuracy", "mean accuracy of a single pass", "", "%", 2)
    yield Column(f"{method}_accuracy_sd", "its standard deviation over passes", "", "%", 2)
    yield Column(f"{method}_rmse", f"RMSE {mean}, where numbers are predicted")
    yield Column(f"{method}_r2", f"R² {mean}")
    yield Column(f"{method}_pass_rmse", "mean RMSE of a single pass")
    yield Column(f"{method}_rmse_sd", "its standard deviation over passes")
    yield Column(f"{method}_spread", "standard deviation over passes of a probability, or of a "
                 "number in its own unit, mean over images and classes", "", "", 4)  # fmt: skip


AVERAGE_BUFFERS = ("own", "copied", "averaged", "precise")  # the words of `average.buffers`


def _averaged(word: str) -> Iterator[Column]:
    key, network = f"average_{word}", f"of the averaged network with `buffers: {word}`"
    heading = f"average,\n{word}"
    yield Column(f"test_error_{key}", f"test error {network}", heading, "%", 2, 7)
    yield Column(f"test_accuracy_{key}", f"test accuracy {network}", "", "%", 2)
    yield Column(f"test_rmse_{key}", f"test RMSE {network}", f"RMSE of\n{heading}", "", 4, 7)
    yield Column(f"test_loss_{key}", f"test loss {network}", "", "nats", 4)
    yield Column(f"test_error_recalibrated_{key}",
                 f"test error {network}, after the first of `recalibration.methods`", "", "%", 2,
                 depends_on="recalibration")  # fmt: skip
    yield Column(
        f"shift_ratio_mean_{key}", f"mean over BN layers of `shift_ratio` {network}", "", "", 3
    )
    yield Column(f"shift_ratio_max_{key}", f"largest `shift_ratio` {network}", "", "", 3)


# summary.json is one flat object. Further keys name a recalibration method or a mode:
# test_accuracy_<method>, test_nll_<method>, test_recovered_<method>, …_average_<buffers>, and what
# `measure.modes` asks.
SUMMARY_COLUMNS = {
    column.key: column
    for column in (
        Column("epoch", "the last epoch"),
        Column("test_error", "test error of the last epoch", "test error %", "%", 2, 98),
        Column("test_accuracy", "test accuracy of the last epoch", "", "%", 2),
        Column("test_rmse", "test RMSE of the last epoch, in the target's own unit",
               "test RMSE", "", 4, 98),
        Column("test_r2", "test R² of the last epoch", "test R²", "", 4, 98),
        Column("test_loss", "test loss of the last epoch", "test loss", "nats", 4, 98),
        *_calibration("test", "of the test images, after the last epoch"),
        Column("test_error_recalibrated",
               "test error after the first method of `recalibration.methods`",
               "after\nrecalibration", "%", 2, 12, depends_on="recalibration"),
        Column("test_loss_recalibrated", "test loss after the same", "", "nats", 4,
               depends_on="recalibration"),
        Column("test_rmse_recalibrated", "test RMSE after the same",
               "RMSE after\nrecalibration", "", 4, 12, depends_on="recalibration"),
        Column("recalibration", "the first of `recalibration.methods`", "", is_text=True),
        *(column for word in AVERAGE_BUFFERS for column in _averaged(word)),
        Column("validation_error", "validation error of the last epoch",
               "validation\nerror %", "%", 2, 6),
        Column("validation_accuracy", "validation accuracy of the last epoch", "", "%", 2),
        Column("validation_loss", "validation loss of the last epoch", "", "nats", 4),
        Column("validation_rmse", "validation RMSE of the last epoch",
               "validation\nRMSE", "", 4, 6),
        Column("validation_r2", "validation R² of the last epoch"),
        *_calibration("validation", "of the validation images, after the last epoch"),
        Column("train_loss", "training loss of the last epoch", "", "nats", 4),
        Column("train_accuracy", "training accuracy of the last epoch, in train mode", "", "%", 2),
        Column("train_rmse", "training RMSE of the last epoch, in train mode"),
        Column("train_r2", "training R² of the last epoch, in train mode"),
        Column("train_accuracy_eval_mode",
               "accuracy on all augmented training images, in eval mode",
               "train acc %\n(eval mode)", "%", 2, 8),
        Column("train_accuracy_train_mode",
               "accuracy on the same with noise on and BN on each batch's own statistics",
               "train acc %\n(train mode)", "%", 2, 8),
        Column("train_r2_eval_mode", "R² on all augmented training images, in eval mode",
               "train R²\n(eval mode)", "", 4, 8),
        Column("train_r2_train_mode", "R² on the same images, in train mode",
               "train R²\n(train mode)", "", 4, 8),
        Column("train_rmse_eval_mode", "RMSE on the same images, in eval mode"),
        Column("train_rmse_train_mode", "RMSE on the same images, in train mode"),
        Column("train_loss_eval_mode", "loss on the same images, in eval mode", "", "nats", 4),
        Column("train_loss_train_mode", "loss on the same images, in train mode", "", "nats", 4),
        *_calibration("train", "of the same images, in eval mode", "_eval_mode"),
        *_calibration("train", "of the same images, in train mode", "_train_mode"),
        Column("shift_ratio_mean", "the mean shift ratio: mean over BN layers of `shift_ratio`",
               "mean\nshift ratio", "", 3, 11),
        Column("shift_ratio_max", "largest `shift_ratio` over BN layers",
               "largest\nshift ratio", "", 3, 6),
        Column("shift_ratio_max_layer", "layer of the largest `shift_ratio`",
               "layer of the\nlargest ratio", priority=5, is_text=True),
        Column("shift_ratio_cause",
               "`lag` of BN's moving average or `shift`: the cause of the larger part of the "
               "layers' shift ratios; `both` where neither has more than half",
               "shift or\nBN's lag", priority=11, is_text=True),
        Column("lag_free_ratio_mean", "mean over BN layers of `lag_free_ratio`", "", "", 3),
        Column("mean_shift", "mean over BN layers of `mean_shift`", "", "", 3),
        Column("mean_tid", "mean over BN layers of `mean_tid`", "", "", 3),
        Column("variance_tid", "mean over BN layers of `variance_tid`", "", "", 3),
        Column("parameters", "parameters of the network", "parameters", "", 0, 1),
        Column("bn_layers", "BN layers of the network", "", "", 0),
        Column("noise_modules", "noise of a strength above 0: the modules of "
               "`network.noise`, and PyTorch's dropout in a network that is not vshift's",
               "", "", 0),
        *_monte_carlo("monte_carlo", "noise on and BN on running statistics"),
        *_monte_carlo("monte_carlo_bn", "noise off and BN on single training batches’ statistics"),
    )
}  # fmt: skip


def column_name(key: str) -> str:
    """A key of summary.json in words: `test error`, `test RMSE`."""
    column = SUMMARY_COLUMNS.get(key)
    heading = column.heading.replace("\n", " ").removesuffix(" %") if column else ""
    return heading or key.replace("_", " ")


def describe_columns(columns: Mapping[str, Column]) -> str:
    """The columns as a Markdown table, for the documents."""
    lines = ["| column | unit | meaning |", "|---|---|---|"]
    lines += [f"| `{c.key}` | {c.unit or '–'} | {c.meaning} |" for c in columns.values()]
    return "\n".join(lines)


def fill_document(text: str) -> str:
    """docs/run-folder.md with its tables of columns as they are declared here.

    The columns of an average are the same for each of AVERAGE_BUFFERS, and are told once.
    """
    averages = [column.key for word in AVERAGE_BUFFERS for column in _averaged(word)]
    told = dict(zip(averages, [*_averaged("<buffers>")] * len(AVERAGE_BUFFERS), strict=True))
    summary = [told.get(key, column) for key, column in SUMMARY_COLUMNS.items()]
    tables = {
        "EpochRow": EPOCH_COLUMNS,
        "LayerRow": LAYER_COLUMNS,
        "TimingRow": TIMING_COLUMNS,
        "the summary": {column.key: column for column in summary},
    }
    for name, columns in tables.items():
        start = f"<!-- columns of {name} -->\n"
        before, rest = text.split(start)
        _, after = rest.split("<!-- end -->", 1)
        text = f"{before}{start}{describe_columns(columns)}\n<!-- end -->{after}"
    return text


if __name__ == "__main__":  # python -m vshift.runs.schema docs/run-folder.md
    import sys
    from pathlib import Path

    document = Path(sys.argv[1])
    document.write_text(fill_document(document.read_text("utf-8")), "utf-8")
