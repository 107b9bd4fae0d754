"""Checkpoints in the layouts of transformers and diffusers: found, read, and turned into trees.

A conversion is a table of rows (source name, target path, transform), read in both directions:
`convert` fills a parameter tree from a checkpoint, `export` names a tree's arrays as the checkpoint
does.
"""

import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import safetensors
import safetensors.numpy
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.typing import DTypeLike

from dsolo_jax.utils.configs import read_json
from dsolo_jax.utils.files import atomic

Params = dict[str, Any]


# ------------------------------------------------------------------------- finding and reading


def weight_files(stem: str = "model", variant: str = "") -> tuple[str, str, str]:
    """Names the files in which transformers and diffusers keep a model's weights: the file of all,
    or the JSON object that names the file of each and a pattern of those. Of weights kept several
    times the variant "fp16" is in float16, "" the plain one.
    """
    dotted = f".{variant}" if variant else ""
    return (
        f"{stem}{dotted}.safetensors",
        f"{stem}.safetensors.index{dotted}.json",
        f"{stem}{dotted}-*.safetensors",
    )


def has_tensors(directory: Path, stem: str = "model", variant: str = "") -> bool:
    """Says whether a folder holds these weights, or the index of their shards."""
    return any((directory / name).is_file() for name in weight_files(stem, variant)[:2])


def read_tensors(
    directory: Path,
    stem: str = "model",
    variants: Sequence[str] = ("",),
    ignore: Iterable[str] = (),
) -> dict[str, np.ndarray]:
    """Reads all tensors of a model, of its first variant that is there, dtypes as in the file.

    Args:
        stem: the first part of the files' names.
        variants: in order of preference, see `weight_files`.
        ignore: patterns, e.g. "decoder.*", of tensors that are left in the file.

    Raises:
        FileNotFoundError: no variant is there (only safetensors is read: other formats may run code
            when opened), or a shard is missing.
        ValueError: a file is truncated, corrupt, or of numbers that numpy does not know.
    """
    ignore, tensors = tuple(ignore), {}
    for path in _tensor_files(directory, stem, variants):
        try:
            with safetensors.safe_open(path, framework="numpy") as file:
                for name in file.keys():
                    if not any(fnmatchcase(name, pattern) for pattern in ignore):
                        tensors[name] = file.get_tensor(name)
        # AttributeError: numbers of a type that numpy does not have.
        except (safetensors.SafetensorError, OSError, AttributeError) as error:
            raise ValueError(
                f"{path} ({path.stat().st_size} bytes) is truncated, no safetensors file or in 8 "
                f"bits ({error}); fetch it again, in float32, float16 or bfloat16"
            ) from error
    return tensors


def _tensor_files(directory: Path, stem: str, variants: Sequence[str]) -> list[Path]:
    variant = next((v for v in variants if has_tensors(directory, stem, v)), None)
    if variant is None:
        wanted = " or ".join(weight_files(stem, v)[0] for v in variants)
        suffixes = (".bin", ".pt", ".pth", ".ckpt", ".msgpack", ".h5")
        others = sorted(p.name for p in directory.iterdir() if p.suffix in suffixes)
        found = f", only {', '.join(others)}" if others else ""
        raise FileNotFoundError(
            f"{directory} holds no {wanted}{found}; only safetensors is read. Convert once, "
            "where the library that wrote it is installed: "
            "from_pretrained(...).save_pretrained(folder, safe_serialization=True)"
        )
    single, index, _ = (directory / name for name in weight_files(stem, variant))
    if single.is_file():
        return [single]
    try:
        names = sorted({Path(name).name for name in read_json(index)["weight_map"].values()})
    except (KeyError, AttributeError, TypeError) as error:
        raise ValueError(f"{index} names no file of each tensor; fetch it again") from error
    missing = [name for name in names if not (directory / name).is_file()]
    if missing or not names:
        raise FileNotFoundError(
            f"{index} names {len(names)} shards, of which {directory} lacks: "
            f"{', '.join(missing) or 'all'}; fetch them again"
        )
    return [directory / name for name in names]


def write_tensors(path: Path, tensors: Mapping[str, np.ndarray]) -> None:
    """Writes one safetensors file, under a temporary name first."""
    contiguous = {name: np.asarray(value, order="C") for name, value in tensors.items()}
    with atomic(path) as temporary:
        # transformers refuses a file that does not say which library's layout it has.
        safetensors.numpy.save_file(contiguous, temporary, metadata={"format": "pt"})


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
        """Gives the target path of a source name, None if the row is not about it."""
        return _substitute(self.source, self.target, name)

    def export(self, path: str) -> str | None:
        """Gives the source name of a target path, None if the row is not about it."""
        return _substitute(self.target, self.source, path)


def _substitute(pattern: str, replacement: str, name: str) -> str | None:
    literal = re.escape(pattern).replace(r"\{", "{").replace(r"\}", "}")
    match = re.fullmatch(re.sub(r"\{(\w+)\}", r"(?P<\1>\\d+)", literal), name)
    return match and replacement.format(**match.groupdict())


def norm(source: str, target: str) -> tuple[Row, ...]:
    """Rows of a norm's gain and bias."""
    return Row(f"{source}.weight", f"{target}/scale"), Row(f"{source}.bias", f"{target}/bias")


