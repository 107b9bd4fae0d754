"""CLIP's sizes, by the names and defaults of its own config.json."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dsolo_jax.utils.configs import Section, check_multiples, read_json, require, section

ACTIVATIONS = ("quick_gelu", "gelu")
PREPROCESSOR = "preprocessor_config.json"


@dataclasses.dataclass(frozen=True)
class VisionConfig:
    """The image tower; the defaults are those of transformers for a missing key."""

    hidden_size: int = 768
    intermediate_size: int = 3072
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    image_size: int = 224
    patch_size: int = 32
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
    """Both towers, the size of the space they share, and how pictures are normalised.

    image_mean, image_std: of each channel of pixels in 0..1; the defaults are those of OpenAI's
        CLIP.
    """

    vision: VisionConfig = VisionConfig()
    text: TextConfig = TextConfig()
    projection_dim: int = 512
    image_mean: tuple[float, ...] = (0.48145466, 0.4578275, 0.40821073)
    image_std: tuple[float, ...] = (0.26862954, 0.26130258, 0.27577711)


VIT_B16 = ClipConfig(vision=VisionConfig(patch_size=16))
VIT_L14 = ClipConfig(
    vision=VisionConfig(1024, 4096, num_hidden_layers=24, num_attention_heads=16, patch_size=14),
    text=TextConfig(hidden_size=768, intermediate_size=3072, num_attention_heads=12),
    projection_dim=768,
)


def _tower(kind: type[Section], content: Mapping[str, Any], where: str) -> Section:
    require(content, {"hidden_act": ACTIVATIONS, "num_channels": (3,)}, where)
    config = section(kind, content, where)
    check_multiples(config, where, hidden_size="num_attention_heads")
    return config


def read_config(directory: Path) -> ClipConfig:
    """Reads the config of a CLIP checkpoint in the layout of transformers.

    Pictures are normalised as its preprocessor_config.json says, or as OpenAI's if there is none.
    ValueError if it is no CLIP model's, or a key of either file has an unusable value.
    """
    path = directory / "config.json"
    content = read_json(path)
    if content.get("model_type") != "clip":
        raise ValueError(
            f"{path}: model_type is {content.get('model_type')!r}, wanted 'clip' (OpenAI's, "
            "OpenCLIP's and MetaCLIP's checkpoints in transformers' CLIPModel layout)"
        )

    def tower(kind: type[Section], name: str) -> Section:
        # Old config files carry a `<name>_dict` too; transformers lets it overrule `<name>`.
        sections: tuple[Any, ...] = (content.get(f"{name}_dict"), content.get(name), {})
        chosen = next(s for s in sections if s is not None)
        if not isinstance(chosen, dict):
            raise ValueError(f"{path}: {name} is {chosen!r}, wanted an object")
        return _tower(kind, chosen, f"{path}, {name}")

    vision, text = tower(VisionConfig, "vision_config"), tower(TextConfig, "text_config")
    check_multiples(vision, f"{path}, vision_config", image_size="patch_size")
    config = section(ClipConfig, {**content, "vision": vision, "text": text}, str(path))
    return dataclasses.replace(config, **_read_normalisation(directory / PREPROCESSOR))


def _read_normalisation(path: Path) -> dict[str, Any]:
    content = read_json(path) if path.is_file() else {}
    as_we_do = {"do_rescale": (True,), "rescale_factor": (1 / 255,), "do_normalize": (True,)}
    require(content, as_we_do, str(path))
    found = {}
    for key, least in (("image_mean", 0.0), ("image_std", 1e-6)):
        value = content.get(key, getattr(ClipConfig, key))
        try:
            found[key] = tuple(float(x) for x in value)
            usable = len(found[key]) == 3 and all(least <= x <= 1 for x in found[key])
        except (TypeError, ValueError):
            usable = False
        if not usable:
            raise ValueError(
                f"{path}: {key} is {value!r}, wanted three numbers from {least:g} to 1, for pixels "
                "in 0..1; restore the checkpoint's file"
            )
    return found


def read_text_config(directory: Path) -> TextConfig:
    """Reads the config of a CLIP text tower in the layout of transformers' CLIPTextModel."""
    path = directory / "config.json"
    content = read_json(path)
    require(content, {"model_type": ("clip_text_model",)}, str(path))
    return _tower(TextConfig, content, str(path))


def config_json(config: ClipConfig) -> dict[str, Any]:
    """Gives the content of config.json that transformers' CLIPModel reads."""
    return {
        "architectures": ["CLIPModel"],
        "model_type": "clip",
        "projection_dim": config.projection_dim,
        **{
            f"{name}_config": {
                "model_type": f"clip_{name}_model",
                "projection_dim": config.projection_dim,
                **dataclasses.asdict(getattr(config, name)),
            }
            for name in ("vision", "text")
        },
    }


def preprocessor_json(config: ClipConfig) -> dict[str, Any]:
    """Gives the content of preprocessor_config.json that transformers' image processor reads."""
    side = config.vision.image_size
    return {
        "image_processor_type": "CLIPImageProcessor",
        "size": {"shortest_edge": side},
        "crop_size": {"height": side, "width": side},
        "image_mean": config.image_mean,
        "image_std": config.image_std,
    }
