"""Where the kernels come from, and what happens where they cannot be had."""

import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from vshift.kernels import KernelsMissing, build


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    """An empty cache, and a compiler that does not optimise, which takes its time."""
    monkeypatch.setenv("VSHIFT_CACHE", str(tmp_path / "cache"))
    quick = 'case "$1" in --version) exec c++ "$@";; *) exec c++ "$@" -O0;; esac'
    monkeypatch.setenv("CXX", script(tmp_path / "quick", quick))
    build.library.cache_clear()
    yield
    build.library.cache_clear()


def script(path, text):
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return str(path)


def test_they_are_compiled_once(tmp_path):
    build.library()
    (made,) = (tmp_path / "cache/native").iterdir()
    first = made.stat().st_mtime_ns
    build.library.cache_clear()
    build.library()
    assert made.stat().st_mtime_ns == first


def test_a_damaged_file_is_made_anew(tmp_path):
    """Truncated anywhere, it would load and then end the process with a bus error."""
    build.library()
    (made,) = (tmp_path / "cache/native").iterdir()
    whole = made.read_bytes()
    made.write_bytes(whole[: len(whole) * 9 // 10])
    # In another process: a damaged library may end it, and the system remembers what it loaded.
    code = "from vshift.kernels import build; build.library(); print('loaded')"
    words = [sys.executable, "-c", code]
    done = subprocess.run(words, capture_output=True, text=True, check=False, timeout=120)
    assert (done.returncode, done.stdout) == (0, "loaded\n"), done.stderr
    (again,) = (tmp_path / "cache/native").iterdir()
    assert build._checksum(again) in again.name


def test_a_library_without_the_functions_is_no_traceback(tmp_path, monkeypatch):
    """A compiler that makes one, and then one that lies in the cache with the right checksum."""
    source = tmp_path / "other.cpp"
    source.write_text("int nothing;")
    text = f"""case "$1" in
--version) echo 1;;
-shared) exec c++ "$@";;
*) for last; do :; done; exec c++ -fPIC -c {source} -o "$last";;
esac"""
    monkeypatch.setenv("CXX", script(tmp_path / "cc", text))
    with pytest.raises(KernelsMissing, match=r"do not load: .*undefined symbol: vshift_"):
        build.library()
    (made,) = (tmp_path / "cache/native").iterdir()
    with pytest.raises(KernelsMissing, match="undefined symbol"):
        build.library()
    assert list((tmp_path / "cache/native").iterdir()) == [made]


def test_what_killed_builds_left_is_removed(tmp_path):
    left = tmp_path / "cache" / "native" / "build-abc"
    left.mkdir(parents=True)
    (left / "kernels.o").write_bytes(b"half")
    new = left.with_name("build-new")  # another process is at it
    new.mkdir()
    os.utime(left, (0, 0))
    build.library()
    assert not left.exists()
    assert new.exists()


def test_no_compiler(monkeypatch):
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setenv("PATH", "")
    with pytest.raises(KernelsMissing, match="no C\\+\\+ compiler"):
        build.library()


def test_a_compiler_that_is_not_there(monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(KernelsMissing, match="CXX=no-such-compiler is not a program"):
        build.library()


def test_a_compiler_that_fails_says_why(tmp_path, monkeypatch):
    broken = script(
        tmp_path / "cc", 'case "$1" in --version) ;; *) echo no room >&2; exit 1;; esac'
    )
    monkeypatch.setenv("CXX", broken)
    with pytest.raises(KernelsMissing, match="cc fails: no room"):
        build.library()


def test_a_cache_that_cannot_be_written_to(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("VSHIFT_CACHE", str(tmp_path / "file"))
    assert build.library().vshift_random


def test_a_cache_that_may_not_be_looked_into_is_as_good_as_none(monkeypatch):
    def refused(self, pattern):
        raise PermissionError(13, "Permission denied", str(self))

    monkeypatch.setattr(Path, "glob", refused)
    assert build.library() is not None
