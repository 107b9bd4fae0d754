"""Benchmarks as TFDS datasets: built once from the official files, read at random access.

TFDS needs no TensorFlow for ArrayRecord files; `tfds.builder_from_directory` reads what it wrote.
Pictures and label maps are stored as the bytes of their files, and decoded by `dsolo_jax.images`.
"""

import contextlib
import io
import shlex
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import tensorflow_datasets as tfds
from google.protobuf.json_format import ParseError

from dsolo_jax.datasets.benchmark import Benchmark, Dataset, Encoded, Pair, decode
from dsolo_jax.datasets.protocols import PROTOCOLS, Protocol, classes
from dsolo_jax.utils.checks import choose
from dsolo_jax.utils.progress import progress

VERSION = "3.0.0"

# Pictures and label maps are stored as the bytes of their files, and read as such.
_ENCODED = {"image": tfds.decode.SkipDecoding(), "labels": tfds.decode.SkipDecoding()}

Examples = Iterable[Mapping[str, Any]]


class Summary(NamedTuple):
    """What a prepared folder holds: ids of each split in order, the label maps' coding, and the
    number of pictures in each split of the official set."""

    ids: Mapping[str, list[str]]
    labels: str
    official: Mapping[str, int]


def prepare(
    benchmark: Benchmark,
    source: Path,
    data_dir: Path,
    *,
    labels: str | None = None,
    overwrite: bool = False,
) -> bool:
    """Builds the collection of `benchmark` from its official files, and checks every one of them.

    Args:
        source: the folder of the original.
        labels: coding of the label maps to take, where there are several; the first by default.

    Returns:
        Whether it was built; it is not where it is there already, unless `overwrite`.

    Raises:
        FileNotFoundError, ValueError: files missing, damaged or not of this benchmark, named; other
            label maps are prepared there than are asked for.
        OSError: `data_dir` cannot be written, or is full.
    """
    place = directory(benchmark, data_dir)
    if place.exists() and not overwrite:
        coding = summary(benchmark, data_dir).labels
        if labels not in (None, coding):
            raise ValueError(
                f"{place} was prepared from {coding} label maps, wanted {labels}: --overwrite it, "
                "or choose another --data_dir"
            )
        benchmark.label_table(coding, PROTOCOLS[benchmark.name])  # raises if it cannot be had
        return False
    found = benchmark.collection.find(source, labels)
    table = benchmark.label_table(found.coding, PROTOCOLS[benchmark.name])

    def examples(split: str, pairs: list[Pair]) -> Iterator[dict[str, Any]]:
        for pair in progress(pairs, len(pairs), f"{benchmark.collection.name} {split}"):
            encoded = pair.encoded(benchmark.collection.label_bytes)
            decode(encoded, table, benchmark.collection.hint)
            yield {"id": pair.id, "image": encoded.image, "labels": encoded.labels}

    build(
        place,
        {split: examples(split, pairs) for split, pairs in found.splits.items()},
        f"{benchmark.collection.name}, from {benchmark.collection.origin}",
        labels=found.coding,
        official=found.official,
    )
    return True


def summary(benchmark: Benchmark, data_dir: Path) -> Summary:
    """Says what the prepared folder of a benchmark holds; ValueError if it is damaged."""
    return _read(directory(benchmark, data_dir))[1]


def load(benchmark: Benchmark, data_dir: Path, split: str, protocol: Protocol) -> Dataset:
    """Reads a split of a prepared benchmark.

    Raises:
        FileNotFoundError: not prepared in `data_dir`, or by an older version.
        ValueError: no such split; label maps that the benchmark cannot be had from; damage.
    """
    place = directory(benchmark, data_dir)
    if not place.is_dir():
        older = ", ".join(path.name for path in place.parent.glob("[0-9]*.[0-9]*.[0-9]*"))
        raise FileNotFoundError(
            f"{benchmark.name} is not prepared: nothing at {place}"
            f"{older and f', only {older} of another dsolo_jax'}. Prepare it once with\n"
            f"    python -m experiments.prepare --dataset={benchmark.name} --source=DIR "
            f"--data_dir={shlex.quote(str(data_dir))}\n"
            f"where DIR holds the original, to be had from {benchmark.collection.origin}"
        )
    builder, held = _read(place)
    choose(f"split of {benchmark.name} at {place}", split, held.ids)
    ids = tuple(held.ids[split])
    table = benchmark.label_table(held.labels, protocol)
    record = _records(builder, place, split, ids)

    def encoded(index: int) -> Encoded:
        name = f"{benchmark.name} {split} {ids[index]}"
        example = record(index)
        return Encoded(example["image"], example["labels"], f"{name} (picture)", f"{name} (labels)")

    names, words = classes(benchmark.name, protocol)
    return Dataset(
        name=benchmark.name,
        names=names,
        classes=words,
        ids=ids,
        label_table=table,
        encoded=encoded,
        hint=benchmark.collection.hint,
        protocol=protocol,
        coding=held.labels,
        official=held.official[split],
    )


