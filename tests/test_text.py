"""Words around numbers."""

from __future__ import annotations

from vshift.text import pluralize


def test_one_is_singular_and_all_else_plural() -> None:
    assert [pluralize(n, "thread") for n in (0, 1, 2, 1200)] == [
        "0 threads", "1 thread", "2 threads", "1,200 threads",
    ]  # fmt: skip
    assert (pluralize(1, "batch", "batches"), pluralize(3, "batch", "batches")) == (
        "1 batch", "3 batches",
    )  # fmt: skip
