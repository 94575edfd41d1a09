"""A hash by which to know again a function and its parameters, whatever else they use."""

import dis
import pickle
import types

import torch
from joblib.hashing import NumpyHasher
from torch import Tensor


def fingerprint(function, parameters):
    """Hash of a function's code, of what that uses from the function's own module, and of its parameters.

    Raises TypeError, naming the culprit, where something of it can't be pickled.
    """
    module = getattr(getattr(function, "func", function), "__module__", None)
    hashes = []
    for name, value in {"function": function, **parameters}.items():
        try:
            hashes.append((name, _Hasher(module).hash(value)))
        except (TypeError, AttributeError, pickle.PicklingError) as error:
            raise TypeError(f"{name}: expected what can be pickled, to know its results again: {error}") from error
    return _Hasher(module).hash(hashes)


class _Hasher(NumpyHasher):
    """That of joblib; but tensors go by their values, and functions and classes of one module by what they say.

    Joblib takes functions and classes by their names, so that a change of their code would go unnoticed.
    """

    def __init__(self, module):
        super().__init__("md5")
        self.module, self.seen = module, {}

    def save(self, obj):
        super().save(self._contents(obj))

    def _contents(self, obj):
        if isinstance(obj, Tensor):
            return str(obj.dtype), tuple(obj.shape), obj.detach().cpu().flatten().view(torch.uint8).numpy()
        if isinstance(obj, types.ModuleType):
            return obj.__name__
        if isinstance(obj, types.CodeType):
            return obj.co_code, obj.co_consts, obj.co_names, obj.co_varnames, obj.co_freevars, obj.co_flags
        if getattr(obj, "__module__", None) != self.module:
            return obj
        if isinstance(obj, types.FunctionType):
            return self._once(obj, _function)
        if isinstance(obj, type):
            return self._once(obj, _class)
        return (type(obj).__name__, obj.__wrapped__) if hasattr(obj, "__wrapped__") else obj

    def _once(self, obj, contents):
        """The contents of a function or class; where it uses itself, its number."""
        if obj in self.seen:
            return self.seen[obj]
        self.seen[obj] = len(self.seen)
        return contents(obj)


def _function(function):
    names = sorted({name for name in _names(function.__code__) if name in function.__globals__})
    cells = [cell.cell_contents for cell in function.__closure__ or () if cell != types.CellType()]
    used = [(name, function.__globals__[name]) for name in names]
    return function.__code__, function.__defaults__, function.__kwdefaults__, cells, used


def _names(code):
    """Names that a function and the functions inside of it look up in its module."""
    for instruction in dis.get_instructions(code):
        if instruction.opname in ("LOAD_GLOBAL", "LOAD_NAME"):
            yield instruction.argval
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _names(constant)


def _class(cls):
    skipped = ("__dict__", "__weakref__", "__doc__", "_abc_impl")
    return cls.__qualname__, cls.__bases__, [(k, _member(v)) for k, v in sorted(vars(cls).items()) if k not in skipped]


def _member(value):
    if isinstance(value, property):
        return value.fget, value.fset, value.fdel
    return (type(value).__name__, value.__func__) if isinstance(value, staticmethod | classmethod) else value
