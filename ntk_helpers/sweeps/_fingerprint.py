"""By what to know a result again: what its function and parameters say, and the source files that it was run with."""

import dis
import functools
import hashlib
import os
import pickle
import sys
import sysconfig
import types
from pathlib import Path

import torch
from joblib.hashing import NumpyHasher
from torch import Tensor

PACKAGE = __package__.split(".")[0]
_OWN = str(Path(__file__).parents[1]) + os.sep
_STDLIB = tuple({sysconfig.get_path(name) + os.sep for name in ("stdlib", "platstdlib")})
_INSTALLED = tuple(f"{os.sep}{name}{os.sep}" for name in ("site-packages", "dist-packages"))

_loaded: dict = {}  # by name of a module: the spec that it was loaded by, and the digest of its file when first seen


def sources():
    """Digests of the source files of all modules loaded, by path: as they were when first seen, not as they are now.

    Those of this package are among them; those of Python itself and of installed packages are not, nor is the script.
    None stands for what is no file, or was loaded twice, and changed between.
    """
    found = {}
    for name, module in list(sys.modules.items()):
        file = getattr(module, "__file__", None)
        if name in ("__main__", "__mp_main__") or not isinstance(file, str):
            continue
        if _installed(file) and not file.startswith(_OWN):
            continue
        spec = getattr(module, "__spec__", None)
        if name not in _loaded or _loaded[name][0] is not spec:  # new, or reloaded
            _loaded[name] = spec, digest(file)
        loaded = _loaded[name][1]
        found[file] = loaded if found.get(file, loaded) == loaded else None
    return found


def digest(path):
    """Of a file; None where there is none."""
    try:
        return hashlib.md5(Path(path).read_bytes(), usedforsecurity=False).hexdigest()
    except OSError:
        return None


def fingerprint(named):
    """Hash of a dict of objects by name: of functions, their code and whatever it names beyond installed packages.

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

    def __init__(self, seen=()):
        super().__init__("md5")
        self.seen = dict(seen)

    def save(self, obj):
        super().save(self._contents(obj))

    def _batch_setitems(self, items, *rest):
        pickle._Pickler._batch_setitems(self, iter(items), *rest)

    def _contents(self, obj):
        if isinstance(obj, Tensor):
            values = obj.detach().cpu().resolve_conj().resolve_neg().contiguous().flatten().view(torch.uint8).numpy()
            return type(obj), str(obj.dtype), str(obj.device), tuple(obj.shape), obj.requires_grad, values, vars(obj)
        if type(obj) in (set, frozenset):
            return type(obj).__name__, sorted(_Hasher(self.seen).hash(element) for element in obj)
        if isinstance(obj, types.ModuleType):
            return "module", obj.__name__
        if isinstance(obj, types.MappingProxyType):
            return "mappingproxy", dict(obj)
        if isinstance(obj, types.MethodType):
            return "method", obj.__func__, obj.__self__
        if isinstance(obj, types.CodeType):
            return _code(obj)
        if isinstance(obj, types.FunctionType) and (_of_the_user(obj) or not _importable(obj)):
            return self._once(obj, _function)
        if not _of_the_user(obj):
            return obj
        if isinstance(obj, type):
            return self._once(obj, _class)
        return (type(obj), vars(obj)) if hasattr(obj, "__wrapped__") else obj  # which may be pickled by its name alone

    def _once(self, obj, contents):
        """The contents of a function or class; where it comes again, within itself for example, its number."""
        if obj in self.seen:
            return "seen", self.seen[obj]
        self.seen[obj] = len(self.seen)
        return contents(obj)


def _installed(file):
    """Whether a file is one of Python itself or of an installed package; PyTorch has modules of no file's name."""
    return not os.path.isabs(file) or file.startswith(_STDLIB) or any(folder in file for folder in _INSTALLED)


def _of_the_user(obj):
    """Whether a function, class or module lives outside of installed packages, and of this one."""
    name = obj.__name__ if isinstance(obj, types.ModuleType) else getattr(obj, "__module__", None)
    if not isinstance(name, str) or name.split(".")[0] == PACKAGE:
        return name is None
    file = getattr(sys.modules.get(name), "__file__", None)
    return name == "__main__" or (name not in sys.builtin_module_names and not (file and _installed(file)))


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
    cells = [cell.cell_contents for cell in function.__closure__ or () if cell != types.CellType()]
    used = sorted(_used(function).items())
    return function.__code__, function.__defaults__, function.__kwdefaults__, cells, used, vars(function)


def _used(function):
    """What a function finds by name: in its module, among modules that it imports, and in those of the user's."""
    named, scope = set(_instructions(function.__code__)), function.__globals__
    found = {name: scope[name] for kind, name in named if kind == "name" and name in scope}
    found |= {name: sys.modules[name] for kind, name in named if kind == "import" and name in sys.modules}
    modules = [value for value in found.values() if isinstance(value, types.ModuleType)]
    for module in modules:  # to which those inside of it are added
        if _of_the_user(module):
            inside = {f"{module.__name__}.{name}": vars(module)[name] for _, name in named if name in vars(module)}
            modules += [v for k, v in inside.items() if isinstance(v, types.ModuleType) and k not in found]
            found |= inside
    return found


def _instructions(code):
    """Names in a code and those inside of it, each with what is done: looked up in the module, imported, or else."""
    for instruction in dis.get_instructions(code):
        if "GLOBAL" in instruction.opname or instruction.opname == "LOAD_NAME":
            yield "name", instruction.argval
        elif instruction.opname == "IMPORT_NAME":
            yield "import", instruction.argval
        elif instruction.opcode in dis.hasname:
            yield "attribute", instruction.argval
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _instructions(constant)


def _class(cls):
    written = ("__dict__", "__weakref__", "__doc__", "__static_attributes__", "__firstlineno__")  # by Python
    members = [(k, _member(v)) for k, v in vars(cls).items() if k not in (*written, "_abc_impl", "_backward_cls")]
    return cls.__qualname__, type(cls), cls.__bases__, members


def _member(value):
    if isinstance(value, property):
        return value.fget, value.fset, value.fdel
    if isinstance(value, functools.cached_property):
        return value.func
    return (type(value).__name__, value.__func__) if isinstance(value, staticmethod | classmethod) else value
