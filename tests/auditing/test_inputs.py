"""Models, data and weights as named on the command line, and what is refused of them."""

import argparse
import json
import os
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import nn

from tests.conftest import EPS
from vshift import audit
from vshift.auditing import AuditError
from vshift.auditing.inputs import load_model, load_weights, read_state


def test_weights_load_without_executing_code(vshift, tmp_path):
    class Trap:
        def __reduce__(self):
            return (open, (str(tmp_path / "executed"), "w"))

    torch.save({"weight": Trap()}, "trap.pt")
    words = ["audit", "mine.py:net", "--data", "mine.py:loader", "--weights"]
    code, _, err = vshift(*words, "trap.pt")
    assert code == 2
    assert "cannot be read without executing code" in err
    assert not (tmp_path / "executed").exists()


def test_weights_without_buffers_are_what_is_found(vshift):
    from safetensors.torch import save_file

    from vshift.auditing.inputs import call_in_file

    model = call_in_file("mine.py:trained")
    torch.save({"state_dict": model.state_dict()}, "whole.pt")
    save_file({n: p.detach() for n, p in model.named_parameters()}, "parameters.safetensors")
    words = ["audit", "mine.py:net", "--data", "mine.py:loader", "--fail-on", "info", "--weights"]
    assert vshift(*words, "whole.pt")[0] == 0
    code, out, _ = vshift(*words, "parameters.safetensors")
    assert code == 3
    assert "never_updated" in out
    save_file({"0.weight": model[0].weight.detach()}, "part.safetensors")
    code, _, err = vshift(*words, "part.safetensors")
    assert code == 2
    assert "lacks 0.bias" in err


def test_torchvision_and_random_data(vshift):
    code, out, err = vshift(
        "audit", "torchvision:squeezenet1_1", "--data", "random", "--size", 32, "--batches", 2,
        "--batch-size", 4, "--format", "json",
    )  # fmt: skip
    assert (code, err) == (0, "")
    found = json.loads(out)
    assert found["layers"] == []
    assert found["noise"]["training"][0]["layer"] == "classifier.0"


def test_timm(vshift):
    pytest.importorskip("timm", reason="the extra timm is not installed")
    code, out, _ = vshift(
        "audit", "timm:test_efficientnet", "--data", "random", "--size", 32, "--batches", 2,
        "--batch-size", 4, "--format", "json",
    )  # fmt: skip
    assert code == 0
    assert "never_updated" in {finding["code"] for finding in json.loads(out)["findings"]}


def test_an_image_folder(vshift, tmp_path):
    for name, colour in (("dark", 40), ("light", 200)):
        (tmp_path / "images" / name).mkdir(parents=True)
        for i in range(8):
            Image.new("RGB", (12, 10), (colour + i, colour, colour)).save(
                tmp_path / "images" / name / f"{i}.png"
            )
    code, out, err = vshift(
        "audit", "mine.py:net", "--data", "images", "--size", 8, "--batch-size", 4,
        "--format", "json",
    )  # fmt: skip
    assert (code, err) == (0, "")
    assert json.loads(out)["scores"]["eval mode"]["accuracy"] is not None


def paint(folder, names):
    """An image folder: the n-th name's images are of the n-th grey."""
    for name in names:
        (folder / name).mkdir(parents=True)
        for i in range(8):
            grey = 20 + 60 * "abcd".index(name) + i
            Image.new("RGB", (8, 8), (grey,) * 3).save(folder / name / f"{i}.png")


KNOWS = """
import torch

class Knows(torch.nn.Module):
    def forward(self, x):
        grey = (255 * x.mean((1, 2, 3)) - 20) / 60
        return -(grey[:, None] - torch.arange(4)).square()
"""


def test_classes_are_numbered_as_in_the_training_folder(vshift, tmp_path):
    """A perfect model is perfect also where the test folder lacks a class."""
    (tmp_path / "knows.py").write_text(KNOWS)
    paint(tmp_path / "train", "abcd")
    paint(tmp_path / "test", "acd")
    (tmp_path / "test" / ".ipynb_checkpoints").mkdir()
    words = ["audit", "knows.py:Knows", "--data", "test", "--size", 8, "--normalise", "none"]
    words += ["--batch-size", 8, "--format", "json"]
    code, out, err = vshift(*words, "--train-data", "train")
    assert (code, err) == (0, "")
    assert json.loads(out)["scores"]["eval mode"]["accuracy"] == 100
    paint(tmp_path / "other", "ab")
    code, _, err = vshift(*words, "--train-data", "other")
    assert code == 2
    assert "test has the class folders c, d, which --train-data does not have (a, b)" in err


