"""The recalibration methods: one list, that everybody reads."""

from typing import get_args

from vshift.config import json_schema
from vshift.config.recalibration import ADJUST, METHODS, Estimating, MethodName
from vshift.shift import recalibration


def test_every_name_has_an_entry_and_every_estimating_one_a_function() -> None:
    assert list(get_args(MethodName)) == list(METHODS)
    assert set(get_args(Estimating)) == set(recalibration._METHODS)
    assert set(ADJUST) <= set(recalibration._METHODS)


def test_the_schema_describes_every_method() -> None:
    described = json_schema()["$defs"]["Recalibration"]["properties"]["methods"]
    assert described["items"]["enum"] == list(METHODS)
    for name, method in METHODS.items():
        assert f"{name}: {method.words}." in described["description"]
