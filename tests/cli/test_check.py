"""`vshift check`."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cli.conftest import CONFIG, refused


@pytest.mark.parametrize("words", [["check"], ["train", "--dry-run"]])
def test_check_and_dry_run_import_no_torch(config, words):
    command = [
        sys.executable,
        "-X",
        "importtime",
        "-m",
        "vshift",
        words[0],
        str(config),
        *words[1:],
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert " torch\n" not in done.stderr


def test_a_folder_of_folders_names_those_with_configs(vshift, config, tmp_path):
    (tmp_path / "all" / "mine").mkdir(parents=True)
    (tmp_path / "all" / "mine" / "a.yaml").write_text(CONFIG)
    assert "there are some in mine" in refused(vshift, "check", tmp_path / "all")


def test_check_remarks_on_a_data_root_that_is_not_here(vshift, config, tmp_path):
    config.write_text(CONFIG.replace("{name: shapes, train: 200, test: 100, batch_size: 50}",
                                     "{name: imagefolder, root: elsewhere}"))  # fmt: skip
    code, out, err = vshift("check", config.name)
    assert (code, out) == (0, "small.yaml: ok, 1 run\n")
    missing = tmp_path / "elsewhere"
    warning = f"warning: data.root: there is no folder {missing} on this machine"
    assert err == f"{warning} (small.yaml)\n"
    Path("again.yaml").write_text(config.read_text())
    assert vshift("check", config.name, "again.yaml")[2] == f"{warning} (small.yaml, again.yaml)\n"
    (tmp_path / "elsewhere").mkdir()
    assert vshift("check", config.name) == (0, "small.yaml: ok, 1 run\n", "")


def test_check_shows_the_problems_of_every_file(vshift, config, tmp_path):
    (tmp_path / "bad.yaml").write_text(CONFIG.replace("epochs", "epoch"))
    (tmp_path / "worse.yaml").write_text(CONFIG.replace("rate: 0.5", "rate: 2"))
    code, out, err = vshift("check", tmp_path)
    assert code == 2
    assert "small.yaml: ok, 1 run" in out
    assert [line.split(":")[:2] for line in err.splitlines()] == [
        ["error", f" {tmp_path / name}.yaml"] for name in ("bad", "worse")
    ]
    err = vshift("check", "small.yaml", "small.yaml", "--set", "epoch=3")[2]
    assert err.count("--set epoch=3") == err.count("error: ") == 1


@pytest.mark.parametrize(
    ("sets", "message"),
    [
        (["norm.ghost=7"], "groups of 7 leave one of 200 training images alone"),
        (["data.batch_size=199"], "the last batch of 200 images would hold a single one"),
        (["data.test_limit=1", "measure.modes=true"], "there is one test image"),
        (["data.validation=1", "norm.eval_statistics=batch"], "there is one validation image"),
    ],
)
def test_images_alone_in_a_batch_are_refused_with_what_works(vshift, config, sets, message):
    """By `check`, by `sweep` and by `train`, before anything is written."""
    words = [w for text in ["network={name: mlp, widths: [8]}", *sets] for w in ("--set", text)]
    for command in ("check", "sweep", "train"):
        err = refused(vshift, command, config, *words)
        assert message in err
    offer = re.search(r"([a-z]+\.[a-z_]+): [^:]*try (?:[a-z_]+: )?(\d+)", err)
    changed = "{}={}".format(*offer.groups())
    assert vshift("check", config, *words, "--set", changed)[0] == 0
    assert vshift("train", config, *words, "--set", changed)[0] == 0


def test_a_network_that_ends_in_single_values_is_refused_by_train(vshift, config):
    """What torchvision's ResNet makes of 32×32 pixels is one value per channel at its end."""
    words = ["--set", "network={name: 'torchvision:resnet18'}", "--set", "data.batch_size=199"]
    assert "would hold a single one" in refused(vshift, "train", config, *words)
    assert vshift("train", config, "--set", "data.batch_size=199")[0] == 0  # ours does not


def test_of_ones_own_code_only_the_names_are_checked(config, vshift, tmp_path):
    (tmp_path / "my_model.py").write_text("print('it runs')\nclass MyNet: pass\n")
    name = f"{tmp_path}/my_model.py:MyNet"
    code, out, err = vshift("check", config.name, "--set", f"network={{name: {name}}}")
    assert (code, out) == (0, "small.yaml: ok, 1 run\n")
    assert err == (
        f"note: network.name {name} was not run, so only its name is checked (small.yaml)\n"
    )
    loss = f"loss={{name: {name}}}"
    err = vshift("check", config.name, "--set", f"network={{name: {name}}}", "--set", loss)[2]
    assert err == "".join(
        f"note: {key} {name} was not run, so only its name is checked (small.yaml)\n"
        for key in ("network.name", "loss.name")
    )


def test_check_says_that_it_asks_no_library(config, vshift):
    library = ["--set", "network={name: torchvision:resnt18}", "--set"]
    code, out, err = vshift("check", config.name, *library, "data={name: torchvision:MNIST}")
    assert (code, out) == (0, "small.yaml: ok, 1 run\n")
    assert err == (
        "note: network.name torchvision:resnt18: whether torchvision has it is not checked; "
        "`vshift inspect` builds it (small.yaml)\n"
    )


def test_check_says_that_it_does_not_look_for_modules(config, vshift):
    where = "network.noise={kind: dropout, rate: 0.5, before: layer9.*}"
    code, out, err = vshift("check", config.name, "--set", where)
    assert (code, out) == (0, "small.yaml: ok, 1 run\n")
    assert err == (
        "note: network.noise.before: whether the network has a module layer9.* is not checked; "
        "`vshift inspect` builds it (small.yaml)\n"
    )
