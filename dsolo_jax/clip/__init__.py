"""CLIP: pictures and words into one space."""

from dsolo_jax.clip.config import VIT_B16, VIT_L14, ClipConfig, TextConfig, VisionConfig
from dsolo_jax.clip.starts import STARTS, needs_graph
from dsolo_jax.clip.tokenizer import load_tokenizer
from dsolo_jax.clip.towers import (
    ImageEncoding,
    encode_image,
    encode_patches,
    encode_text,
    encode_tokens,
)
from dsolo_jax.clip.weights import init, load, save
from dsolo_jax.transformer import patchify

__all__ = [
    "STARTS",
    "VIT_B16",
    "VIT_L14",
    "ClipConfig",
    "ImageEncoding",
    "TextConfig",
    "VisionConfig",
    "encode_image",
    "encode_patches",
    "encode_text",
    "encode_tokens",
    "init",
    "load",
    "load_tokenizer",
    "needs_graph",
    "patchify",
    "save",
]
