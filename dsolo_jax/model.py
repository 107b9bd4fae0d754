"""Presets and loading: weights from the hub, a folder or the package, checked against memory."""

import dataclasses
import math
import os
from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
from jax.sharding import Mesh
from jax.typing import DTypeLike

from dsolo_jax import attention as sources
from dsolo_jax import clip as rooms
from dsolo_jax import devices, vocabulary
from dsolo_jax.checkpoints import Params, weights_dtype
from dsolo_jax.peers import PEERS
from dsolo_jax.readings import BUNDLES, Readings, resolve
from dsolo_jax.utils import cache, fingerprint, memory
from dsolo_jax.utils.checks import choose

# Of a picture in CLIP, pixels, where neither preset nor protocol has another.
_SHORT_SIDE = 336

# Matrices [N, N] that live at once in the solver, float32: A, its doubly stochastic form or the
# cost and its kernel, and one more while they are made.
_MATRICES = 4

# Of a batch on an accelerator, bytes: what the source's networks hold of a pixel of its squares
# (four fields of 128 channels in float32, as Stable Diffusion's encoder has at full size), and of
# all pictures together (three blocks of `transformer.by_rows`).
_BYTES_OF_A_PIXEL = 4 * 128 * 4
_BLOCKS = 3 << 30
_LARGEST_BATCH = 32  # from there on a GPU gains little


class Preset(NamedTuple):
    """Where the weights come from, the readings the model goes by, its sizes and its layers, see
    `load`, and its method, see `Config`."""

    clip: str
    attention: str
    readings: Readings
    short_side: int | None = None
    attention_size: int | None = None
    grid: int | None = None
    attention_layers: tuple[str, ...] | None = None
    method: str = "velocity"


_CLIPS = {"b16": "openai/clip-vit-base-patch16", "l14": "openai/clip-vit-large-patch14"}

PRESETS = {
    f"{name}_{size}": Preset(clip, attention, BUNDLES[readings])
    for name, attention, readings in (
        ("dslo", "sd2", "robust"),
        ("paper", "sd2", "paper"),
        # The paper's method with the sources of its ablation, and with ours.
        *((name, name, "robust") for name in ("sd1", "dino", "dinov2", "clip", "appearance")),
    )
    for size, clip in _CLIPS.items()
}
PRESETS |= {
    f"{name}_{scale}": Preset(
        _CLIPS[scale],
        peer.attention,
        peer.readings,
        attention_size=peer.size,
        grid=peer.grid,
        attention_layers=peer.layers or None,
        method=peer.method,
    )
    for name, peer in PEERS.items()
    for scale in peer.scales
}
# Comes with the package: trained on drawn scenes of 112 pixels, it knows their classes alone. Its
# readings were chosen there, and are no better than the bundle's elsewhere (docs/measurements.md).
PRESETS["miniature"] = Preset(
    "miniature",
    "miniature",
    resolve("robust,start=maskclip,temperature=1,epsilon=4"),
    short_side=112,
    attention_size=112,
    grid=14,
)


@dataclasses.dataclass(frozen=True)
class Config:
    """All settings of a model: hashable, so that a program can be compiled for them.

    clip, source: of CLIP, and of the attention source.
    readings: the open choices that are taken where none are named.
    grid: side r of the solver's square grid, N = r · r.
    short_side, long_side: working size of a picture in CLIP, pixels (mmseg's keep-ratio rule).
    crop, stride: side of the windows that a picture is cut into, and from one to the next, pixels
        of the resized picture; None: the picture is taken whole.
    tokenizer: where CLIP's tokenizer is.
    text_weights: fingerprint of the text tower, under which text embeddings are kept.
    method: what scores the classes where none is named, one of `dsolo.METHODS`.
    """

    clip: rooms.ClipConfig
    source: sources.Source
    readings: Readings
    grid: int
    short_side: int
    long_side: int
    tokenizer: str
    text_weights: str
    method: str = "velocity"
    crop: int | None = None
    stride: int | None = None

    def __post_init__(self) -> None:
        patch = self.clip.vision.patch_size
        _check_windows(self.crop, self.stride, short_side=self.short_side, patch=patch)


@partial(jax.tree_util.register_dataclass, data_fields=["params"], meta_fields=["config", "mesh"])
@dataclasses.dataclass(frozen=True)
class Model:
    """Weights and settings, apart: a pytree whose leaves are the weights.

    params: {"clip": of `clip.load`, "attention": of `attention.load`; None if it was left out}.
    mesh: the devices that share a batch, see `pipeline.spread`; None: one device takes all of it.
    """

    config: Config
    params: Params = dataclasses.field(repr=False)
    mesh: Mesh | None = None

    @property
    def num_devices(self) -> int:
        """How many devices share a batch."""
        return 1 if self.mesh is None else self.mesh.size


