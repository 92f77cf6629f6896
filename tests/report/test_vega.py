"""The libraries of the page, and their cache."""

import os

import pytest
import vl_convert

from vshift.report.vega import script


@pytest.fixture
def cache(monkeypatch, tmp_path):
    monkeypatch.setenv("VSHIFT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def made(monkeypatch):
    """Counts how often the bundle is made; a short stand-in for it."""
    calls = []
    monkeypatch.setattr(vl_convert, "javascript_bundle", lambda it: calls.append(it) or "vega ≥ 1")
    return calls


def test_the_bundle_is_made_once_and_kept_whole(cache, monkeypatch):
    calls = made(monkeypatch)
    assert [script(), script()] == ["vega ≥ 1"] * 2
    assert calls == [None]
    (kept,) = cache.iterdir()
    assert kept.name.startswith("vega-")
    assert kept.read_text(encoding="utf-8") == "vega ≥ 1"


def test_a_damaged_or_unwritable_cache_is_done_without(cache, monkeypatch):
    calls = made(monkeypatch)
    script()
    (kept,) = cache.iterdir()
    kept.write_bytes(b"\xff")
    assert script() == "vega ≥ 1"
    assert kept.read_text(encoding="utf-8") == "vega ≥ 1"
    kept.unlink()
    cache.rmdir()
    cache.write_text("a file where the folder should be")
    assert script() == "vega ≥ 1"
    assert len(calls) == 3


def test_a_failing_write_leaves_nothing_behind(cache, monkeypatch):
    made(monkeypatch)

    def full(*names):
        raise OSError("no space left")

    monkeypatch.setattr(os, "replace", full)
    assert script() == "vega ≥ 1"
    assert list(cache.iterdir()) == []
