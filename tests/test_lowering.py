"""Every program of the route lowers for TPU, CUDA and CPU at the sizes of real checkpoints, and
holds no more than it should. The networks in all dtypes are in full_size."""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import dsolo_jax as dsolo
from dsolo_jax import export, pipeline, transformer, upsample
from dsolo_jax.attention.stable_diffusion.maps import mean_attention
from dsolo_jax.attention.stable_diffusion.unet import Looking
from dsolo_jax.readings import BUNDLES
from tests.oracles import lowering
from tests.oracles.lowering import BATCH, CLIPS, GRID, SIZE, N, lowered, shape

ROBUST = BUNDLES["robust"]
# With all rounds in log domain, and the other sides of what the readings choose between.
OTHER = dataclasses.replace(
    ROBUST, epsilon=0.1, suppress="range", velocity_criterion="increment", winner="largest"
)

# Matrices [N, N] of float32 that the solver holds beside the graph, for one picture.
MATRICES = {"path": 3.1, "fusion": 3.1, "label_propagation": 3.1}
_OTHERS = 0.25


@pytest.fixture(params=["gpu", "tpu"])
def accelerator(request):
    with lowering.backend(request.param):
        yield request.param


def solver(method, readings, classes):
    """The solver's program and what it is given."""

    def scores(maps, graph, of):
        how = {"method": method, "readings": readings}
        return pipeline.scores(maps, graph, of, num_classes=classes, **how)

    return scores


def given(classes, n=N, size=BATCH, dtype=jnp.float32):
    graph = shape(size, n, n, dtype=dtype)
    return lowering.class_maps(classes, n, size), graph, shape(classes, dtype=jnp.int32)


def networks(name, dtype):
    """The graph's program and that of the class maps, and what they are given."""
    config, batch = lowering.settings(name), lowering.batch(name)
    text = shape(150, config.clip.projection_dim)

    def graph(params, squares):
        return pipeline.graph(params, config, squares)

    def class_maps(params, pictures, text):
        return pipeline.class_maps(params, config, pictures, text, start=config.readings.start)

    return (
        (graph, (lowering.graph_params(dtype), batch.squares)),
        (class_maps, (lowering.clip_params(name, dtype), batch, text)),
    )


def check_networks(name, dtype, which=(0, 1)):
    """Asserts that they lower, and that logits come in blocks: [B, heads, N, N] is nowhere."""
    blocks = max(2 * BATCH * N**2, transformer._BLOCK_OF_ACCELERATORS)
    heads = CLIPS[name].vision.num_attention_heads
    n = lowering.batch(name).patches.shape[1]
    bounds = blocks, BATCH * heads * (n + 1) ** 2
    for i in which:
        function, arrays = networks(name, dtype)[i]
        _, most = lowered(function, *arrays)
        assert 0 < most <= bounds[i]


def test_the_graph_lowers_and_holds_two_of_itself():
    with lowering.backend("gpu"):
        check_networks("b16", jnp.bfloat16, which=[0])


@pytest.mark.parametrize("name", CLIPS)
def test_class_maps_lower(name):
    with lowering.backend("gpu"):
        check_networks(name, jnp.bfloat16, which=[1])


@pytest.mark.parametrize(
    "readings, dtype", [(ROBUST, jnp.float32), (OTHER, jnp.bfloat16)], ids=["robust", "other"]
)
@pytest.mark.parametrize("method", dsolo.METHODS)
def test_every_method_lowers_and_writes_no_more_than_one_graph_at_a_time(
    accelerator, method, readings, dtype
):
    for classes in (21, 150) if readings == ROBUST else (21,):
        function, arrays = solver(method, readings, classes), given(classes, dtype=dtype)
        found, most = lowered(function, *arrays)
        [scores] = found.out_avals
        assert scores.shape == (BATCH, classes, GRID, GRID) and scores.dtype == jnp.float32
        assert 0 < most <= BATCH * N**2


@pytest.mark.parametrize("form", upsample.FORMS)
def test_every_upsampling_lowers_within_its_blocks(accelerator, form):
    readings = dataclasses.replace(ROBUST, upsample=form)
    for classes in (21, 150):
        to_pixels = jax.vmap(partial(export._to_pixels, readings=readings))
        pixels = shape(BATCH, SIZE, SIZE, 3, dtype=jnp.uint8)
        arrays = shape(BATCH, classes, GRID, GRID), pixels
        found, most = lowered(to_pixels, *arrays)
        [labels] = found.out_avals
        assert labels.shape == (BATCH, SIZE, SIZE) and labels.dtype == jnp.int32
        # PAMR holds the scores of a tile, its border included; the others weights of a block.
        block = 4.2 * export.strips.limits().block
        bound = 1.2 * max(classes, 24) * SIZE**2 if form == "pamr" else block
        assert 0 < most <= BATCH * bound


@pytest.mark.parametrize("method", dsolo.METHODS)
def test_the_solver_holds_so_many_matrices(method):
    """By XLA's account of the program for CPU, which brings a graph of 16 bits to 32 once."""
    n, both = 1024, method in ("velocity", "fusion")
    for dtype in (jnp.float32, jnp.bfloat16) if both else (jnp.float32,):
        held = lowering.temporary(solver(method, ROBUST, 21), *given(21, n, 1, dtype))
        assert held <= (MATRICES.get(method, _OTHERS) + (dtype == jnp.bfloat16)) * 4 * n**2


def test_attention_maps_are_held_once_beside_a_block_of_logits():
    """By XLA's account of the program for CPU, where one block is 2^23 numbers."""
    n = 2304
    layers = [Looking(shape(1, 5, n, 64), shape(1, 5, n, 64)) for _ in range(2)]
    maps = partial(mean_attention, shares=[1.0, 1.0], side=48)
    held = lowering.temporary(maps, layers)
    assert held <= 1.1 * 4 * (n**2 + transformer._BLOCK["cpu"]) < 4 * 3 * n**2
    with lowering.backend("gpu"):  # whose block holds the logits of all: the account sees them
        assert lowering.temporary(maps, layers) > 10 * 4 * n**2


def test_what_is_written_is_counted_in_loops_too():
    def loop(x):
        return jax.lax.fori_loop(0, 3, lambda i, x: (x[:, None] * x[None]).sum(axis=0), x)

    for function in (loop, jax.jit(loop)):
        assert lowered(function, np.zeros(7, np.float32))[1] == 49
