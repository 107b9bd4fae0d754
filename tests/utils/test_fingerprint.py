"""Short names change with whatever they name, and with nothing else."""

import jax.numpy as jnp
import numpy as np

from dsolo_jax.utils import fingerprint


def test_texts_are_told_apart_by_their_borders_and_order():
    names = {
        fingerprint.of_strings(*texts)
        for texts in (["ab", "c"], ["a", "bc"], ["abc"], ["c", "ab"], [], [""], ["2:ab"])
    }
    assert len(names) == 7 and all(len(name) == 40 for name in names)
    assert fingerprint.of_strings("ab", "c") == fingerprint.of_strings(*("ab", "c"))


def test_arrays_are_told_apart_by_place_type_shape_and_every_byte():
    x = np.arange(6, dtype=np.float32).reshape(2, 3)
    last = x.copy()
    last[-1, -1] = np.nextafter(last[-1, -1], np.float32(9))
    trees = [
        {"a": x},
        {"b": x},
        {"a": x.reshape(3, 2)},
        {"a": x.view(np.int32)},
        {"a": last},
        {"a": x[::-1]},
        {"a": {"a": x}},
        {"a": x.astype(jnp.bfloat16)},
        {"a": np.float32(1)},
        {},
    ]
    assert len({fingerprint.of_arrays(tree) for tree in trees}) == len(trees)
    for same in (jnp.asarray(x), np.asfortranarray(x), x[::-1][::-1]):
        assert fingerprint.of_arrays({"a": same}) == fingerprint.of_arrays({"a": x})


def test_the_code_has_a_name_of_its_own():
    assert fingerprint.of_code() == fingerprint.of_code() and len(fingerprint.of_code()) == 40
