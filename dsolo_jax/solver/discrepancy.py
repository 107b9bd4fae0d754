"""The whole method for one picture: cosines and attention to scores, one function a method."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from dsolo_jax.readings import Readings, resolve
from dsolo_jax.solver.fixed_point import check, held
from dsolo_jax.solver.kl import kl_discrepancy
from dsolo_jax.solver.normalise import normalise, suppress
from dsolo_jax.solver.optimise import optimal_logits
from dsolo_jax.solver.path import needs_log_domain, optimal_path, transport_cost
from dsolo_jax.solver.propagation import label_propagation
from dsolo_jax.solver.stochastic import fitted
from dsolo_jax.solver.velocity import max_velocity, propagate
from dsolo_jax.utils.checks import choose

_TINY = 1e-6  # of a deviation of cosines: what varies less does not vary

# The deviation that scores found along a graph are given, in that of the picture's own cosines.
# Fixed by measurement on two worlds, see docs/measurements.md.
_SCALE = 0.6


@partial(jax.jit, static_argnames=("method", "readings"))
def discrepancy(
    f: Float[Array, "C N"],
    attention: Float[Array, "N N"] | None = None,
    presence: Float[Array, "C"] | None = None,
    *,
    method: str = "velocity",
    readings: str | Readings = "robust",
    counted: Bool[Array, "C"] | None = None,
) -> Float[Array, "C N"]:
    """Scores each class in each patch of one picture: where a score is largest, the class is.

        class maps   q = normalise(suppress(f))                         over the N patches
        scores       ±d(q, uniform), d solved along the attention       by the method
                     + readings.presence · presence

    A pure function of arrays: jit it (method and readings are static), vmap it, export it (saving
    an export needs flatbuffers: `pip install dsolo_jax[export]`). NaN gives NaN.

    Scores are in units of the cosine, so that presence has one weight: "kl" by its own formula;
    what is found along the graph is centred over the classes of each patch and given 0.6 of the
    deviation that the picture's cosines have.

    Args:
        f: cosines of each class with each patch.
        attention: which patch looks at which, rows sum to one; None where the method needs none.
        presence: cosine of each class with the whole picture; None leaves the term out.
        method: one of `METHODS`.
        readings: the paper's open choices: "robust", "paper", "robust,tau=0.3" or a `Readings`.
        counted: classes that are there. The others fill up f, so that one program serves different
            numbers of classes; they change no score of those that count. None counts all.

    Raises:
        ValueError: unknown method or readings; a method that needs attention without it; arrays of
            other shapes; `counted` for a method that cannot leave classes out, see `fills`.

    Source: the DSLO paper as far as it is known; the presence term is ours.
    """
    solve = METHODS[choose("method", method, METHODS)]
    readings = resolve(readings)
    if solve.needs_graph and attention is None:
        raise ValueError(
            f"method {method!r} needs the attention between patches, found None; give it, or "
            f"choose one of {', '.join(name for name in METHODS if not needs_graph(name))}"
        )
    if counted is not None and not solve.fills:
        raise ValueError(f"method {method!r} counts all classes; give it no `counted`")
    check(f, attention, maps=False)
    f = f.astype(jnp.float32)
    scores = solve.scores(f, attention, readings, *(() if counted is None else (counted[:, None],)))
    if presence is None:
        return scores
    return scores + solve.presence(readings) * presence.astype(jnp.float32)[:, None]


def needs_graph(method: str) -> bool:
    """Whether a method of `METHODS` looks at attention at all."""
    return METHODS[choose("method", method, METHODS)].needs_graph


def fills(method: str) -> bool:
    """Whether a method of `METHODS` can leave classes out that only fill up an array."""
    return METHODS[choose("method", method, METHODS)].fills


# Of each: cosines, attention, readings, and which classes count, [C, 1].


def _logits(f: Array, attention: Array, r: Readings, counted: Any = True) -> Array:
    """Row I of the paper's ladder: the cosines and nothing else."""
    return f


def _kl(f: Array, attention: Array, r: Readings, counted: Any = True) -> Array:
    """Rows II to IV: the divergence times the temperature, which for upright maps is the cosine
    less its class's level, f - T log mean exp(f / T)."""
    return _signed(_temperature(f, r, counted) * kl_discrepancy(_class_maps(f, r, counted)), r)


def _path(f: Array, attention: Array, r: Readings, counted: Any = True) -> Array:
    """Row V: entropic transport to uniform."""
    found = optimal_path(
        _class_maps(f, r, counted),
        transport_cost(attention, r.path_cost),
        epsilon=r.epsilon,
        num_iters=r.sinkhorn_iters,
        log_domain=needs_log_domain(r.path_cost, r.epsilon, f.shape[-1]),
        kernel_dtype=held(attention).dtype,
    )
    return _in_unit(_signed(found.scores, r), f, counted)


