"""Gradient descent that can be cut off at any time and goes on as if it had not been."""

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax
import safetensors.numpy

from dsolo_jax.checkpoints import Params
from dsolo_jax.utils.files import atomic
from dsolo_jax.utils.progress import progress

Batch = Any


def train(
    loss: Callable[[Params, Batch], jax.Array],
    params: Params,
    optimizer: optax.GradientTransformation,
    batch: Callable[[int], Batch],
    steps: int,
    path: Path,
    *,
    every: int,
    report: Callable[[Params], dict[str, float]] = lambda params: {},
) -> Params:
    """The parameters after `steps` steps.

    Args:
        loss: of parameters and a batch, a scalar.
        batch: of a step's number; a pure function, so that a resumed run sees the same batches.
        path: where parameters, the optimizer's state and the step are kept, a safetensors file; if
            it is there, training goes on from it. The log beside it, .jsonl, has a line each time.
        every: steps between checkpoints.
        report: what the log says of the parameters beside the mean loss since the last line.
    """

    @jax.jit
    def update(state, given):
        params, moments = state
        value, gradient = jax.value_and_grad(loss)(params, given)
        change, moments = optimizer.update(gradient, moments, params)
        return (optax.apply_updates(params, change), moments), value

    state = params, optimizer.init(params)
    start, state = _restore(path, state) if path.is_file() else (0, state)
    losses, begun = [], time.monotonic()
    for step in progress(range(start, steps), steps - start, path.stem, unit="steps"):
        state, value = update(state, batch(step))
        losses.append(value)
        done = step + 1
        if done % every == 0 or done == steps:
            mean = float(np.mean(losses))
            if not np.isfinite(mean):
                raise ValueError(f"{path.stem}: the loss is {mean} at step {done}; lower the rate")
            _save(path, done, state)
            seconds = round(time.monotonic() - begun, 1)
            line = {"step": done, "loss": mean, "seconds": seconds, **report(state[0])}
            with path.with_suffix(".jsonl").open("a", encoding="utf-8") as log:
                log.write(json.dumps(line) + "\n")
            losses, begun = [], time.monotonic()
    return state[0]


def _save(path: Path, step: int, state: Any) -> None:
    leaves = {str(i): np.asarray(leaf) for i, leaf in enumerate(jax.tree.leaves(state))}
    with atomic(path) as temporary:
        safetensors.numpy.save_file(leaves | {"step": np.asarray(step)}, temporary)


def _restore(path: Path, like: Any) -> tuple[int, Any]:
    leaves = safetensors.numpy.load_file(path)
    step = int(leaves.pop("step"))
    expected, structure = jax.tree.flatten(like)
    found = [leaves.get(str(i)) for i in range(len(expected))]
    if len(leaves) != len(expected) or any(
        a is None or a.shape != b.shape for a, b in zip(found, expected, strict=True)
    ):
        raise ValueError(f"{path} is of another network; remove it, or name another folder")
    return step, jax.tree.unflatten(structure, [jax.numpy.asarray(leaf) for leaf in found])
