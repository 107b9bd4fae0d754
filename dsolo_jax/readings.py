"""The open readings of the paper as one frozen table of named choices, and the methods they steer.

The paper's body could not be had; what the notes about it leave open is a field here, with its
question in BUILD_NOTES (Q1 to Q12). Two bundles are self-consistent and must not be mixed: "paper"
reads the paper's wording on vanilla CLIP, whose maps it needs to be inverted (small on their own
class); "robust" reads upright maps.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.scipy.special import logsumexp
from jaxtyping import Array, Float

from dsolo_jax import clip, solver
from dsolo_jax.solver.kl import SIGNS
from dsolo_jax.solver.normalise import RULES
from dsolo_jax.solver.normalise import suppress as suppress_weak
from dsolo_jax.solver.path import COSTS, SCORES, needs_log_domain
from dsolo_jax.solver.velocity import CRITERIA, WINNERS
from dsolo_jax.upsample import FORMS
from dsolo_jax.utils.checks import choose


def _softmax(f: Array, temperature: float) -> Array:
    """softmax over patches of f / temperature (BUILD_NOTES Q4)."""
    return jax.nn.softmax(f / temperature, axis=-1)


def _minmax(f: Array, temperature: float) -> Array:
    """(f − min) / (max − min) of each class over its patches; a constant map becomes ones."""
    low, high = (reduce(f, axis=-1, keepdims=True) for reduce in (jnp.min, jnp.max))
    flat = high <= low
    return jnp.where(flat, 1.0, (f - low) / jnp.where(flat, 1.0, high - low))


def _contrast(f: Array, temperature: float) -> Array:
    """The softmax of maps that have been given one contrast: a class's deviation over patches is
    brought to that of all classes together (ours)."""
    centred = f - jnp.mean(f, axis=-1, keepdims=True)
    deviation = jnp.maximum(jnp.std(f, axis=-1, keepdims=True), 1e-6)
    return _softmax(centred / deviation * jnp.std(f), temperature)


# BUILD_NOTES Q4: the notes say "normalised" and no more.
NORMALISERS = {"softmax": _softmax, "contrast": _contrast, "minmax": _minmax}

# What the temperature is in: cosines, or standard deviations of the picture's own cosines, which
# differ tenfold between checkpoints (ours).
UNITS = ("cosine", "spread")

# BUILD_NOTES Q11: an inverted start is turned over for the robust readings, an upright one for the
# paper's (ours).
ORIENTATIONS = ("as_is", "negated")

# BUILD_NOTES Q12: a class's synonyms become one map before the solver, or one score after it.
FOLDS = ("before", "after")


def _choice(default: Any, options: Any, text: str) -> Any:
    return dataclasses.field(default=default, metadata={"options": tuple(options), "help": text})


def _number(default: float, text: str) -> Any:
    return dataclasses.field(default=default, metadata={"options": None, "help": text})


@dataclasses.dataclass(frozen=True)
class Readings:
    """Every open choice; the defaults are the robust bundle. Each field is a flag of the drivers.

    Raises:
        ValueError: a choice that does not exist, naming those that do.
    """

    start: str = _choice(
        "naclip", clip.STARTS, "what CLIP's last block does (Q11); vanilla is CLIP itself"
    )
    orientation: str = _choice(
        "as_is", ORIENTATIONS, "negated turns the cosines of the patches over; ours"
    )
    fold: str = _choice("before", FOLDS, "synonyms to classes by max, before or after the solver")
    normalise: str = _choice(
        "softmax", NORMALISERS, "cosines to a map over patches, for kl, path and propagate (Q4)"
    )
    temperature: float = _number(0.25, "of the softmax over patches, in temperature_unit")
    temperature_unit: str = _choice(
        "spread", UNITS, "cosines, or the deviation of the picture's own; ours"
    )
    suppress: str = _choice("none", RULES, "weak patches to zero (NMS), for kl and path (Q3)")
    velocity_normalise: str = _choice("softmax", NORMALISERS, "the same as normalise, for velocity")
    velocity_suppress: str = _choice("none", RULES, "the same as suppress, for velocity")
    suppress_below: float = _number(0.7, "the fraction below which a patch is weak")
    kl_sign: str = _choice("log_ratio", SIGNS, "log(q/s), or the terms s·log(s/q) of D(S‖Q)")
    attention_temperature: float = _number(1.0, "sharpens A below 1 (Q9; M2N2 has 0.65)")
    ipf_iters: int = _number(15, "rounds that make A doubly stochastic (notes: 15)")
    velocity_criterion: str = _choice("saturation", CRITERIA, "when a patch has arrived (Q1)")
    velocity_winner: str = _choice("early", WINNERS, "which arrival is the class (Q2)")
    velocity_spread: float = _number(
        0.5, "deviation of the velocity's scores beside presence or level, in the KL map's; ours"
    )
    tau: float = _number(0.5, "the velocity's threshold (notes: 0.3)")
    max_steps: int = _number(100, "cap on the velocity's steps (M2N2: 1000)")
    path_cost: str = _choice("minus_log_unit", COSTS, "transport cost from attention (Q6)")
    path_score: str = _choice("minus_column_cost", SCORES, "which scalar of the plan scores (Q5)")
    epsilon: float = _number(0.3, "entropy of the path (notes: 0.1)")
    sinkhorn_iters: int = _number(50, "rounds of the path (notes: 50)")
    presence: float = _number(0.5, "weight of the class token's cosine; 0 is the paper; ours")
    level: float = _number(
        0.0,
        "share of a class's own level that normalising takes and it keeps; 0 is the paper; ours",
    )
    propagate_steps: int = _number(1, "plain attention steps of the control; ours")
    upsample: str = _choice(
        "kopf", FORMS, "scores to pixels: Kopf's or M2N2's (dense) JBU, or none"
    )
    spatial_sigma: float = _number(1.0, "of JBU, in patches of the solver's grid (M2N2: 1)")
    range_sigma: float = _number(0.1, "of JBU, in colours of 0..1 (M2N2: 0.1)")

    def __post_init__(self):
        for field in dataclasses.fields(self):
            if field.metadata["options"]:
                choose(
                    f"reading {field.name}", getattr(self, field.name), field.metadata["options"]
                )


BUNDLES = {
    "robust": Readings(),
    # The paper's wording on vanilla maps; NMS is left out because its rule is not known and every
    # one measured on inverted maps lowered the result (BUILD_NOTES Q3).
    "paper": Readings(
        start="vanilla",
        temperature=0.1,
        temperature_unit="cosine",
        velocity_normalise="minmax",
        kl_sign="divergence",
        velocity_winner="late",
        tau=0.3,
        max_steps=1000,
        path_cost="one_minus_max",
        path_score="column_cost",
        epsilon=0.1,
        presence=0.0,
        level=0.0,
    ),
}


def resolve(readings: str | Readings) -> Readings:
    """The bundle of that name; a `Readings` is taken as it is."""
    if isinstance(readings, Readings):
        return readings
    return BUNDLES[choose("readings", readings, BUNDLES)]


# ------------------------------------------------------------------------------------- methods
#
# A method takes cosine maps f [C, N] and attention [N, N], and gives scores [C, N]. Scores are in
# units of the cosine where there is a natural one, so that the presence term has one weight.


def _logits(f: Array, attention: Array, r: Readings) -> Array:
    """Row I of the paper's ladder: the cosines as they are."""
    return f


