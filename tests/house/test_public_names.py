"""What an editor and the site show of the public names: annotations, and examples that run."""

import doctest
import importlib
import inspect
import pkgutil

import pytest
import torch

import ntk_helpers

RESULTS = {"DivergenceError", "Kernels", "Sweep", "TrainingRecord"}  # which nobody makes, but gets
CALLED = ("__init__", "__call__", "__getitem__")


def functions_of(scope, module):
    """Public functions defined in a module, and the methods of its classes, by name."""
    for name, value in vars(scope).items():
        value = value.fget if isinstance(value, property) else inspect.unwrap(getattr(value, "__func__", value))
        if (name.startswith("_") and name not in CALLED) or getattr(value, "__module__", None) != module.__name__:
            continue
        if inspect.isclass(value):
            yield from functions_of(value, module)
        elif inspect.isfunction(value):
            yield f"{module.__name__}.{value.__qualname__}", value


def unannotated(function):
    signature = inspect.signature(function)
    annotations = {p.name: p.annotation for p in signature.parameters.values() if p.name not in ("self", "cls")}
    annotations["return"] = signature.return_annotation
    return [name for name, annotation in annotations.items() if annotation is signature.empty]


def test_annotations():
    names = [module.name for module in pkgutil.walk_packages(ntk_helpers.__path__, "ntk_helpers.")]
    modules = [importlib.import_module(name) for name in names if "._" not in name]
    functions = dict(pair for module in modules for pair in functions_of(module, module))
    assert "ntk_helpers.kernels.empirical.empirical_ntk" in functions
    assert {name: lacking for name, function in functions.items() if (lacking := unannotated(function))} == {}


@pytest.mark.parametrize("name", sorted({*ntk_helpers.__all__} - RESULTS))
def test_example(name):
    known = {public: getattr(ntk_helpers, public) for public in ntk_helpers.__all__}
    (example,) = doctest.DocTestFinder(recurse=False).find(
        known[name], name, module=False, globs=known | {"torch": torch}
    )
    assert example.examples
    assert doctest.DocTestRunner().run(example).failed == 0
