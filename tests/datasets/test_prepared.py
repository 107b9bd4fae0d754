import json
import os
import shutil
import signal
import subprocess
import sys

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

from dsolo_jax import datasets
from dsolo_jax.datasets import prepared

ADE = datasets.benchmark("ade20k")


def test_unknown_names_are_refused_with_the_nearest():
    with pytest.raises(ValueError, match="unknown dataset 'ade20'.*'ade20k'"):
        datasets.load("ade20", "anywhere")


@pytest.mark.parametrize("level", ["itself", "parent"])
def test_what_is_prepared_is_what_the_files_hold(ade20k, tmp_path, level):
    source = ade20k if level == "itself" else ade20k.parent
    assert prepared.prepare(ADE, source, tmp_path)
    dataset = datasets.load("ade20k", tmp_path)
    assert dataset.ids == tuple(f"ADE_val_{i:08d}" for i in (1, 2, 3, 4))
    assert len(dataset.classes) == 150 and dataset.ignore == 255
    assert dataset.coding == "annotations" and dataset.official == 2000
    for index, name in enumerate(dataset.ids):
        example = dataset[index]
        assert example["id"] == name
        with Image.open(ade20k / f"images/validation/{name}.jpg") as picture:
            np.testing.assert_array_equal(example["image"], np.asarray(picture))
        with Image.open(ade20k / f"annotations/validation/{name}.png") as labels:
            stored = np.asarray(labels).astype(int)
        assert stored.min() == 0 and stored.max() == 150
        np.testing.assert_array_equal(example["labels"], np.where(stored == 0, 255, stored - 1))
        assert example["labels"].dtype == np.int32
    summary = prepared.summary(ADE, tmp_path)
    assert summary.ids == {"validation": list(dataset.ids)}


def test_the_training_split_is_prepared_where_it_is(ade20k, tmp_path):
    for part in ("images", "annotations"):
        shutil.copytree(ade20k / part / "validation", ade20k / part / "training")
    prepared.prepare(ADE, ade20k, tmp_path)
    assert len(datasets.load("ade20k", tmp_path, "training")) == 4
    with pytest.raises(ValueError, match="unknown split.*'val'.*choose one of: "):
        datasets.load("ade20k", tmp_path, "val")


