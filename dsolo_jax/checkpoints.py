"""Checkpoints in the layouts of transformers and diffusers: found, read, and turned into trees.

A conversion is a table of rows (source name, target path, transform), read in both directions:
`convert` fills a parameter tree from a checkpoint, `export` names a tree's arrays as the checkpoint
does.
"""

import dataclasses
import json
import os
import re
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
import safetensors
import safetensors.numpy
from jax.typing import DTypeLike

from dsolo_jax.utils.files import atomic

Params = dict[str, Any]

Section = TypeVar("Section")

_OTHER_FORMATS = (".bin", ".pt", ".pth", ".ckpt", ".msgpack", ".h5")


# ------------------------------------------------------------------------- finding and reading


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in a file of a checkpoint.

    Raises:
        FileNotFoundError: the folder has no such file.
        ValueError: it is no JSON object.
    """
    if not path.is_file():
        raise FileNotFoundError(
            f"{path.parent} holds no {path.name}; a checkpoint is a folder in the layout of "
            "transformers or diffusers, as `from_pretrained(...).save_pretrained(folder)` leaves it"
        )
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is no JSON ({error}); fetch the file again") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds a JSON {type(content).__name__}, wanted an object")
    return content


class WeightFiles(NamedTuple):
    """The names under which transformers and diffusers keep a model's weights.

    single: all of them in one file, otherwise
    index: the JSON object that names the file of each, and
    shards: a pattern of those files.
    """

    single: str
    index: str
    shards: str


def weight_files(stem: str = "model", variant: str = "") -> WeightFiles:
    """Of weights kept several times: "fp16" is the variant in float16, "" the plain one."""
    dotted = f".{variant}" if variant else ""
    return WeightFiles(
        f"{stem}{dotted}.safetensors",
        f"{stem}.safetensors.index{dotted}.json",
        f"{stem}{dotted}-*.safetensors",
    )


def has_tensors(directory: Path, stem: str = "model", variant: str = "") -> bool:
    """Whether a folder holds these weights, or the index of their shards."""
    files = weight_files(stem, variant)
    return (directory / files.single).is_file() or (directory / files.index).is_file()


def read_tensors(
    directory: Path,
    stem: str = "model",
    variants: Sequence[str] = ("",),
    ignore: Iterable[str] = (),
) -> dict[str, np.ndarray]:
    """All tensors of a model, of its first variant that is there, dtypes as in the file.

    Args:
        directory, stem: where they are, and the first part of the files' names.
        variants: in order of preference, see `weight_files`.
        ignore: patterns, e.g. "decoder.*", of tensors that are left in the file.

    Raises:
        FileNotFoundError: no variant is there (only safetensors is read: other formats may run code
            when opened), or a shard is missing.
        ValueError: a file is truncated or corrupt.
    """
    ignore = tuple(ignore)
    return {
        name: tensor
        for path in _tensor_files(directory, stem, variants)
        for name, tensor in _read_file(path, ignore).items()
    }


def _tensor_files(directory: Path, stem: str, variants: Sequence[str]) -> list[Path]:
    variant = next((v for v in variants if has_tensors(directory, stem, v)), None)
    if variant is None:
        wanted = " or ".join(weight_files(stem, v).single for v in variants)
        others = sorted(p.name for p in directory.iterdir() if p.suffix in _OTHER_FORMATS)
        found = f", only {', '.join(others)}" if others else ""
        raise FileNotFoundError(
            f"{directory} holds no {wanted}{found}; only safetensors is read. Convert once, "
            "where the library that wrote it is installed: "
            "from_pretrained(...).save_pretrained(folder, safe_serialization=True)"
        )
    files = weight_files(stem, variant)
    if (directory / files.single).is_file():
        return [directory / files.single]
    names = sorted(set(read_json(directory / files.index).get("weight_map", {}).values()))
    missing = [name for name in names if not (directory / name).is_file()]
    if missing or not names:
        raise FileNotFoundError(
            f"{directory / files.index} names {len(names)} shards, of which {directory} lacks: "
            f"{', '.join(missing) or 'all'}; fetch them again"
        )
    return [directory / name for name in names]


def _read_file(path: Path, ignore: Sequence[str]) -> dict[str, np.ndarray]:
    try:
        with safetensors.safe_open(path, framework="numpy") as file:
            return {
                name: file.get_tensor(name)
                for name in file.keys()
                if not any(fnmatchcase(name, pattern) for pattern in ignore)
            }
    except (safetensors.SafetensorError, OSError) as error:
        raise ValueError(
            f"{path} ({path.stat().st_size} bytes) is truncated or no safetensors file ({error}); "
            "fetch it again"
        ) from error


def write_tensors(path: Path, tensors: Mapping[str, np.ndarray]) -> None:
    """Writes one safetensors file, under a temporary name first."""
    contiguous = {name: np.asarray(value, order="C") for name, value in tensors.items()}
    with atomic(path) as temporary:
        # transformers refuses a file that does not say which library's layout it has.
        safetensors.numpy.save_file(contiguous, temporary, metadata={"format": "pt"})


# ------------------------------------------------------------------------------------ configs


def section(kind: type[Section], content: Mapping[str, Any], where: str) -> Section:
    """The dataclass `kind` from the keys of a JSON object that it knows, each of the right type.

    Raises:
        ValueError: naming `where`, the key, its value and the type wanted.
    """
    values = {}
    for field in dataclasses.fields(kind):
        value = content.get(field.name, field.default)
        value = tuple(value) if isinstance(value, list) else value
        if not _is_a(value, field.type):
            raise ValueError(f"{where}: {field.name} is {value!r}, wanted {_wanted(field.type)}")
        values[field.name] = value
    return kind(**values)


def _is_a(value: Any, annotation: Any) -> bool:
    if typing.get_origin(annotation) is tuple:
        item = typing.get_args(annotation)[0]
        return isinstance(value, tuple) and all(_is_a(x, item) for x in value)
    if annotation is not bool and isinstance(value, bool):
        return False
    return isinstance(value, (int, float) if annotation is float else annotation)


def _wanted(annotation: Any) -> str:
    if typing.get_origin(annotation) is tuple:
        return f"a list of {typing.get_args(annotation)[0].__name__}"
    return f"one {annotation.__name__}"


def require(content: Mapping[str, Any], supported: Mapping[str, Sequence[Any]], where: str) -> None:
    """Checks a JSON object against the values of its keys that are implemented.

    Args:
        supported: the values of each key; a key may be missing.

    Raises:
        ValueError: naming `where` and every key with another value.
    """
    unknown = [
        f"{key} is {content[key]!r}, wanted {' or '.join(map(repr, values))}"
        for key, values in supported.items()
        if key in content and content[key] not in values
    ]
    if unknown:
        raise ValueError(f"{where}: {'; '.join(unknown)}: this architecture is not implemented")


# -------------------------------------------------------------------------------- conversions


class Transform(NamedTuple):
    """An invertible change of layout between a checkpoint's array and ours."""

    load: Callable[[np.ndarray], np.ndarray]
    export: Callable[[np.ndarray], np.ndarray]


