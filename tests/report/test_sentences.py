"""Sentences around names that anybody may have written."""

from __future__ import annotations

from vshift.report.sentences import join_html, say


def test_sentences_escape_what_they_name() -> None:
    assert say("{} is", "<b>") == "&lt;b&gt; is"
    assert join_html(["<", "b", "c"]) == "&lt;, b and c"
    assert join_html((str(i) for i in range(12)), 10).endswith("9 and 2 more (see the table)")
