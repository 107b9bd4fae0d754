"""The miniature world as a TFDS dataset, for whoever would rather read it than draw it."""

import contextlib
import io
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from dsolo_jax.datasets.miniature.captions import captions
from dsolo_jax.datasets.miniature.dataset import COUNTS, NAME, load, png, stored_labels
from dsolo_jax.datasets.miniature.scenes import draw
from dsolo_jax.utils.progress import progress

_CAPTIONS = 4  # a picture


class Miniature(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """Picture, labels as `miniature.load` stores them (255 throughout in train), and captions."""

    VERSION = tfds.core.Version("1.0.0")
    url_infos = None  # nothing is downloaded
    name = NAME

    def __init__(self, data_dir: Path, seed: int = 0):
        self._seed = seed
        super().__init__(data_dir=data_dir / f"world_{seed}", file_format="array_record")

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            description="Drawn scenes of textured stuff and things, with exact labels and captions",
            features=tfds.features.FeaturesDict(
                {
                    "id": tfds.features.Text(),
                    "image": tfds.features.Image(shape=(None, None, 3)),
                    "labels": tfds.features.Image(shape=(None, None, 1), encoding_format="png"),
                    "captions": tfds.features.Sequence(tfds.features.Text()),
                }
            ),
            disable_shuffling=True,
        )

    def _split_generators(self, dl_manager: Any) -> dict[str, Iterator]:
        return {split: self._generate_examples(split) for split in COUNTS}

    def _generate_examples(self, split: str) -> Iterator[tuple[int, dict[str, Any]]]:
        ids = load(split, self._seed).ids
        for index, id in enumerate(progress(ids, len(ids), f"{NAME} {split}")):
            scene = draw(self._seed, index, split=split)
            rng = np.random.default_rng((self._seed, list(COUNTS).index(split), index))
            yield (
                index,
                {
                    "id": id,
                    "image": png(scene.image),
                    "labels": png(stored_labels(scene, split)),
                    "captions": captions(scene, rng, _CAPTIONS),
                },
            )


def prepare(data_dir: Path, seed: int = 0) -> Path:
    """Writes the world of that seed below `data_dir`, unless it is there.

    Returns:
        The folder, for `tfds.builder_from_directory`.

    Raises:
        OSError: it cannot be written, or the disk is full.
    """
    builder = Miniature(Path(data_dir).expanduser(), seed)
    tfds.disable_progress_bar()
    try:
        with (
            contextlib.redirect_stdout(io.StringIO()),  # its talk of downloads
            tempfile.TemporaryDirectory() as nothing,
        ):
            builder.download_and_prepare(download_dir=nothing)
    except RuntimeError as error:  # ArrayRecord's, of a full disk for one
        raise OSError(f"cannot write {builder.data_path}: {error}") from error
    return Path(builder.data_path)