def _of_map(f: Array, r: Readings, normalise: str, suppress: str, score: Callable) -> Array:
    """`score` of the cosines normalised over patches, the weak ones suppressed.

    A class that suppression leaves nothing of gets the lowest score there is, everywhere.
    """
    f = NORMALISERS[normalise](f, r.temperature)
    f = suppress_weak(f, rule=suppress, below=r.suppress_below)
    empty = jnp.all(f <= 0, axis=-1, keepdims=True)
    scores = score(jnp.where(empty, 1.0, f))
    return jnp.where(empty, jnp.min(scores), scores)


def _kl(f: Array, attention: Array, r: Readings) -> Array:
    """Rows II to IV. temperature · log(N q), so that a softmax's map is the cosine, centred."""
    in_cosines = r.temperature * (f.shape[-1] if r.kl_sign == "divergence" else 1)

    def score(q: Array) -> Array:
        return in_cosines * solver.kl_discrepancy(q, sign=r.kl_sign)

    return _of_map(f, r, r.normalise, r.suppress, score)


def _propagate(f: Array, attention: Array, r: Readings) -> Array:
    """The control: the KL map after plain attention steps (ours)."""
    return solver.propagate(_kl(f, attention, r), attention, num_steps=r.propagate_steps)


def _path(f: Array, attention: Array, r: Readings) -> Array:
    """Row V: entropic transport to uniform."""
    cost = solver.transport_cost(attention, r.path_cost)

    def score(q: Array) -> Array:
        return solver.optimal_path(
            q,
            cost,
            epsilon=r.epsilon,
            num_iters=r.sinkhorn_iters,
            score=r.path_score,
            log_domain=needs_log_domain(r.path_cost, r.epsilon),
        ).scores

    scores = _of_map(f, r, r.normalise, r.suppress, score)
    return _with_spread_of_kl(scores, f, attention, r)


