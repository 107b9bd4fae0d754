"""Questions and answers without a browser: limits, what is kept, what the browser is sent."""

import ast
import base64
import io
import json
import struct
import sys
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import dsolo_jax as dsolo
from dsolo_jax import devices, draw, pipeline, web
from dsolo_jax.web import answer
from dsolo_jax.web.answer import OWN, Kept, Limits, Question
from dsolo_jax.web.view import view_of

CLASSES = ("grass", "sky", "arrow")


def ask(service, path, classes=CLASSES, **how):
    return service.ask(Question(str(path), classes, **how))


# ---- what is asked -------------------------------------------------------------------------------


def test_words_are_split_and_what_is_empty_is_left_out():
    words = answer.read_words(["sofa , couch,", " ", "cat;dog; ;cat"], Limits())
    assert words.classes == ("sofa", "cat", "dog")
    assert words.queries == ("sofa", "couch", "cat", "dog")


@pytest.mark.parametrize(
    "classes, said",
    [
        ([], "no classes are given"),
        ([" ", ";", ","], "no classes are given"),
        ([f"class {i}" for i in range(201)], "201 classes are given; at most 200"),
        ([";".join(f"class {i}" for i in range(300))], "300 classes are given; at most 200"),
        ([",".join(f"word {i}" for i in range(1001))], "1001 names and synonyms; at most 1000"),
        (["x" * 201], "has 201 letters; at most 200"),
        (["cat", "cat, kitten"], "given twice"),
    ],
)
def test_words_that_are_refused(classes, said):
    with pytest.raises(ValueError, match=said):
        answer.read_words(classes, Limits())
    allowed = answer.read_words([f"class {i}" for i in range(200)], Limits())
    assert len(allowed.classes) == 200


@pytest.mark.parametrize(
    "method, readings, said",
    [
        ("velocty", OWN, "velocity"),
        (OWN, "rubust", "robust"),
        (OWN, "robust,max_steps=100000", "at most 1000"),
        (OWN, "robust,spatial_sigma=50", "at most 4"),
        (OWN, "robust,tau=-1", "tau"),
    ],
)
def test_settings_that_are_refused(service, scene, method, readings, said):
    with pytest.raises(ValueError, match=said):
        ask(service, scene, method=method, readings=readings)


def test_sources_and_presets_are_those_offered(service, scene):
    with pytest.raises(ValueError, match="attention source 'sd2'"):
        ask(service, scene, source="sd2")
    with pytest.raises(ValueError, match="preset 'dslo_b16'"):
        ask(service, scene, preset="dslo_b16")


def _header_alone(width, height):
    """The start of a PNG: how large it is, and no pixels."""
    chunk = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    head = b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + chunk
    return head + struct.pack(">I", zlib.crc32(chunk)) + struct.pack(">I", 9) + b"IDAT"


def test_a_picture_is_refused_by_its_header(large, monkeypatch):
    monkeypatch.setattr(answer.images, "decode_image", lambda *_: pytest.fail("decoded"))
    for data, size in (
        (large.read_bytes(), "8000 x 6250"),
        (_header_alone(60_000, 60_000), "far too many"),
        (_header_alone(10_000, 10_000), "10000 x 10000"),
    ):
        with pytest.raises(ValueError, match=rf"{size}.*at most 36 million"):
            answer.read_picture(data, Limits())


def test_files_that_are_no_pictures(scene, tmp_path):
    with pytest.raises(ValueError, match="this file"):
        answer.read_picture(b"a letter, not a picture", Limits())
    with pytest.raises(ValueError, match="picture|file"):
        answer.read_picture(scene.read_bytes()[:2000], Limits())
    with pytest.raises(ValueError, match="at most 0.001 MB"):
        answer.read_file(str(scene), Limits(upload=1000))
    with pytest.raises(OSError, match="give it again"):
        answer.read_file(str(tmp_path / "gone.png"), Limits())


def test_faults_of_ours_are_not_told_to_strangers(capsys):
    def fail(error):
        raise error

    def said(error):
        try:
            fail(error)
        except Exception as raised:
            return answer.explain(raised)

    assert said(OSError("the disk is full")) == "the disk is full"
    assert "fault of its own" in said(KeyError("secret"))
    assert "secret" in capsys.readouterr().err


# ---- what is kept --------------------------------------------------------------------------------


def test_kept_is_bounded_by_number_and_by_bytes():
    made = []

    def make(key):
        made.append(key)
        return bytes(key)

    kept = Kept(3, 100, len)
    for key in (1, 2, 3, 1, 4):  # 2 was used longest ago
        assert kept.get(key, lambda key=key: make(key))[0] == bytes(key)
    assert [kept.get(key, lambda: b"")[1] for key in (1, 3, 4)] == [True] * 3
    assert made == [1, 2, 3, 4] and kept.size == 8
    kept.get(95, lambda: make(95))
    assert len(kept) == 2 and kept.size == 99
    assert kept.get(101, lambda: make(101)) == (bytes(101), False)
    assert len(kept) == 0 and kept.size == 0


def test_a_second_question_runs_no_network_and_gives_what_segment_gives(
    service, scene, monkeypatch
):
    first = ask(service, scene)
    monkeypatch.setattr(pipeline, "encode", lambda *_: pytest.fail("encoded again"))
    second = ask(service, scene, ("sky", "sand", "arrow"))
    assert second.known
    assert second.result.classes == ("sky", "sand", "arrow")
    monkeypatch.undo()
    model = dsolo.load("miniature")
    encoded = pipeline.encode(model, scene)
    for found, classes in ((first, CLASSES), (second, ["sky", "sand", "arrow"])):
        wanted = dsolo.segment(model, encoded, list(classes))
        np.testing.assert_array_equal(found.result.labels, wanted.labels)
        assert found.scores.shape == (3, 14, 14)