def _permutation(*axes: int) -> Transform:
    inverse = tuple(int(axis) for axis in np.argsort(axes))
    return Transform(lambda x: x.transpose(axes), lambda x: x.transpose(inverse))


same = Transform(lambda x: x, lambda x: x)
linear = _permutation(1, 0)  # [out, in] <-> [in, out]
convolution = _permutation(2, 3, 1, 0)  # [out, in, H, W] <-> [H, W, in, out]
pointwise = Transform(  # [out, in, 1, 1] <-> [in, out]
    lambda x: x.squeeze((2, 3)).T, lambda x: x.T[:, :, None, None]
)


class Row(NamedTuple):
    """One row of a conversion table.

    source: name in the checkpoint; a field such as {i} stands for any integer.
    target: path in the tree, keys separated by "/", with the same fields.
    """

    source: str
    target: str
    transform: Transform = same

    def convert(self, name: str) -> str | None:
        """The target path of a source name, None if the row is not about it."""
        return _substitute(self.source, self.target, name)

    def export(self, path: str) -> str | None:
        """The source name of a target path, None if the row is not about it."""
        return _substitute(self.target, self.source, path)


def _substitute(pattern: str, replacement: str, name: str) -> str | None:
    literal = re.escape(pattern).replace(r"\{", "{").replace(r"\}", "}")
    match = re.fullmatch(re.sub(r"\{(\w+)\}", r"(?P<\1>\\d+)", literal), name)
    return match and replacement.format(**match.groupdict())


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """{"a": {"b": leaf}} -> {"a/b": leaf}."""
    flat = {}
    for key, value in tree.items():
        inner = isinstance(value, Mapping)
        flat |= flatten(value, f"{prefix}{key}/") if inner else {f"{prefix}{key}": value}
    return flat


