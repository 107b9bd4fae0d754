"""What the miniature world consists of: classes, colours, patterns, and which never meet."""

from typing import NamedTuple

STUFF = ("sky", "grass", "water", "sand", "brick", "wood", "snow", "road", "leaves", "lava")
NUM_STUFF = len(STUFF)
THINGS = ("ball", "star", "ring", "cross", "moon", "heart", "arrow", "house", "flower")
CLASSES = STUFF + THINGS


class Look(NamedTuple):
    """Words for one side of how things look.

    words: the i-th is the favourite of the i-th thing, a hint of its class that fails at times.
    share: of the things that have their favourite.
    unseen: of each thing, what no picture or caption of the split train ever gives it.
    """

    words: tuple[str, ...]
    share: float
    unseen: dict[str, tuple[str, ...]]


def _look(words: str, share: float, shifts: tuple[int, int]) -> Look:
    """Withholds from each thing the words so far behind its own, so each word from two things."""
    names = tuple(words.split())
    unseen = {
        thing: tuple(names[(i + shift) % len(names)] for shift in shifts)
        for i, thing in enumerate(THINGS)
    }
    return Look(names, share, unseen)


COLOURS = _look("red yellow cyan lime white pink blue black purple", 0.9, (2, 5))
PATTERNS = _look(
    "striped dotted checkered plain speckled latticed zigzag halved swirled", 0.85, (4, 7)
)
