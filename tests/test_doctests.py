"""The examples in docstrings are run."""

import doctest
import importlib
import pkgutil

import dsolo_jax


def test_examples_in_docstrings_hold():
    attempted = 0
    for module in pkgutil.walk_packages(dsolo_jax.__path__, "dsolo_jax."):
        if module.name != "dsolo_jax.__main__":  # it would run the command
            found = doctest.testmod(importlib.import_module(module.name))
            assert not found.failed, module.name
            attempted += found.attempted
    assert attempted