def _velocity(f: Array, attention: Array, r: Readings) -> Array:
    """Row VI. The score 1/(1+l) or l/(1+l); beside what is in cosines ∓log(1+l), in one unit."""
    transition = solver.doubly_stochastic(attention, r.ipf_iters)
    beside_cosines = r.presence or r.level

    def score(p: Array) -> Array:
        result = solver.max_velocity(
            p,
            transition,
            tau=r.tau,
            max_steps=r.max_steps,
            criterion=r.velocity_criterion,
            winner=r.velocity_winner,
        )
        sign = {"early": -1, "late": 1}[r.velocity_winner]
        return sign * jnp.log1p(result.steps) if beside_cosines else result.scores

    scores = _of_map(f, r, r.velocity_normalise, r.velocity_suppress, score)
    if not beside_cosines:
        return scores
    return r.velocity_spread * _with_spread_of_kl(scores, f, attention, r)


def _fusion(f: Array, attention: Array, r: Readings) -> Array:
    """Row VII: the mean of both modes, each with the KL map's spread."""
    velocity = _with_spread_of_kl(_velocity(f, attention, r), f, attention, r)
    return (_path(f, attention, r) + velocity) / 2


def _with_spread_of_kl(scores: Array, f: Array, attention: Array, r: Readings) -> Array:
    """Centred over classes in each patch, with the KL map's deviation (ours: a common unit).

    What all classes share in a patch decides nothing, so it must not set the unit.
    """
    scores, kl = (x - jnp.mean(x, axis=0) for x in (scores, _kl(f, attention, r)))
    return scores / jnp.maximum(jnp.std(scores), 1e-12) * jnp.std(kl)


METHODS: dict[str, Callable[[Array, Array, Readings], Array]] = {
    "velocity": _velocity,
    "path": _path,
    "kl": _kl,
    "logits": _logits,
    "fusion": _fusion,
    "propagate": _propagate,
}


def discrepancy(
    f: Float[Array, "C N"],
    attention: Float[Array, "N N"],
    presence: Float[Array, "C"],
    *,
    method: str,
    readings: Readings,
) -> Float[Array, "C N"]:
    """Scores of one picture: where they are largest, the class is.

    Args:
        f: cosines of each class (or query) with each patch.
        attention: rows sum to one.
        presence: cosine of each class with the whole picture.
        method: one of `METHODS`.
        readings: the open choices.

    Raises:
        ValueError: unknown method.
    """
    choose("method", method, METHODS)
    if readings.attention_temperature != 1:
        attention = solver.sharpen(attention, readings.attention_temperature)
    if readings.orientation == "negated":
        f = -f
    if readings.temperature_unit == "spread":
        temperature = readings.temperature * jnp.maximum(jnp.std(f), 1e-6)
        readings = dataclasses.replace(readings, temperature=temperature)
    scores = METHODS[method](f, attention, readings) + readings.presence * presence[:, None]
    if method == "logits":  # not normalised: it keeps all of its level
        return scores
    return scores + readings.level * _level(f, readings.temperature)


def _level(f: Array, temperature: float) -> Array:
    """temperature · log mean over patches of exp(f / temperature): what a softmax's map lacks.

    With all of it back, the KL map is the cosine again; with none, a class that is absent is as
    strong in its best patch as one that is there.
    """
    total = logsumexp(f / temperature, axis=-1, keepdims=True)
    return temperature * (total - jnp.log(f.shape[-1]))