def test_fewer_classes_than_outputs_are_remarked(vshift, tmp_path):
    (tmp_path / "knows.py").write_text(KNOWS)
    paint(tmp_path / "train", "ab")
    words = ["audit", "knows.py:Knows", "--data", "train", "--size", 8, "--normalise", "none"]
    out = vshift(*words, "--batch-size", 4)[1]
    assert "the labels name classes 0 to 1 of the model's 4 outputs" in " ".join(out.split())


def test_published_weights_by_name(monkeypatch):
    from torchvision.models import ResNet18_Weights, resnet18

    torch.manual_seed(3)
    published = resnet18().state_dict()
    monkeypatch.setattr(ResNet18_Weights, "get_state_dict", lambda self, **_: published)
    model = load_model("torchvision:resnet18", Path("DEFAULT"))
    assert torch.equal(model.fc.weight, published["fc.weight"])

    def offline(self, **_):
        raise OSError("no network")

    monkeypatch.setattr(ResNet18_Weights, "get_state_dict", offline)
    with pytest.raises(AuditError, match="cannot be downloaded: no network"):
        load_model("torchvision:resnet18", Path("DEFAULT"))


def test_a_torchvision_set(vshift):
    code, out, _ = vshift(
        "audit", "mine.py:net", "--data", "torchvision:FakeData", "--size", 8, "--batches", 2,
        "--batch-size", 8, "--format", "json",
    )  # fmt: skip
    assert code == 0
    assert json.loads(out)["layers"][0]["values"] == 8 * 6 * 6


def test_an_exported_program(vshift):
    from vshift.auditing.inputs import call_in_file

    model = call_in_file("mine.py:trained").train()
    batch = torch.export.Dim("batch", min=2)
    program = torch.export.export(
        model, (torch.randn(4, 3, 8, 8),), dynamic_shapes=({0: batch},), strict=False
    )
    torch.export.save(program, "program.pt2")
    words = ["--data", "mine.py:loader", "--format", "json"]
    _, out, err = vshift("audit", "program.pt2", *words)
    assert err == ""
    found = json.loads(out)
    assert found["findings"] == []
    assert found["layers"][0]["type"] == "BatchNorm2d"
    assert found["noise"]["training"][0]["function"] == "dropout"
    model[1].running_var.mul_(9)
    torch.export.save(
        torch.export.export(model, (torch.randn(4, 3, 8, 8),), dynamic_shapes=({0: batch},)),
        "program.pt2",
    )
    assert json.loads(vshift("audit", "program.pt2", *words)[1])["layers"][0]["role"] == "off"


def test_a_run(vshift, tmp_path):
    (tmp_path / "small.yaml").write_text("""
data: {name: shapes, train: 300, test: 100, batch_size: 50}
network: {name: preresnet, depth: 8, noise: {kind: dropout, rate: 0.5, position: before_last_bn}}
epochs: 3
schedule: {name: onecycle, peak: 0.1}
measure: {every: 0, eval_batches: 1}
hardware: {device: cpu, precision: float32, threads: 1}
""")
    assert vshift("train", "small.yaml", "--quiet")[0] == 0
    code, out, err = vshift(
        "audit", "runs/small/seed-0", "--data", "test", "--train-data", "train", "--format", "json"
    )
    assert (code, err) == (0, "")
    refused = vshift("audit", "runs/small/seed-0", "--data", "test", "--batch-size", 8)
    assert refused[0] == 2
    assert "--batch-size: a run's own images come in the batch size" in refused[2]
    found = {f["code"]: f for f in json.loads(out)["findings"]}
    assert found["variance_shift"]["layer"].endswith("bn2")  # bn relu conv noise BN relu conv
    assert "noise" in found["variance_shift"]["evidence"]


def test_a_data_set_is_put_into_batches(vshift):
    words = ["audit", "mine.py:trained", "--data", "mine.py:dataset", "--batch-size", 16]
    code, out, _ = vshift(*words, "--format", "json")
    assert code == 0
    found = json.loads(out)
    assert found["scores"]["eval mode"]["accuracy"] is not None
    assert found["layers"][0]["values"] == 16 * 6 * 6


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


