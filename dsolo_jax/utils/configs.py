"""A checkpoint's config files: JSON objects to dataclasses, every value checked."""

import dataclasses
import json
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

Section = TypeVar("Section")


def read_json(path: Path) -> dict[str, Any]:
    """Reads the JSON object in a file of a checkpoint; ValueError if it is none."""
    if not path.is_file():
        raise FileNotFoundError(
            f"{path.parent} holds no {path.name}; a checkpoint is a folder in the layout of "
            "transformers or diffusers, as `from_pretrained(...).save_pretrained(folder)` leaves it"
        )
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is no JSON ({error}); fetch the file again") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds a JSON {type(content).__name__}, wanted an object")
    return content


def section(kind: type[Section], content: Mapping[str, Any], where: str) -> Section:
    """Makes the dataclass `kind` from the keys of a JSON object that it knows.

    Each value has the type of its field; numbers are above 0, or 0 where that is the field's
    default, and of a size that a network may have; ValueError naming `where` and the key if not. A
    field may have another key in its metadata.
    """
    values = {}
    for field in dataclasses.fields(kind):  # type: ignore[arg-type]
        name = field.metadata.get("key", field.name)
        value = content.get(name, field.default)
        value = tuple(value) if isinstance(value, list) else value
        listed = typing.get_origin(field.type) is tuple
        one: Any = typing.get_args(field.type)[0] if listed else field.type
        items = value if listed and isinstance(value, tuple) else (value,)
        wanted = f"{'a list of' if listed else 'one'} {one.__name__}"
        if listed is not isinstance(value, tuple) or not all(_is_a(x, one) for x in items):
            raise ValueError(f"{where}: {name} is {value!r}, wanted {wanted}")
        zero, most = field.default == 0, 1000 if "layers" in name else 1_000_000
        if one in (int, float) and not all(0 < x <= most or (zero and x == 0) for x in items):
            least = "at least 0" if zero else "above 0"
            raise ValueError(
                f"{where}: {name} is {value!r}, wanted {wanted} {least}, at most {most}"
            )
        values[field.name] = value
    return kind(**values)


def check_multiples(config: Any, where: str, **pairs: str) -> None:
    """Checks that the first size of each pair is a multiple of the second, by their names."""
    for whole, part in pairs.items():
        if getattr(config, whole) % getattr(config, part):
            raise ValueError(
                f"{where}: {whole} {getattr(config, whole)} is no multiple of {part} "
                f"{getattr(config, part)}; restore the checkpoint's config"
            )


def _is_a(value: Any, kind: Any) -> bool:
    if isinstance(value, bool):
        return kind is bool
    return isinstance(value, (int, float) if kind is float else kind)


def require(content: Mapping[str, Any], supported: Mapping[str, Sequence[Any]], where: str) -> None:
    """Checks the keys of a JSON object: ValueError naming every one, of those that are there, whose
    value is none of the `supported`."""
    unknown = [
        f"{key} is {content[key]!r}, wanted {' or '.join(map(repr, values))}"
        for key, values in supported.items()
        if key in content and content[key] not in values
    ]
    if unknown:
        raise ValueError(f"{where}: {'; '.join(unknown)}; nothing else is implemented")
