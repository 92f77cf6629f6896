"""Where the kernels come from, and what happens where they cannot be had."""

import stat

import pytest

from vshift.kernels import KernelsMissing, build


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("VSHIFT_CACHE", str(tmp_path / "cache"))
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


def test_a_damaged_file_is_made_anew(tmp_path, monkeypatch):
    build.library()
    (made,) = (tmp_path / "cache/native").iterdir()
    # In another folder: the system does not load a file again that it has loaded.
    damaged = tmp_path / "other" / "native" / made.name
    damaged.parent.mkdir(parents=True)
    damaged.write_bytes(b"not a library")
    monkeypatch.setenv("VSHIFT_CACHE", str(tmp_path / "other"))
    build.library.cache_clear()
    build.library()
    assert damaged.read_bytes()[:4] == made.read_bytes()[:4]
    assert [path.name for path in damaged.parent.iterdir()] == [made.name]


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
