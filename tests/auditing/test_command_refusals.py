"""What `vshift audit` refuses, and what it says then."""

import json

import pytest
import torch
from PIL import Image

from tests.auditing.own_file import FILE


@pytest.fixture
def vshift(vshift, tmp_path):
    """The command line in a folder with a file of models and loaders."""
    (tmp_path / "mine.py").write_text(FILE)
    return vshift


def test_a_library_model_without_weights_is_told_so(vshift):
    words = ["--size", 32, "--batches", 2, "--batch-size", 8, "--data", "random", "--classes", 3]
    _, out, _ = vshift("audit", "torchvision:resnet18", *words, "--format", "json")
    (finding,) = [f for f in json.loads(out)["findings"] if f["code"] == "never_updated"]
    assert finding["message"].startswith("No --weights were given: ")
    _, out, _ = vshift("audit", "mine.py:net", "--data", "mine.py:images")
    assert "No --weights were given" not in out


def test_a_folder_of_splits_is_no_folder_of_classes(vshift, tmp_path):
    for name in ("train/cat", "val/cat"):
        (tmp_path / "images" / name).mkdir(parents=True)
        Image.new("RGB", (8, 8)).save(tmp_path / "images" / name / "0.png")
    for option in (["--data", "images"], ["--data", "mine.py:loader", "--train-data", "images"]):
        code, out, err = vshift("audit", "mine.py:net", *option)
        assert (code, out) == (2, "")
        assert f"{option[-2]}: images holds train, val, which are no classes" in err
        assert "name one of them, images/train" in err


def test_a_probes_folder_says_what_it_is(vshift, tmp_path):
    from vshift import VarianceProbe
    from vshift.auditing.inputs import call_in_file

    model, loader = (call_in_file(f"mine.py:{name}") for name in ("net", "loader"))
    probe = VarianceProbe(model)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    for images, labels in loader:
        torch.nn.functional.cross_entropy(model(images), labels).backward()
        optimizer.step()
    probe.end_epoch(loader)
    probe.save(tmp_path / "watched" / "seed-0")
    for words in (["audit", "--data", "test"], ["recalibrate"]):
        code, out, err = vshift(words[0], "watched/seed-0", *words[1:])
        assert (code, out) == (2, "")
        assert "holds what a VarianceProbe measured, and no network or weights" in err
        assert "FILE.py:FACTORY" in err


def test_a_folder_of_runs_names_a_run(vshift, tmp_path):
    (tmp_path / "runs/mine/seed-3").mkdir(parents=True)
    (tmp_path / "runs/mine/seed-3/run.json").write_text('{"status": "interrupted"}')
    code, _, err = vshift("audit", "runs", "--data", "test")
    assert code == 2
    assert "for instance runs/mine/seed-3" in err
    code, _, err = vshift("audit", "runs/mine/seed-3", "--data", "test")
    assert code == 2
    assert "this run is interrupted, not done" in err


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["nothing", "--data", "random"], "names no model; allowed are torchvision:NAME"),
        (["torchvision:resnet5", "--data", "random"], "did you mean `resnet"),
        (["mine.py:nett", "--data", "random"], "did you mean `net`"),
        (["no.py:net", "--data", "random"], "there is no file no.py"),
        (["mine.py:not_a_model", "--data", "random"], "returned a int"),
        (["mine.py:raises", "--data", "random"], "raised ValueError: on purpose"),
        (["mine.py:net", "--data", "nowhere"], "is none of an image folder"),
        (["mine.py:net", "--data", "random", "--train-data", "no"], "--train-data: 'no' is none"),
        (["mine.py:net", "--data", "mine.py"], "--data: add the loader's name, mine.py:NAME"),
        (["mine.py", "--data", "random"], "add the factory's name, mine.py:NAME"),
        (["resnet18", "--data", "random"], "torchvision:resnet18?"),
        ([".", "--data", "test"], ". is no run; a run is a folder <runs-dir>/<name>/seed-<n>"),
        (["mine.py:nothing", "--data", "random"], "returned a NoneType, not a torch.nn.Module"),
        (["mine.py:net", "--data", "mine.py:double"], "one type of numbers: convert"),
        (["mine.py:net", "--data", "mine.py:mapped"], "a mapping gives its entries by name"),
        (["mine.py:net", "--data", "mine.py:not_a_model"], "gave a int, not a loader of batches"),
        (["exits.py:net", "--data", "random"], "ended itself with sys.exit(5)"),
        (["broken.py:net", "--data", "random"], "broken.py raised SyntaxError"),
        (["imports.py:net", "--data", "random"], "ModuleNotFoundError: No module named 'nowhere'"),
        (["mine.py:net", "--data", "random", "--batches", 1], "'--batches'"),
        (["mine.py:net", "--data", "torchvision:CIFAR11"], "did you mean `CIFAR10`"),
        (["mine.py:net", "--data", "torchvision:CIFAR10"], "name its folder after @"),
        (["mine.py:net", "--data", "mine.py:wide"], "does not run on mine.py:wide: RuntimeError"),
        (["mine.py:net", "--data", "mine.py:one"], "gave 1 batch; an audit"),
        (["mine.py:net", "--data", "random", "--weights", "no.pt"], "there is no file no.pt"),
        (["mine.py:net", "--data", "random", "--normalise", "l2"], "--normalise is one of"),
        (["mine.py:net", "--data", "random", "--classes", 3], "leave it out for mine.py:net"),
        (["mine.py:net", "--data", "mine.py:mapped"], "give `unpack=`"),
        (["no.pt2", "--data", "random"], "there is no file no.pt2"),
    ],
)
def test_what_cannot_be_audited_is_refused_in_a_sentence(vshift, tmp_path, words, says):
    (tmp_path / "exits.py").write_text("import sys\n\nsys.exit(5)\n")
    (tmp_path / "broken.py").write_text("def net(:\n")
    (tmp_path / "imports.py").write_text("import nowhere\n")
    code, out, err = vshift("audit", "--size", 8, "--batches", 2, "--device", "cpu", *words)
    assert code == 2
    assert out == ""
    assert says in err
    assert "Traceback" not in err
    assert "and more" not in err
