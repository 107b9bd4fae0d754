"""The 80 prompt templates of OpenAI's CLIP for ImageNet (notebooks of openai/CLIP, MIT licence)."""

from pathlib import Path

_FILE = Path(__file__).parent / "assets" / "imagenet_templates.txt"

IMAGENET_TEMPLATES = tuple(_FILE.read_text(encoding="utf-8").splitlines())
