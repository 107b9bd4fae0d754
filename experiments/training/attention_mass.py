"""Of a patch graph: how much of a row's mass lies on patches of the row's own class.

Letters: B pictures, S side of a picture in pixels, r side of the graph's grid, N = r · r.
"""

import math

import numpy as np
from jaxtyping import Float, UInt8


def own_mass(
    attention: Float[np.ndarray, "B N N"], labels: UInt8[np.ndarray, "B S S"], first_thing: int
) -> list[float]:
    """Measures the share of a row's mass on patches of the row's own class, mean over the rows.

    Args:
        attention: rows sum to one.
        labels: of the pixels; classes from `first_thing` on are things.

    Returns:
        That share; what it would be if the rows were flat; both over the rows of things.
    """
    batch, n = attention.shape[:2]
    classes = majority(labels, labels.shape[1] // math.isqrt(n)).reshape(batch, n)
    same, things = classes[:, :, None] == classes[:, None], classes >= first_thing
    own, flat = (attention * same).sum(-1), same.mean(-1)
    return [float(x.mean()) for x in (own, flat, own[things], flat[things])]


def majority(labels: UInt8[np.ndarray, "B S S"], patch: int) -> UInt8[np.ndarray, "B r r"]:
    """Finds the class that most pixels of each patch are of."""
    b, side, _ = labels.shape
    r = side // patch
    patches = labels.reshape(b, r, patch, r, patch).transpose(0, 1, 3, 2, 4).reshape(b, r, r, -1)
    counts = (patches[..., None] == np.arange(labels.max() + 1)).sum(-2)
    return counts.argmax(-1).astype(np.uint8)
