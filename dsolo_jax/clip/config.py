"""CLIP's sizes, by the names and defaults of its own config.json."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dsolo_jax import checkpoints
from dsolo_jax.checkpoints import Section, section

ACTIVATIONS = ("quick_gelu", "gelu")


@dataclasses.dataclass(frozen=True)
class VisionConfig:
    """The image tower; the defaults are those of transformers for a missing key."""

    hidden_size: int = 768
    intermediate_size: int = 3072
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    image_size: int = 224
    patch_size: int = 32
    num_channels: int = 3
    hidden_act: str = "quick_gelu"
    layer_norm_eps: float = 1e-5


@dataclasses.dataclass(frozen=True)
class TextConfig:
    """The text tower; the defaults are those of transformers for a missing key."""

    vocab_size: int = 49408
    hidden_size: int = 512
    intermediate_size: int = 2048
    num_hidden_layers: int = 12
    num_attention_heads: int = 8
    max_position_embeddings: int = 77
    hidden_act: str = "quick_gelu"
    layer_norm_eps: float = 1e-5
    eos_token_id: int = 49407


@dataclasses.dataclass(frozen=True)
class ClipConfig:
    """Both towers and the size of the space they share."""

    vision: VisionConfig = VisionConfig()
    text: TextConfig = TextConfig()
    projection_dim: int = 512


VIT_B16 = ClipConfig(vision=VisionConfig(patch_size=16))
VIT_L14 = ClipConfig(
    vision=VisionConfig(1024, 4096, num_hidden_layers=24, num_attention_heads=16, patch_size=14),
    text=TextConfig(hidden_size=768, intermediate_size=3072, num_attention_heads=12),
    projection_dim=768,
)


def _tower(kind: type[Section], content: Mapping[str, Any], where: str) -> Section:
    config = section(kind, content, where)
    if config.hidden_act not in ACTIVATIONS:
        raise ValueError(
            f"{where}: hidden_act is {config.hidden_act!r}, wanted one of "
            f"{', '.join(ACTIVATIONS)}; give another CLIP checkpoint"
        )
    if config.hidden_size % config.num_attention_heads:
        raise ValueError(
            f"{where}: hidden_size {config.hidden_size} is no multiple of "
            f"num_attention_heads {config.num_attention_heads}; restore the checkpoint's config"
        )
    return config


def read_config(directory: Path) -> ClipConfig:
    """The config of a CLIP checkpoint in the layout of transformers.

    Raises:
        FileNotFoundError: no config.json.
        ValueError: it is no CLIP model's, or a key has an unusable value.
    """
    path = directory / "config.json"
    content = checkpoints.read_json(path)
    if content.get("model_type") != "clip":
        raise ValueError(
            f"{path}: model_type is {content.get('model_type')!r}, wanted 'clip' (OpenAI's, "
            "OpenCLIP's and MetaCLIP's checkpoints in transformers' CLIPModel layout)"
        )

    def tower(kind: type[Section], name: str) -> Section:
        # Old config files carry a `<name>_dict` too; transformers lets it overrule `<name>`.
        sections = (content.get(f"{name}_dict"), content.get(name), {})
        return _tower(kind, next(s for s in sections if s is not None), f"{path}, {name}")

    vision, text = tower(VisionConfig, "vision_config"), tower(TextConfig, "text_config")
    if vision.image_size % vision.patch_size or vision.num_channels != 3:
        raise ValueError(
            f"{path}, vision_config: image_size {vision.image_size} must be a multiple of "
            f"patch_size {vision.patch_size}, and num_channels {vision.num_channels} be 3; "
            "restore the checkpoint's config"
        )
    return section(ClipConfig, {**content, "vision": vision, "text": text}, str(path))


def read_text_config(directory: Path) -> TextConfig:
    """The config of a CLIP text tower in the layout of transformers' CLIPTextModel.

    Raises:
        FileNotFoundError: no config.json.
        ValueError: it is no CLIP text tower's, or a key has an unusable value.
    """
    path = directory / "config.json"
    content = checkpoints.read_json(path)
    checkpoints.require(content, {"model_type": ("clip_text_model",)}, str(path))
    return _tower(TextConfig, content, str(path))


def config_json(config: ClipConfig) -> dict[str, Any]:
    """The content of config.json that transformers' CLIPModel reads."""
    return {
        "architectures": ["CLIPModel"],
        "model_type": "clip",
        "projection_dim": config.projection_dim,
        "vision_config": {
            "model_type": "clip_vision_model",
            "projection_dim": config.projection_dim,
            **dataclasses.asdict(config.vision),
        },
        "text_config": {
            "model_type": "clip_text_model",
            "projection_dim": config.projection_dim,
            **dataclasses.asdict(config.text),
        },
    }
