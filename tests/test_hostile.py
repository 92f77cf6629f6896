"""Files that somebody damaged or made to do harm: an error for people, never a traceback."""

from __future__ import annotations

import csv
import io
import json
import random
import shutil
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.configs import make_config
from tests.factory import config_of, make_run
from tests.rendering import render
from vshift import cli
from vshift.compare import compare
from vshift.config import Config, dump
from vshift.data import load as load_images
from vshift.errors import RunError, Stopped, VShiftError
from vshift.runs import RunFolder, find_runs, next_action, prepare
from vshift.tables import FORMATS
from vshift.train.progress import Reporter
from vshift.train.run import train_one
from vshift.train.signals import StopSignal

many = settings(
    max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
TINY = make_config(
    data={"name": "shapes", "train": 40, "test": 10, "batch_size": 20},
    network={"name": "mlp", "widths": [8], "noise": None},
    measure={"eval_batches": 1},
    epochs=2,
)


class Two(StopSignal):
    """Asks to stop behind the first step of the second epoch."""

    def __init__(self) -> None:
        super().__init__()
        self.left = 4  # two steps, a batch of testing, the end of the epoch

    @property
    def requested(self) -> bool:
        self.left -= 1
        return self.left < 0


@pytest.fixture(scope="module")
def images() -> Any:
    return load_images(TINY.data, "cpu")


@pytest.fixture(scope="module")
def unfinished(images: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A runs dir with a real run that was stopped, and one that is done."""
    runs = tmp_path_factory.mktemp("damaged")
    quiet = Reporter(quiet=True)
    from vshift.train.run import train_in

    folder, _ = prepare(runs, TINY, 0)
    with pytest.raises(Stopped):
        train_in(folder, TINY, 0, images, quiet, Two())
    folder.mark_finished("interrupted")
    folder.close()
    train_one(TINY, 1, images, runs, False, quiet)
    return runs


def only_ours(function: Any, *args: Any) -> Any:
    """The result, or None after an error for people; everything else fails the test."""
    with suppress(VShiftError):
        return function(*args)
    return None


damages = st.lists(
    st.tuples(
        st.integers(0, 30),  # which file
        st.sampled_from(["flip", "cut", "delete", "replace", "insert", "folder", "link"]),
        st.integers(0, 10**6),
        st.binary(max_size=12)
        | st.sampled_from([b'{"epoch": null}\n', b"[]", b"{}", b'{"epoch": 1e999}\n', b"null"]),
    ),
    min_size=1,
    max_size=4,
)


def damage(folder: Path, which: int, how: str, place: int, data: bytes) -> None:
    files = sorted(path for path in folder.rglob("*") if path.is_file() and not path.is_symlink())
    if not files:
        return
    path = files[which % len(files)]
    content = bytearray(path.read_bytes())
    place %= len(content) + 1
    if how == "flip" and place < len(content):
        content[place] ^= 1 + len(data)
    elif how == "cut":
        del content[place:]
    elif how == "replace":
        content = bytearray(data)
    elif how == "insert":
        content[place:place] = data
    path.unlink()
    if how == "folder":
        path.mkdir()
    elif how == "link":
        path.symlink_to(path)
    elif how != "delete":
        path.write_bytes(content)


@many
@given(damages, st.sampled_from([0, 1]))
def test_damaged_run_folders(
    unfinished: Path, images: Any, tmp_path: Path, harm: list[Any], seed: int
) -> None:
    runs = tmp_path / "runs"
    shutil.rmtree(runs, ignore_errors=True)
    shutil.copytree(unfinished, runs)
    for one in harm:
        damage(runs / "test" / f"seed-{seed}", *one)
    for found in [only_ours(find_runs, [runs])]:
        if found is not None:
            comparison = only_ours(compare, found)
            for form in FORMATS:
                assert comparison is None or isinstance(render(comparison, form), str)
            for record in found:
                assert isinstance(record.metrics + record.layers, list)
    only_ours(next_action, RunFolder(runs / "test" / f"seed-{seed}"), TINY)
    status = only_ours(train_one, TINY, seed, images, runs, False, Reporter(quiet=True))
    assert status in (None, "done", "diverged")


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=6),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner),
    max_leaves=8,
)


@settings(many, max_examples=30)
@given(st.dictionaries(st.sampled_from(
    ["status", "name", "seed", "config_hash", "device", "threads", "resumes", "seconds",
     "images_per_second", "data", "test_accuracy", "test_error", "shift_ratio_max_layer",
     "parameters", "epoch", "methods"]
), values))  # fmt: skip
def test_files_of_the_right_form_with_wrong_contents(
    unfinished: Path, images: Any, tmp_path: Path, fields: dict[str, Any]
) -> None:
    runs = tmp_path / "runs"
    shutil.rmtree(runs, ignore_errors=True)
    shutil.copytree(unfinished, runs)
    text = json.dumps(fields)
    for name in ("run.json", "summary.json", "recalibration.json", "metrics.jsonl"):
        whole = runs / "test" / "seed-0" / name
        old = json.loads(whole.read_text()) if name == "run.json" else {}
        whole.write_text(json.dumps({**old, **fields}) if name == "run.json" else f"{text}\n{text}")
        comparison = only_ours(lambda: compare(find_runs([runs])))
        for form in FORMATS:
            assert comparison is None or render(comparison, form)
        only_ours(train_one, TINY, 0, images, runs, False, Reporter(quiet=True))
    shutil.copyfile(runs / "test" / "seed-0" / "run.json", runs / "test" / "seed-1" / "run.json")
    only_ours(lambda: compare(find_runs([runs])))


BOMBS = {
    "laughs": "a: &a [x, x, x, x, x, x, x, x, x, x]\n"
    + "".join(f"{chr(98 + i)}: &{chr(98 + i)} [{', '.join([f'*{chr(97 + i)}'] * 10)}]\n"
              for i in range(12)),
    "deep block": "- " * 100_000,
    "deep flow": "[" * 100_000,
    "deep mapping": "{a: " * 100_000,
    "digits": "epochs: " + "9" * 100_000,
    "exponent": "epochs: 1e999999999",
    "python": "epochs: !!python/object/apply:os.system ['touch made']",
    "large": "# " + "x" * 3_000_000,
}  # fmt: skip


@pytest.mark.parametrize("bomb", BOMBS)
def test_bombs_in_configs_and_in_a_runs_config(
    tmp_path: Path, bomb: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """PyYAML's fast loader would take exponential time for some, and crash Python with others."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "bomb.yaml").write_text(BOMBS[bomb])
    from vshift.config import load

    with pytest.raises(VShiftError, match=r"bomb\.yaml"):
        load(tmp_path / "bomb.yaml")
    folder = make_run(tmp_path / "runs")
    (folder / "config.yaml").write_text(BOMBS[bomb])
    notes = compare(find_runs([tmp_path / "runs"])).notes
    if bomb != "digits" and bomb != "exponent":
        assert any("config.yaml is damaged" in note for note in notes)
    assert all(len(note) < 2000 for note in notes)
    assert not (tmp_path / "made").exists()


@settings(many, max_examples=60)
@given(st.text(max_size=60) | st.recursive(
    st.sampled_from(["a", "1", "~", "'x'", "&a b", "*a", "!!x y", "- ", "1e999", "0x" + "f" * 99]),
    lambda inner: st.builds("[{}, {}]".format, inner, inner) | st.builds("{{a: {}}}".format, inner),
))  # fmt: skip
def test_any_text_through_the_command_check(tmp_path: Path, text: str) -> None:
    (tmp_path / "any.yaml").write_bytes(text.encode(errors="surrogatepass"))
    (tmp_path / "study.yaml").write_text(f"{dump(TINY)}\nbase: any.yaml\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["vshift", "check", str(tmp_path)])
        with pytest.raises(SystemExit) as caught:
            cli.main()
    assert caught.value.code in (0, None, 2)


def test_json_bombs(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "runs")
    for content in (b"[" * 10**6, b'{"a":' * 10**6, b'{"a": ' + b"9" * 10**6 + b"}"):
        (folder / "summary.json").write_bytes(content)
        (record,) = find_runs([tmp_path / "runs"])
        assert "is damaged" in record.problems[0]
    (folder / "summary.json").unlink()
    for name in ("summary.json", "config.yaml"):
        with open(folder / name, "wb") as file:
            file.truncate(2**40)  # a hole: no room on disk, and all memory if it is read
    (record,) = find_runs([tmp_path / "runs"])
    assert record.config == {}
    assert "1,099,511,627,776 bytes are more than" in " ".join(record.problems)


def test_a_line_without_an_end(tmp_path: Path) -> None:
    folder = RunFolder(make_run(tmp_path / "runs", metrics=[{"epoch": 1}]))
    with open(folder.path / "metrics.jsonl", "ab") as file:
        file.truncate(2**40)
    with pytest.raises(RunError, match=r"metrics\.jsonl:2 is damaged: a line of over 1,048,576"):
        folder.metrics()
    folder.append_metrics({"epoch": 2})  # cuts the torn line off
    with pytest.raises(RunError, match=r"metrics\.jsonl:2 is damaged"):
        folder.metrics()


def test_a_grid_times_seeds_has_a_limit(tmp_path: Path) -> None:
    from vshift.config import expand

    grid = {"optimizer.learning_rate": [i / 1000 for i in range(1, 101)]}
    config = TINY.model_copy(update={"grid": grid, "seeds": list(range(1001))})
    (tmp_path / "many.yaml").write_text(dump(config))
    with pytest.raises(VShiftError, match="are 100,100 runs; at most 100,000"):
        expand(tmp_path / "many.yaml")
    grid |= {f"measure.{key}": list(range(1, 1001)) for key in ("every", "eval_batches")}
    (tmp_path / "many.yaml").write_text(dump(config.model_copy(update={"grid": grid})))
    with pytest.raises(VShiftError, match="100,000,000 combinations; at most 10,000"):
        expand(tmp_path / "many.yaml")


NAMES = [
    "", ".", "..", "../x", "a/b", "/etc", "a\\b", "-rf", ".hidden", "a\0b", "a\nb", "a\x1b[31m",
    "x" * 121, "x" * 5000, "seed-0", "SEED-12", "con", "NUL.txt", "com1", "a b", "ü", "=1+1", "+1",
    "@x", "~root", "a:b", "*", "$HOME",
]  # fmt: skip


@pytest.mark.parametrize("name", NAMES, ids=ascii)
def test_names_stay_in_the_runs_dir(tmp_path: Path, name: str) -> None:
    with pytest.raises(ValueError, match=r"name"):
        Config.model_validate({**config_of(), "name": name})


@pytest.mark.parametrize("stem", ["..", "seed-3", "-rf", "con", "x" * 200, "ü ö", "=cmd"])
def test_a_files_name_becomes_a_safe_one(tmp_path: Path, stem: str) -> None:
    from vshift.config import load

    path = tmp_path / f"{stem}.yaml"
    path.write_text(dump(TINY).replace("name: test\n", "", 1))
    name = load(path).name
    runs = tmp_path / "runs"
    assert (runs / name / "seed-0").resolve().parent.parent == runs
    assert not name.lower().startswith(("seed-", "con", "-", "="))


EVIL = [
    "=HYPERLINK(1)", "+1+1|x", "-2+3", "@SUM(A1)", "＝1", "\t=1", "[red]x[/red]", "[/]",
    "\x1b[31mx",
    "\x1b]0;title\x07", "a\r\nb", "<script>alert(1)</script>", "\\input{/etc/passwd}", "$x_1^2$",
    "a & b % c # d", "`code`", "| a | b |", "![x](y)", "**b**", "\u202eabc", "{x}", "]]>", "'; --",
]  # fmt: skip


@pytest.mark.parametrize("name", EVIL, ids=ascii)
def test_names_cannot_inject_into_any_table(tmp_path: Path, name: str) -> None:
    fields = {"name": name, "device": name, "data": name}
    make_run(tmp_path / "runs", "a", run=fields, summary={
        "test_accuracy": 90.0, "shift_ratio_max_layer": name,
    })  # fmt: skip
    make_run(tmp_path / "runs", "b")
    comparison = compare(find_runs([tmp_path / "runs"]))
    text = {form: render(comparison, form) for form in FORMATS}
    wide = render(comparison, "table", terminal_width=500)
    for written in text.values():
        assert not set("\x1b\x07\r\t\u202e") & set(written)
    assert "\x1b]" not in wide
    assert "\x07" not in wide
    assert "\x1b[31m" not in wide
    for row in csv.reader(io.StringIO(text["csv"])):
        assert len(row) == len(next(csv.reader(io.StringIO(text["csv"]))))
        assert not any(c[:1] in tuple("=+@＝") or c.startswith("-2") for c in map(str.strip, row))
    assert "<script" not in text["md"]
    pipes = {
        line.replace("\\|", "").count("|") for line in text["md"].splitlines() if line[:1] == "|"
    }
    assert len(pipes) == 1
    body = text["latex"].partition("\\midrule")[2].partition("\\bottomrule")[0]
    for command in ("\\input", "$x", "\\inp"):
        assert command not in body.replace("\\$", "")
    assert json.loads(text["json"])


def test_errors_cannot_write_escape_codes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    evil = tmp_path / "\x1b[31mred\x1b]0;title\x07"
    evil.mkdir()
    (evil / "\x1b[2J.yaml").write_text("epochs: x")
    good = evil / "\x1b[2Jgood.yaml"
    good.write_text(dump(TINY))
    for words in (["compare", str(evil)], ["check", str(evil)], ["train", str(evil / "no.yaml")]):
        monkeypatch.setattr(sys, "argv", ["vshift", *words])
        with pytest.raises(SystemExit):
            cli.main()
        out, err = capfd.readouterr()
        assert "\\x1b[31mred" in out + err
        assert "\x1b" not in out + err


def test_messages_are_text_and_not_markup(capfd: pytest.CaptureFixture[str]) -> None:
    Reporter().say("[red]x[/red] \x1b[31my\nsecond")
    assert capfd.readouterr().err == "[red]x[/red] \\x1b[31my\nsecond\n"


@pytest.fixture
def crafted(tmp_path: Path, unfinished: Path) -> Iterator[Path]:
    """An unfinished run whose checkpoint would make a file if it was unpickled."""

    class Crafted:
        def __reduce__(self) -> Any:
            return open, (str(tmp_path / "made"), "w")

    shutil.copytree(unfinished, tmp_path / "runs")
    folder = tmp_path / "runs" / "test" / "seed-0"
    for path in folder.glob("checkpoint*"):
        torch.save({"version": 1, "epoch": Crafted()}, path)
    yield folder
    assert not (tmp_path / "made").exists()


def test_going_on_from_a_crafted_checkpoint_runs_nothing(crafted: Path, images: Any) -> None:
    with pytest.raises(RunError, match="--fresh"):
        train_one(TINY, 0, images, crafted.parent.parent, False, Reporter(quiet=True))


def test_recalibrating_a_crafted_checkpoint_runs_nothing(crafted: Path) -> None:
    from vshift.train.recalibrate import recalibrate_run

    RunFolder(crafted).update_run(status="done")
    with pytest.raises(RunError, match="holds more than tensors and numbers"):
        recalibrate_run(crafted, [])


def test_numbers_of_absurd_size_are_refused_before_they_do_harm() -> None:
    huge = random.Random(0).randrange(10**900)
    for section, key in (
        ("data", "batch_size"), ("data", "train_limit"), ("measure", "eval_batches"),
        ("measure", "monte_carlo"), ("measure", "monte_carlo_bn"), ("recalibration", "batches"),
        ("hardware", "threads"), ("checkpoint", "every"), ("checkpoint", "minutes"),
        ("data", "seed"), ("data", "validation"),
    ):  # fmt: skip
        content = {**TINY.model_dump()}
        content[section] = {**content[section], key: huge}
        with pytest.raises(ValueError, match=key):
            Config.model_validate(content)


def test_too_many_steps_are_refused(images: Any) -> None:
    from vshift.train.context import build_model

    config = TINY.model_copy(update={"epochs": 10**8})
    with pytest.raises(VShiftError, match="200,000,000 steps; at most 100,000,000"):
        build_model(config, images, 0)