SCRIPT = 'SystemExit: 1; put what a file does as a script under `if __name__ == "__main__":`'


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["nothing", "--data", "random"], "names no model; allowed are torchvision:NAME"),
        (["torchvision:resnet5", "--data", "random"], "did you mean `resnet"),
        (["mine.py:nett", "--data", "random"], "did you mean `net`"),
        (["mina.py:net", "--data", "random"], "/mina.py; did you mean `mine.py`?"),
        (["mine.py:not_a_model", "--data", "random"], "returned a int"),
        (["mine.py:raises", "--data", "random"], "mine.py:raises: ValueError: on purpose and more"),
        (["mine.py:net", "--data", "nowhere"], "is none of an image folder"),
        (["mine.py:net", "--data", "random", "--train-data", "no"], "--train-data: 'no' is none"),
        (["mine.py:net", "--data", "mine.py"], "--data: add the name of the loader, or of a"),
        (["mine.py", "--data", "random"], "of the function that makes it, mine.py:NAME"),
        (["mine.py:wider", "--data", "random"], "`def make(): return wider(width=…)`, and name"),
        (["resnet18", "--data", "random"], "torchvision:resnet18?"),
        ([".", "--data", "test"], ". is no run; a run is a folder <runs-dir>/<name>/seed-<n>"),
        (["mine.py:nothing", "--data", "random"], "returned a NoneType, not a torch.nn.Module"),
        (["mine.py:net", "--data", "mine.py:double"], "convert the one or the other"),
        (["mine.py:net", "--data", "mine.py:mapped"], "a mapping gives its entries by name"),
        (["mine.py:net", "--data", "mine.py:not_a_model"], "gave a int, not a loader of batches"),
        (["exits.py:net", "--data", "random"], SCRIPT),
        (["broken.py:net", "--data", "random"], "broken.py:1: not valid Python"),
        (["imports.py:net", "--data", "random"], "ModuleNotFoundError: No module named 'nowhere'"),
        (["mine.py:net", "--data", "random", "--batches", 1], "batches is 1; an audit compares"),
        (["mine.py:net", "--data", "torchvision:CIFAR11"], "did you mean `CIFAR10`"),
        (["mine.py:net", "--data", "torchvision:CIFAR10"], "name its folder after @"),
        (["mine.py:net", "--data", "mine.py:wide"], "does not run on mine.py:wide: RuntimeError"),
        (["mine.py:net", "--data", "mine.py:one"], "gave 1 batch; an audit"),
        (["mine.py:net", "--data", "random", "--weights", "no.pt"], "there is no file no.pt"),
        (["mine.py:net", "--data", "random", "--normalise", "l2"], "--normalise is one of"),
        (["mine.py:net", "--data", "random", "--classes", 3], "leave it out for mine.py:net"),
        (["mine.py:net", "--data", "mine.py:mapped"], "--data FILE.py:FUNCTION can yield (inputs"),
        (["no.pt2", "--data", "random"], "there is no file no.pt2"),
        (
            ["torchvision:resnet18", "--data", "random", "--weights", "DEFAULTS"],
            "torchvision's weights of resnet18 are IMAGENET1K_V1, DEFAULT",
        ),
    ],
)
def test_what_cannot_be_audited_is_refused_in_a_sentence(vshift, tmp_path, words, says):
    (tmp_path / "exits.py").write_text("import sys\n\nnet = sys.exit(len(sys.argv))\n")
    (tmp_path / "broken.py").write_text("def net(:\n")
    (tmp_path / "imports.py").write_text("import nowhere\n\nnet = 3\n")
    code, out, err = vshift("audit", "--size", 8, "--batches", 2, "--device", "cpu", *words)
    assert code == 2
    assert out == ""
    assert says in err
    assert "Traceback" not in err


def net(classes=3):
    return nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.Linear(5, classes))


def prefixed(state, prefix):
    return {prefix + name: tensor for name, tensor in state.items()}


WRAPPINGS = {
    "plain": lambda s: s,
    "state_dict": lambda s: {"state_dict": s, "epoch": 3},
    "model": lambda s: {"model": s, "optimizer": {"state": {}}},
    "the only tensors": lambda s: {"state_dict_ema": s, "epoch": 3},
    "DDP": lambda s: prefixed(s, "module."),
    "compiled DDP": lambda s: {"model": prefixed(s, "module._orig_mod.")},
    "Lightning": lambda s: {
        "state_dict": prefixed(s, "net.") | {"criterion.weight": torch.ones(3)},
        "hyper_parameters": {"lr": 0.1},
    },
}


@pytest.mark.parametrize("kind", WRAPPINGS)
def test_what_is_wrapped_around_a_state_dict_is_taken_off(kind, tmp_path):
    torch.manual_seed(0)
    saved, model = net(), net()
    torch.save(WRAPPINGS[kind](saved.state_dict()), tmp_path / "w.pth")
    load_weights(model, read_state(tmp_path / "w.pth"), tmp_path / "w.pth")
    for name, tensor in saved.state_dict().items():
        assert torch.equal(model.state_dict()[name], tensor), name


