"""Benchmarks as TFDS datasets: built once from the official files, read at random access.

ArrayRecord files are written and read without TensorFlow, in the layout that TFDS gives its own
datasets: `tfds.builder_from_directory` reads a prepared folder. Pictures and label maps are stored
as the bytes of the official files and decoded by `dsolo_jax.images`, one decoder for everything;
of each record the SHA-256 is kept, and compared whenever it is read.
"""

import contextlib
import fcntl
import hashlib
import json
import os
import shlex
import shutil
from collections.abc import Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import tensorflow_datasets as tfds
from array_record.python.array_record_module import ArrayRecordWriter

from dsolo_jax.datasets.benchmark import Benchmark, Dataset, Encoded, Found, Pair, decode
from dsolo_jax.datasets.protocols import PROTOCOLS, Protocol, classes
from dsolo_jax.utils.checks import choose
from dsolo_jax.utils.files import atomic
from dsolo_jax.utils.progress import progress

_VERSION = "2.0.0"
_BUILDING = ".building"
_OLD = ".old"
_JOURNAL = "journal.jsonl"
_SUFFIX = "array_record"

# Pictures that an interrupted build may have to read again.
_RECORDS_PER_SHARD = 128


class Summary(NamedTuple):
    """What a prepared folder holds.

    labels: the name of the label maps' coding.
    ids: of each split, in order.
    official: pictures in each split of the official set.
    absent: names of official pictures that were not there, where names could be known.
    """

    labels: str
    ids: Mapping[str, list[str]]
    official: Mapping[str, int]
    absent: list[str]


class _Shard(NamedTuple):
    split: str
    name: str
    pairs: list[Pair]


def prepare(
    benchmark: Benchmark,
    source: Path,
    data_dir: Path,
    *,
    labels: str | None = None,
    overwrite: bool = False,
) -> bool:
    """Builds the collection of `benchmark` from its official files below `source`, checking every
    one of them.

    Built beside its place, read back and moved there when whole: an interrupted build is never
    taken for a dataset, and an older one stays until then. Of an interrupted build, the whole
    shards of files that are still the same are kept, and it is gone on with.

    Args:
        labels: coding of the label maps to take, where there are several; the first by default.

    Returns:
        Whether it was built; it is not where it is there already, unless `overwrite`.

    Raises:
        FileNotFoundError, ValueError: files missing, damaged or not of this benchmark, named; other
            label maps are prepared there than are asked for.
        OSError: `data_dir` cannot be written, or is full; another build of the collection is going
            on in it.
    """
    place = directory(benchmark, data_dir)
    if place.exists() and not overwrite:
        _check_labels(benchmark, place, labels)
        return False
    found = benchmark.collection.find(source, labels)
    benchmark.label_table(found.labels, PROTOCOLS[benchmark.name])  # raises if it cannot be had
    place.parent.mkdir(parents=True, exist_ok=True)
    with _alone(place.parent):
        building = place.parent / _BUILDING
        shards = _shards(benchmark, found)
        checksums = _build(benchmark, found, shards, building)
        _describe(benchmark, found, shards, checksums, building)
        try:
            for split in found.splits:
                dataset = _load(benchmark, building, split, PROTOCOLS[benchmark.name])
                for index in range(len(dataset)):
                    dataset.encoded(index)
        except ValueError:
            shutil.rmtree(building)
            raise
        shutil.rmtree(place.parent / _OLD, ignore_errors=True)
        if place.exists():
            place.rename(place.parent / _OLD)
        building.rename(place)
        (place / _JOURNAL).unlink()
        shutil.rmtree(place.parent / _OLD, ignore_errors=True)
    return True


def summary(benchmark: Benchmark, data_dir: Path) -> Summary:
    """What the prepared folder of a benchmark holds."""
    place = directory(benchmark, data_dir)
    with _damage_named(benchmark, place):
        metadata = tfds.builder_from_directory(place).info.metadata
        return Summary(*(metadata[field] for field in Summary._fields))


def load(benchmark: Benchmark, data_dir: Path, split: str, protocol: Protocol) -> Dataset:
    """A split of a prepared benchmark.

    Raises:
        FileNotFoundError: not prepared in `data_dir`, or by an older version; the message holds the
            command that does it.
        ValueError: a split that was not there when it was prepared; label maps that the benchmark
            cannot be had from.
    """
    place = directory(benchmark, data_dir)
    if place.is_dir():
        return _load(benchmark, place, split, protocol)
    older = sorted(path.name for path in place.parent.glob("[0-9]*.[0-9]*.[0-9]*"))
    found = f"only {', '.join(older)}, of an older dsolo_jax, at {place.parent}"
    raise FileNotFoundError(
        f"{benchmark.name} is not prepared: {found if older else f'nothing at {place}'}. Prepare "
        "it once with\n"
        f"    python -m experiments.prepare --dataset={benchmark.name} --source=DIR "
        f"--data_dir={shlex.quote(str(data_dir))}\n"
        f"where DIR holds the original, to be had from {benchmark.collection.origin}"
    )


