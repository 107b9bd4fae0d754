"""The stages from prepared pictures to scores on the grid, pure functions of (params, config, ...).

    graph, class_maps -> scores

jit, vmap, shard or export them, or the whole of them, `forward`, in code of your own.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, UInt8

from dsolo_jax import attention, background, clip, vocabulary
from dsolo_jax.checkpoints import Params
from dsolo_jax.model import Config
from dsolo_jax.pictures import Batch, normalised
from dsolo_jax.readings import Readings, resolve
from dsolo_jax.solver.discrepancy import discrepancy, needs_graph


class ClassMaps(NamedTuple):
    """What CLIP says of B pictures and Q queries, on the r x r grid, N = r · r."""

    cosines: Float[Array, "B Q N"]  # of each query with each patch
    presence: Float[Array, "B Q"]  # of each query with the whole picture


class Setting(NamedTuple):
    """How labels are made of class maps; a threshold gives the background what is improbable."""

    method: str
    readings: Readings
    threshold: background.Threshold | None = None

    @property
    def needs_graph(self) -> bool:
        """Whether its method or its start looks at the patch graph."""
        return needs_graph(self.method) or clip.needs_graph(self.readings.start)


def forward(
    params: Params,
    config: Config,
    pictures: Batch,
    text: Float[Array, "Q D"],
    query_class: Int[Array | np.ndarray, "Q"],
    *,
    num_classes: int,
    method: str = "velocity",
    readings: str | Readings = "robust",
) -> Float[Array, "B C r r"]:
    """Scores the classes on the grid: the whole network, from prepared pictures and embeddings.

    Args:
        params, config: of a `Model`.
        pictures: of `batch`.
        text: of `embed`.
        query_class: class of each query, `Vocabulary.query_class`.
        num_classes: C.
        method, readings: see `discrepancy`.
    """
    readings = resolve(readings)
    wanted = Setting(method, readings).needs_graph
    attention_ = graph(params, config, pictures.squares) if wanted else None
    maps = class_maps(params, config, pictures, text, attention_, start=readings.start)
    return scores(
        maps, attention_, query_class, num_classes=num_classes, method=method, readings=readings
    )


def graph(
    params: Params, config: Config, squares: UInt8[Array | np.ndarray, "B S S 3"]
) -> Float[Array, "B N N"]:
    """Gives the attention source's graph of each picture on the solver's grid; rows sum to one.

    Where the source's weights have 16 bits, so have the graph's entries, as bfloat16: the solver
    reads them many times, and the weights' own rounding changes them by more.
    """
    found = attention.graph(params["attention"], config.source, squares)
    own = config.source.grid
    if own != config.grid:
        resample = partial(attention.resample_attention, grid=np.full(2, own), side=config.grid)
        found = jax.vmap(resample)(found)
    half = any(leaf.dtype.itemsize == 2 for leaf in jax.tree.leaves(params["attention"]))
    return found.astype(jnp.bfloat16) if half else found


def class_maps(
    params: Params,
    config: Config,
    pictures: Batch,
    text: Float[Array, "Q D"],
    graph: Float[Array, "B N N"] | None = None,
    *,
    start: str,
) -> ClassMaps:
    """Gives the cosines of words with patches, resampled to the solver's grid, and with pictures.

    Args:
        graph: of `graph`, for a start that mixes the patches by it, see `clip.needs_graph`; such a
            start leaves them on the graph's grid, where nothing is resampled. Others ignore it.
        start: what CLIP's last block does, one of `clip.STARTS`.

    Raises:
        ValueError: an unknown start, or one that needs the graph without it; patches that are no
            bytes.
    """
    embeddings = image_embeddings(params, config, pictures, graph, start=start)
    return cosines(config, embeddings, pictures.grids, text, start=start)


def image_embeddings(
    params: Params,
    config: Config,
    pictures: Batch,
    graph: Float[Array, "B N N"] | None = None,
    *,
    start: str,
) -> clip.ImageEncoding:
    """Gives CLIP's embeddings of patches and pictures, which know no words; see `class_maps`."""
    if clip.needs_graph(start) and graph is None:
        raise ValueError(
            f"start {start!r} mixes the patches by the attention source's graph, found None; give "
            "graph=pipeline.graph(...), or choose another start"
        )
    of_graph = {"graph": graph} if clip.needs_graph(start) else {}
    patches = normalised(config, pictures.patches)
    return clip.encode_patches(
        params["clip"], config.clip, patches, pictures.grids, start=start, **of_graph
    )


def cosines(
    config: Config,
    embeddings: clip.ImageEncoding,
    grids: Int[Array | np.ndarray, "B 2"],
    text: Float[Array, "Q D"],
    *,
    start: str,
) -> ClassMaps:
    """Compares words with the embeddings that `image_embeddings` gave with this start."""

    def one(patches, pooled, grid):
        maps = _cosine(text, patches)
        if not clip.needs_graph(start):
            maps = attention.resample_maps(maps, grid, config.grid)
        return maps, _cosine(text, pooled[None])[:, 0]

    return ClassMaps(*jax.vmap(one)(embeddings.patches, embeddings.pooled, grids))


def _cosine(text: Float[Array, "Q D"], x: Float[Array, "n D"]) -> Float[Array, "Q n"]:
    """Text has length 1; padding, which is zero, gets zero."""
    x = x.astype(jnp.float32)
    length = jnp.linalg.norm(x, axis=-1)
    products = jnp.einsum("qd,nd->qn", text, x, precision=jax.lax.Precision.HIGHEST)
    return products / jnp.where(length > 0, length, 1)


def scores(
    maps: ClassMaps,
    graph: Float[Array, "B N N"] | None,
    query_class: Int[Array | np.ndarray, "Q"],
    *,
    num_classes: int,
    method: str,
    readings: Readings,
    counted: Bool[Array, "C"] | None = None,
) -> Float[Array, "B C r r"]:
    """Scores the classes on the grid; each class's map is the largest of its queries'.

    counted: see `discrepancy`.
    """

    def solve(cosines, presence, graph):
        how: dict[str, Any] = {"method": method, "readings": readings, "counted": counted}
        return discrepancy(cosines, graph, presence, **how)

    return each_picture(solve, maps, graph, query_class, num_classes=num_classes)


def each_picture(
    solve: Callable[[Array, Array, Any], Array],
    maps: ClassMaps,
    given: Array | np.ndarray | None,
    query_class: Int[Array | np.ndarray, "Q"],
    *,
    num_classes: int,
) -> Float[Array, "B C r r"]:
    """Maps a solver over pictures: of the cosines [C, N] and presence [C] of classes, and of what
    each picture is given besides, to scores [C, N]."""

    def one(cosines, presence, given):
        folded = (vocabulary.fold(x, query_class, num_classes) for x in (cosines, presence))
        return solve(*folded, given)

    found = jax.vmap(one, in_axes=(0, 0, None if given is None else 0))(*maps, given)
    side = math.isqrt(found.shape[-1])
    return found.reshape(*found.shape[:2], side, side)