@pytest.mark.parametrize(
    ("saved", "says"),
    [
        (lambda: net(7).state_dict(), r"2.weight is \[7, 5\] in the file and \[3, 5\]"),
        (lambda: {"0.weight": torch.zeros(5, 4)}, "it lacks 0.bias and 4 more"),
        (lambda: net().state_dict() | {"extra": torch.ones(1)}, "it has an unknown extra"),
        (lambda: {"epoch": 3, "lr": 0.1}, "holds no state dict, but `epoch`, `lr`"),
        (lambda: [torch.ones(1)], "holds no state dict, but a list"),
        (lambda: {"state_dict": {}, "args": argparse.Namespace(a=1)}, "argparse.Namespace"),
        (net, "without executing code: it holds more than tensors"),
    ],
)
def test_what_does_not_fit_is_told(saved, says, tmp_path):
    path = tmp_path / "w.pth"
    torch.save(saved(), path)
    with pytest.raises(AuditError, match=says):
        load_weights(net(), read_state(path), path)


@pytest.mark.parametrize("name", ["w.pth", "w.safetensors"])
def test_damaged_files_are_refused_without_advice_to_load_them_unsafely(name, tmp_path):
    for content in (b"", b"hello", b"\x80\x02junk"):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(AuditError, match="cannot be read without executing code") as error:
            read_state(tmp_path / name)
        assert "weights_only" not in str(error.value)


def test_a_reference_with_a_prefix_is_compared_and_a_foreign_one_is_told():
    torch.manual_seed(0)
    model, batches = net(), [torch.randn(16, 4) for _ in range(6)]
    model[1].running_mean += 3
    old = {n: t.clone() for n, t in model.state_dict().items()}
    model[1].running_mean -= 3
    for state in (old, prefixed(old, "module.")):
        assert "drift" in {f.code for f in audit(model, batches, reference=state).findings}
    notes = audit(model, batches, reference={"conv.weight": torch.ones(1)}).notes
    assert any("none of this model's batch norms" in note for note in notes)


def image_tree(root):
    """Eight images in two classes, and the options that fit them."""
    for name in ("dark", "light"):
        (root / name).mkdir(parents=True)
        for i in range(4):
            Image.new("RGB", (8, 8), (i, i, i)).save(root / name / f"{i}.png")
    return ["--size", 8, "--batch-size", 4]


@pytest.mark.parametrize("source", ["images", "torchvision:ImageFolder@images"])
def test_an_image_starts_no_program(vshift, tmp_path, ghostscript, source):
    words = image_tree(tmp_path / "images")
    (tmp_path / "images" / "dark" / "z.png").write_bytes(EPS)
    code, out, err = vshift("audit", "mine.py:net", "--data", source, *words)
    assert (code, out) == (2, "")
    assert "z.png" in err or "Ghostscript" in err
    assert not ghostscript.exists()


@pytest.mark.timeout(60)
def test_a_pipe_and_links_in_circles_do_not_hang_the_audit(vshift, tmp_path):
    words = image_tree(tmp_path / "images")
    for i in range(12):
        (tmp_path / "images" / "dark" / f"l{i}").symlink_to(".")
    assert vshift("audit", "mine.py:net", "--data", "images", *words)[0] == 0
    os.mkfifo(tmp_path / "images" / "light" / "0000.png")
    code, _, err = vshift("audit", "mine.py:net", "--data", "images", *words)
    assert code == 2
    assert "--data: cannot read images/light/0000.png: not a regular file" in err


def test_a_truncated_image_is_named(vshift, tmp_path):
    words = image_tree(tmp_path / "images")
    image = tmp_path / "images" / "light" / "2.png"
    image.write_bytes(image.read_bytes()[:-30])
    code, _, err = vshift("audit", "mine.py:net", "--data", "images", *words)
    assert code == 2
    assert "--data: cannot read images/light/2.png: " in err
    assert "replace or delete it" in err


def test_an_image_folder_without_images_is_refused(vshift, tmp_path):
    (tmp_path / "images" / "dark").mkdir(parents=True)
    _, _, err = vshift("audit", "mine.py:net", "--data", "images")
    assert "--data: the class folders dark in images have no images (bmp, gif," in err
    (tmp_path / "images" / "dark").rmdir()
    assert "images has no class folders" in vshift("audit", "mine.py:net", "--data", "images")[2]
