"""What a program must do, and what a device can do at most: FLOPs, bytes and the roofline."""

import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
from jax.lax import Precision


class Device(NamedTuple):
    """A device's peaks: FLOP/s of dense products (no sparsity) by what they are taken in, and the
    bytes a second of its memory."""

    bfloat16: float
    tf32: float
    float32: float
    bandwidth: float


def _tpu(bfloat16: float, bandwidth: float) -> Device:
    """A TPU takes float32 in one pass of bfloat16, at Precision.HIGHEST in six."""
    return Device(bfloat16, bfloat16, bfloat16 / 6, bandwidth)


# By jax's device_kind. Sources: NVIDIA's data sheets of the A100 (June 2021), H100 (products of
# "with sparsity" halved) and H200; cloud.google.com/tpu/docs, the page of each version.
DEVICES = {
    "NVIDIA A100-SXM4-40GB": Device(312e12, 156e12, 19.5e12, 1555e9),
    "NVIDIA A100-SXM4-80GB": Device(312e12, 156e12, 19.5e12, 2039e9),
    "NVIDIA A100 80GB PCIe": Device(312e12, 156e12, 19.5e12, 1935e9),
    "NVIDIA H100 PCIe": Device(756e12, 378e12, 51e12, 2000e9),
    "NVIDIA H100 80GB HBM3": Device(989e12, 494e12, 67e12, 3350e9),
    "NVIDIA H200": Device(989e12, 494e12, 67e12, 4800e9),
    "TPU v4": _tpu(275e12, 1228e9),
    "TPU v5 lite": _tpu(197e12, 819e9),
    "TPU v6 lite": _tpu(918e12, 1640e9),
}


class Account(NamedTuple):
    """What a traced program does.

    flops: of its products and convolutions, two a multiplication, by the peak that bounds them.
    reread: bytes that its loops are given whole in every round after the first.
    """

    flops: Counter[str]
    reread: int

    def __add__(self, other: "Account") -> "Account":
        return Account(self.flops + other.flops, self.reread + other.reread)

    def times(self, rounds: int) -> "Account":
        counted = Counter({kind: rounds * flops for kind, flops in self.flops.items()})
        return Account(counted, rounds * self.reread)


NOTHING = Account(Counter(), 0)


def product_flops(function: Callable, *given: Any, **named: Any) -> int:
    """Counts the FLOPs of the products and convolutions of a function, see `account`."""
    return account(jax.make_jaxpr(function)(*given, **named)).flops.total()


def account(program: Any, rounds: Iterable[int] = ()) -> Account:
    """Counts what a jaxpr does. Every branch of a condition counts.

    Args:
        rounds: of each `while` in its order, one where it says nothing; others say it themselves.
    """
    return _account(getattr(program, "jaxpr", program), iter(rounds))


def _account(jaxpr: Any, rounds: Iterator[int]) -> Account:
    total = NOTHING
    for equation in jaxpr.eqns:
        if terms := _terms(equation):
            flops = 2 * terms * math.prod(equation.outvars[0].aval.shape)
            total += Account(Counter({_peak(equation): flops}), 0)
            continue
        trips, fixed = _loop(equation, rounds)
        # The programs inside, those in tuples (branches) too.
        inner = (getattr(x, "jaxpr", x) for x in jax.tree.leaves(list(equation.params.values())))
        each = sum((_account(x, rounds) for x in inner if hasattr(x, "eqns")), NOTHING)
        total += each.times(trips) + Account(Counter(), (trips - 1) * fixed)
    return total


def _terms(equation: Any) -> int:
    """Terms of each sum of products that a primitive takes; 0 of others."""
    name, shapes = equation.primitive.name, [x.aval.shape for x in equation.invars]
    if name == "dot_general":
        (contracted, _), _ = equation.params["dimension_numbers"]
        return math.prod(shapes[0][axis] for axis in contracted)
    if name == "conv_general_dilated":
        outputs_axis = equation.params["dimension_numbers"].rhs_spec[0]
        return math.prod(shapes[1]) // shapes[1][outputs_axis]
    if name == "dot_product_attention_fwd_wrapper":  # cuDNN's: keys [B, tokens, K, d]
        return 2 * shapes[1][1]
    return 0


def _peak(equation: Any) -> str:
    """Names the peak of products of these factors at this precision."""
    if all(x.aval.dtype.itemsize == 2 for x in equation.invars[:2]):
        return "bfloat16"
    asked = equation.params.get("precision")
    return "float32" if asked in (Precision.HIGHEST, (Precision.HIGHEST,) * 2) else "tf32"


def _loop(equation: Any, rounds: Iterator[int]) -> tuple[int, int]:
    """How often a loop runs, and the bytes of what does not change in it; (1, 0) of others."""
    name, given = equation.primitive.name, equation.params
    if name == "scan":
        trips, fixed = given["length"], _constants(equation)
    elif name == "while":
        trips, fixed = next(rounds, 1), given["cond_nconsts"] + given["body_nconsts"]
    else:
        return 1, 0
    return trips, sum(x.aval.size * x.aval.dtype.itemsize for x in equation.invars[:fixed])


def _constants(scan: Any) -> int:
    """How many of a scan's arguments, the first, do not change: JAX's versions say it in ways of
    their own. Others are carried, which also come out whole, or taken slice by slice."""
    body = getattr(scan.params["jaxpr"], "jaxpr", scan.params["jaxpr"])

    def whole(outside: Iterable[Any], inside: Iterable[Any]) -> int:
        pairs = zip(outside, inside, strict=True)
        return sum(len(x.aval.shape) == len(y.aval.shape) for x, y in pairs)

    return whole(scan.invars, body.invars) - whole(scan.outvars, body.outvars)


def roofline(
    flops: Mapping[str, int], moved: int | None, seconds: float, device: Device | None
) -> dict[str, Any]:
    """Says which bound of the device is nearer, and what share of it is reached.

        least time = max(Σ FLOPs / peak of each kind, bytes / bandwidth),   share = least / seconds

    Args:
        flops: by the peak that bounds them, see `Device`.
        moved: the bytes that must be moved at least.
        device: None of a device whose peaks are not known; then there is the intensity alone.
    """
    row: dict[str, Any] = {}
    if moved and flops:
        row["intensity"] = sum(flops.values()) / moved
    if device is None or not (moved or flops):
        return row
    least = {
        "compute": sum(count / getattr(device, kind) for kind, count in flops.items()),
        "memory": (moved or 0) / device.bandwidth,
    }
    bound = max(least, key=least.__getitem__)
    peaks = {kind: getattr(device, kind) for kind in flops} if bound == "compute" else {}
    peaks |= {"bandwidth": device.bandwidth} if bound == "memory" else {}
    return row | {"bound": bound, "share_of_bound": least[bound] / seconds, "peaks": peaks}
