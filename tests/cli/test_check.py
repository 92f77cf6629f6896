"""`vshift check`."""

import subprocess
import sys

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
    assert err == f"warning: small.yaml: data.root: there is no folder {missing} on this machine\n"
    (tmp_path / "elsewhere").mkdir()
    assert vshift("check", config.name) == (0, "small.yaml: ok, 1 run\n", "")


def test_check_shows_the_problems_of_every_file(vshift, config, tmp_path):
    (tmp_path / "bad.yaml").write_text(CONFIG.replace("epochs", "epoch"))
    (tmp_path / "worse.yaml").write_text(CONFIG.replace("rate: 0.5", "rate: 2"))
    code, out, err = vshift("check", tmp_path)
    assert code == 2
    assert "small.yaml: ok, 1 run" in out
    assert "bad.yaml:" in err
    assert "worse.yaml:" in err