def layer(source: str, target: str, transform: Transform = linear) -> tuple[Row, ...]:
    """Rows of a linear map's or a convolution's weights and bias."""
    return (
        Row(f"{source}.weight", f"{target}/kernel", transform),
        Row(f"{source}.bias", f"{target}/bias"),
    )


def rows(source: str, target: str, names: Mapping[str, str]) -> tuple[Row, ...]:
    """Rows of the norms and linear maps of a block, by their names there and here."""
    return tuple(
        row
        for theirs, ours in names.items()
        for row in (norm if "norm" in ours else layer)(f"{source}.{theirs}", f"{target}/{ours}")
    )


# {"a": {"b": leaf}} -> {"a/b": leaf}, and back.
flatten: Callable[[Mapping[str, Any]], dict[str, Any]] = partial(flatten_dict, sep="/")
unflatten: Callable[[Mapping[str, Any]], Params] = partial(unflatten_dict, sep="/")


def load(
    directory: Path,
    table: Iterable[Row],
    shapes: Mapping[str, Any],
    dtype: DTypeLike | None,
    *,
    stem: str = "model",
    variants: Sequence[str] = ("",),
    ignore: Iterable[str] = (),
) -> Params:
    """Reads a model's weights onto the default device, by `read_tensors`, `convert` and `cast`."""
    tensors = read_tensors(directory, stem, variants, ignore)
    return cast(convert(tensors, table, shapes, source=directory), dtype)


def convert(
    tensors: Mapping[str, np.ndarray],
    table: Iterable[Row],
    shapes: Mapping[str, Any],
    *,
    source: str | os.PathLike = "checkpoint",
) -> Params:
    """Makes the parameter tree of a checkpoint, dtypes as in the file.

    Args:
        shapes: the tree wanted, of anything with a `shape`, e.g. from `jax.eval_shape`.
        source: what the error calls the checkpoint.

    Raises:
        ValueError: listing every name without a row, every target left unfilled, every wrong shape,
            every array that is not of floating point or holds what is not finite: the checkpoint is
            of another architecture, or damaged.
    """
    table = tuple(table)
    wanted = {path: tuple(leaf.shape) for path, leaf in flatten(shapes).items()}
    filled: dict[str, np.ndarray] = {}
    problems = []
    for name, tensor in tensors.items():
        path, transform = next(
            ((path, row.transform) for row in table if (path := row.convert(name)) in wanted),
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
        elif fault := _fault(tensor):
            problems.append(f"{fault}: {name} {tensor.shape}")
    for path in wanted.keys() - filled.keys():
        named = next(filter(None, (row.export(path) for row in table)), "nothing")
        problems.append(f"missing: {named}, for {path} {wanted[path]}")
    if problems:
        raise ValueError(
            f"{source} does not fit its own config: {len(problems)} problems, so it is a "
            "checkpoint of another architecture or damaged; give one whose weights and config.json "
            "belong together:\n  " + "\n  ".join(sorted(problems))
        )
    return unflatten(filled)


def _fault(tensor: np.ndarray) -> str | None:
    """What is wrong with the numbers of an array of weights."""
    if not jnp.issubdtype(tensor.dtype, jnp.floating) or tensor.itemsize < 2:
        return f"{tensor.dtype} instead of float32, float16 or bfloat16"
    with np.errstate(over="ignore"):
        held = tensor.astype(np.float32) if tensor.itemsize > 4 else tensor
    bad = held.size - np.count_nonzero(np.isfinite(held))
    return f"not finite in {bad} of {held.size} places" if bad else None


_DTYPES = {
    **dict.fromkeys(("bf16", "bfloat16"), jnp.bfloat16),
    **dict.fromkeys(("fp16", "float16"), jnp.float16),
    **dict.fromkeys(("None", "fp32", "float32"), jnp.float32),
}


def weights_dtype(dtype: DTypeLike | None) -> np.dtype:
    """Gives the dtype of weights that is meant: float32 if None, or e.g. "bf16"; ValueError if it
    is no float of 32 or 16 bits."""
    name = str(getattr(dtype, "__name__", dtype))
    if (known := _DTYPES.get(name)) is None:
        raise ValueError(
            f"dtype is {name}; weights and activations may be float32, float16 or bfloat16"
        )
    return jnp.dtype(known)


def cast(tree: Mapping[str, Any], dtype: DTypeLike | None) -> Params:
    """Puts a tree on the default device in `dtype`, float32 if None; but norms, which are small and
    computed in float32, in that."""
    chosen = weights_dtype(dtype)

    def leaf(path: str, value: np.ndarray) -> jax.Array:
        # Cast on the host: on the device each shape would be a program of its own.
        kept = jnp.float32 if "norm" in path else chosen
        return jax.device_put(np.asarray(value).astype(kept, copy=False))

    return unflatten({path: leaf(path, value) for path, value in flatten(tree).items()})


def export(params: Mapping[str, Any], table: Iterable[Row]) -> dict[str, np.ndarray]:
    """Names a tree's arrays as the checkpoint does, the inverse of `convert`: name -> array."""
    table, unknown = tuple(table), []
    tensors: dict[str, np.ndarray] = {}
    for path, leaf in flatten(params).items():
        row = next((row for row in table if row.export(path)), None)
        if row is None:
            unknown.append(path)
        else:
            tensors[str(row.export(path))] = row.transform.export(np.asarray(leaf))
    if unknown:
        raise ValueError(f"the conversion table has no row for: {', '.join(sorted(unknown))}")
    return tensors
