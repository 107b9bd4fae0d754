"""Which class wins a patch: the one with the largest discrepancy there, or the smallest."""

from jaxtyping import Array, Float

from dsolo_jax.utils.checks import choose

# "largest" is the paper's wording, argmax over classes of the discrepancy. It holds where a map is
# small on its own class, as CLIP's unmodified maps are reported to be. "smallest" is for maps that
# are the right way up (docs/method.md, "which sign").
WINNERS = {"smallest": -1.0, "largest": 1.0}


def of_discrepancy(discrepancy: Float[Array, "C N"], winner: str) -> Float[Array, "C N"]:
    """Scores whose largest is the winner's.

    Raises:
        ValueError: unknown winner.
    """
    return WINNERS[choose("winner", winner, WINNERS)] * discrepancy
