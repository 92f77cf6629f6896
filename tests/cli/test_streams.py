"""Readers that leave, terminals that are closed, closed streams and small character sets."""

import os
import pty
import shutil
import signal
import subprocess
import sys
import termios
import time
from pathlib import Path

import pytest

from tests.factory import make_run
from vshift.cli.streams import waiting
from vshift.runs import RunFolder, find_runs

TINY = """
data: {name: shapes, train: 40, test: 20, batch_size: 20}
network: {name: mlp, widths: [8]}
epochs: 3
seeds: [0, 1]
measure: {eval_batches: 1}
hardware: {device: cpu, precision: float32, threads: 1, step: STEP}
"""
VSHIFT = f"{sys.executable} -m vshift"


@pytest.fixture
def here(tmp_path, monkeypatch):
    """An empty folder with the config `t.yaml`."""
    monkeypatch.chdir(tmp_path)
    Path("t.yaml").write_text(TINY.replace("STEP", "eager"))
    return tmp_path


def shell(text, **environment):
    return subprocess.run(
        ["bash", "-c", text], capture_output=True, text=True, check=False, timeout=120,
        env={**os.environ, **environment}, errors="replace",
    )  # fmt: skip


def statuses(runs="runs"):
    return [(record.seed, record.status) for record in find_runs([runs])]


@pytest.mark.parametrize("command", ["train t.yaml", "sweep t.yaml --jobs 2"])
def test_a_reader_that_leaves_ends_no_run(here, command):
    done = shell(f"{VSHIFT} {command} 2>&1 | head -1; exit ${{PIPESTATUS[0]}}")
    assert (done.returncode, done.stderr) == (0, "")
    assert len(done.stdout.splitlines()) == 1
    assert statuses() == [(0, "done"), (1, "done")]


def test_own_code_that_prints_ends_no_run_where_nobody_reads_it(here):
    """Its images are constant, so that no variance has a ratio."""
    Path("own.py").write_text(
        "import torch\n"
        "def images():\n"
        "    print('loading', flush=True)\n"
        "    part = torch.zeros(40, 1, 8, 8, dtype=torch.uint8), torch.arange(40) % 4\n"
        "    return part, part\n"
    )
    data = "--set 'data={name: own.py:images, batch_size: 20}'"
    done = shell(f"{VSHIFT} train t.yaml --seed 0 {data} | true; exit ${{PIPESTATUS[0]}}")
    assert done.returncode == 0, done.stderr
    assert "loading\n" in done.stderr


def test_a_terminal_that_is_closed_ends_no_run(here):
    """A real one: its end sends SIGHUP, and every later write to it fails."""
    Path("t.yaml").write_text(TINY.replace("STEP", "eager").replace("epochs: 3", "epochs: 150"))
    child, terminal = pty.fork()
    if child == 0:
        os.execv(sys.executable, [sys.executable, "-m", "vshift", "train", "t.yaml", "--seed", "0"])
    deadline = time.monotonic() + 60
    while not RunFolder("runs/t/seed-0").has("metrics.jsonl"):
        assert time.monotonic() < deadline
        time.sleep(0.02)
        os.read(terminal, 4096)
    os.close(terminal)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert statuses() == [(0, "done")]


def test_a_finished_sweep_is_no_failure_where_nobody_reads_its_table(vshift, here):
    assert vshift("train", "t.yaml")[0] == 0
    table = shell(f"{VSHIFT} sweep t.yaml | true; exit ${{PIPESTATUS[0]}}")
    assert table.returncode == 0
    assert shell(f"{VSHIFT} sweep t.yaml >&-").returncode == 0


def test_no_file_of_a_run_takes_the_number_of_a_closed_stream(here):
    """What PyTorch's C++ or a worker prints would be written into it."""
    printing = "import atexit, os\n" + "".join(
        f"atexit.register(os.write, {number}, b'printed')\n" for number in (0, 1, 2)
    )
    Path("sitecustomize.py").write_text(printing)
    path = os.pathsep.join([".", os.environ.get("PYTHONPATH", "")])
    done = shell(f"{VSHIFT} train t.yaml <&- >&- 2>&-", PYTHONPATH=path)
    assert done.returncode == 0
    assert statuses() == [(0, "done"), (1, "done")]
    for path in Path("runs").rglob("*"):
        assert not path.is_file() or b"printed" not in path.read_bytes()


@pytest.mark.parametrize("command", ["compare runs", "watch runs", "data list", "schema"])
def test_a_closed_stdout_is_the_null_device(here, command):
    make_run(Path("runs"))
    done = shell(f"{VSHIFT} {command} >&-")
    hint = "next: vshift report runs\n" if command == "compare runs" else ""
    assert (done.returncode, done.stderr) == (0, hint)
    assert shell(f"{VSHIFT} {command} 2>&-").returncode == 0


def test_messages_whose_reader_has_left_do_not_fail_a_table(here):
    make_run(Path("runs"))
    done = shell(f"{VSHIFT} compare runs --where 'seed < 5' 2> >(true)")
    assert done.returncode == 0
    assert "10.00" in done.stdout