def load(
    preset: str = "dslo_b16",
    clip: str | os.PathLike | None = None,
    attention: str | os.PathLike | None = None,
    dtype: DTypeLike | None = None,
    *,
    readings: str | Readings | None = None,
    attention_layers: Sequence[str] | None = None,
    attention_weights: Sequence[float] | None = None,
    attention_size: int | None = None,
    timestep: float = 100,
    grid: int | None = None,
    short_side: int | None = None,
    long_side: int = 2048,
    crop: int | None = None,
    stride: int | None = None,
    graph: bool = True,
) -> Model:
    """Loads the weights a preset names, and turns JAX's persistent compilation cache on.

    Args:
        preset: one of `PRESETS`.
        clip: a hub id, a local folder in transformers' layout, "miniature" or "miniature_dense",
            instead of the preset's.
        attention: where the patch graph comes from, instead of the preset's: "sd2", "sd1", "dino",
            "dinov2", "miniature", a hub id or a local folder of such a checkpoint, "clip", CLIP's
            own maps, or "appearance", colour and texture alone.
        dtype: of the encoders' weights and activations: float32 if None, or "bf16", "fp16".
        readings: "robust", "paper", "robust,tau=0.3" or a `Readings`, instead of the preset's.
        attention_layers, attention_weights: layers of the source that are averaged, and how; if
            None the preset's, or "up.0" and "up.1" of Stable Diffusion, the last of DINO, the first
            of CLIP, all cues of appearance.
        attention_size: side of the square the source sees, pixels; if None the preset's, where that
            is for its source, its CLIP or its layers, or the source's own, about 512 but for
            "miniature": 512 gives Stable Diffusion N = 4096 patches, 1024 gives N = 16384.
        timestep: of Stable Diffusion's one step, 0..999.
        grid: side of the solver's grid; the preset's, or the source's own, if None.
        short_side, long_side: see `Config`; the preset's short side, or 336, if None.
        crop, stride: see `Config` and `windows`.
        graph: whether the source's weights are loaded. Without them the model serves the methods
            that need no attention, "kl" and "logits", on the same grid. With a start that needs the
            graph they are loaded whatever this is.

    Raises:
        ValueError: unknown preset, source, layer or dtype; a checkpoint that does not fit; a grid
            that does not fit into memory; windows that leave gaps or are none.
        OSError: a checkpoint that cannot be had; no device of the kind asked for.
    """
    chosen = PRESETS[choose("preset", preset, PRESETS)]
    devices.check()
    readings = chosen.readings if readings is None else resolve(readings)
    graph = graph or rooms.needs_graph(readings.start)
    name = chosen.attention if attention is None else os.fspath(attention)
    if attention_layers is None:
        attention_layers = chosen.attention_layers
    if grid is not None and grid < 1:
        raise ValueError(f"grid is {grid}; wanted the side of the solver's grid, such as 32")
    own = name in (chosen.attention, "clip") or chosen.attention_layers is not None
    if attention_size is None and own:
        attention_size = chosen.attention_size
    dtype = weights_dtype(dtype)
    cache.keep_compilations()
    checkpoint = os.fspath(chosen.clip if clip is None else clip)
    clip_config, clip_params = rooms.load(checkpoint, dtype)
    vocabulary.tokenizer_of(checkpoint, clip_config.text)
    short_side = short_side or chosen.short_side or _SHORT_SIDE
    patch = clip_config.vision.patch_size
    _check_windows(crop, stride, short_side=short_side, patch=patch)  # before the source's weights
    how: dict[str, Any] = {"layers": attention_layers, "weights": attention_weights}
    how |= {"size": attention_size, "timestep": timestep, "graph": graph}
    source, attention_params = sources.load(name, dtype, clip=(clip_config, clip_params), **how)
    grid = grid or chosen.grid or source.grid
    if graph:
        _check_memory(max(grid, source.grid))
    config = Config(
        clip=clip_config,
        source=source,
        readings=readings,
        grid=grid,
        short_side=short_side,
        long_side=long_side,
        tokenizer=checkpoint,
        text_weights=fingerprint.of_arrays(clip_params["text"]),
        method=chosen.method,
        crop=crop,
        stride=stride,
    )
    return Model(config, {"clip": clip_params, "attention": attention_params})


def suitable_batch_size(model: Model) -> int:
    """Chooses how many pictures a device takes at a time: 1 on a CPU, which is as fast with one;
    on an accelerator the power of two that its free memory has room for, at most 32."""
    if jax.default_backend() == "cpu" or (free := memory.available()) is None:
        return 1
    config = model.config
    patches = max(config.grid, config.source.grid) ** 2
    each = 4 * _MATRICES * patches**2 + _BYTES_OF_A_PIXEL * config.source.size**2
    fits = max((free - _BLOCKS) // each, 1)
    return min(1 << fits.bit_length() - 1, _LARGEST_BATCH)


def _check_windows(crop: int | None, stride: int | None, *, short_side: int, patch: int) -> None:
    """Refuses windows that leave gaps, that CLIP cannot cut, or that are no part of a picture."""
    if crop is None and stride is None:
        return
    if crop is None:
        raise ValueError(
            f"stride is {stride} without a crop, and would do nothing; give crop too, the side of "
            f"the windows, such as {2 * max(stride or 1, 1)}, or leave stride out"
        )
    nearest = patch * max(1, (2 * crop + patch) // (2 * patch))
    if crop < 1 or crop % patch:
        raise ValueError(
            f"crop is {crop}; wanted a multiple of CLIP's patch of {patch} pixels, such as "
            f"{nearest}"
        )
    side = patch * max(1, (2 * short_side + patch) // (2 * patch))
    if crop > side:
        raise ValueError(
            f"crop is {crop}, larger than the short side of the resized pictures, {side}; wanted "
            "at most that, or a larger short_side; leave crop out to take pictures whole"
        )
    if stride is None or not 1 <= stride <= crop:
        raise ValueError(
            f"stride is {stride}; wanted 1 to {crop}, the crop, as windows must leave no gaps; the "
            f"field takes half of it, {max(crop // 2, 1)}"
        )


def _check_memory(side: int) -> None:
    """Says before anything is tried that a graph of side · side patches is too large."""
    free, needed = memory.available(), _MATRICES * 4 * side**4
    if free is not None and needed > free:
        fits = math.isqrt(math.isqrt(free // (_MATRICES * 4)))
        raise ValueError(
            f"a grid of {side} x {side} patches: the graph and the solver need about "
            f"{needed / 2**30:.1f} GiB for each picture, and {free / 2**30:.1f} GiB are free; give "
            f"a smaller attention_size, so that the grid is at most {fits} x {fits}"
        )
