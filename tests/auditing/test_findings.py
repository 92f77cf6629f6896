"""Every planted fault is named with its layer, its healthy twin and all healthy models are silent.

Five seeds of each are in docs/audit.md (`python -m benchmarks.audit_confusion`).
"""

import re
from pathlib import Path

import pytest

from examples.broken_models import FAULTS, examine
from tests.auditing.silent import SILENT
from vshift.auditing.findings import CHECKS
from vshift.auditing.findings.__main__ import fill_document
from vshift.auditing.findings.base import LEAVE_IT, Check

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("code", FAULTS)
def test_a_planted_fault_is_named_and_its_healthy_twin_is_not(code):
    patient = FAULTS[code](7, True)
    (finding,) = examine(patient).findings
    assert finding.code == code
    assert finding.layer in patient.layers
    assert "What to do:" in finding.message or finding.sentences[-2] == LEAVE_IT
    assert examine(FAULTS[code](7, False)).findings == []


@pytest.mark.parametrize("healthy", SILENT, ids=lambda function: function.__name__)
def test_healthy_models_are_left_in_peace(healthy):
    assert examine(healthy(7)).findings == []


def subclasses(cls):
    return {cls, *(below for child in cls.__subclasses__() for below in subclasses(child))}


def test_every_check_has_its_words_a_place_in_the_order_and_a_planted_fault():
    named = [check for check in subclasses(Check) if hasattr(check, "code")]
    assert {type(check) for check in CHECKS} == set(named)
    codes = [check.code for check in named]
    assert len(set(codes)) == len(codes)
    assert set(codes) == set(FAULTS)
    for check in named:
        for words in (check.title, check.causes, check.advice or check.remedy):
            assert words
            assert not words.endswith(".")


def test_what_is_left_comes_after_the_causes_that_explain_it():
    """Each layer's buffers are explained once: a general check before them would take all."""
    codes = [check.code for check in CHECKS]
    far = codes.index("stale")
    specific = {
        "drift", "several_distributions", "batches_not_random", "never_updated", "momentum_high",
        "tiny_batches", "momentum_low", "initial_bias", "polluted",
    }  # fmt: skip
    assert all(codes.index(code) < far for code in specific)
    assert codes[-3:] == ["variance_shift", "stale", "unexplained_gap"]
    assert codes[:3] == ["mode_switch_changes_state", "mixed_modes", "nonfinite"]


def test_the_documentation_has_every_option():
    text = (ROOT / "docs" / "audit.md").read_text()
    options = set(re.findall(r'"(--[a-z-]+)"', (ROOT / "vshift" / "cli" / "audit.py").read_text()))
    assert len(options) >= 15
    for option in options:
        assert f"| `{option}" in text or option == "--data"


def test_the_documentation_has_every_code():
    text = (ROOT / "docs" / "audit.md").read_text()
    for check in CHECKS:
        assert f"| `{check.code}` | {check.title} | {check.causes} |" in text
    assert fill_document(text) == text  # else: python -m vshift.auditing.findings docs/audit.md
