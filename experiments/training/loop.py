"""Gradient descent that can be cut off at any time and goes on as if it had not been."""

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl import flags

from dsolo_jax import checkpoints
from dsolo_jax.checkpoints import Params
from dsolo_jax.utils.files import read_text, write_text
from dsolo_jax.utils.progress import progress
from experiments import common

flags.disclaim_key_flags()  # they are those of the command that has them defined


def define_flags() -> None:
    """Defines the flags of a training command."""
    flags.DEFINE_string("output_dir", None, "Folder of the run.")
    flags.DEFINE_integer("seed", 0, "Of the world, the weights and the batches.", lower_bound=0)
    flags.DEFINE_float(
        "share", 1.0, "Of the steps and scenes; little is enough for a try.", 0.0, 1.0
    )
    flags.DEFINE_integer("every", 100, "Steps between checkpoints.", lower_bound=1)


def run(command: Callable[[Path, int, float, int], str]) -> None:
    """Calls a training command with its flags, in that order, and prints what it returns."""

    def main() -> None:
        folder, given = Path(flags.FLAGS.output_dir).expanduser(), flags.FLAGS
        print(command(folder, given.seed, given.share, given.every))

    common.run(main, required=["output_dir"])


def train(
    loss: Callable[[Params, Any], jax.Array],
    params: Params,
    optimizer: optax.GradientTransformation,
    batch: Callable[[int], Any],
    steps: int,
    path: Path,
    *,
    every: int,
    report: Callable[[Params], dict[str, float]] = lambda params: {},
) -> Params:
    """Trains for `steps` steps, those of earlier runs included, and returns the parameters.

    Args:
        loss: of parameters and a batch, a scalar.
        batch: of a step's number; a pure function, so that a resumed run sees the same batches.
        path: a safetensors file for all of the state, every so many steps; the log is also beside
            it, .jsonl, and has a line each time.
        report: what the log says of the parameters beside the mean loss since the last line.

    Raises:
        ValueError: the loss is not finite; the file is damaged or of another network.
    """

    @jax.jit
    def update(state, given):
        params, moments = state
        value, gradient = jax.value_and_grad(loss)(params, given)
        change, moments = optimizer.update(gradient, moments, params)
        return (optax.apply_updates(params, change), moments), value

    state, start, log = (params, optimizer.init(params)), 0, ""
    if path.is_file():
        state, start, log = _restore(path, state)
        write_text(path.with_suffix(".jsonl"), log)
    losses, begun = [], time.monotonic()
    for step in progress(range(start, steps), steps - start, path.stem, unit="steps"):
        state, value = update(state, batch(step))
        losses.append(value)
        done = step + 1
        if done % every == 0 or done == steps:
            mean = float(np.mean(losses))
            if not np.isfinite(mean):
                raise ValueError(f"{path.stem}: the loss is {mean} at step {done}; lower the rate")
            seconds = round(time.monotonic() - begun, 1)
            line = {"step": done, "loss": mean, "seconds": seconds, **report(state[0])}
            log += json.dumps(line) + "\n"
            # The log is kept with the state, so that no line is lost or there twice.
            kept = {"step": np.asarray(done), "log": np.frombuffer(log.encode(), np.uint8)}
            leaves = {str(i): np.asarray(leaf) for i, leaf in enumerate(jax.tree.leaves(state))}
            checkpoints.write_tensors(path, kept | leaves)
            write_text(path.with_suffix(".jsonl"), log)
            losses, begun = [], time.monotonic()
    return state[0]


def _restore(path: Path, like: Any) -> tuple[Any, int, str]:
    """Reads the state, the step and the log that a run has left."""
    leaves = checkpoints.read_tensors(path.parent, path.stem)
    step, log = leaves.pop("step", None), leaves.pop("log", None)
    expected, structure = jax.tree.flatten(like)
    wanted = {str(i): leaf.shape for i, leaf in enumerate(expected)}
    if step is None or log is None or {k: x.shape for k, x in leaves.items()} != wanted:
        raise ValueError(f"{path} is of another network; remove it, or name another folder")
    state = jax.tree.unflatten(structure, [jnp.asarray(leaves[name]) for name in wanted])
    return state, int(step), log.tobytes().decode()


def claim(folder: Path, seed: int, share: float) -> str:
    """Records the flags that a run depends on in its folder, or finds them there, and returns them.

    Raises:
        ValueError: the folder holds a run of others.
    """
    path, given = folder / "flags.txt", f"--seed={seed}" + (f" --share={share:g}" * (share < 1))
    if not path.is_file():
        write_text(path, given)
    elif (found := read_text(path)) != given:
        raise ValueError(f"{folder} holds a run of {found}, not of {given}; name another folder")
    return given
