"""What the miniature world consists of: classes, colours, patterns, and which never meet."""

from typing import NamedTuple

STUFF = ("sky", "grass", "water", "sand", "brick", "wood", "snow", "road", "leaves", "lava")
NUM_STUFF = len(STUFF)
THINGS = ("ball", "star", "ring", "cross", "moon", "heart", "arrow", "house", "flower")
CLASSES = STUFF + THINGS


class Look(NamedTuple):
    """Words for one side of how things look, all alike but for those that a thing never has.

    unseen: of each thing, a third of the words, which no picture or caption of the split train ever
        gives it.
    """

    words: tuple[str, ...]
    unseen: dict[str, tuple[str, ...]]


def _look(words: str, shifts: tuple[int, int, int]) -> Look:
    """Withholds the words that far behind a thing's own place, so each word from three things."""
    names = tuple(words.split())
    unseen = {
        thing: tuple(names[(i + shift) % len(names)] for shift in shifts)
        for i, thing in enumerate(THINGS)
    }
    return Look(names, unseen)


COLOURS = _look("red yellow cyan lime white pink blue black purple", (2, 5, 6))
PATTERNS = _look(
    "striped dotted checkered plain speckled latticed zigzag halved swirled", (1, 3, 7)
)
