"""The sources of the patch graph behind one interface: loaded once, then squares to graphs."""

import dataclasses
import os
from collections.abc import Callable, Hashable, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Float, UInt8

from dsolo_jax import hub
from dsolo_jax.assets import BUNDLED
from dsolo_jax.attention import appearance, dino, stable_diffusion
from dsolo_jax.attention.stable_diffusion.weights import other_copies
from dsolo_jax.checkpoints import Params
from dsolo_jax.utils.checks import choose

# Where a source's name alone is given. CLIP's own maps come from the pipeline's CLIP.
HUB_IDS = {
    **stable_diffusion.HUB_IDS,
    "dino": "facebook/dino-vitb16",
    "dinov2": "facebook/dinov2-base",
}
SOURCES = (*HUB_IDS, *BUNDLED, "appearance", "clip")

# A picture's side for DINO and appearance, pixels, before rounding to what they can take.
_SIZE = 512


class _Kind(NamedTuple):
    """What the sources of one architecture have in common.

    load: source, dtype, timestep -> config, params.
    layers: which of layer_names(config) are averaged if none are named.
    layer_names, each: of a config, what its layers may be called, and one name of each.
    patch, multiple: pixels of a patch's side; what a picture's side must be a multiple of.
    size: the picture's side that is taken if none is named.
    attention: params, config, pixels in 0..1, layers, weights -> A.
    """

    load: Callable[[str, DTypeLike | None, float], tuple[Any, Params]]
    layers: tuple[str, ...]
    layer_names: Callable[[Any], Sequence[str]]
    each: Callable[[Any], Sequence[str]]
    patch: Callable[[Any], int]
    multiple: Callable[[Any], int]
    size: Callable[[Any], int]
    attention: Callable[..., Float[Array, "B N N"]]


def _load_stable_diffusion(
    source: str, dtype: DTypeLike | None, timestep: float
) -> tuple[Any, Params]:
    config, params = stable_diffusion.load(source, dtype)
    return config, stable_diffusion.at_timestep(params, config, timestep)


def _stable_diffusion(params, config, pixels, layers, weights) -> Float[Array, "B N N"]:
    return stable_diffusion.self_attention(
        params, config, 2 * pixels - 1, layers=layers, weights=weights, timestep=None
    )


def _dino(params, config, pixels, layers, weights) -> Float[Array, "B N N"]:
    pixels = (pixels - np.array(dino.MEAN, np.float32)) / np.array(dino.STD, np.float32)
    return dino.self_attention(params, config, pixels, layers=layers, weights=weights)


def _appearance(params, config, pixels, layers, weights) -> Float[Array, "B N N"]:
    return appearance.self_affinity(pixels, cues=layers, weights=weights)


_KINDS = {
    "stable_diffusion": _Kind(
        _load_stable_diffusion,
        ("up.0", "up.1"),
        stable_diffusion.layer_names,
        lambda config: stable_diffusion.unet.layer_names(config.unet),
        stable_diffusion.pixels_per_patch,
        stable_diffusion.size_multiple,
        # What it was trained on, 512 for most. M2N2 has 1024, CLIPer 512 (BUILD_NOTES Q8).
        lambda config: config.unet.sample_size * stable_diffusion.pixels_per_patch(config),
        _stable_diffusion,
    ),
    "dino": _Kind(
        lambda source, dtype, timestep: dino.load(source, dtype),
        ("-1",),
        dino.layer_names,
        lambda config: [name for name in dino.layer_names(config) if not name.startswith("-")],
        lambda config: config.patch_size,
        lambda config: config.patch_size,
        lambda config: config.patch_size * round(_SIZE / config.patch_size),
        _dino,
    ),
    "appearance": _Kind(
        lambda source, dtype, timestep: (None, {}),
        tuple(appearance.WEIGHTS),
        lambda config: tuple(appearance.WEIGHTS),
        lambda config: tuple(appearance.WEIGHTS),
        lambda config: appearance.PATCH,
        lambda config: appearance.PATCH,
        lambda config: _SIZE,
        _appearance,
    ),
}


