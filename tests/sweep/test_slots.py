"""Cores and GPUs: how many there are, and who gets which."""

import os
import stat

import pytest

from vshift.sweep import slots
from vshift.sweep.slots import Slot

LIST = """\
GPU 0: NVIDIA H100 80GB HBM3 (UUID: GPU-aaaa-1)
GPU 1: NVIDIA H100 80GB HBM3 (UUID: GPU-bbbb-2)
"""
SPLIT = (
    LIST
    + """\
  MIG 3g.40gb     Device  0: (UUID: MIG-cccc-3)
  MIG 3g.40gb     Device  1: (UUID: MIG-dddd-4)
"""
)


def test_what_nvidia_smi_lists():
    assert slots.parse_nvidia_smi(LIST) == ["0", "1"]
    assert slots.parse_nvidia_smi(SPLIT) == ["0", "MIG-cccc-3", "MIG-dddd-4"]
    assert slots.parse_nvidia_smi("No devices were found\n") == []


@pytest.mark.parametrize(
    ("variable", "names"),
    [
        ("0,2", ["0", "2"]),
        (" 1 , GPU-8f-2e ", ["1", "GPU-8f-2e"]),
        ("MIG-cccc-3", ["MIG-cccc-3"]),
        ("MIG-GPU-ab/1/0", ["MIG-GPU-ab/1/0"]),
        ("", []),
        ("-1", []),
        ("NoDevFiles", []),
        ("0,-1,1", ["0"]),  # CUDA stops reading at the first that is none
        ("1,1", []),  # and takes none of them if one is there twice
    ],
)
def test_cuda_visible_devices_is_read_as_cuda_does(variable, names):
    assert slots.visible_gpus({"CUDA_VISIBLE_DEVICES": variable}) == names


@pytest.fixture
def no_nvidia_smi(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(slots, "DEVICES", tmp_path)
    return tmp_path


def test_nvidia_smi_is_asked_where_the_variable_says_nothing(no_nvidia_smi):
    program = no_nvidia_smi / "nvidia-smi"
    program.write_text(f"#!/bin/sh\nprintf '%s' '{LIST}'\n")
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    assert slots.visible_gpus({}) == ["0", "1"]
    program.write_text("#!/bin/sh\nexit 9\n")  # a driver that does not answer
    assert slots.visible_gpus({}) == []


def test_without_nvidia_smi_the_device_files_count(no_nvidia_smi):
    assert slots.visible_gpus({}) == []
    for name in ("nvidia0", "nvidia1", "nvidiactl", "nvidia-uvm"):
        (no_nvidia_smi / name).touch()
    assert slots.visible_gpus({}) == ["0", "1"]


@pytest.mark.parametrize(
    ("jobs", "per_gpu", "gpus", "cores", "expected"),
    [
        (None, 1, [], 8, [None]),
        (4, 1, [], 8, [None] * 4),
        (None, 1, ["0", "1"], 8, ["0", "1"]),
        (None, 2, ["0", "1"], 8, ["0", "1", "0", "1"]),  # each GPU one before any has two
        (3, 2, ["0", "1"], 8, ["0", "1", "0"]),
        (1, 1, ["0", "1"], 8, ["0"]),
        (5, 1, ["0", "1"], 8, ["0", "1"]),
    ],
)
def test_slots(jobs, per_gpu, gpus, cores, expected):
    assert [slot.gpu for slot in slots.allocate_slots(jobs, per_gpu, gpus, cores, [])] == expected


@pytest.mark.parametrize(("count", "cores", "threads"), [(2, 8, 4), (3, 8, 2), (4, 2, 1)])
def test_threads_of_all_slots_fit_the_cores(count, cores, threads):
    found = slots.allocate_slots(count, 1, [], cores, [])
    assert {slot.threads for slot in found} == {threads}


def test_a_single_run_has_the_machine_unless_the_sweep_may_not_use_all_of_it(monkeypatch):
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    assert slots.allocate_slots(1, 1, [], 8, [])[0].threads is None
    assert slots.allocate_slots(1, 1, [], 2, [])[0].threads == 2


def test_a_slots_environment():
    base = {"PATH": "/bin", "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "0,1"}
    found = Slot("1", 4).environment(base)
    assert found["CUDA_VISIBLE_DEVICES"] == "1"
    assert found["OMP_NUM_THREADS"] == "1"  # the user's own, and lower
    assert found["MKL_NUM_THREADS"] == "4"
    assert found["PATH"] == "/bin"
    assert Slot(None, None).environment(base) == base
    for word in ("8", "many", "0", ""):
        assert Slot(None, 4).environment({"OMP_NUM_THREADS": word})["OMP_NUM_THREADS"] == "4"


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """64 cores of which 32 are this process's, in a control group under tmp_path."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(32)), raising=False)
    monkeypatch.setattr(slots, "CGROUPS", tmp_path)
    return tmp_path


def test_cores_by_affinity_and_by_the_control_groups_quota(machine):
    assert slots.available_cores() == 32
    (machine / "cpu.max").write_text("max 100000\n")
    assert slots.available_cores() == 32
    (machine / "cpu.max").write_text("450000 100000\n")
    assert slots.available_cores() == 4
    (machine / "cpu.max").write_text("20000 100000\n")
    assert slots.available_cores() == 1
    (machine / "cpu.max").write_text("not a number\n")
    assert slots.available_cores() == 32


def test_the_tightest_quota_of_nested_groups_counts(machine, monkeypatch):
    monkeypatch.setattr(slots.Path, "read_text", _reads({"/proc/self/cgroup": "0::/a/b\n"}))
    (machine / "a" / "b").mkdir(parents=True)
    (machine / "a" / "cpu.max").write_text("200000 100000\n")
    (machine / "a" / "b" / "cpu.max").write_text("max 100000\n")
    assert slots.available_cores() == 2


def test_control_groups_of_version_1(machine, monkeypatch):
    groups = "4:cpu,cpuacct:/job\n2:memory:/job\n"
    monkeypatch.setattr(slots.Path, "read_text", _reads({"/proc/self/cgroup": groups}))
    (machine / "cpu" / "job").mkdir(parents=True)
    (machine / "cpu" / "job" / "cpu.cfs_quota_us").write_text("300000\n")
    (machine / "cpu" / "job" / "cpu.cfs_period_us").write_text("100000\n")
    assert slots.available_cores() == 3
    (machine / "cpu" / "job" / "cpu.cfs_quota_us").write_text("-1\n")
    assert slots.available_cores() == 32


def _reads(instead):
    original = slots.Path.read_text

    def read_text(self, *args, **kwargs):
        return instead.get(str(self)) or original(self, *args, **kwargs)

    return read_text
