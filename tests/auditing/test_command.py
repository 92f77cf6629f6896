"""`vshift audit` as a person uses it: models, sources, formats, exit codes, bad input."""

import json
import os

import pytest
import torch
from PIL import Image

from tests.auditing.own_file import FILE


@pytest.fixture
def vshift(vshift, tmp_path):
    """The command line in a folder with a file of models and loaders."""
    (tmp_path / "mine.py").write_text(FILE)
    return vshift


def test_a_factory_and_a_loader_of_ones_own(vshift):
    code, out, err = vshift("audit", "mine.py:trained", "--data", "mine.py:loader")
    assert (code, err) == (0, "")
    assert out.startswith("No findings.")
    code, out, _ = vshift("audit", "mine.py:net", "--data", "mine.py:loader")
    assert code == 0
    assert "never_updated at 1" in out


def test_json_keeps_the_contract(vshift):
    _, out, _ = vshift("audit", "mine.py:net", "--data", "mine.py:loader", "--format", "json")
    found = json.loads(out)
    assert set(found["findings"][0]) == {"code", "layer", "severity", "message", "evidence"}
    assert found["layers"][0]["layer"] == "1"
    assert found["noise"]["training"] == [{"layer": "5", "function": "dropout"}]


def test_markdown(vshift):
    _, out, _ = vshift("audit", "mine.py:net", "--data", "mine.py:loader", "--format", "md")
    assert "### Running statistics were never updated at `1`" in out
    assert "| mode | loss | accuracy % |" in out


def test_exit_code_3_guards(vshift):
    words = ["audit", "mine.py:net", "--data", "mine.py:loader"]
    assert vshift(*words)[0] == 0
    assert vshift(*words, "--fail-on", "info")[0] == 3
    healthy = ["audit", "mine.py:trained", "--data", "mine.py:loader", "--fail-on", "info"]
    assert vshift(*healthy)[0] == 0
    code, _, err = vshift(*words, "--fail-on", "often")
    assert code == 2
    assert "--fail-on is one of info, low, medium, high" in err


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


def test_fix_writes_weights_that_are_better(vshift, tmp_path):
    words = ["audit", "mine.py:net", "--data", "mine.py:images", "--fail-on", "info"]
    code, _, err = vshift(*words, "--fix", "fixed.safetensors")
    assert code == 3
    assert err == "wrote fixed.safetensors: buffers of 1 layer changed (1)\n"
    assert vshift(*words, "--weights", "fixed.safetensors")[0] == 0
    healthy = ["audit", "mine.py:trained", "--data", "mine.py:images"]
    code, _, err = vshift(*healthy, "--fix", "healthy.safetensors")
    assert code == 0
    assert "was not written" in err
    assert not (tmp_path / "healthy.safetensors").exists()


def test_fix_keeps_the_names_of_the_weights_and_the_umask(vshift, tmp_path):
    """DDP's prefix stays, so that what loaded the weights before loads the repaired ones."""
    from safetensors.torch import load_file

    from vshift.auditing.inputs import call_in_file

    model = call_in_file("mine.py:trained")
    torch.save({f"module.{n}": p for n, p in model.named_parameters()}, "ddp.pt")
    words = ["audit", "mine.py:net", "--weights", "ddp.pt", "--data", "mine.py:images"]
    before = os.umask(0o022)
    try:
        assert vshift(*words, "--fix", "fixed.safetensors")[0] == 0
    finally:
        os.umask(before)
    fixed = load_file("fixed.safetensors")
    assert set(fixed) == {f"module.{name}" for name in model.state_dict()}
    assert (fixed["module.1.running_var"] != 1).all()
    assert (tmp_path / "fixed.safetensors").stat().st_mode & 0o777 == 0o644


def test_the_page_is_escaped_and_loads_nothing(vshift, tmp_path):
    from vshift.auditing.report import Audit, NoiseReport

    vshift("audit", "mine.py:net", "--data", "mine.py:loader", "--report", "page.html")
    page = (tmp_path / "page.html").read_text()
    assert "never_updated" in page
    assert "http" not in page
    assert "<script" not in page
    empty = Audit([], [], NoiseReport([], [], []), None, {}, ["<b>&"])
    assert "&lt;b&gt;&amp;" in empty.to_html("<script>alert(1)</script>")
    assert "<script>" not in empty.to_html("<script>alert(1)</script>")


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
    found = {f["code"]: f for f in json.loads(out)["findings"]}
    assert found["variance_shift"]["layer"].endswith("bn2")  # bn relu conv noise BN relu conv
    assert "noise" in found["variance_shift"]["evidence"]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there(vshift):
    code, _, err = vshift("audit", "mine.py:net", "--data", "random", "--device", "cuda")
    assert code == 2
    assert "cuda is not available" in err


def test_what_the_users_code_prints_does_not_mix_with_the_data(vshift):
    words = ["audit", "mine.py:chatty", "--data", "mine.py:loader", "--format", "json"]
    code, out, err = vshift(*words)
    assert code == 0
    assert json.loads(out)["findings"] == []
    assert err == "building\n"


def test_a_data_set_is_put_into_batches(vshift):
    words = ["audit", "mine.py:trained", "--data", "mine.py:dataset", "--batch-size", 16]
    code, out, _ = vshift(*words, "--format", "json")
    assert code == 0
    found = json.loads(out)
    assert found["scores"]["eval mode"]["accuracy"] is not None
    assert found["layers"][0]["values"] == 16 * 6 * 6


def test_folders_of_the_outputs_are_made(vshift, tmp_path):
    words = ["audit", "mine.py:net", "--data", "mine.py:images"]
    code, _, _ = vshift(*words, "--report", "a/b/page.html", "--fix", "c/d.safetensors")
    assert code == 0
    assert (tmp_path / "a/b/page.html").stat().st_size > 1000
    assert (tmp_path / "c/d.safetensors").is_file()
    (tmp_path / "file").touch()
    code, _, err = vshift(*words, "--report", "file/page.html")
    assert code == 2
    assert "--report: file/page.html cannot be written" in err
