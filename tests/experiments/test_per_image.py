"""per_image.csv: what was not written is never counted."""

import random

import numpy as np
import pytest

from dsolo_jax.utils.files import csv_line, write_csv
from experiments import per_image

HEADER = per_image.columns(["seen"])
IDS = ("one", "two", "three")


@pytest.fixture
def rows():
    counts = np.random.default_rng(0).integers(0, 3, (len(IDS), 2, 4, 4))
    return {
        id_: per_image.row(id_, pair, 99) for id_, pair in zip(IDS, counts, strict=True)
    }, counts


@pytest.fixture
def table(rows, tmp_path):
    path = per_image.path(tmp_path, 0)
    write_csv(path, [HEADER, *rows[0].values()])
    return path


def read(table, ids=IDS):
    return per_image.read(table.parent, HEADER, set(ids))


def test_rows_are_read_as_they_were_written(rows, table):
    found, (written, counts) = read(table), rows
    assert found == written
    for row, pair in zip(found.values(), counts, strict=True):
        np.testing.assert_array_equal(per_image.matrices(row, 4), pair)
        assert per_image.ignored(row) == 99 - pair[0].sum()


def _first_cell(line, replacement):
    id_, miou, accuracy, ignored, cells = line.split(",", 4)
    truth, label, rest = cells.split(":", 2)
    pixels, rest = rest.split(" ", 1)
    parts = {"truth": truth, "label": label, "pixels": pixels} | replacement
    cell = "{truth}:{label}:{pixels}".format(**parts)
    return f"{id_},{miou},{accuracy},{ignored},{cell} {rest}"


DAMAGES = {
    "blank": lambda line: "\n" + line,
    "short": lambda line: line.split(",")[0] + "\n",
    "cut": lambda line: line[: len(line) // 2] + "\n",
    "long": lambda line: line.replace("\n", ",7\n"),
    "another digit": lambda line: _first_cell(line, {"pixels": "9"}),
    "many digits": lambda line: _first_cell(line, {"pixels": "9" * 30}),
    "negative count": lambda line: _first_cell(line, {"pixels": "-5"}),
    "negative class": lambda line: _first_cell(line, {"truth": "-1"}),
    "class too large": lambda line: _first_cell(line, {"label": "99"}),
    "another picture": lambda line: line.replace("two", "one"),
    "without checksum": lambda line: line.rpartition(",")[0] + "\n",
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_row_is_named_with_its_line(damage, table):
    lines = table.read_text().splitlines(keepends=True)
    table.write_text("".join([*lines[:2], DAMAGES[damage](lines[2]), *lines[3:]]))
    with pytest.raises(ValueError, match=f"line 3 of {table} is not what was written.*remove that"):
        read(table)


def test_no_byte_can_change_unseen(rows, table):
    """A changed byte is refused; or it cuts the last line off, which is then run again."""
    whole, chance = table.read_bytes(), random.Random(0)
    refused = 0
    for _ in range(400):
        place = chance.randrange(len(whole))
        changed = bytearray(whole)
        changed[place] ^= chance.randrange(1, 256)
        table.write_bytes(changed)
        try:
            assert read(table).items() <= rows[0].items()
        except ValueError as error:
            refused += str(table) in str(error)
    assert refused > 380


def test_a_picture_that_the_dataset_lacks_is_named(table):
    with pytest.raises(ValueError, match="holds the picture 'three', which the dataset lacks"):
        read(table, IDS[:2])


def test_fields_beyond_csvs_own_limit(tmp_path):
    matrix = np.random.default_rng(0).integers(1, 1000, (150, 150))
    row = per_image.row("x", [matrix, matrix], matrix.sum() + 7)
    assert len(row[4]) > 131_072
    write_csv(per_image.path(tmp_path, 0), [HEADER, row])
    found = per_image.read(tmp_path, HEADER, {"x"})
    np.testing.assert_array_equal(per_image.matrices(found["x"], 150)[0], matrix)


def test_a_cut_line_is_dropped(table):
    whole = table.read_bytes()
    table.write_bytes(whole + b"three,0.1")
    per_image.drop_cut_line(table, HEADER)
    assert table.read_bytes() == whole
    table.write_bytes(whole[:5])
    per_image.drop_cut_line(table, HEADER)
    assert table.read_text() == csv_line(HEADER)