@dataclasses.dataclass(frozen=True)
class Source:
    """A loaded attention source, and how it is asked.

    kind: "stable_diffusion", "dino" or "appearance".
    layers, weights: which self-attentions are averaged, and how; all alike if None.
    size: side of the square that pictures are squeezed to, pixels.
    """

    kind: str
    config: Hashable
    params: Params = dataclasses.field(repr=False)
    layers: tuple[str, ...]
    weights: tuple[float, ...] | None
    size: int

    @property
    def grid(self) -> int:
        """Side r of the graph's grid, N = r · r."""
        return self.size // _KINDS[self.kind].patch(self.config)


def load(
    name: str | os.PathLike,
    dtype: DTypeLike | None = None,
    *,
    layers: Sequence[str] | None = None,
    weights: Sequence[float] | None = None,
    size: int | None = None,
    timestep: float = 100,
) -> Source:
    """Loads an attention source.

    Args:
        name: "sd2", "sd1", "dino", "dinov2" (their checkpoints come from the hub); "miniature", the
            bundled Stable Diffusion; "appearance", which has no checkpoint; a hub id; or a local
            folder, in diffusers' layout (Stable Diffusion) or in transformers' (DINO).
        dtype: of weights and activations; float32 if None.
        layers: self-attentions that are averaged; the kind's own if None.
        weights: of each layer, all alike if None.
        size: side of the square that pictures are squeezed to; if None what a Stable Diffusion was
            trained on, mostly 512, and the nearest to 512 that a DINO can take.
        timestep: of Stable Diffusion's one step.

    Raises:
        ValueError: an unknown name or layer, a size the source cannot take, a checkpoint of another
            architecture.
        OSError: no such checkpoint, or a file of it is missing.
    """
    name = os.fspath(name)
    if name not in SOURCES and not os.path.isdir(os.path.expanduser(name)) and "/" not in name:
        choose("attention source (no folder, nor a hub id owner/name)", name, SOURCES)
    chosen = _kind(name)
    kind = _KINDS[chosen]
    config, params = kind.load(HUB_IDS.get(name, name), dtype, timestep)
    for layer in layers or ():
        choose(f"layer of {name}", layer, kind.layer_names(config))
    multiple = kind.multiple(config)
    if size is None:
        size = kind.size(config)
    if size < 1 or size % multiple:
        nearest = multiple * max(1, round(size / multiple))
        raise ValueError(
            f"attention_size is {size}; {name} wants a multiple of {multiple} pixels, such as "
            f"{nearest}"
        )
    weights = None if weights is None else tuple(weights)
    return Source(chosen, config, params, tuple(layers or kind.layers), weights, size)


def _kind(name: str) -> str:
    """The architecture: known of our own names, otherwise by what the folder holds."""
    if name in HUB_IDS:
        return "stable_diffusion" if name in stable_diffusion.HUB_IDS else "dino"
    if name == "appearance":
        return name
    if name in BUNDLED:
        return "stable_diffusion"
    settings = "model_index.json", "config.json"
    directory = hub.folder(name, settings, other_copies(name))
    return "dino" if (directory / "config.json").is_file() else "stable_diffusion"


def layer_names(source: Source) -> tuple[str, ...]:
    """Its layers, each by one name."""
    return tuple(_KINDS[source.kind].each(source.config))


def graph(source: Source, squares: UInt8[Array, "B S S 3"]) -> Float[Array, "B N N"]:
    """Patch-to-patch attention of pictures squeezed to squares; rows sum to one."""
    pixels = jnp.asarray(squares, jnp.float32) / 255
    attention = _KINDS[source.kind].attention
    return attention(source.params, source.config, pixels, source.layers, source.weights)
