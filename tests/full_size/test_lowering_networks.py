"""The networks of dslo_b16 and dslo_l14 lower for TPU, CUDA and CPU in both dtypes, one by one and
as the whole route; and what a narrow one of them holds, by XLA's account."""

from functools import partial

import jax.numpy as jnp
import numpy as np
import pytest

from dsolo_jax import attention, export, pipeline, transformer
from dsolo_jax.attention.sources import Source
from tests.oracles import lowering, stable_diffusion
from tests.oracles.lowering import BATCH, CLIPS, GRID, SIZE, N, lowered, shape
from tests.test_lowering import check_networks

pytestmark = pytest.mark.full_size


@pytest.mark.parametrize("backend", ["gpu", "tpu"])
@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float32])
@pytest.mark.parametrize("name", CLIPS)
def test_every_network_lowers_in_every_dtype_and_form(name, dtype, backend):
    with lowering.backend(backend):
        check_networks(name, dtype)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float32])
@pytest.mark.parametrize("name, classes", [("b16", 21), ("l14", 150)])
def test_the_whole_route_lowers(name, classes, dtype):
    config = lowering.settings(name)
    params = lowering.clip_params(name, dtype) | lowering.graph_params(dtype)
    text = shape(classes, config.clip.projection_dim)
    how = {"num_classes": classes, "method": "fusion"}
    of_class = np.arange(classes, dtype=np.int32)

    def forward(params, pictures, text):
        return pipeline.forward(params, config, pictures, text, of_class, **how)

    def labels(params, pixels, text):
        return export.labels(params, config, pixels, text, of_class, **how)

    with lowering.backend("gpu"):
        batch = lowering.batch(name)
        found, most = lowered(forward, params, batch, text)
        [scores] = found.out_avals
        assert scores.shape == (BATCH, classes, GRID, GRID)
        bound = max(2 * BATCH * N**2, transformer._BLOCK_OF_ACCELERATORS)
        assert most <= bound
        one = shape(480, 640, 3, dtype=jnp.uint8)
        found, _ = lowered(labels, params, one, text)
        [labels_] = found.out_avals
        assert labels_.shape == (480, 640) and labels_.dtype == jnp.int32


def test_a_narrow_network_holds_its_maps_once_beside_a_block():
    """All of Stable Diffusion's parts with few channels, at N = 2304."""
    config, _, _ = stable_diffusion.KINDS["tiny"]
    side, multiple = 384, attention.stable_diffusion.squares(config).patch
    source = Source("tiny", "stable_diffusion", config, ("up.0", "up.1"), None, side)
    graph = partial(attention.graph, source=source)
    params = lowering.graph_params(jnp.float32, config)["attention"]
    held = lowering.temporary(
        lambda params, squares: graph(params, squares=squares),
        params,
        shape(1, side, side, 3, dtype=jnp.uint8),
    )
    n = (side // multiple) ** 2
    assert SIZE > side and held <= 4 * (2 * n**2 + 2 * transformer._BLOCK["cpu"])
