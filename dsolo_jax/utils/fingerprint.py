"""Short names for what a result depends on: texts, weights, code."""

import functools
import hashlib
from pathlib import Path
from typing import Any

import jax
import numpy as np


def of_strings(*texts: str) -> str:
    """Gives 40 hex digits that other texts, or the same in another order, do not have."""
    digest = hashlib.blake2b(digest_size=20)
    for text in texts:
        digest.update(f"{len(text)}:{text}".encode())
    return digest.hexdigest()


def of_arrays(tree: Any) -> str:
    """Gives the same of a tree of arrays: their places in it, types, shapes and every byte."""
    digest = hashlib.blake2b(digest_size=20)
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        digest.update(f"{jax.tree_util.keystr(path)} {leaf.dtype} {leaf.shape}".encode())
        digest.update(np.ascontiguousarray(leaf).reshape(-1).view(np.uint8).data)
    return digest.hexdigest()


@functools.cache
def of_code() -> str:
    """Gives the same of the package's Python files."""
    package = Path(__file__).parents[1]
    files = sorted(package.rglob("*.py"))
    return of_strings(*(f"{f.relative_to(package)} {f.read_text(encoding='utf-8')}" for f in files))
