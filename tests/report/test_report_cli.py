"""`vshift report` and `vshift watch` as a person calls them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from tests.factory import make_run


def vshift(*words: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-X", "importtime", "-m", "vshift", *map(str, words)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    said = [line for line in done.stderr.splitlines() if not line.startswith("import time:")]
    assert "Traceback" not in done.stderr
    assert " torch\n" not in done.stderr
    return subprocess.CompletedProcess(command, done.returncode, done.stdout, "\n".join(said))


def test_report_prints_what_it_wrote(tmp_path: Path) -> None:
    make_run(tmp_path / "runs", metrics=[{"epoch": 1, "test_accuracy": 3.0}])
    out, figures = tmp_path / "r.html", tmp_path / "figures"
    done = vshift("report", tmp_path / "runs", "--out", out, "--figures", figures)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[0] == str(out)
    assert str(figures / "curves.pdf") in done.stdout.splitlines()
    assert done.stderr == f"next: open {out} in a browser"
    assert all(Path(line).is_file() for line in done.stdout.splitlines())


def test_a_missing_folder_is_one_sentence_and_exit_code_2(tmp_path: Path) -> None:
    for command in ("report", "watch"):
        done = vshift(command, tmp_path / "rums")
        assert done.returncode == 2
        assert done.stderr.startswith("error: there is no folder")
    assert not list(tmp_path.iterdir())


def test_a_name_that_is_too_long_is_one_sentence_and_exit_code_2(tmp_path: Path) -> None:
    for command in ("report", "watch", "compare", "recalibrate"):
        done = vshift(command, tmp_path / ("x" * 300))
        assert done.returncode == 2
        assert done.stderr.endswith("File name too long; choose a shorter name")


def test_watch_once(tmp_path: Path) -> None:
    make_run(tmp_path, "a", status="interrupted")
    done = vshift("watch", tmp_path, "--once")
    assert done.returncode == 0
    assert "1 interrupted" in done.stdout


def test_a_report_into_stdout_is_the_page_and_nothing_else(tmp_path: Path) -> None:
    """Through a pipe, and after what a file already holds."""
    make_run(tmp_path / "runs")
    done = vshift("report", tmp_path / "runs", "--out", "/dev/stdout")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("<!DOCTYPE html>")
    assert done.stdout.rstrip().endswith("</html>")
    assert done.stderr == ""
    page = tmp_path / "pages.html"
    page.write_text("mine\n")
    words = f"{sys.executable} -m vshift report {tmp_path / 'runs'} --out /dev/stdout >> {page}"
    subprocess.run(words, shell=True, check=True)
    assert page.read_text().startswith("mine\n<!DOCTYPE html>")
    assert page.read_text().rstrip().endswith("</html>")
