"""DINO's sizes, by the names and defaults of its own config.json."""

import dataclasses
from pathlib import Path
from typing import Any

from dsolo_jax.utils.configs import check_multiples, read_json, require, section

# transformers' defaults for a key that a config.json lacks, where they differ from DinoConfig's.
_DEFAULTS: dict[str, dict[str, Any]] = {
    "vit": {"patch_size": 16, "layer_norm_eps": 1e-12},
    "dinov2": {},
    "dinov2_with_registers": {"patch_size": 16, "num_register_tokens": 4},
}


@dataclasses.dataclass(frozen=True)
class DinoConfig:
    """One tower: DINO ("vit"), DINOv2 ("dinov2") or DINOv2 with registers.

    hidden_act: "gelu", "quick_gelu" or, where config.json says use_swiglu_ffn, "swiglu".
    """

    model_type: str = "dinov2"
    hidden_size: int = 768
    intermediate_size: int = 3072
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    image_size: int = 224
    patch_size: int = 14
    hidden_act: str = "gelu"
    layer_norm_eps: float = 1e-6
    num_register_tokens: int = 0

    @property
    def layer_scale(self) -> bool:
        """Whether a vector scales what each block adds."""
        return self.model_type != "vit"


DINO_B16 = DinoConfig("vit", patch_size=16, layer_norm_eps=1e-12)
DINOV2_B14 = DinoConfig(image_size=518)


@dataclasses.dataclass(frozen=True)
class _FeedForward:
    """The keys from which DINOv2 derives its hidden width and activation."""

    mlp_ratio: float = 4
    use_swiglu_ffn: bool = False


def read_config(directory: Path) -> DinoConfig:
    """Reads the config of a DINO checkpoint in the layout of transformers; ValueError if it is no
    DINO's, or a key has an unusable value."""
    path = directory / "config.json"
    content = read_json(path)
    kind = content.get("model_type")
    if (defaults := _DEFAULTS.get(str(kind))) is None:
        raise ValueError(
            f"{path}: model_type is {kind!r}, wanted 'vit' (DINO), 'dinov2' or "
            "'dinov2_with_registers'; give a checkpoint such as facebook/dino-vitb16 or "
            "facebook/dinov2-base"
        )
    known = {"hidden_act": ("gelu", "quick_gelu"), "num_channels": (3,), "qkv_bias": (True,)}
    require(content, known, str(path))
    if kind != "dinov2_with_registers":
        content["num_register_tokens"] = 0
    config = section(DinoConfig, {**defaults, **content}, str(path))
    if config.layer_scale:
        keys = section(_FeedForward, content, str(path))
        sizes: dict[str, Any] = {"intermediate_size": int(config.hidden_size * keys.mlp_ratio)}
        if keys.use_swiglu_ffn:
            # Two thirds, as there are two products on the way in, rounded up to a multiple of 8.
            width = (int(sizes["intermediate_size"] * 2 / 3) + 7) // 8 * 8
            sizes = {"intermediate_size": width, "hidden_act": "swiglu"}
        config = dataclasses.replace(config, **sizes)
    check_multiples(config, str(path), hidden_size="num_attention_heads", image_size="patch_size")
    return config
