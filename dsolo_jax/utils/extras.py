"""Libraries that an extra of the package brings, imported when they are needed."""

import importlib
from typing import Any


class MissingExtraError(ImportError):
    """A library of an extra is not installed; its message says how to install it."""


def extra(module: str, name: str) -> Any:
    """Imports a module of the extra `name`; MissingExtraError where it is not installed."""
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        library = module.partition(".")[0]
        if error.name is not None and error.name.partition(".")[0] != library:
            raise  # it is installed, and lacks something itself
        raise MissingExtraError(
            f'{library} is not installed, which this needs: pip install "dsolo-jax[{name}]"'
        ) from None
