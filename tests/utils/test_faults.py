"""What commands say in one line, and what keeps its traceback."""

import json

import numpy as np
import pytest

from dsolo_jax import vocabulary
from dsolo_jax.utils.faults import is_message


def _unusable_classes():
    vocabulary.parse([])


def _no_such_file():
    open("nowhere/at/all")


def _out_of_a_library():
    json.loads("{")


def _not_raised_but_met():
    np.zeros((2, 3)) @ np.zeros((2, 3))


def _another_kind():
    raise KeyError("a fault of ours")


@pytest.mark.parametrize(
    ("fails", "expected"),
    [
        (_unusable_classes, True),
        (_no_such_file, True),
        (_out_of_a_library, False),
        (_not_raised_but_met, False),
        (_another_kind, False),
    ],
)
def test_only_what_a_user_can_mend_is_a_message(fails, expected):
    with pytest.raises((ValueError, OSError, KeyError)) as caught:
        fails()
    assert is_message(caught.value) is expected
