"""What several test modules need, and the one place that decides about tests of the GPU."""

import os
import sys

# Before anything trains, also in processes of their own: a trial would take seconds for each
# network, and choose by how busy the machine is.
os.environ["VSHIFT_PRECISION"] = "bf16"
# Tests run side by side: threads of PyTorch that spin against each other are slow.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
import torch

from tests.recorded import RecordedGraph, record
from tests.soak.harness import Trainer, fork_server
from vshift import cli
from vshift.train import optimizer
from vshift.train.captured_step import CapturedStep

FUSED = {"foreach": False, "fused": True}
# PostScript, which Pillow hands to a program.
EPS = b"""%!PS-Adobe-3.0 EPSF-3.0
%%BoundingBox: 0 0 8 8
%%EndComments
0 0 8 8 rectfill
"""


@pytest.fixture(scope="session")
def server():
    """Forks training processes; see tests/soak/server.py."""
    with fork_server() as process:
        yield process


@pytest.fixture
def trainer(server):
    """Starts `vshift` in processes of its own, which can be killed."""
    started = Trainer(server)
    yield started
    started.end()


@pytest.fixture
def vshift(capfd, monkeypatch, tmp_path):
    """Runs the command line in an empty folder; returns exit code, stdout and stderr."""
    monkeypatch.chdir(tmp_path)

    def run(*words):
        monkeypatch.setattr(sys, "argv", ["vshift", *map(str, words)])
        capfd.readouterr()
        try:
            cli.main()
            code = 0
        except SystemExit as stop:
            code = stop.code or 0
        out, err = capfd.readouterr()
        return code, out, err

    threads = torch.get_num_threads()
    yield run
    torch.set_num_threads(threads)


@pytest.fixture(autouse=True)
def device_settings(request):
    """Leaves PyTorch's settings of the device as they were before a test marked `gpu`."""
    if request.node.get_closest_marker("gpu") is None:
        yield
        return
    cudnn = torch.backends.cudnn
    before = cudnn.benchmark, cudnn.allow_tf32
    yield
    cudnn.benchmark, cudnn.allow_tf32 = before
    torch.use_deterministic_algorithms(False)
    torch.cuda.set_stream(torch.cuda.default_stream())


@pytest.fixture
def recorded_graphs(monkeypatch):
    """Lets a captured step capture and replay on the CPU."""
    monkeypatch.setattr(torch.cuda, "CUDAGraph", RecordedGraph)
    monkeypatch.setattr(torch.cuda, "graph", record)
    # A capture that fails is no reason to run without.
    monkeypatch.setattr(CapturedStep, "_captured_anew", lambda step, *key: step._capture(*key))
    # As on a GPU: its kernel reads the learning rate, and Python does not.
    sgd = optimizer.sgd
    monkeypatch.setattr(
        optimizer, "sgd", lambda *words, **options: sgd(*words, **{**options, **FUSED})
    )


@pytest.fixture
def ghostscript(tmp_path, monkeypatch):
    """A file that exists once Pillow has started the program `gs`, which it does for EPS."""
    started, program = tmp_path / "started", tmp_path / "bin" / "gs"
    program.parent.mkdir()
    program.write_text(f"#!/bin/sh\necho 10\ntouch {started}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(program.parent), prepend=os.pathsep)
    monkeypatch.setattr("PIL.EpsImagePlugin.gs_binary", None)
    return started


def pytest_collection_modifyitems(items):
    """In GPU tests warnings are no errors: Inductor and CUDA warn of what is intended here."""
    for item in items:
        if item.get_closest_marker("gpu") is not None:
            item.add_marker(pytest.mark.filterwarnings("default"))


def pytest_runtest_setup(item):
    """Tests marked `gpu` are skipped without a CUDA device, and with VSHIFT_REQUIRE_GPU=1 fail."""
    if item.get_closest_marker("gpu") is None or torch.cuda.is_available():
        return
    if os.environ.get("VSHIFT_REQUIRE_GPU") == "1":
        pytest.fail("VSHIFT_REQUIRE_GPU=1, and there is no CUDA device", pytrace=False)
    pytest.skip("no CUDA device: run `make gpu` on a machine with one")


def pytest_runtest_logreport(report):
    """Each test as it ends, in the file that VSHIFT_TEST_LOG names: `make gpu` may be killed."""
    path = os.environ.get("VSHIFT_TEST_LOG")
    if path and (report.when == "call" or report.outcome != "passed"):
        with open(path, "a", encoding="utf-8") as file:
            file.write(f"{report.outcome} after {report.duration:.1f} s: {report.nodeid}\n")
            file.write(f"{report.longreprtext}\n" if report.longreprtext else "")
