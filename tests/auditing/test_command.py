"""`vshift audit` as a person uses it: output, exit codes, files."""

import itertools
import json
import os
import re
from pathlib import Path

import pytest
import torch


def test_a_factory_and_a_loader_of_ones_own(vshift):
    code, out, err = vshift("audit", "mine.py:trained", "--data", "mine.py:loader")
    assert (code, err) == (0, "")
    assert out.startswith("Eval mode is not measurably worse than")
    assert "\nNo findings.\n" in out
    code, out, _ = vshift("audit", "mine.py:net", "--data", "mine.py:loader")
    assert code == 0
    assert '] never_updated: "1" still holds the initial values' in out


def test_json_keeps_the_contract(vshift):
    _, out, _ = vshift("audit", "mine.py:net", "--data", "mine.py:loader", "--format", "json")
    found = json.loads(out)
    assert set(found["findings"][0]) == {"code", "layer", "severity", "message", "evidence"}
    assert found["layers"][0]["layer"] == "1"
    assert found["noise"]["training"] == [{"layer": "5", "function": "dropout"}]


def test_markdown(vshift):
    _, out, _ = vshift("audit", "mine.py:net", "--data", "mine.py:loader", "--format", "md")
    assert '### "1" still holds the initial values, mean 0 and variance 1; no update was' in out
    assert "`never_updated`, severity **" in out
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


def test_fix_writes_weights_that_are_better(vshift, tmp_path):
    words = ["audit", "mine.py:net", "--data", "mine.py:images", "--fail-on", "info"]
    code, _, err = vshift(*words, "--fix", "fixed.safetensors")
    assert code == 3
    assert err == 'wrote fixed.safetensors: buffers of 1 layer changed ("1")\n'
    assert vshift(*words, "--weights", "fixed.safetensors")[0] == 0
    code, _, err = vshift(*words, "--fix", "fixed.pt")
    assert code == 2
    assert "--fix: fixed.pt: the file's name must end in .safetensors" in err
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


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there(vshift):
    code, _, err = vshift("audit", "mine.py:net", "--data", "random", "--device", "cuda")
    assert code == 2
    assert "cuda is not available" in err


@pytest.mark.parametrize("page", ["README.md", "docs/audit.md"])
def test_the_documents_file_runs_as_it_stands_and_gives_a_report(vshift, tmp_path, page):
    text = (Path(__file__).parents[2] / page).read_text("utf-8")
    block = text.split("    # mine.py\n", 1)[1]
    lines = itertools.takewhile(lambda line: line[:4] in ("", "    "), block.splitlines())
    code = "\n".join(line[4:] for line in lines)
    (tmp_path / "mine.py").write_text(code.replace("(256, (3, 64, 64)", "(64, (3, 32, 32)"))
    (line,) = re.findall(
        r"^    (vshift audit mine\.py:make_model .*--report audit\.html)", text, re.M
    )[:1]
    words = [word for word in line.split()[1:] if word not in ("--weights", "mine.pth")]
    code, out, err = vshift(*words)
    assert (code, err) == (0, "next: open audit.html in a browser\n")
    assert out.startswith("Eval mode is ")
    assert "layer4.1.bn2" in out
    assert "layer4.1.bn2" in (tmp_path / "audit.html").read_text("utf-8")


def test_what_the_users_code_prints_does_not_mix_with_the_data(vshift):
    words = ["audit", "mine.py:chatty", "--data", "mine.py:loader", "--format", "json"]
    code, out, err = vshift(*words)
    assert code == 0
    assert json.loads(out)["findings"] == []
    assert err == "building\n"


def test_folders_of_the_outputs_are_made(vshift, tmp_path):
    words = ["audit", "mine.py:net", "--data", "mine.py:images"]
    code, _, err = vshift(*words, "--report", "a/b/page.html", "--fix", "c/d.safetensors")
    assert code == 0
    assert err.endswith("\nnext: open a/b/page.html in a browser\n")
    assert "next:" not in vshift(*words, "--report", "page.html", "--format", "json")[2]
    assert (tmp_path / "a/b/page.html").stat().st_size > 1000
    assert (tmp_path / "c/d.safetensors").is_file()
    (tmp_path / "file").touch()
    code, out, err = vshift(*words, "--report", "file/page.html")
    assert (code, out) == (2, "")  # files come first: a reader of stdout may stop reading
    assert "cannot write --report file/page.html: File exists; " in err


def test_a_library_model_without_weights_is_told_so(vshift):
    words = ["--size", 32, "--batches", 2, "--batch-size", 8, "--data", "random", "--classes", 3]
    _, out, _ = vshift("audit", "torchvision:resnet18", *words, "--format", "json")
    (finding,) = [f for f in json.loads(out)["findings"] if f["code"] == "never_updated"]
    assert " No --weights were given: " in finding["message"]
    _, out, _ = vshift("audit", "mine.py:net", "--data", "mine.py:images")
    assert "No --weights were given" not in out


def test_a_model_that_does_not_run_is_told_with_its_line(vshift, tmp_path):
    (tmp_path / "fails.py").write_text(
        "from torch import nn\n\n\nclass Net(nn.Module):\n    def forward(self, x):\n"
        "        return x.mean(9)\n"
    )
    code, out, err = vshift("audit", "fails.py:Net", "--data", "mine.py:loader")
    assert (code, out) == (2, "")
    first, second = err.splitlines()
    assert first.startswith("error: fails.py:Net does not run on mine.py:loader: IndexError: ")
    assert second.endswith("fails.py:6, in forward: return x.mean(9)")
