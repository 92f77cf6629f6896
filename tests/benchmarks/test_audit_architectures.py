"""Small architectures of torchvision and timm; docs/audit.md has all of them."""

import pytest

from benchmarks.audit_architectures import ALL, SMALL, examine


@pytest.mark.parametrize("architecture", SMALL, ids=lambda a: f"{a.library}:{a.name}")
def test_an_architecture_is_audited_and_left_as_it_was(architecture):
    if architecture.library == "timm":
        pytest.importorskip("timm", reason="the extra timm is not installed")
    row = examine(architecture)
    assert row["unchanged"]
    assert row["found"] == row["declared"] + row["functional"]
    assert row["live"] == 0


def test_enough_architectures_are_listed():
    assert len({(a.library, a.name) for a in ALL}) >= 40