def test_a_terminal_breaks_messages_between_words_and_a_pipe_gets_one_line(here):
    words = [sys.executable, "-m", "vshift", "check", "of-these-there-is-none.yaml"]
    piped = subprocess.run(words, capture_output=True, text=True, check=False).stderr
    screen, terminal = pty.openpty()
    termios.tcsetwinsize(terminal, (24, 30))
    environment = {key: value for key, value in os.environ.items() if key != "COLUMNS"}
    subprocess.run(words, stdout=subprocess.PIPE, stderr=terminal, check=False, env=environment)
    shown = os.read(screen, 4096).decode().replace("\r\n", "\n")
    os.close(terminal)
    os.close(screen)
    assert piped == "error: of-these-there-is-none.yaml: no such file; the folder holds t.yaml\n"
    assert shown == (
        "error:\nof-these-there-is-none.yaml:\nno such file; the folder holds\nt.yaml\n"
    )


def test_ctrl_c_is_no_error(here):
    Path("t.yaml").write_text(TINY.replace("STEP", "eager").replace("epochs: 3", "epochs: 99999"))
    words = [sys.executable, "-m", "vshift", "train", "t.yaml"]
    with subprocess.Popen(words, stderr=subprocess.PIPE, text=True) as process:
        while " 2/99999" not in process.stderr.readline():
            pass
        process.send_signal(signal.SIGINT)
        last = process.stderr.read().splitlines()[-1]
    assert process.returncode == 130
    assert last == "runs/t/seed-0: interrupted; repeat the command to resume from there"


# ---- character sets


@pytest.mark.parametrize("encoding", ["ascii:strict", "latin-1"])
def test_every_character_can_be_printed(here, encoding):
    make_run(Path("runs"), "a", metrics=[{"epoch": 1}])
    for command in ("watch --once runs", "compare runs", "check ü–.yaml"):
        done = shell(f"{VSHIFT} {command}", PYTHONIOENCODING=encoding)
        assert "Traceback" not in done.stderr
        assert done.returncode == (2 if "check" in command else 0), done.stderr
        assert done.stdout or done.stderr


def test_a_live_table_in_ascii(here):
    make_run(Path("runs"), "a", status="running")
    child, terminal = pty.fork()
    if child == 0:
        os.environ["PYTHONIOENCODING"] = "ascii"
        os.execv(sys.executable, [sys.executable, "-m", "vshift", "watch", "runs"])
    shown = b""
    while b"1 running" not in shown:
        shown += os.read(terminal, 4096)
    os.write(terminal, b"q")
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    os.close(terminal)


@pytest.fixture
def compiler(tmp_path_factory):
    """Variables for one that does not speak UTF-8, and an empty cache for what it makes, soon."""
    folder = tmp_path_factory.mktemp("compiler")
    program = folder / "c++"
    program.write_bytes(
        b'#!/bin/sh\n[ "$1" = --version ] && { echo "compilateur pr\xe9f\xe9r\xe9"; exit; }\n'
        + f'exec {shutil.which("c++")} "$@" -O0\n'.encode()
    )
    program.chmod(0o755)
    return {"VSHIFT_CACHE": str(folder / "cache"), "CXX": str(program)}


def test_a_run_in_an_old_locale(here, compiler):
    """What is read and written is UTF-8 everywhere, also by the compiler of the kernels.

    In C itself tests/cli/test_locale.py tries every command.
    """
    name, source = "zh_CN.GBK", "zh_CN"
    if not shutil.which("localedef") or not Path("/usr/share/i18n/locales", source).exists():
        pytest.skip("this system cannot make locales")
    words = ["localedef", "-i", source, "-f", name.partition(".")[2], str(here / name)]
    subprocess.run(words, check=False, capture_output=True)  # it only warns of what is old
    old = {"LC_ALL": name, "LOCPATH": str(here), "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    old |= compiler
    Path("t.yaml").write_text("# é – 猫\n" + TINY.replace("STEP", "fused"), "utf-8")
    probe = f"{sys.executable} -c 'import locale; print(locale.getencoding())'"
    assert shell(probe, **old).stdout.strip() not in ("", "UTF-8", "utf-8")
    for command in ("train t.yaml --seed 0", "recalibrate runs --modes"):
        done = shell(f"{VSHIFT} {command}", **old)
        assert done.returncode == 0, done.stderr
    assert RunFolder("runs/t/seed-0").run["step"] == "fused"


@pytest.mark.parametrize("is_terminal", [True, False])
def test_what_takes_its_time_is_shown_on_a_terminal_only(capsys, monkeypatch, is_terminal):
    monkeypatch.setenv("FORCE_COLOR", "1" if is_terminal else "")
    with waiting("auditing [b]net.py"):
        pass
    out, err = capsys.readouterr()
    assert out == ""
    assert ("auditing [b]net.py" in err) is is_terminal
    assert is_terminal or err == ""
