"""A small convolutional CLIP that shows a vision transformer what to look at.

Convolutions learn shapes from far fewer pictures than a transformer needs, as what they learn at
one place they know everywhere. So one is trained first, by CLIP's own loss on the same pictures
and sentences, and the transformer starts as what has learned to foretell its features. Letters: B
pictures, S their side in pixels, D shared space.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from dsolo_jax.checkpoints import Params
from dsolo_jax.clip import ClipConfig
from experiments.training import contrastive

# Channels and stride of each convolution: the last ones are the shared space, and the strides
# multiply to the patch size.
_LAYERS = ((32, 2), (64, 2), (64, 1), (128, 2), (128, 1), (128, 1))


class _ConvNet(nn.Module):
    @nn.compact
    def __call__(self, x: Float[Array, "B S S 3"]) -> Float[Array, "B h w D"]:
        for channels, stride in _LAYERS:
            x = nn.Conv(channels, (3, 3), stride, padding=1, use_bias=False)(x)
            x = nn.gelu(nn.LayerNorm()(x))
        return x


def init(params: Params, key: jax.Array) -> Params:
    """Random convolutions, beside the text tower of a CLIP's `params`."""
    convolutions = _ConvNet().init(key, jnp.zeros((1, 16, 16, 3)))["params"]
    return {name: params[name] for name in ("text", "logit_scale")} | {"convolutions": convolutions}


def features(params: Params, pictures: Float[Array, "B S S 3"]) -> Float[Array, "B h w D"]:
    """Gives what the network sees in each patch of pictures in 0..1."""
    return _ConvNet().apply({"params": params["convolutions"]}, (pictures - 0.45) / 0.26)


def embed(params: Params, pictures: Float[Array, "B S S 3"]) -> Float[Array, "B D"]:
    """Gives a picture's embedding, of length 1: the mean of its features."""
    return contrastive.unit(features(params, pictures).mean(axis=(1, 2)))


def loss(params: Params, batch: contrastive.Batch, config: ClipConfig) -> Float[Array, ""]:
    """CLIP's own."""
    pictures = embed(params, batch.pictures)
    return contrastive.sentences(params, pictures, batch.captions, config)
