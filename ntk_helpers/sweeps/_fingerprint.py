"""A hash by which to know again a function and its parameters, whatever else they use."""

import dis
import functools
import pickle
import sys
import sysconfig
import types

import torch
from joblib.hashing import NumpyHasher
from torch import Tensor

INSTALLED = tuple({sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")})


def fingerprint(named):
    """Hash of a dict of objects by name: of functions, their code and whatever it uses beyond installed packages.

    Raises TypeError, naming the culprit, where something of it can't be pickled.
    """
    hashes = []
    for name, value in sorted(named.items()):
        try:
            hashes.append((name, _Hasher().hash(value)))
        except (TypeError, AttributeError, RuntimeError, pickle.PicklingError) as error:
            raise TypeError(f"{name}: expected what can be pickled, to know its results again: {error}") from error
    return _Hasher().hash(hashes)


class _Hasher(NumpyHasher):
    """That of joblib; but tensors go by their values, and functions and classes of the user by what they say.

    Joblib takes functions and classes by their names, so that a change of their code would go unnoticed, and dicts
    without their order.
    """

    def __init__(self):
        super().__init__("md5")
        self.seen = {}

    def save(self, obj):
        super().save(self._contents(obj))

    def _batch_setitems(self, items, *rest):
        pickle._Pickler._batch_setitems(self, iter(items), *rest)

    def _contents(self, obj):
        if isinstance(obj, Tensor):
            values = obj.detach().cpu().resolve_conj().resolve_neg().contiguous().flatten()
            return str(obj.dtype), tuple(obj.shape), obj.requires_grad, values.view(torch.uint8).numpy()
        if isinstance(obj, frozenset):
            return "frozenset", set(obj)  # whose order joblib knows to ignore
        if isinstance(obj, types.ModuleType):
            return "module", obj.__name__
        if isinstance(obj, types.MappingProxyType):
            return "mappingproxy", dict(obj)
        if isinstance(obj, types.CodeType):
            return _code(obj)
        if isinstance(obj, types.FunctionType) and (_of_the_user(obj) or not _importable(obj)):
            return self._once(obj, _function)
        if not _of_the_user(obj):
            return obj
        if isinstance(obj, type):
            return self._once(obj, _class)
        return (type(obj).__name__, obj.__wrapped__) if hasattr(obj, "__wrapped__") else obj

    def _once(self, obj, contents):
        """The contents of a function or class; where it comes again, within itself for example, its number."""
        if obj in self.seen:
            return "seen", self.seen[obj]
        self.seen[obj] = len(self.seen)
        return contents(obj)


def _of_the_user(obj):
    """Whether a function or class lives outside of installed packages, and of this one."""
    name = getattr(obj, "__module__", None)
    if not isinstance(name, str) or name.split(".")[0] == __package__.split(".")[0]:
        return name is None
    module = sys.modules.get(name)
    return name not in sys.builtin_module_names and not (getattr(module, "__file__", None) or "").startswith(INSTALLED)


def _importable(function):
    found = sys.modules.get(function.__module__)
    for name in function.__qualname__.split("."):
        found = getattr(found, name, None)
    return found is function


def _code(code):
    counts = code.co_argcount, code.co_posonlyargcount, code.co_kwonlyargcount, code.co_flags
    names = code.co_names, code.co_varnames, code.co_freevars, code.co_cellvars
    return "code", code.co_code, getattr(code, "co_exceptiontable", b""), code.co_consts, counts, names


def _function(function):
    names = sorted({name for name in _names(function.__code__) if name in function.__globals__})
    cells = [cell.cell_contents for cell in function.__closure__ or () if cell != types.CellType()]
    used = [(name, function.__globals__[name]) for name in names]
    attributes = {k: v for k, v in vars(function).items() if k != "__wrapped__"}
    return function.__code__, function.__defaults__, function.__kwdefaults__, cells, used, attributes


def _names(code):
    """Names that a function and the functions inside of it look up in its module."""
    for instruction in dis.get_instructions(code):
        if instruction.opname in ("LOAD_GLOBAL", "LOAD_NAME"):
            yield instruction.argval
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _names(constant)


def _class(cls):
    skipped = ("__dict__", "__weakref__", "__doc__", "_abc_impl", "_backward_cls")
    members = [(name, _member(value)) for name, value in vars(cls).items() if name not in skipped]
    return cls.__qualname__, type(cls), cls.__bases__, members


def _member(value):
    if isinstance(value, property):
        return value.fget, value.fset, value.fdel
    if isinstance(value, functools.cached_property):
        return value.func
    return (type(value).__name__, value.__func__) if isinstance(value, staticmethod | classmethod) else value
