"""The forms of the 3 x 3 convolution against torch, and which of them runs where."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from dsolo_jax.attention.stable_diffusion import convolution


def _operands(h: int, w: int, channels: int = 5):
    random = np.random.default_rng(0)
    x = random.standard_normal((2, h, w, channels), np.float32)
    return x, random.standard_normal((3, 3, channels, 7), np.float32)


def _torch(x, kernel):
    """In float64."""
    image = torch.tensor(x, dtype=torch.float64).permute(0, 3, 1, 2)
    weight = torch.tensor(kernel, dtype=torch.float64).permute(3, 2, 0, 1)
    return torch.nn.functional.conv2d(image, weight, padding=1).permute(0, 2, 3, 1).numpy()


@pytest.mark.parametrize("form", [convolution.gathered, convolution.winograd])
@pytest.mark.parametrize(("h", "w"), [(16, 2), (16, 10), (48, 6)])
def test_each_form_is_the_convolution(form, h, w):
    """The error is float32's rounding of sums of 45 terms."""
    x, kernel = _operands(h, w)
    np.testing.assert_allclose(jax.jit(form)(x, kernel), _torch(x, kernel), atol=2e-5)


@pytest.mark.parametrize(
    ("shape", "channels", "dtype", "form"),
    [
        ((16, 16), 32, jnp.float32, "gathered"),
        ((16, 18), 32, jnp.float32, None),
        ((128, 128), 32, jnp.float32, "winograd"),
        ((128, 128), 31, jnp.float32, None),
        ((128, 128), 32, jnp.bfloat16, None),
        ((120, 140), 32, jnp.float32, None),  # rows do not fill the strips
        ((128, 129), 32, jnp.float32, None),
    ],
)
def test_the_form_is_chosen_by_shape_on_cpu(monkeypatch, shape, channels, dtype, form):
    x = jax.ShapeDtypeStruct((1, *shape, channels), dtype)
    kernel = jax.ShapeDtypeStruct((3, 3, channels, 8), dtype)
    chosen = []
    for name in ("gathered", "winograd"):
        original = getattr(convolution, name)
        monkeypatch.setattr(
            convolution,
            name,
            lambda *args, name=name, original=original: chosen.append(name) or original(*args),
        )

    def traced(**options):
        chosen.clear()
        out = jax.eval_shape(lambda x, k: convolution.convolve(x, k, **options), x, kernel)
        return out.shape, list(chosen)

    assert traced() == ((1, *shape, 8), [form] if form else [])
    halved = (1, *(-(-side // 2) for side in shape), 8)
    assert traced(stride=2) == (halved, [])
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert traced() == ((1, *shape, 8), [])
