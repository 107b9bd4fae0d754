"""The open readings of the paper as one frozen table of named choices.

The paper's body could not be had; what the notes about it leave open is a field here, and
docs/method.md has the evidence for each. Two bundles are self-consistent and must not be mixed:
"paper" reads the paper's wording on vanilla CLIP, whose maps it needs to be inverted (small on
their own class); "robust" reads maps that are the right way up.
"""

import dataclasses
from collections.abc import Iterable
from typing import Any

from dsolo_jax.clip.starts import STARTS
from dsolo_jax.solver.normalise import NORMALISERS, RULES
from dsolo_jax.solver.optimise import SCHEDULES, TARGETS
from dsolo_jax.solver.path import COSTS
from dsolo_jax.solver.velocity import CRITERIA
from dsolo_jax.upsample import FORMS
from dsolo_jax.utils.checks import choose

# "largest" is the paper's wording, argmax over classes of the discrepancy. It holds where a map is
# small on its own class, as CLIP's unmodified maps are reported to be. "smallest" is for maps that
# are the right way up (docs/method.md, "which sign").
_WINNERS = "smallest", "largest"


def _choice(default: Any, options: Iterable[str], text: str) -> Any:
    return dataclasses.field(default=default, metadata={"options": tuple(options), "help": text})


def _number(default: float, text: str, least: float = 1e-6, most: float = 1e9) -> Any:
    options = {"options": (), "help": text, "range": (least, most)}
    return dataclasses.field(default=default, metadata=options)


@dataclasses.dataclass(frozen=True)
class Readings:
    """Every open choice; the defaults are the robust bundle.

    Raises:
        ValueError: a choice that does not exist, naming those that do; a number out of its range.
    """

    start: str = _choice("naclip", STARTS, "what CLIP's last block does; vanilla is CLIP itself")
    suppress: str = _choice("none", RULES, "weak patches of the cosines (NMS)")
    suppress_below: float = _number(
        0.7, "a patch is weak below this share of a class's range", 0, 1
    )
    normalise: str = _choice("softmax", NORMALISERS, "cosines to a map over patches")
    temperature: float = _number(0.5, "of that softmax, in deviations of the picture's cosines")
    winner: str = _choice("smallest", _WINNERS, "the class has this discrepancy; paper: largest")
    presence: float = _number(0.5, "weight of the class token's cosine; paper: 0", 0)
    path_cost: str = _choice("minus_log", COSTS, "transport cost from attention")
    epsilon: float = _number(2.0, "entropy of the path, in units of the cost; paper: 0.1")
    sinkhorn_iters: int = _number(50, "rounds of the path; paper: 50", 1)
    velocity_criterion: str = _choice("saturation", CRITERIA, "when a patch has arrived")
    tau: float = _number(0.5, "the velocity's threshold; paper: 0.3")
    max_steps: int = _number(30, "of the velocity, at most; M2N2: 1000", 1)
    ipf_iters: int = _number(15, "rounds that make attention doubly stochastic; paper: 15", 0)
    alpha: float = _number(
        0.95, "label propagation's share of the neighbours; LPOSS: 0.95", 0, 0.999
    )
    optimise_target: str = _choice("graph", TARGETS, "of the optimisation; oracle: ablation alone")
    optimise_steps: int = _number(30, "of Adam", 0, 1_000_000)
    optimise_rate: float = _number(0.2, "of a step, in units of the temperature")
    optimise_schedule: str = _choice("constant", SCHEDULES, "what becomes of that rate")
    optimise_entropy: float = _number(0.0, "weight of the entropy in what is minimised", 0)
    optimise_every: int = _number(10, "steps between two estimates of the target", 1)
    upsample: str = _choice(
        "kopf", FORMS, "scores to pixels: Kopf's JBU, M2N2's (dense), bilinear, then PAMR"
    )
    spatial_sigma: float = _number(1.0, "of JBU, in patches of the solver's grid; M2N2: 1")
    range_sigma: float = _number(0.1, "of JBU, in colours of 0..1; M2N2: 0.1")

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value, options = getattr(self, field.name), field.metadata["options"]
            if options:
                choose(f"reading {field.name}", value, options)
                continue
            least, most = field.metadata["range"]
            kind: Any = field.type
            if not isinstance(value, (int, kind)) or not least <= value <= most:
                raise ValueError(
                    f"reading {field.name} is {value!r}, wanted {kind.__name__} from "
                    f"{least:g} to {most:g}, such as {field.default}"
                )


BUNDLES = {
    "robust": Readings(),
    "paper": Readings(
        start="vanilla",
        winner="largest",
        presence=0.0,
        path_cost="one_minus_max",
        epsilon=0.1,
        tau=0.3,
        max_steps=1000,
        upsample="dense",
    ),
}


def resolve(readings: str | Readings) -> Readings:
    """Makes `Readings` of "bundle" or "bundle,field=value,..."; those given are taken as they are.

    >>> resolve("robust,tau=0.3,presence=0").tau
    0.3

    Raises:
        ValueError: an unknown bundle, field or choice, or a value of another type.
    """
    if isinstance(readings, Readings):
        return readings
    bundle, *changes = (part.strip() for part in readings.split(","))
    kinds: dict[str, Any] = {field.name: field.type for field in dataclasses.fields(Readings)}
    values = {}
    for change in changes:
        name, _, value = (part.strip() for part in change.partition("="))
        kind = kinds[choose("reading", name, kinds)]
        try:
            values[name] = kind(value)
        except ValueError:
            raise ValueError(
                f"reading {name} is {value!r}, wanted {name}={kind.__name__}, as in "
                f"{name}={getattr(Readings, name)}"
            ) from None
    return dataclasses.replace(BUNDLES[choose("readings", bundle, BUNDLES)], **values)


def described(readings: Readings) -> str:
    """Gives the shortest string that `resolve` turns back into these readings."""

    def changes(bundle: str) -> list[str]:
        base, found = (dataclasses.asdict(r) for r in (BUNDLES[bundle], readings))
        return [f"{name}={value}" for name, value in found.items() if value != base[name]]

    bundle = min(BUNDLES, key=lambda name: len(changes(name)))
    return ",".join([bundle, *changes(bundle)])
