"""Every planted fault is named with its layer, its healthy twin and all healthy models are silent.

Five seeds of each are in docs/audit.md (`python -m benchmarks.audit_confusion`).
"""

import re
from pathlib import Path

import pytest

from examples.broken_models import FAULTS, examine
from tests.auditing.silent import SILENT
from vshift.auditing.audit import CAUSES
from vshift.auditing.words import WORDS

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("code", FAULTS)
def test_a_planted_fault_is_named_and_its_healthy_twin_is_not(code):
    patient = FAULTS[code](7, True)
    (finding,) = examine(patient).findings
    assert finding.code == code
    assert finding.layer in patient.layers
    assert "What to do:" in finding.message
    assert examine(FAULTS[code](7, False)).findings == []


@pytest.mark.parametrize("healthy", SILENT, ids=lambda function: function.__name__)
def test_healthy_models_are_left_in_peace(healthy):
    assert examine(healthy(7)).findings == []


def test_every_code_has_words_and_a_planted_fault():
    assert set(FAULTS) == set(WORDS)
    assert len(CAUSES) >= 15


def test_the_documentation_has_every_option():
    text = (ROOT / "docs" / "audit.md").read_text()
    options = set(re.findall(r'"(--[a-z-]+)"', (ROOT / "vshift" / "cli" / "audit.py").read_text()))
    assert len(options) >= 15
    for option in options:
        assert f"| `{option}" in text or option == "--data"


def test_the_documentation_has_every_code():
    text = (ROOT / "docs" / "audit.md").read_text()
    for code, words in WORDS.items():
        assert f"| `{code}` | {words.title} | {words.causes} |" in text