def unflatten(flat: Mapping[str, Any]) -> Params:
    """{"a/b": leaf} -> {"a": {"b": leaf}}."""
    tree: Params = {}
    for path, leaf in flat.items():
        *parents, last = path.split("/")
        node = tree
        for key in parents:
            node = node.setdefault(key, {})
        node[last] = leaf
    return tree


def convert(
    tensors: Mapping[str, np.ndarray],
    rows: Iterable[Row],
    shapes: Mapping[str, Any],
    *,
    source: str | os.PathLike = "checkpoint",
) -> Params:
    """The parameter tree of a checkpoint, dtypes as in the file.

    Args:
        tensors: the checkpoint, name -> array.
        rows: the conversion table.
        shapes: the tree wanted, of anything with a `shape`, e.g. from `jax.eval_shape`.
        source: what the error calls the checkpoint.

    Raises:
        ValueError: listing every name without a row, every target left unfilled and every wrong
            shape: the checkpoint is of another architecture, or damaged.
    """
    rows = tuple(rows)
    wanted = {path: tuple(leaf.shape) for path, leaf in flatten(shapes).items()}
    filled: dict[str, np.ndarray] = {}
    problems = []
    for name, tensor in tensors.items():
        path, transform = next(
            ((path, row.transform) for row in rows if (path := row.convert(name)) in wanted),
            (None, same),
        )
        if path is None:
            problems.append(f"unknown: {name} {tensor.shape}")
            continue
        try:
            filled[path] = transform.load(tensor)
        except (ValueError, IndexError):  # another number of axes
            filled[path] = tensor
        if filled[path].shape != wanted[path]:
            problems.append(
                f"wrong shape: {name} {tensor.shape} gives {path} {filled[path].shape}, "
                f"wanted {wanted[path]}"
            )
    for path in wanted.keys() - filled.keys():
        names = [name for row in rows if (name := row.export(path))]
        problems.append(f"missing: {names[0] if names else 'nothing'}, for {path} {wanted[path]}")
    if problems:
        raise ValueError(
            f"{source} does not fit its own config: {len(problems)} problems, so it is a "
            "checkpoint of another architecture or damaged; give one whose weights and config.json "
            "belong together:\n  " + "\n  ".join(sorted(problems))
        )
    return unflatten(filled)


def cast(tree: Mapping[str, Any], dtype: DTypeLike | None) -> Params:
    """A tree on the default device: norms in float32, the rest in `dtype`, float32 if None.

    Norms are computed in float32, and are too small to matter.
    """
    dtype = jnp.float32 if dtype is None else dtype

    def leaf(path: str, value: np.ndarray) -> jax.Array:
        # Cast on the host: on the device each shape would be a program of its own.
        kept = jnp.float32 if "norm" in path else dtype
        return jax.device_put(np.asarray(value).astype(kept, copy=False))

    return unflatten({path: leaf(path, value) for path, value in flatten(tree).items()})


def export(params: Mapping[str, Any], rows: Iterable[Row]) -> dict[str, np.ndarray]:
    """The inverse of `convert`: name in the checkpoint -> array.

    Raises:
        ValueError: listing every path of the tree without a row.
    """
    rows = tuple(rows)
    tensors, unknown = {}, []
    for path, leaf in flatten(params).items():
        row = next((row for row in rows if row.export(path)), None)
        if row is None:
            unknown.append(path)
        else:
            tensors[row.export(path)] = row.transform.export(np.asarray(leaf))
    if unknown:
        raise ValueError(f"the conversion table has no row for: {', '.join(sorted(unknown))}")
    return tensors
