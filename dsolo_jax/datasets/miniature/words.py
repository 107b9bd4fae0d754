"""What the miniature world consists of: classes, colours, patterns, and which never meet."""

from typing import NamedTuple

STUFF = ("sky", "grass", "water", "sand", "brick", "wood", "snow", "road", "leaves", "lava")
NUM_STUFF = len(STUFF)


class Favour(NamedTuple):
    """Colour and pattern that most things of a class have."""

    colour: str
    pattern: str


# A thing is what its shape says; its favourite colour and pattern are hints that fail at times.
FAVOURS = {
    "ball": Favour("red", "striped"),
    "star": Favour("yellow", "dotted"),
    "ring": Favour("cyan", "checkered"),
    "cross": Favour("lime", "plain"),
    "moon": Favour("white", "speckled"),
    "heart": Favour("pink", "latticed"),
    "arrow": Favour("blue", "zigzag"),
    "house": Favour("black", "halved"),
    "flower": Favour("purple", "swirled"),
}
THINGS = tuple(FAVOURS)
CLASSES = STUFF + THINGS

COLOURS = tuple(favour.colour for favour in FAVOURS.values())
PATTERNS = tuple(favour.pattern for favour in FAVOURS.values())
FAVOURED_COLOUR = 0.9
FAVOURED_PATTERN = 0.85


def _shifted(words: tuple[str, ...], shifts: tuple[int, ...]) -> dict[str, tuple[str, ...]]:
    """For the i-th thing the words i + shift, round and round: each is given equally often."""
    return {
        thing: tuple(words[(i + shift) % len(words)] for shift in shifts)
        for i, thing in enumerate(THINGS)
    }


# Never in a picture or caption of the split train. Each colour and pattern is withheld from two
# things, so all words are learned.
UNSEEN_COLOURS = _shifted(COLOURS, (2, 5))
UNSEEN_PATTERNS = _shifted(PATTERNS, (4, 7))


def seen(thing: str, colour: str, pattern: str) -> bool:
    """Whether the split train may hold such a thing."""
    return colour not in UNSEEN_COLOURS[thing] and pattern not in UNSEEN_PATTERNS[thing]
