import threading
import time

import numpy as np
import pytest

from dsolo_jax.datasets import examples


class Squares:
    """Stands for a dataset; records who reads."""

    def __init__(self):
        self.readers = set()

    def __getitem__(self, index):
        self.readers.add(threading.get_ident())
        if index == 13:
            raise ValueError("picture 13 is cut short")
        time.sleep(0.002 * (index % 3))
        return {"id": str(index), "square": np.full((2, 2), index**2)}


@pytest.mark.parametrize("threads", [0, 1, 3])
def test_examples_come_in_the_order_asked_for(threads):
    order = [5, 2, 9, 2, 0, 40, 7]
    read = list(
        examples(
            Squares(), order, transform=lambda e: (e["id"], e["square"][0, 0]), threads=threads
        )
    )
    assert read == [(str(i), i**2) for i in order]


def test_other_threads_read_ahead():
    dataset = Squares()
    assert len(list(examples(dataset, range(12), transform=lambda e: e, threads=3))) == 12
    assert threading.get_ident() not in dataset.readers and len(dataset.readers) > 1


def test_nothing_asked_for_gives_nothing():
    assert list(examples(Squares(), [], transform=lambda e: e)) == []


def test_a_bad_example_raises_when_its_turn_comes():
    seen = []
    with pytest.raises(ValueError, match="picture 13 is cut short"):
        for example in examples(Squares(), range(10, 20), transform=lambda e: e["id"]):
            seen.append(example)
    assert seen == ["10", "11", "12"]


def test_leaving_early_does_not_hang():
    stream = examples(Squares(), range(14, 500), transform=lambda e: e["id"])
    assert next(stream) == "14"
    stream.close()
