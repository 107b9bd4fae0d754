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
        given = flags.FLAGS
        folder = Path(given.output_dir).expanduser()
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
        path: where parameters, the optimizer's state and the step are kept, a safetensors file. The
            log beside it, .jsonl, has a line each time.
        every: steps between checkpoints.
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
            leaves = {str(i): np.asarray(leaf) for i, leaf in enumerate(jax.tree.leaves(state))}
            checkpoints.write_tensors(path, leaves | {"step": np.asarray(done)})
            seconds = round(time.monotonic() - begun, 1)
            line = {"step": done, "loss": mean, "seconds": seconds, **report(state[0])}
            with path.with_suffix(".jsonl").open("a", encoding="utf-8") as log:
                log.write(json.dumps(line) + "\n")
            losses, begun = [], time.monotonic()
    return state[0]


def _restore(path: Path, like: Any) -> tuple[int, Any]:
    leaves = checkpoints.read_tensors(path.parent, path.stem)
    step = int(leaves.pop("step", 0))
    expected, structure = jax.tree.flatten(like)
    wanted = {str(i): leaf.shape for i, leaf in enumerate(expected)}
    if {name: leaf.shape for name, leaf in leaves.items()} != wanted:
        raise ValueError(f"{path} is of another network; remove it, or name another folder")
    return step, jax.tree.unflatten(structure, [jnp.asarray(leaves[name]) for name in wanted])


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