def directory(benchmark: Benchmark, data_dir: Path) -> Path:
    """Where the collection of `benchmark` lies once prepared."""
    return Path(data_dir).expanduser() / benchmark.collection.name / _VERSION


# ---- building ------------------------------------------------------------------------------------


def _features() -> tfds.features.FeaturesDict:
    """A record: the id, and both files as they are."""
    return tfds.features.FeaturesDict(
        {
            "id": tfds.features.Text(),
            "image": tfds.features.Image(shape=(None, None, 3)),
            "labels": tfds.features.Image(shape=(None, None, 1), encoding_format="png"),
        }
    )


def _shards(benchmark: Benchmark, found: Found) -> list[_Shard]:
    """The files to be, in order of splits and ids, under the names TFDS gives them."""
    shards = []
    for split, pairs in found.splits.items():
        total = -(-len(pairs) // _RECORDS_PER_SHARD)
        shards += [
            _Shard(
                split,
                f"{benchmark.collection.name}-{split}.{_SUFFIX}-{number:05d}-of-{total:05d}",
                pairs[number * _RECORDS_PER_SHARD :][:_RECORDS_PER_SHARD],
            )
            for number in range(total)
        ]
    return shards


def _digest(shard: _Shard, labels: str) -> str:
    """Of the files a shard is made of, by which it is known to be of the same ones."""
    said = [_VERSION, labels]
    for pair in shard.pairs:
        stats = [path.stat() for path in (pair.image, pair.labels)]
        said += [pair.id, *((s.st_size, s.st_mtime_ns) for s in stats)]
    return hashlib.sha256(json.dumps(said).encode()).hexdigest()


def _build(
    benchmark: Benchmark, found: Found, shards: list[_Shard], building: Path
) -> dict[str, list[str]]:
    """Writes the shards that are not there yet; the SHA-256 of all records, by shard.

    A shard counts once it is in the journal: a line of its name, its files' digest and its
    checksums, written after the shard has got its name. Whatever else is there is removed.
    """
    building.mkdir(exist_ok=True)
    digests = {shard.name: _digest(shard, found.labels) for shard in shards}
    done = _journalled(building, digests)
    for path in building.iterdir():
        if path.name not in {_JOURNAL, *done}:
            path.unlink()
    todo = [shard for shard in shards if shard.name not in done]
    pictures = [pair for shard in todo for pair in shard.pairs]
    what = f"{benchmark.collection.name} {' and '.join(dict.fromkeys(s.split for s in todo))}"
    if done:
        what += f" (going on after {sum(map(len, done.values()))} pictures)"
    pairs = progress(pictures, len(pictures), what)
    table = benchmark.label_table(found.labels, PROTOCOLS[benchmark.name])
    with (building / _JOURNAL).open("a", encoding="utf-8") as journal:
        for shard in todo:
            records = (_record(benchmark, pair, table) for pair in islice(pairs, len(shard.pairs)))
            done[shard.name] = _write(building / shard.name, records)
            line = json.dumps([shard.name, digests[shard.name], done[shard.name]])
            journal.write(line + "\n")
            journal.flush()
        next(pairs, None)  # the progress's last line
    return done


def _journalled(building: Path, digests: Mapping[str, str]) -> dict[str, list[str]]:
    """The checksums of the shards an interrupted build of the same files left.

    A last line that was cut short is dropped from the journal.
    """
    journal = building / _JOURNAL
    lines = []
    if journal.is_file():
        lines = journal.read_text(encoding="utf-8").splitlines(keepends=True)
    whole = [line for line in lines if line.endswith("\n")]
    if whole != lines:
        with atomic(journal) as temporary:
            temporary.write_text("".join(whole), encoding="utf-8")
    return {
        name: checksums
        for name, digest, checksums in map(json.loads, whole)
        if digests.get(name) == digest and (building / name).is_file()
    }


def _record(benchmark: Benchmark, pair: Pair, table: Mapping[int, int]) -> dict[str, Any]:
    """An example as it is stored, checked."""
    encoded = Encoded(
        pair.image.read_bytes(),
        benchmark.collection.label_bytes(pair.labels),
        str(pair.image),
        str(pair.labels),
    )
    decode(encoded, table, benchmark.collection.hint)
    return {"id": pair.id, "image": encoded.image, "labels": encoded.labels}


def _write(path: Path, records: Iterator[dict[str, Any]]) -> list[str]:
    """Writes a shard; the SHA-256 of its records."""
    features, checksums = _features(), []
    with atomic(path) as temporary:
        try:
            writer = ArrayRecordWriter(str(temporary), "group_size:1")  # read one by one
            for record in records:
                writer.write(features.serialize_example(record))
                checksums.append(_checksum(record))
            writer.close()
        except RuntimeError as error:  # ArrayRecord's, of a full disk for one
            raise OSError(f"cannot write {path}: {error}") from error
    return checksums


def _checksum(record: Mapping[str, Any]) -> str:
    return hashlib.sha256(record["image"] + record["labels"]).hexdigest()


def _describe(
    benchmark: Benchmark,
    found: Found,
    shards: list[_Shard],
    checksums: dict[str, list[str]],
    building: Path,
) -> None:
    """Writes what TFDS keeps beside the records: splits, features, and our metadata."""
    splits = []
    for split in found.splits:
        own = [shard for shard in shards if shard.split == split]
        template = tfds.core.ShardedFileTemplate(
            data_dir=building,
            dataset_name=benchmark.collection.name,
            split=split,
            filetype_suffix=_SUFFIX,
        )
        splits.append(
            tfds.core.SplitInfo(
                name=split,
                shard_lengths=[len(shard.pairs) for shard in own],
                num_bytes=sum((building / shard.name).stat().st_size for shard in own),
                filename_template=template,
            )
        )
    summary = Summary(
        labels=found.labels,
        ids={split: [pair.id for pair in pairs] for split, pairs in found.splits.items()},
        official=found.official,
        absent=list(found.absent),
    )
    sha256 = {
        split: [sum_ for shard in shards if shard.split == split for sum_ in checksums[shard.name]]
        for split in found.splits
    }
    tfds.folder_dataset.write_metadata(
        data_dir=building,
        features=_features(),
        split_infos=splits,
        version=_VERSION,
        check_data=False,  # by TensorFlow; ours follows
        description=f"{benchmark.collection.name}, from {benchmark.collection.origin}",
        metadata=tfds.core.MetadataDict(**summary._asdict(), sha256=sha256),
    )


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """No other process builds in the folder meanwhile. A process that dies lets go of it."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise OSError(f"another process is preparing {folder}; wait until it is done") from error
    else:
        yield
    finally:
        os.close(descriptor)


def _check_labels(benchmark: Benchmark, place: Path, labels: str | None) -> None:
    """What is prepared must be what is asked for."""
    found = summary(benchmark, place.parents[1]).labels
    if labels not in (None, found):
        raise ValueError(
            f"{place} was prepared from {found} label maps, wanted {labels}: --overwrite it, or "
            "choose another --data_dir"
        )
    benchmark.label_table(found, PROTOCOLS[benchmark.name])


# ---- reading -------------------------------------------------------------------------------------


def _load(benchmark: Benchmark, place: Path, split: str, protocol: Protocol) -> Dataset:
    with _damage_named(benchmark, place):
        builder = tfds.builder_from_directory(place)
        metadata = dict(builder.info.metadata)
        ids, sha256 = metadata["ids"], metadata["sha256"]
    choose(f"split of {benchmark.name} at {place}", split, ids)
    table = benchmark.label_table(metadata["labels"], protocol)
    skip = tfds.decode.SkipDecoding()
    with _damage_named(benchmark, place):
        records = builder.as_data_source(split, decoders={"image": skip, "labels": skip})

    def encoded(index: int) -> Encoded:
        name = f"{benchmark.name} {split} {ids[split][index]}"
        with _damage_named(benchmark, place):
            record = records[index]
            # A file cut short can give empty records rather than an error.
            if not record["id"] or _checksum(record) != sha256[split][index]:
                raise ValueError(f"record {index}, {ids[split][index]}, is not what was written")
        return Encoded(record["image"], record["labels"], f"{name} (picture)", f"{name} (labels)")

    names, words = classes(benchmark.name, protocol)
    return Dataset(
        name=benchmark.name,
        names=names,
        classes=words,
        ids=tuple(ids[split]),
        label_table=table,
        encoded=encoded,
        hint=benchmark.collection.hint,
        protocol=protocol,
        coding=metadata["labels"],
        official=metadata["official"][split],
    )


@contextlib.contextmanager
def _damage_named(benchmark: Benchmark, place: Path) -> Iterator[None]:
    """What TFDS and ArrayRecord raise on files that are missing or cut short, as one error."""
    try:
        yield
    except (OSError, RuntimeError, ValueError, LookupError) as error:
        raise ValueError(
            f"the prepared {benchmark.collection.name} at {place} is damaged ({error}); build it "
            "again: experiments.prepare with --overwrite"
        ) from error
