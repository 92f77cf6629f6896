from __future__ import annotations

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from vshift.data.source import first_of_each_class, select, shares
from vshift.errors import DataError

ABC = ("a", "b", "c")


def chosen(train, test=(0, 1, 2), train_limit=None, test_limit=None, validation=0, classes=ABC):
    return select(
        np.array(train),
        np.array(test, dtype=np.int64),
        classes,
        train_limit=train_limit,
        test_limit=test_limit,
        validation=validation,
    )


@pytest.mark.parametrize(
    ("total", "available", "expected"),
    [
        (6, [5, 5, 5], [2, 2, 2]),
        (8, [5, 5, 5], [3, 3, 2]),
        (7, [1, 5, 5], [1, 3, 3]),
        (9, [1, 2, 50], [1, 2, 6]),
        (2, [5, 5, 5], [1, 1, 0]),
        (99, [1, 2, 3], [1, 2, 3]),
        (0, [1, 2, 3], [0, 0, 0]),
        (4, [0, 3, 3], [0, 2, 2]),
    ],
)
def test_shares_are_equal_and_filled_up(total, available, expected):
    assert shares(total, available) == expected


@given(st.integers(0, 200), st.lists(st.integers(0, 40), min_size=1, max_size=8))
@example(56, [14, 10, 25, 11, 9])
def test_shares_are_as_balanced_as_the_classes_allow(total, available):
    taken = shares(total, available)
    assert sum(taken) == min(total, sum(available))
    assert all(0 <= own <= most for own, most in zip(taken, available, strict=True))
    # A class that could give more has no less than any other, but for the rest to the first ones.
    able = [own for own, most in zip(taken, available, strict=True) if own < most]
    assert not able or max(taken) - min(able) <= 1
    assert able == sorted(able, reverse=True)


def test_a_limit_keeps_the_first_images_of_every_class_in_order():
    labels = np.array([0, 0, 0, 0, 1, 1, 1, 2, 2, 2])
    assert first_of_each_class(labels, 5, 3).tolist() == [0, 1, 4, 5, 7]
    assert first_of_each_class(labels, None, 3).tolist() == list(range(10))
    assert first_of_each_class(labels, 50, 3).tolist() == list(range(10))


def test_validation_takes_the_last_images_of_every_class_out_of_what_the_limit_keeps():
    found = chosen([0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2], train_limit=9, validation=4)
    assert found.train.tolist() == [0, 4, 5, 8, 9]
    assert found.validation.tolist() == [1, 2, 6, 10]


def test_validation_of_an_interleaved_set():
    found = chosen([0, 1, 2] * 4, validation=3)
    assert found.validation.tolist() == [9, 10, 11]
    assert found.train.tolist() == list(range(9))


def test_test_limit_is_balanced_too():
    assert chosen([0, 1, 2], [0, 0, 1, 1, 2, 2], test_limit=3).test.tolist() == [0, 2, 4]


def test_a_limit_below_the_classes_names_those_left_empty():
    with pytest.raises(DataError, match=r"`c` of 3 classes .*train_limit 2.*at least 3 plus"):
        chosen([0, 0, 1, 1, 2, 2], train_limit=2)


def test_validation_that_takes_everything():
    with pytest.raises(DataError, match=r"data\.validation: 6 images .* of 6 .*lower validation"):
        chosen([0, 0, 1, 1, 2, 2], validation=6)


def test_validation_that_empties_a_class():
    with pytest.raises(DataError, match=r"`a`, `b`, `c` and 1 more of 5 .*validation 4"):
        chosen([0, 1, 2, 3, 4], [0], validation=4, classes=(*"abcd", "e"))


def test_no_test_images():
    with pytest.raises(DataError, match="no test images"):
        chosen([0, 1, 2], [])
