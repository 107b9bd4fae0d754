"""CLIP at full size against transformers, random weights: python -m experiments.clip_parity.

Prints the relative Frobenius error of the patch features, the pooled image embedding and the text
embedding, float32 (wanted 1e-5) and bfloat16 (wanted 2e-2, against float32 torch).
"""

import gc
import tempfile

import jax.numpy as jnp
import numpy as np
import torch
import transformers

from dsolo_jax import clip
from dsolo_jax.clip.config import config_json

_MODELS = {"B/16": clip.VIT_B16, "L/14": clip.VIT_L14}
_SIZES = [(224, 224), (336, 448), (448, 336)]


def _error(found, expected) -> float:
    found = np.asarray(found, np.float64).ravel()
    expected = np.asarray(expected, np.float64).ravel()
    return float(np.linalg.norm(found - expected) / np.linalg.norm(expected))


def _reference(config: clip.ClipConfig) -> transformers.CLIPModel:
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


def main() -> None:
    random = np.random.default_rng(0)
    print(f"{'model':6} {'input':10} {'output':8} {'float32':>9} {'bfloat16':>9}")
    for name, config in _MODELS.items():
        cases = []
        with tempfile.TemporaryDirectory() as folder, torch.inference_mode():
            model = _reference(config)
            for size in _SIZES:
                pixels = random.standard_normal((1, *size, 3), np.float32)
                out = model.vision_model(
                    torch.tensor(pixels).permute(0, 3, 1, 2), interpolate_pos_encoding=True
                )
                normed = model.vision_model.post_layernorm(out.last_hidden_state[:, 1:])
                patches = model.visual_projection(normed).numpy()
                pooled = model.visual_projection(out.pooler_output).numpy()
                cases.append(
                    ("x".join(map(str, size)), pixels, {"patches": patches, "pooled": pooled})
                )
            end = config.text.eos_token_id
            token_ids = random.integers(0, end - 1, (8, 77))
            token_ids[np.arange(8), random.integers(2, 77, 8)] = end
            text = model.get_text_features(torch.tensor(token_ids)).pooler_output
            cases.append(("8 texts", token_ids, {"text": text.numpy()}))
            model.save_pretrained(folder)
            del model
            gc.collect()
            errors = {}
            for dtype in (jnp.float32, jnp.bfloat16):
                _, params = clip.load(folder, dtype)
                for case, given, expected in cases:
                    if "text" in expected:
                        found = {"text": clip.encode_text(params, config, given)}
                    else:
                        found = clip.encode_image(params, config, given)._asdict()
                    for output, value in expected.items():
                        errors.setdefault((case, output), []).append(_error(found[output], value))
        for (case, output), (single, half) in errors.items():
            print(f"{name:6} {case:10} {output:8} {single:9.1e} {half:9.1e}", flush=True)


if __name__ == "__main__":
    main()