def directory(benchmark: Benchmark, data_dir: Path) -> Path:
    """Where the collection of `benchmark` lies once prepared."""
    return Path(data_dir).expanduser() / benchmark.collection.name / VERSION


class _Builder(tfds.core.GeneratorBasedBuilder, skip_registration=True):  # type: ignore[call-arg]
    """Writes the examples of each split, in their order."""

    VERSION = tfds.core.Version(VERSION)
    url_infos = None  # nothing is downloaded; in an installed package TFDS would look for a list

    def __init__(self, data_dir: str, name: str, splits: Mapping[str, Examples], **info: Any):
        self.name, self._splits, self._given = name, splits, info
        super().__init__(data_dir=data_dir, file_format="array_record")

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(builder=self, disable_shuffling=True, **self._given)

    def _split_generators(self, dl_manager: Any) -> dict[str, Iterator]:
        return {split: self._generate_examples(split) for split in self._splits}

    def _generate_examples(self, split: str) -> Iterator[tuple[int, Mapping[str, Any]]]:
        for index, example in enumerate(self._splits[split]):
            self.info.metadata["ids"][split].append(example["id"])
            yield index, example


def build(
    place: Path,
    splits: Mapping[str, Examples],
    description: str,
    features: Mapping[str, tfds.features.FeatureConnector] | None = None,
    **metadata: Any,
) -> None:
    """Writes a TFDS dataset at `place`, a path that ends in name / `VERSION`.

    It is built beside its place, read back and moved there when whole; what a killed build of the
    same name has left is removed.

    Args:
        splits: of each, the examples dict(id, image, labels), the latter two as encoded files.
        features: what else the examples hold.
        metadata: kept beside the records; the ids of each split are added.

    Raises:
        OSError: it cannot be written, or the disk is full.
        ValueError: what was written is not what is read back.
    """
    name, root = place.parent.name, place.parents[1]
    record = {
        "id": tfds.features.Text(),
        "image": tfds.features.Image(shape=(None, None, 3)),
        "labels": tfds.features.Image(shape=(None, None, 1), encoding_format="png"),
        **(features or {}),
    }
    tfds.disable_progress_bar()
    root.mkdir(parents=True, exist_ok=True)
    for left in root.glob(f".{name}_*"):
        shutil.rmtree(left)
    with tempfile.TemporaryDirectory(prefix=f".{name}_", dir=root) as scratch:
        builder = _Builder(
            scratch,
            name,
            splits,
            description=description,
            features=tfds.features.FeaturesDict(record),
            metadata=tfds.core.MetadataDict(metadata, ids={split: [] for split in splits}),
        )
        try:
            with contextlib.redirect_stdout(io.StringIO()):  # its talk of downloads
                builder.download_and_prepare(download_dir=scratch)
        except RuntimeError as error:  # ArrayRecord's, of a full disk for one
            raise OSError(f"cannot write {place}: {error}") from error
        written = Path(builder.data_path)
        for split, ids in builder.info.metadata["ids"].items():
            read_back = _records(builder, written, split, ids)
            for index in range(len(ids)):
                read_back(index)
        place.parent.mkdir(exist_ok=True)
        if place.exists():
            place.rename(Path(scratch) / "older")
        written.rename(place)


def _read(place: Path) -> tuple[tfds.core.DatasetBuilder, Summary]:
    with _damage_named(place):
        builder = tfds.builder_from_directory(place)
        held = Summary(*(builder.info.metadata[field] for field in Summary._fields))
        records = {split: info.num_examples for split, info in builder.info.splits.items()}
        ids = {split: len(names) for split, names in held.ids.items()}
        if records != ids:
            raise ValueError(f"numbers of records are {records}, of ids {ids}")
        official = {split: int(held.official[split]) for split in records}
        return builder, held._replace(official=official)


def _records(
    builder: tfds.core.DatasetBuilder, place: Path, split: str, ids: Sequence[str]
) -> Callable[[int], dict[str, Any]]:
    """Reads a record by its index, and checks its id; changed bytes ArrayRecord notices itself."""
    with _damage_named(place):
        records = builder.as_data_source(split, decoders=_ENCODED)
        if len(records) != len(ids):
            raise ValueError(f"{len(records)} records of {len(ids)} ids in {split}")

    def record(index: int) -> dict[str, Any]:
        with _damage_named(place):
            # A file cut short can give empty records rather than an error.
            found = records[index]
            if found["id"] != ids[index].encode():
                raise ValueError(f"record {index} of {split} is {found['id']!r}, not {ids[index]}")
        return found

    return record


_DAMAGE = (
    OSError, RuntimeError, ValueError, LookupError, TypeError, AttributeError, ParseError
)  # fmt: skip


@contextlib.contextmanager
def _damage_named(place: Path) -> Iterator[None]:
    """What TFDS and ArrayRecord raise on files that are missing or cut short, as one error."""
    try:
        yield
    except _DAMAGE as error:
        raise ValueError(
            f"the prepared dataset at {place} is damaged ({type(error).__name__}: {error}); build "
            "it again: experiments.prepare with --overwrite"
        ) from error
