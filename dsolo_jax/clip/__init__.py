"""CLIP: pictures and words into one space."""

from dsolo_jax.checkpoints import Params
from dsolo_jax.clip.config import VIT_B16, VIT_L14, ClipConfig, TextConfig, VisionConfig
from dsolo_jax.clip.model import (
    STARTS,
    ImageEncoding,
    encode_image,
    encode_patches,
    encode_text,
    patchify,
)
from dsolo_jax.clip.tokenizer import load_tokenizer
from dsolo_jax.clip.weights import init, load, save

__all__ = [
    "STARTS",
    "VIT_B16",
    "VIT_L14",
    "ClipConfig",
    "ImageEncoding",
    "Params",
    "TextConfig",
    "VisionConfig",
    "encode_image",
    "encode_patches",
    "encode_text",
    "init",
    "load",
    "load_tokenizer",
    "patchify",
    "save",
]