def _velocity(f: Array, attention: Array, r: Readings, counted: Any = True) -> Array:
    """Row VI: log(1 + l), l the step at which the class arrives."""
    found = max_velocity(
        _class_maps(f, r, counted),
        fitted(attention, r.ipf_iters),
        tau=r.tau,
        max_steps=r.max_steps,
        criterion=r.velocity_criterion,
    )
    return _in_unit(_signed(-jnp.log1p(found.expected), r), f, counted)


def _fusion(f: Array, attention: Array, r: Readings, counted: Any = True) -> Array:
    """Row VII: the mean of both modes, which have one unit."""
    return (_path(f, attention, r, counted) + _velocity(f, attention, r, counted)) / 2


def _propagate(f: Array, attention: Array, r: Readings, counted: Any = True) -> Array:
    """The control (ours): the KL map after one plain step of attention."""
    return _in_unit(propagate(_kl(f, attention, r, counted), attention), f, counted)


def _logits_propagate(f: Array, attention: Array, r: Readings, counted: Any = True) -> Array:
    """CLIPer's refinement: the cosines after one plain step of attention."""
    return propagate(f, attention)


def _label_propagation(f: Array, attention: Array, r: Readings, counted: Any = True) -> Array:
    """LPOSS's refinement, times 1 - alpha (Zhou et al.), which keeps the unit of the cosine."""
    return (1 - r.alpha) * label_propagation(f, attention, alpha=r.alpha)


def _optimise(f: Array, attention: Array, r: Readings) -> Array:
    """What the paper argues against: the logits moved step by step, here along the graph."""
    if r.optimise_target == "oracle":
        raise ValueError(
            "optimise_target=oracle is the ground truth, a bound that only the ablation can have "
            "(python -m experiments.ablate --tables=optimisation); choose optimise_target=graph"
        )
    return optimised(f, r, attention=attention)


def optimised(
    f: Float[Array, "C N"],
    readings: Readings,
    *,
    attention: Float[Array, "N N"] | None = None,
    truth: Int[Array, "N"] | None = None,
) -> Float[Array, "C N"]:
    """Moves the cosines to the target that the readings name, see `optimal_logits`."""
    found = optimal_logits(
        f,
        attention,
        truth,
        target=readings.optimise_target,
        temperature=_temperature(f, readings),
        steps=readings.optimise_steps,
        rate=readings.optimise_rate,
        schedule=readings.optimise_schedule,
        entropy=readings.optimise_entropy,
        every=readings.optimise_every,
    )
    return found.scores


def _signed(scores: Array, r: Readings) -> Array:
    """Scores that are largest where the discrepancy is smallest, or turned round."""
    return -scores if r.winner == "largest" else scores


def _class_maps(f: Array, r: Readings, counted: Any = True) -> Array:
    weakened = suppress(f, rule=r.suppress, below=r.suppress_below)
    return normalise(weakened, rule=r.normalise, temperature=_temperature(f, r, counted))


def _temperature(f: Array, r: Readings, counted: Any = True) -> Array:
    """In cosines. Checkpoints' cosines differ tenfold in how far they spread, so the reading is in
    standard deviations of the picture's own."""
    return r.temperature * jnp.maximum(jnp.std(f, where=counted), _TINY)


def _in_unit(scores: Array, f: Array, counted: Any = True) -> Array:
    """Scores centred over the classes of each patch, at `_SCALE` of the deviation of the cosines
    that are left when each class's mean and each patch's mean are taken away.

    What all classes share in a patch decides nothing, so it must not set the unit.
    """
    scores = scores - jnp.mean(scores, axis=0, where=counted)
    f = f - jnp.mean(f, axis=1, keepdims=True)
    f = f - jnp.mean(f, axis=0, where=counted)
    deviations = jnp.std(f, where=counted), jnp.std(scores, where=counted)
    return scores * (_SCALE * deviations[0] / jnp.maximum(deviations[1], 1e-12))


class Method(NamedTuple):
    """How a method scores, whether it looks at attention, the weight of presence beside it, and
    whether it can leave classes out."""

    scores: Callable[..., Array]
    needs_graph: bool
    presence: Callable[[Readings], float] = lambda readings: readings.presence
    fills: bool = True


def _no_presence(readings: Readings) -> float:
    return 0.0


METHODS = {
    "velocity": Method(_velocity, needs_graph=True),
    "path": Method(_path, needs_graph=True),
    "kl": Method(_kl, needs_graph=False),
    "logits": Method(_logits, needs_graph=False, presence=_no_presence),
    "fusion": Method(_fusion, needs_graph=True),
    # Controls: one plain attention step; row I with the presence term; the presence term alone,
    # one label for the whole picture.
    "propagate": Method(_propagate, needs_graph=True),
    "logits_presence": Method(_logits, needs_graph=False),
    "class_token": Method(lambda f, *_: 0 * f, needs_graph=False, presence=lambda readings: 1.0),
    "optimise": Method(_optimise, needs_graph=True, fills=False),
    # What the peers do with cosines and a graph.
    "logits_propagate": Method(_logits_propagate, needs_graph=True, presence=_no_presence),
    "label_propagation": Method(_label_propagation, needs_graph=True, presence=_no_presence),
}
