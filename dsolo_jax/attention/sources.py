"""The sources of the patch graph behind one interface: loaded once, then squares to graphs."""

import dataclasses
import os
from collections.abc import Hashable, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Float, UInt8

from dsolo_jax import hub
from dsolo_jax.assets import BUNDLED
from dsolo_jax.attention import appearance, dino, stable_diffusion
from dsolo_jax.attention import clip as clip_source
from dsolo_jax.attention.common import weigh
from dsolo_jax.attention.stable_diffusion.weights import other_copies
from dsolo_jax.checkpoints import Params
from dsolo_jax.clip import ClipConfig
from dsolo_jax.utils.checks import choose

# Where a source's name alone is given.
_DINO = {"dino": "facebook/dino-vitb16", "dinov2": "facebook/dinov2-base"}
HUB_IDS = {**stable_diffusion.HUB_IDS, **_DINO}
SOURCES = (*HUB_IDS, *BUNDLED["stable_diffusion"], "appearance", "clip")

# What each module gives is said in `attention.common`.
_KINDS: dict[str, Any] = {
    "stable_diffusion": stable_diffusion,
    "dino": dino,
    "clip": clip_source,
    "appearance": appearance,
}


@dataclasses.dataclass(frozen=True)
class Source:
    """An attention source without its weights, and how it is asked; may be static under `jax.jit`.

    name: as it was loaded by.
    kind: "stable_diffusion", "dino", "clip" or "appearance".
    config: the checkpoint's.
    layers, weights: which self-attentions are averaged, and how; all alike if None.
    size: side of the square that pictures are squeezed to, pixels.
    timestep: of Stable Diffusion's one step.
    """

    name: str
    kind: str
    config: Hashable
    layers: tuple[str, ...]
    weights: tuple[float, ...] | None
    size: int
    timestep: float = 100

    @property
    def grid(self) -> int:
        """Side r of the graph's grid, N = r · r."""
        return self.size // _KINDS[self.kind].squares(self.config).patch


def load(
    name: str | os.PathLike,
    dtype: DTypeLike | None = None,
    *,
    layers: Sequence[str] | None = None,
    weights: Sequence[float] | None = None,
    size: int | None = None,
    timestep: float = 100,
    clip: tuple[ClipConfig, Params] | None = None,
    graph: bool = True,
) -> tuple[Source, Params | None]:
    """Loads an attention source.

    Args:
        name: the `attention` of `dsolo_jax.load`; a local folder is in diffusers' layout (Stable
            Diffusion) or in transformers' (DINO).
        dtype: of weights and activations; float32 if None. "clip" keeps its own.
        layers, weights, size, timestep: see there; if None the kind's own.
        clip: what `clip.load` gave, for "clip"; its parameters are returned as they are.
        graph: False reads the settings alone, for who wants the grid and no graph.

    Returns:
        The source, which holds no arrays, and its parameters, None without `graph`.

    Raises:
        ValueError: an unknown name or layer, weights that do not fit, a size or timestep the source
            cannot take, "clip" without `clip`, a checkpoint of another architecture or damaged.
        OSError: no such checkpoint, or a file of it is missing.
    """
    name = os.fspath(name)
    kind = _kind(name)
    module = _KINDS[kind]
    if not 0 <= timestep <= 999 or (kind != "stable_diffusion" and timestep != 100):
        raise ValueError(
            f"timestep is {timestep} for {name}; wanted 0..999, and of Stable Diffusion alone"
        )
    config: Any = None
    params: Params = {}
    if kind == "clip":
        if clip is None:
            raise ValueError("the attention source 'clip' wants clip=dsolo_jax.clip.load(...)")
        config, params = clip
    elif kind != "appearance":
        place = HUB_IDS.get(name, name)
        config, params = module.load(place, dtype) if graph else (module.settings(place), {})
    layers = module.LAYERS if layers is None else tuple(layers)
    weights = None if weights is None else tuple(map(float, weights))
    weigh(layers, weights, module.layer_names(config), f"layer of {name}")
    squares = module.squares(config)
    size, multiple = squares.size if size is None else size, squares.multiple
    if size < 1 or size % multiple:
        raise ValueError(
            f"attention_size is {size}; {name} wants a multiple of {multiple} pixels, such as "
            f"{multiple * max(1, round(size / multiple))}"
        )
    return Source(name, kind, config, layers, weights, size, timestep), params if graph else None


def _kind(name: str) -> str:
    """The architecture: known of our own names, otherwise by what the folder holds."""
    if name in ("appearance", "clip"):
        return name
    if name in SOURCES:
        return "dino" if name in _DINO else "stable_diffusion"
    if not os.path.exists(os.path.expanduser(name)) and "/" not in name:
        choose("attention source (no folder, nor a hub id owner/name)", name, SOURCES)
    settings = "model_index.json", "config.json"
    directory = hub.folder(name, settings, other_copies(name))
    return "dino" if (directory / "config.json").is_file() else "stable_diffusion"


def layer_names(source: Source) -> tuple[str, ...]:
    """Lists its layers, each by one name."""
    names = _KINDS[source.kind].layer_names(source.config)
    return tuple(name for name, own in names.items() if name == own)


def graph(
    params: Params, source: Source, squares: UInt8[Array | np.ndarray, "B S S 3"]
) -> Float[Array, "B N N"]:
    """Computes patch-to-patch attention of pictures squeezed to squares; rows sum to one.

    Pure: it may be jitted with `source` static, vmapped, and differentiated in `params`.

    Args:
        params, source: of `load`.
        squares: S is the source's size.

    Raises:
        ValueError: squares of another type or shape.
    """
    if squares.dtype != jnp.uint8 or squares.shape[1:] != (source.size, source.size, 3):
        raise ValueError(
            f"squares are {squares.dtype} {list(squares.shape)}, wanted uint8 [B, {source.size}, "
            f"{source.size}, 3]; `images.squeeze` makes them"
        )
    module = _KINDS[source.kind]
    taken = module.squares(source.config)
    mean, std = (np.array(x, np.float32) for x in (taken.mean, taken.std))
    pixels = (jnp.asarray(squares, jnp.float32) / 255 - mean) / std
    options: dict[str, Any] = {"layers": source.layers, "weights": source.weights}
    if module is stable_diffusion:
        options["timestep"] = source.timestep
    return module.self_attention(params, source.config, pixels, **options)
