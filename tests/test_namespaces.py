"""The public modules: every name is found, on first use, and is what its definition says."""

from __future__ import annotations

import pkgutil
import subprocess
import sys
from importlib import import_module
from types import ModuleType

import pytest

import road_interp as ri
from road_interp.recipes.schema import KINDS
from road_interp.results import Result

LAZY = ["causal", "recipes"]


def submodules(package):
    return [import_module(f"{package.__name__}.{found.name}") for found in pkgutil.iter_modules(package.__path__)]


@pytest.mark.parametrize("name", ["causal", "measure", "plots", "recipes"])
def test_every_public_name_is_found(name):
    package = getattr(ri, name)
    assert {name} < set(ri.__all__) == set(dir(ri))
    assert all(getattr(package, each) is not None for each in package.__all__)
    assert dir(package) == sorted(package.__all__)


@pytest.mark.parametrize("name", LAZY)
def test_no_public_name_is_that_of_a_submodule(name):
    """Importing a submodule would put the module in place of the function."""
    package = getattr(ri, name)
    submodules(package)
    assert not [each for each in package.__all__ if isinstance(getattr(package, each), ModuleType)]
    assert dir(package) == package.__all__
    with pytest.raises(AttributeError, match=f"^module 'road_interp.{name}' has no attribute 'nothing'$"):
        _ = package.nothing


def test_reports_and_kinds_of_recipes_are_public():
    found = [value for module in submodules(ri.causal) for value in vars(module).values() if isinstance(value, type)]
    reports = {each.__name__ for each in found if issubclass(each, Result) and each is not Result}
    assert {each for each in reports if getattr(ri.causal, each, None)} == reports
    assert {getattr(ri.recipes, kind.__name__) for kind in KINDS.values()} == set(KINDS.values())


def test_the_namespaces_load_no_heavy_library():
    script = "import sys, road_interp as ri; ri.causal, ri.recipes; sys.exit(bool({'torch', 'transformers'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0
