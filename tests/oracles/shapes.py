"""Checks the shapes in signatures at every call, by jaxtyping and beartype.

Of a signature only what has a shape is checked: Python's own types are mypy's business, and numpy's
arrays are taken wherever JAX's are. Import it before the package:

    python -c "from tests.oracles import shapes; import dsolo_jax"
"""

import functools
import typing

import jax
import jaxtyping
import numpy as np
from beartype import beartype

found, called = set(), set()


def check(function):
    """Checks a function's shapes when it is called, and notes that it was."""
    hints = {name: hint for name, hint in function.__annotations__.items() if _has_shape(hint)}
    name = f"{function.__module__}.{function.__qualname__}"
    if not hints:
        return function
    found.add(name)
    function.__annotations__ = hints
    checked = beartype(function)

    @functools.wraps(function)
    def note(*args, **kwargs):
        called.add(name)
        return checked(*args, **kwargs)

    return note


def _has_shape(hint) -> bool:
    own = isinstance(hint, type) and issubclass(hint, jaxtyping.AbstractArray)
    return own or any(_has_shape(part) for part in typing.get_args(hint))


jaxtyping.Array = jax.Array | np.ndarray
jaxtyping.install_import_hook("dsolo_jax", "tests.oracles.shapes.check")
