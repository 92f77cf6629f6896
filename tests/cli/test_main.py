"""The command line itself: its start, its version, its output."""

import resource
import subprocess
import sys


def test_help_is_quick_and_imports_no_torch():
    command = [sys.executable, "-X", "importtime", "-m", "vshift", "--help"]

    def cpu_seconds():
        used = resource.getrusage(resource.RUSAGE_CHILDREN)
        return used.ru_utime + used.ru_stime

    before = cpu_seconds()
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert cpu_seconds() - before < 0.5  # whatever else runs on the machine
    assert "train" in done.stdout
    for package in ("torch", "pydantic", "rich", "pandas", "vshift.config"):
        assert f" {package}\n" not in done.stderr


def test_version(vshift):
    from vshift import __version__

    assert vshift("--version") == (0, f"{__version__}\n", "")


def test_output_into_a_closed_pipe_is_quiet(config):
    done = subprocess.run(
        f"{sys.executable} -m vshift inspect {config} | head -1",
        shell=True, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.stderr == ""
    assert "preresnet" in done.stdout
