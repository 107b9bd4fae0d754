"""Tables as markdown that reads well as it is."""

from collections.abc import Collection, Iterable, Sequence
from typing import Any


def aligned(
    head: Sequence[str], lines: Iterable[Sequence[Any]], texts: Collection[str] = ()
) -> str:
    """Writes a markdown table, whose first column and those of `texts` stand to the left."""
    cells = [[str(cell) for cell in line] for line in (head, *lines)]
    sides = ["<" if name in (head[0], *texts) else ">" for name in head]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    rule = [f"{':' * (s == '>'):->{w}}" for s, w in zip(sides, widths, strict=True)]

    def line(texts: Sequence[str]) -> str:
        parts = zip(texts, sides, widths, strict=True)
        return f"| {' | '.join(f'{text:{side}{width}}' for text, side, width in parts)} |\n"

    return "".join(map(line, [cells[0], rule, *cells[1:]]))
