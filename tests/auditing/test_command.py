"""`vshift audit` as a person uses it: models, sources, formats, exit codes, bad input."""

import json

import pytest
import torch
from PIL import Image

FILE = """
import torch
from torch import nn

torch.manual_seed(0)


def net():
    return nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        nn.Dropout(0.5), nn.Linear(8, 2),
    )


def trained():
    model = net()
    with torch.no_grad():
        for _ in range(60):
            model(torch.randn(16, 3, 8, 8))
    return model


def chatty():
    print("building")
    return trained()


def nothing():
    print("no return")


def not_a_model():
    return 3


def raises():
    raise ValueError("on purpose\\nand more")


loader = [(torch.randn(16, 3, 8, 8), torch.randint(2, (16,))) for _ in range(4)]
wide = [torch.randn(16, 5, 8, 8) for _ in range(4)]
one = loader[:1]
images = [x for x, _ in loader]
double = [(x.double(), y) for x, y in loader]
mapped = [{"image": x, "mask": x, "label": y} for x, y in loader]
dataset = torch.utils.data.TensorDataset(*map(torch.cat, zip(*loader)))
"""


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

    from vshift.auditing.models import call_in_file

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
    assert err == "wrote fixed.safetensors: buffers of 1 layers changed (1)\n"
    assert vshift(*words, "--weights", "fixed.safetensors")[0] == 0
    healthy = ["audit", "mine.py:trained", "--data", "mine.py:images"]
    code, _, err = vshift(*healthy, "--fix", "healthy.safetensors")
    assert code == 0
    assert "was not written" in err
    assert not (tmp_path / "healthy.safetensors").exists()


def test_the_page_is_escaped_and_loads_nothing(vshift, tmp_path):
    from vshift.auditing.page import as_page
    from vshift.auditing.result import Audit, Noise

    vshift("audit", "mine.py:net", "--data", "mine.py:loader", "--report", "page.html")
    page = (tmp_path / "page.html").read_text()
    assert "never_updated" in page
    assert "http" not in page
    assert "<script" not in page
    empty = Audit([], [], Noise([], [], []), None, {}, ["<b>&"])
    assert "&lt;b&gt;&amp;" in as_page(empty, "<script>alert(1)</script>")
    assert "<script>" not in as_page(empty, "<script>alert(1)</script>")


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
    from vshift.auditing.models import call_in_file

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
    assert json.loads(vshift("audit", "program.pt2", *words)[1])["layers"][0]["role"] == "stale"


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


def test_a_folder_of_runs_names_a_run(vshift, tmp_path):
    (tmp_path / "runs/mine/seed-3").mkdir(parents=True)
    (tmp_path / "runs/mine/seed-3/run.json").write_text('{"status": "interrupted"}')
    code, _, err = vshift("audit", "runs", "--data", "test")
    assert code == 2
    assert "for instance runs/mine/seed-3" in err
    code, _, err = vshift("audit", "runs/mine/seed-3", "--data", "test")
    assert code == 2
    assert "this run is interrupted, not done" in err
