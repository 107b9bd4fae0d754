"""CLIP of the real sizes against transformers, random weights: ViT-B/16 and ViT-L/14.

python -m pytest tests/full_size/test_clip_parity.py -m full_size -s

Takes minutes and about 6 GB. Prints the relative Frobenius error of the patch features, the pooled
image embedding and the text embedding, in float32 and in bfloat16 against torch's float32.
"""

import gc

import jax.numpy as jnp
import numpy as np
import pytest

from dsolo_jax import clip
from dsolo_jax.clip.config import config_json

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

pytestmark = pytest.mark.full_size

SIZES = [(224, 224), (336, 448), (448, 336)]
WANTED = {jnp.float32: 1e-5, jnp.bfloat16: 2e-2}


def error(found, expected) -> float:
    found, expected = (np.asarray(x, np.float64).ravel() for x in (found, expected))
    return float(np.linalg.norm(found - expected) / np.linalg.norm(expected))


def reference(config: clip.ClipConfig):
    """transformers' model, its weights large enough that every block changes its input.

    As initialised, the blocks write next to nothing into the residual stream and the positions are
    lost in it: an error in either would stay hidden.
    """
    torch.manual_seed(0)
    content = {k: v for k, v in config_json(config).items() if k != "architectures"}
    model = transformers.CLIPModel(transformers.CLIPConfig(**content)).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name or name.endswith("bias"):
                parameter += 0.1 * torch.randn_like(parameter)
            elif "embedding" in name:
                parameter.normal_(std=0.5 if "patch" not in name else 0.05)
            elif parameter.ndim == 2:
                parameter.normal_(std=parameter.shape[1] ** -0.5)
    return model


@pytest.fixture(params=[clip.VIT_B16, clip.VIT_L14], ids=["B/16", "L/14"])
def case(request, tmp_path):
    """The config, its checkpoint, and (given, what torch makes of it) of pictures and of texts."""
    config, random, cases = request.param, np.random.default_rng(0), {}
    with torch.inference_mode():
        model = reference(config)
        for size in SIZES:
            pixels = random.standard_normal((1, *size, 3), np.float32)
            out = model.vision_model(
                torch.tensor(pixels).permute(0, 3, 1, 2), interpolate_pos_encoding=True
            )
            normed = model.vision_model.post_layernorm(out.last_hidden_state[:, 1:])
            patches = model.visual_projection(normed).numpy()
            pooled = model.visual_projection(out.pooler_output).numpy()
            cases["x".join(map(str, size))] = pixels, {"patches": patches, "pooled": pooled}
        end = config.text.eos_token_id
        token_ids = random.integers(0, end - 1, (8, 77))
        token_ids[np.arange(8), random.integers(2, 77, 8)] = end
        text = model.get_text_features(torch.tensor(token_ids)).pooler_output
        cases["8 texts"] = token_ids, {"text": text.numpy()}
        model.save_pretrained(tmp_path)
    del model
    gc.collect()
    return config, tmp_path, cases


def test_embeddings_are_transformers(case):
    config, folder, cases = case
    for dtype, wanted in WANTED.items():
        _, params = clip.load(folder, dtype)
        for name, (given, expected) in cases.items():
            if "text" in expected:
                found = {"text": clip.encode_text(params, config, given)}
            else:
                found = clip.encode_image(params, config, given)._asdict()
            for output, value in expected.items():
                off = error(found[output], value)
                print(f"\n{name:10} {output:8} {jnp.dtype(dtype).name:9} {off:9.1e}", end="")
                assert off < wanted, (name, output, dtype)