def test_tensorflow_is_not_needed(ade20k, tmp_path):
    program = (
        "import pathlib, sys\n"
        "import dsolo_jax.datasets as d\n"
        "assert not {'tensorflow_datasets', 'grain'} & set(sys.modules)\n"
        "from dsolo_jax.datasets import prepared\n"
        f"source, data = pathlib.Path({str(ade20k)!r}), pathlib.Path({str(tmp_path)!r})\n"
        "prepared.prepare(d.benchmark('ade20k'), source, data)\n"
        "dataset = d.load('ade20k', data)\n"
        "read = list(d.examples(dataset, range(4), transform=lambda e: e))\n"
        "assert not {'tensorflow', 'torch', 'cv2'} & set(sys.modules)\n"
        "print(len(read))\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "4\n"


def test_what_is_there_is_kept_unless_told_otherwise(ade20k, tmp_path):
    prepared.prepare(ADE, ade20k, tmp_path)
    for part, suffix in (("images", "jpg"), ("annotations", "png")):
        (ade20k / part / "validation" / f"ADE_val_00000001.{suffix}").unlink()
    assert not prepared.prepare(ADE, ade20k, tmp_path)
    assert len(datasets.load("ade20k", tmp_path)) == 4
    assert prepared.prepare(ADE, ade20k, tmp_path, overwrite=True)
    assert len(datasets.load("ade20k", tmp_path)) == 3


def test_a_build_that_fails_leaves_the_older_one(ade20k, tmp_path):
    prepared.prepare(ADE, ade20k, tmp_path)
    (ade20k / "images/validation/ADE_val_00000003.jpg").write_bytes(b"")
    with pytest.raises(ValueError, match=r"ADE_val_00000003\.jpg is empty"):
        prepared.prepare(ADE, ade20k, tmp_path, overwrite=True)
    assert len(datasets.load("ade20k", tmp_path)) == 4
    Image.new("RGB", (9, 8)).save(ade20k / "images/validation/ADE_val_00000003.jpg")
    prepared.prepare(ADE, ade20k, tmp_path, overwrite=True)
    assert [path.name for path in (tmp_path / "ade20k").iterdir()] == ["3.0.0"]
    assert datasets.load("ade20k", tmp_path)[2]["image"].max() == 0


def test_a_full_disk_is_named_and_leaves_nothing(ade20k, tmp_path):
    """Stands for the disk: a limit on the size of files, which fails a write as a full disk does.
    The older dataset stays."""
    prepared.prepare(ADE, ade20k, tmp_path)
    program = (
        "import pathlib, resource\n"
        "from dsolo_jax import datasets\n"
        "from dsolo_jax.datasets import prepared\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (500, 500))\n"
        "try:\n"
        "    prepared.prepare(datasets.benchmark('ade20k'), "
        f"pathlib.Path({str(ade20k)!r}), pathlib.Path({str(tmp_path)!r}), overwrite=True)\n"
        "except OSError as error:\n"
        "    print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"cannot write {tmp_path}/ade20k/3.0.0: ")
    assert "File too large" in done.stdout
    assert [path.name for path in tmp_path.iterdir() if path.name != "original"] == ["ade20k"]
    assert len(datasets.load("ade20k", tmp_path)) == 4


def test_an_unreadable_picture_is_not_reported_as_an_unwritable_record(
    ade20k, tmp_path, monkeypatch
):
    def unreadable(path):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(type(ade20k), "read_bytes", unreadable)
    with pytest.raises(PermissionError, match=r"Permission denied: .*ADE_val_00000001\.jpg"):
        prepared.prepare(ADE, ade20k, tmp_path)


def test_records_that_were_lost_on_the_way_are_noticed(ade20k, tmp_path, monkeypatch):
    adapter = tfds.core.file_adapters.ArrayRecordFileAdapter
    write = adapter.write_examples

    def losing(path, iterator):
        write(path, iterator)
        os.truncate(path, os.path.getsize(path) // 2)

    monkeypatch.setattr(adapter, "write_examples", losing)
    with pytest.raises(ValueError, match="damaged"):
        prepared.prepare(ADE, ade20k, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["original"]


def rewritten(path, change):
    """The JSON of a file after `change`, written back."""
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def test_records_and_ids_that_do_not_go_together_are_noticed(ade20k, tmp_path):
    prepared.prepare(ADE, ade20k, tmp_path)
    metadata = prepared.directory(ADE, tmp_path) / "metadata.json"
    rewritten(metadata, lambda content: content["ids"]["validation"].reverse())
    with pytest.raises(ValueError, match="b'ADE_val_00000001', not ADE_val_00000004.*--overwrite"):
        datasets.load("ade20k", tmp_path)[0]
    rewritten(metadata, lambda content: content["ids"]["validation"].pop())
    lacking = "records are {'validation': 4}, of ids {'validation': 3}.*--overwrite"
    with pytest.raises(ValueError, match=lacking):
        datasets.load("ade20k", tmp_path)
    with pytest.raises(ValueError, match=lacking):  # which would say how many there are
        prepared.prepare(ADE, ade20k, tmp_path)


@pytest.mark.parametrize(
    "change",
    [
        lambda content: content.pop("ids"),
        lambda content: content.update(ids=None),
        lambda content: content.update(ids={"validation": [1, 2, 3, 4]}),
        lambda content: content.update(official={}),
        lambda content: content.update(official={"validation": "many"}),
        lambda content: content.update(official=None),
    ],
)
def test_metadata_of_another_structure_are_noticed(ade20k, tmp_path, change):
    prepared.prepare(ADE, ade20k, tmp_path)
    rewritten(prepared.directory(ADE, tmp_path) / "metadata.json", change)
    with pytest.raises(ValueError, match=r"ade20k/3\.0\.0 is damaged .*--overwrite"):
        datasets.load("ade20k", tmp_path)[0]


def test_a_byte_that_changed_is_noticed_or_without_effect(ade20k, tmp_path):
    """By ArrayRecord's own hashes; much of a small file is filling."""
    prepared.prepare(ADE, ade20k, tmp_path)
    written = [datasets.load("ade20k", tmp_path).encoded(i) for i in range(4)]
    (records,) = prepared.directory(ADE, tmp_path).glob("*.array_record*")
    whole, noticed = records.read_bytes(), 0
    used = np.flatnonzero(np.frombuffer(whole, np.uint8))
    for at in np.random.default_rng(0).choice(used, 60):
        changed = bytearray(whole)
        changed[at] ^= 16
        records.write_bytes(changed)
        try:
            read = datasets.load("ade20k", tmp_path)
            assert [read.encoded(i) for i in range(4)] == written
        except ValueError as error:
            noticed += "is damaged" in str(error)
    assert noticed > 50


def test_a_killed_build_is_no_dataset_and_its_leftovers_go_with_the_next(ade20k, tmp_path):
    program = (
        "import os, pathlib\n"
        "from dsolo_jax import datasets\n"
        "from dsolo_jax.datasets import prepared\n"
        f"prepared._records = lambda *_: os.kill(os.getpid(), {int(signal.SIGKILL)})\n"
        "prepared.prepare(datasets.benchmark('ade20k'), "
        f"pathlib.Path({str(ade20k)!r}), pathlib.Path({str(tmp_path)!r}))\n"
    )
    killed = subprocess.run([sys.executable, "-c", program], capture_output=True)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert list(tmp_path.rglob("*.array_record*"))
    with pytest.raises(FileNotFoundError, match="not prepared: nothing at"):
        datasets.load("ade20k", tmp_path)
    assert datasets.prepared_names(tmp_path) == []
    prepared.prepare(ADE, ade20k, tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["ade20k", "original"]
    assert len(datasets.load("ade20k", tmp_path)) == 4


def test_a_folder_of_an_older_version_is_refused(tmp_path):
    (tmp_path / "ade20k" / "1.0.0").mkdir(parents=True)
    with pytest.raises(FileNotFoundError, match=r"only 1\.0\.0 of another .*\n.*prepare"):
        datasets.load("ade20k", tmp_path)


def test_tfds_reads_what_is_prepared(ade20k, tmp_path):
    prepared.prepare(ADE, ade20k, tmp_path)
    builder = tfds.builder_from_directory(prepared.directory(ADE, tmp_path))
    records = builder.as_data_source("validation")
    assert len(records) == builder.info.splits["validation"].num_examples == 4
    example = datasets.load("ade20k", tmp_path)[1]
    np.testing.assert_array_equal(records[1]["image"], example["image"])


def test_not_prepared_says_how_and_where_from(tmp_path):
    with pytest.raises(FileNotFoundError) as raised:
        datasets.load("ade20k", tmp_path / "my data")
    message = str(raised.value)
    assert f"--dataset=ade20k --source=DIR --data_dir='{tmp_path}/my data'" in message
    assert "python -m experiments.prepare" in message
    assert "ADEChallengeData2016.zip" in message and "sceneparsing.csail.mit.edu" in message


@pytest.mark.parametrize("damage", ["remove", "empty", "cut", "metadata"])
def test_damaged_records_say_build_again(ade20k, tmp_path, damage):
    prepared.prepare(ADE, ade20k, tmp_path)
    place = prepared.directory(ADE, tmp_path)
    records = next(place.glob("*.array_record*"))
    {
        "remove": records.unlink,
        "empty": lambda: records.write_bytes(b""),
        "cut": lambda: os.truncate(records, records.stat().st_size // 2),
        "metadata": (place / "metadata.json").unlink,
    }[damage]()
    with pytest.raises(ValueError, match=r"at .*ade20k/3\.0\.0 is damaged .*--overwrite"):
        datasets.load("ade20k", tmp_path)[2]


def test_the_wrong_folder_says_what_is_wanted_and_found(tmp_path):
    (tmp_path / "source" / "ADE20K_2021").mkdir(parents=True)
    with pytest.raises(FileNotFoundError, match=r"wanted .*images/validation.*found .*ADE20K_2021"):
        prepared.prepare(ADE, tmp_path / "source", tmp_path)
    with pytest.raises(FileNotFoundError, match="found no such folder"):
        prepared.prepare(ADE, tmp_path / "nowhere", tmp_path)
    assert not (tmp_path / "ade20k").exists()


def test_every_fault_of_the_originals_is_named(ade20k, tmp_path):
    images, labels = ade20k / "images/validation", ade20k / "annotations/validation"
    name = "ADE_val_00000002"
    jpeg, png = (images / f"{name}.jpg").read_bytes(), (labels / f"{name}.png").read_bytes()

    def expect(kind, message):
        with pytest.raises(kind, match=message):
            prepared.prepare(ADE, ade20k, tmp_path)
        assert not prepared.directory(ADE, tmp_path).exists()
        (images / f"{name}.jpg").write_bytes(jpeg)
        (labels / f"{name}.png").write_bytes(png)

    (labels / f"{name}.png").unlink()
    expect(FileNotFoundError, rf"1 of 4 label maps are missing in .*: {name}\.png")
    (images / f"{name}.jpg").write_bytes(jpeg[:-60])
    expect(ValueError, rf"{name}\.jpg is damaged or cut short")
    (labels / f"{name}.png").write_bytes(png[:-40])
    expect(ValueError, rf"{name}\.png is damaged or cut short")
    Image.new("L", (9, 6)).save(labels / f"{name}.png")
    expect(ValueError, rf"{name}\.png is 6 x 9 .*{name}\.jpg, 7 x 9")
    Image.fromarray(np.full((7, 9), 151, np.uint8)).save(labels / f"{name}.png")
    expect(ValueError, rf"{name}\.png holds the label 151 \(63 pixels.*wanted 0\.\.150")
    Image.new("RGB", (9, 7)).save(labels / f"{name}.png")
    expect(ValueError, rf"{name}\.png is a label file of mode RGB")
    prepared.prepare(ADE, ade20k, tmp_path)
