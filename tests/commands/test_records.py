"""What a folder of results says of itself is checked before it is believed."""

import json
import os

import pytest

from dsolo_jax.commands import records
from dsolo_jax.commands.records import Done

QUESTION = {"classes": ["cat", "sofa, couch"], "preset": "miniature", "tile": None}
ONE = Done([10, 20], [0.25, 0.75])


def check(folder, question=QUESTION, overwrite=False, targets=()):
    records.check(folder, question, overwrite, targets)


def test_what_is_noted_is_read_back(tmp_path):
    records.start(tmp_path, QUESTION, {"a.png": ONE})
    check(tmp_path)
    records.add(tmp_path, "below/\u00e9.mp4", Done([1, 2], None))
    records.add(tmp_path, "stdin", Done(None, [0.5, 0.5]))
    expected = {
        "a.png": ONE,
        "below/\u00e9.mp4": Done([1, 2], None),
        "stdin": Done(None, [0.5, 0.5]),
    }
    assert records.done(tmp_path, 2) == expected
    records.write_shares(tmp_path, ("cat", "sofa"))
    lines = (tmp_path / "shares.csv").read_text().splitlines()
    assert lines == ["picture,cat,sofa", "a.png,0.250000,0.750000", "stdin,0.500000,0.500000"]


@pytest.mark.parametrize(
    "line",
    [
        '{"name": "b.png", "state": [1, 2], "shares": [0.5, 0.5]}',  # cut short of its end
        '{"name": "b.png", "state": [1, 2], "sha\n',
        '{"name": "b.png", "state": [1, 2], "shares": [0.5]}\n',  # of another number of classes
        '{"name": "b.png", "state": [1, 2], "shares": [0.5, 0.4]}\n',
        '{"name": "b.png", "state": [1, 2], "shares": [1.5, -0.5]}\n',
        '{"name": "b.png", "state": [1, 2], "shares": [NaN, 0.5]}\n',
        '{"name": "b.png", "state": [1, 2], "shares": "ab"}\n',
        '{"name": 3, "state": [1, 2], "shares": [0.5, 0.5]}\n',
        '{"name": "b.png", "shares": [0.5, 0.5]}\n',
        "[]\n",
        "\n",
        "\udcff\udcfe\n",
    ],
)
def test_lines_that_cannot_be_believed_are_not_done(tmp_path, line):
    records.start(tmp_path, QUESTION, {"a.png": ONE})
    with (tmp_path / ".done.jsonl").open("ab") as file:
        file.write(os.fsencode(line))
    assert records.done(tmp_path, 2) == {"a.png": ONE}
    records.start(tmp_path, QUESTION, records.done(tmp_path, 2))  # what was cut short is gone
    records.add(tmp_path, "c.png", ONE)
    assert records.done(tmp_path, 2) == {"a.png": ONE, "c.png": ONE}


def test_a_line_cut_anywhere_is_no_other_line(tmp_path):
    records.start(tmp_path, QUESTION, {"a.png": Done([10, 20], [0.123456, 0.876544])})
    path = tmp_path / ".done.jsonl"
    whole = path.read_bytes()
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        assert records.done(tmp_path, 2) == {}


def test_another_question_is_refused_and_says_what_differs(tmp_path):
    records.start(tmp_path, QUESTION, {})
    other = QUESTION | {"classes": ["cat"], "tile": 512}
    with pytest.raises(ValueError) as raised:
        check(tmp_path, other)
    said = str(raised.value)
    assert 'classes was ["cat", "sofa, couch"], now is ["cat"]' in said
    assert "tile was null, now is 512" in said and "preset" not in said
    assert "choose another --output, or --overwrite" in said
    check(tmp_path, other, overwrite=True)
    with pytest.raises(ValueError, match="every was null, now is 2"):
        check(tmp_path, QUESTION | {"every": 2})


@pytest.mark.parametrize("content", ["", "{", "[]", '{"question": 3}', '{"other": {}}', "\xff"])
def test_a_record_that_is_none_is_refused(tmp_path, content):
    (tmp_path / "run.json").write_bytes(content.encode("latin-1"))
    with pytest.raises(
        ValueError, match=r"run\.json is damaged or of another program.*--overwrite"
    ):
        check(tmp_path)
    check(tmp_path, overwrite=True)


def test_files_of_others_are_left_alone(tmp_path):
    mine = tmp_path / "a.png"
    check(tmp_path, targets=[mine])
    mine.touch()
    with pytest.raises(ValueError, match=r"a\.png is there already, and no run\.json"):
        check(tmp_path, targets=[mine])
    check(tmp_path, targets=[mine], overwrite=True)


def test_the_record_can_be_read_by_others(tmp_path):
    records.start(tmp_path, QUESTION, {})
    assert json.loads((tmp_path / "run.json").read_text())["question"] == QUESTION