def test_another_picture_is_another(service, scene, tmp_path):
    ask(service, scene)
    other = tmp_path / "other.png"
    Image.open(scene).transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(other)
    assert not ask(service, other).known
    again = tmp_path / "again.png"
    again.write_bytes(scene.read_bytes())  # the same content under another name
    assert ask(service, again).known


def test_encoded_pictures_are_measured(service, scene):
    model = dsolo.load("miniature")
    encoded = pipeline.encode(model, scene)
    size = answer.num_bytes(encoded)
    # At least the graph and the picture, and nothing large besides: CLIP's patches.
    assert 4 * 196**2 + 112 * 112 * 3 <= size < 2**20


def test_programs_are_forgotten_where_there_are_many(service, scene, monkeypatch):
    before = ask(service, scene).result.labels
    assert devices.program.cache_info().currsize
    monkeypatch.setattr(answer, "_MOST_PROGRAMS", 0)
    answer.forget_programs()
    assert devices.program.cache_info().currsize == 0
    monkeypatch.undo()
    np.testing.assert_array_equal(ask(service, scene).result.labels, before)


def test_a_closed_service_answers_nothing_more(scene):
    closed = answer.Service()
    closed.close()
    with pytest.raises(ValueError, match="closing"):
        ask(closed, scene)


def test_presets_that_cannot_be_loaded_are_left_out(capsys, monkeypatch):
    def load(name, attention):
        if name != "miniature":
            raise OSError("no such weights")
        return dsolo.load(name, attention=attention)

    monkeypatch.setattr(answer, "load", load)
    assert answer.Service(["dslo_b16", "miniature"]).presets == ("miniature",)
    assert "dslo_b16 is left out: no such weights" in capsys.readouterr().err
    with pytest.raises(ValueError, match="none of the presets dslo_b16"):
        answer.Service(["dslo_b16"])
    with pytest.raises(ValueError, match="miniature"):
        answer.Service(["minature"])


# ---- what the browser is sent --------------------------------------------------------------------


def _decoded(uri):
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2]))))


def test_the_view_holds_labels_colours_and_scores(service, scene):
    found = ask(service, scene, ("grass", "<img src=x onerror=alert(1)>", "arrow"))
    view = json.loads(json.dumps(view_of(found)))  # it is JSON
    np.testing.assert_array_equal(_decoded(view["labels"]), found.result.labels)
    picture = np.asarray(Image.open(scene), np.float32)
    assert np.abs(_decoded(view["picture"]) - picture).mean() < 8  # a JPEG of it
    assert [one["name"] for one in view["classes"]] == list(found.result.classes)
    colours = ["#" + bytes(colour.tolist()).hex() for colour in draw.palette(3)]
    assert [one["colour"] for one in view["classes"]] == colours
    assert sum(one["share"] for one in view["classes"]) == pytest.approx(1)
    grid = view["grid"]
    values = np.frombuffer(base64.b64decode(grid["values"]), "<u2").reshape(3, 14, 14)
    scores = grid["low"] + grid["step"] * values
    np.testing.assert_allclose(scores, found.scores, atol=0.51 * grid["step"])


def test_large_pictures_are_shown_small_and_answered_whole(service, scene, monkeypatch):
    monkeypatch.setattr(answer, "LONGEST", 56)
    shown, whole = (service.ask(Question(str(scene), CLASSES), whole) for whole in (False, True))
    assert shown.result.labels.shape == shown.result.pixels.shape[:2] == (56, 56)
    assert whole.result.labels.shape == shown.size == whole.size == (112, 112)
    np.testing.assert_array_equal(shown.scores, whole.scores)
    # Apart from borders both say the same.
    assert (whole.result.labels[::2, ::2] == shown.result.labels).mean() > 0.9
    view = view_of(shown)
    assert _decoded(view["picture"]).shape == (56, 56, 3)
    np.testing.assert_array_equal(_decoded(view["labels"]), shown.result.labels)
    assert view["size"] == [112, 112]


@pytest.mark.parametrize(
    "height, width, least", [(3000, 4000, 960), (9, 9000, 1), (1280, 90, 1280)]
)
def test_shrunk_keeps_proportions(height, width, least):
    found = answer.shrunk(np.zeros((height, width, 3), np.uint8))
    assert max(found.shape) <= 1280 and found.shape[0] == least


def test_what_the_miniature_cannot_know_is_said(service, scene):
    assert ask(service, scene).remark == ""
    words = answer.read_words(["green grass", "dog, Sky", "cat"], Limits())
    said = answer.remark(words, (3000, 4000))
    assert "not photographs" in said and "never seen: dog, cat." in said
    assert "not photographs" not in answer.remark(words, (112, 300))


def test_masks_are_packed(service, scene, tmp_path):
    result = ask(service, scene).result
    path = answer.pack(result, tmp_path)
    with zipfile.ZipFile(path) as packed:
        assert sorted(packed.namelist()) == ["masks/picture.png", "picture.json", "picture.png"]
        mask = Image.open(io.BytesIO(packed.read("masks/picture.png")))
    np.testing.assert_array_equal(np.asarray(mask), result.labels)
    assert mask.mode == "P"
    assert [one.name for one in tmp_path.iterdir()] == [path.parent.name]  # nothing else is left


def test_the_command_starts_without_what_it_serves_with():
    """Its module is imported by every command."""
    tree = ast.parse(Path(web.__file__).read_text("utf-8"))
    named = {name.name for node in tree.body if isinstance(node, ast.Import) for name in node.names}
    named |= {node.module for node in tree.body if isinstance(node, ast.ImportFrom)}
    assert named - sys.stdlib_module_names == {"dsolo_jax.utils.extras"}
