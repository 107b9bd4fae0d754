"""Benchmarks as TFDS datasets: built once from the official files, read at random access.

ArrayRecord files are written and read without TensorFlow. Pictures and label maps are stored as
the bytes of the official files and decoded by `dsolo_jax.images`, one decoder for everything.
"""

import contextlib
import io
import shlex
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import tensorflow_datasets as tfds

from dsolo_jax.checks import choose
from dsolo_jax.datasets.benchmark import Benchmark, Dataset, Encoded, Pair, decode
from dsolo_jax.progress import progress

_VERSION = "1.0.0"
_BUILDING = ".building-"


class _Builder(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """Builder of any `Benchmark`: id, image and labels (the official values), in order of ids."""

    VERSION = tfds.core.Version(_VERSION)
    # Nothing is downloaded. TFDS would look for checksums by way of importlib_resources, which it
    # does not install.
    url_infos = None

    def __init__(self, benchmark: Benchmark, files: dict[str, list[Pair]], data_dir: Path):
        self.name = benchmark.name
        self._benchmark = benchmark
        self._files = files
        super().__init__(data_dir=data_dir, file_format="array_record")

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            description=f"{self.name}, from {self._benchmark.origin}",
            features=tfds.features.FeaturesDict(
                {
                    "id": tfds.features.Text(),
                    "image": tfds.features.Image(shape=(None, None, 3)),
                    "labels": tfds.features.Image(shape=(None, None, 1), encoding_format="png"),
                }
            ),
            # Otherwise the records come in the order of their hashed keys.
            disable_shuffling=True,
            # Here the ids are known without reading a record.
            metadata=tfds.core.MetadataDict(
                ids={split: [pair.id for pair in pairs] for split, pairs in self._files.items()}
            ),
        )

    def _split_generators(self, dl_manager: Any) -> dict[str, Iterator]:
        return {split: self._generate_examples(split) for split in self._files}

    def _generate_examples(self, split: str) -> Iterator[tuple[int, dict[str, Any]]]:
        pairs = self._files[split]
        for key, pair in enumerate(progress(pairs, len(pairs), f"{self.name} {split}")):
            encoded = Encoded(
                pair.image.read_bytes(), pair.labels.read_bytes(), str(pair.image), str(pair.labels)
            )
            decode(encoded, self._benchmark.label_table, self._benchmark.hint)
            yield key, {"id": pair.id, "image": encoded.image, "labels": encoded.labels}


def prepare(benchmark: Benchmark, source: Path, data_dir: Path, *, overwrite: bool = False) -> bool:
    """Builds `benchmark` from its official files below `source`, checking every one of them.

    Built beside its place, read back and moved there when whole: an interrupted build is never
    taken for a dataset, and an older one stays until then. What interrupted builds left behind is
    removed, so two builds of one benchmark in one `data_dir` must not run at a time.

    Returns:
        Whether it was built; it is not where it is there already, unless `overwrite`.

    Raises:
        FileNotFoundError, ValueError: files missing, damaged or not of this benchmark, named.
        OSError: `data_dir` cannot be written, or is full.
    """
    place = directory(benchmark, data_dir)
    if place.exists() and not overwrite:
        return False
    files = benchmark.find(source)
    place.parent.mkdir(parents=True, exist_ok=True)
    for leftover in place.parent.glob(f"{_BUILDING}*"):
        shutil.rmtree(leftover)
    tfds.disable_progress_bar()
    with tempfile.TemporaryDirectory(prefix=_BUILDING, dir=place.parent) as building:
        builder = _Builder(benchmark, files, Path(building))
        try:
            with contextlib.redirect_stdout(io.StringIO()):  # its talk of downloads
                builder.download_and_prepare()
        except RuntimeError as error:  # ArrayRecord's, of a full disk for one
            raise OSError(f"cannot write {place}: {error}") from error
        for split in files:
            dataset = load(benchmark, Path(building), split)
            for index in range(len(dataset)):
                dataset.encoded(index)
        if place.exists():
            place.rename(Path(building) / "old")
        directory(benchmark, Path(building)).rename(place)
    return True


def counts(benchmark: Benchmark, data_dir: Path) -> dict[str, int]:
    """Pictures in each split of a prepared benchmark."""
    splits = tfds.builder_from_directory(directory(benchmark, data_dir)).info.splits
    return {split: info.num_examples for split, info in splits.items()}


def load(benchmark: Benchmark, data_dir: Path, split: str) -> Dataset:
    """A split of a prepared benchmark.

    Raises:
        FileNotFoundError: not prepared in `data_dir`; the message holds the command that does it.
        ValueError: a split that was not there when it was prepared.
    """
    place = directory(benchmark, data_dir)
    if not place.is_dir():
        raise FileNotFoundError(
            f"{benchmark.name} is not prepared: nothing at {place}. Prepare it once with\n"
            f"    python -m experiments.prepare --dataset={benchmark.name} --source=DIR "
            f"--data_dir={shlex.quote(str(data_dir))}\n"
            f"where DIR holds the original, to be had from {benchmark.origin}"
        )
    with _damage_named(benchmark, place):
        builder = tfds.builder_from_directory(place)
        ids = builder.info.metadata["ids"]
    choose(f"split of {benchmark.name} at {place}", split, ids)
    skip = tfds.decode.SkipDecoding()
    with _damage_named(benchmark, place):
        records = builder.as_data_source(split, decoders={"image": skip, "labels": skip})

    def encoded(index: int) -> Encoded:
        id = ids[split][index]
        name = f"{benchmark.name} {split} {id}"
        with _damage_named(benchmark, place):
            record = records[index]
            # A file cut short can give empty records rather than an error.
            if record["id"] != id.encode():
                raise ValueError(f"record {index} is {record['id']}, wanted {id}")
        return Encoded(record["image"], record["labels"], f"{name} (picture)", f"{name} (labels)")

    return Dataset(
        name=benchmark.name,
        classes=benchmark.classes,
        ids=tuple(ids[split]),
        label_table=benchmark.label_table,
        encoded=encoded,
        hint=benchmark.hint,
    )


@contextlib.contextmanager
def _damage_named(benchmark: Benchmark, place: Path) -> Iterator[None]:
    """What TFDS and ArrayRecord raise on files that are missing or cut short, as one error."""
    try:
        yield
    except (OSError, RuntimeError, ValueError, LookupError) as error:
        raise ValueError(
            f"the prepared {benchmark.name} at {place} is damaged ({error}); build it again: "
            "experiments.prepare with --overwrite"
        ) from error


def directory(benchmark: Benchmark, data_dir: Path) -> Path:
    """Where `benchmark` lies once prepared."""
    return Path(data_dir).expanduser() / benchmark.name / _VERSION
