"""One function over a grid of parameters, such as widths and seeds: in parallel, kept on disk, and resumed."""

import functools
import inspect
import itertools
import traceback
import types
import warnings
from dataclasses import dataclass, field

import joblib
from joblib.hashing import NumpyHasher
from torch import Tensor

from ntk_helpers._interruption import uninterrupted
from ntk_helpers._progress import progress_bar

_MISSING = object()


@dataclass
class Sweep:
    """What a sweep found, in the order of its grid.

    Attributes
    ----------
    results : list of (dict, object)
        The parameters of each cell and what the function returned for it.
    failures : list of (dict, str)
        The parameters of each cell that failed, and its traceback.
    """

    results: list[tuple[dict, object]] = field(default_factory=list)
    failures: list[tuple[dict, str]] = field(default_factory=list)

    def values(self, **chosen):
        """The results of the cells with these parameters, in order, as a list: ``sweep.values(width=64)``."""
        for name in chosen:
            if any(name not in cell for cell, _ in self.results):
                raise ValueError(f"{name}: expected one of the parameters of the grid, {list(self.results[0][0])}")
        return [value for cell, value in self.results if all(cell[name] == v for name, v in chosen.items())]


def sweep(function, grid, *, cache=None, n_jobs=-1):
    """Call a function for every combination of parameters, in parallel processes.

    The work goes to joblib: to processes of this machine, or wherever the user's ``joblib.parallel_config(...)`` says,
    for example to a Dask cluster. Where a worker dies, its cells run again elsewhere.

    Parameters
    ----------
    function : callable
        Called as ``function(width=64, seed=0)`` for the grid ``{"width": [64, 128], "seed": range(10)}``. Each process
        has its share of the cores.
    grid : dict of str to sequence
        The values of each parameter. The last one varies fastest.
    cache : path, optional
        A folder where results are kept as they come (`joblib.Memory`), so that an interrupted sweep resumes where it
        was, and a larger one runs only what is new. A result counts as known for the same parameters, the same source
        of the function, and the same data and functions that it uses by name from its own module or notebook. Changes
        elsewhere, such as a new version of a package, are not seen: then delete the folder.
    n_jobs : int or None
        As in `joblib.Parallel`; by default one job a core. None leaves it to ``joblib.parallel_config(...)``.

    Returns
    -------
    Sweep

    Raises
    ------
    TypeError, ValueError
        For a grid that is none, and, with `cache`, a function whose source can't be read.
    RuntimeError
        Where every cell failed. Where some did, a warning lists them, and the others are kept.
    """
    cells = _cells(grid)
    values, errors = {}, {}
    remember = _remember if cache is None else joblib.Memory(cache, verbose=0).cache(_remember, ignore=["value"])
    identity = None if cache is None else _parts(function, set())
    keys = [None if cache is None else _hash([identity, cell]) for cell in cells]
    for index, key in enumerate(keys):
        try:
            values[index] = remember(key, _MISSING)
        except LookupError:
            continue
    with progress_bar(len(cells), "cell", done=len(values)) as bar:
        for index, value, error in _outcomes(function, {i: c for i, c in enumerate(cells) if i not in values}, n_jobs):
            if error is None:
                values[index] = remember(keys[index], value)
            else:
                errors[index] = error
            bar.update()
    return _report(cells, values, errors)


def _remember(key, value):
    """What joblib.Memory keeps by `key`: asked for what is not there, it says so."""
    if value is _MISSING:
        raise LookupError(key)
    return value


def _outcomes(function, cells, n_jobs):
    """Outcomes (index, value, error) as they come, of cells by index; what a dead process took along runs again."""
    before = len(cells)
    jobs = [joblib.delayed(_attempt)(index, function, cell) for index, cell in cells.items()]
    try:
        for outcome in joblib.Parallel(n_jobs=n_jobs, return_as="generator_unordered", batch_size=1)(jobs):
            del cells[outcome[0]]
            yield outcome
    except Exception as error:  # of the backend: those of the function come as outcomes
        if before == 1:
            yield (*cells, None, _described(error))
        elif len(cells) < before:
            suspects = list(cells)[: joblib.effective_n_jobs(n_jobs)]  # they go last, not to stop the others again
            yield from _outcomes(function, cells | {index: cells.pop(index) for index in suspects}, n_jobs)
        else:
            for index, cell in cells.items():
                yield from _outcomes(function, {index: cell}, n_jobs)


def _attempt(index, function, cell):
    try:
        with uninterrupted():
            return index, function(**cell), None
    except Exception as error:
        return index, None, _described(error)


def _described(error):
    """The first line of an error, and all of it."""
    return traceback.format_exception_only(error)[0].splitlines()[0], "".join(traceback.format_exception(error))


def _report(cells, values, errors):
    failures = [(cells[i], errors[i][1]) for i in sorted(errors)]
    if errors:
        lines = (f"{cells[i]}: {errors[i][0]}" for i in sorted(errors))
        message = "\n".join([f"{len(errors)} of {len(cells)} cells of the sweep failed:", *lines])
        if not values:
            raise RuntimeError(f"{message}\n\n{failures[0][1]}")
        warnings.warn(message, RuntimeWarning, stacklevel=3)
    return Sweep([(cells[i], values[i]) for i in sorted(values)], failures)


def _cells(grid):
    if not isinstance(grid, dict) or not grid:
        raise TypeError(f"grid: expected a dict of parameters, got {grid!r}")
    values = {}
    for name, sequence in grid.items():
        if isinstance(sequence, str) or not hasattr(sequence, "__iter__"):
            raise TypeError(f"grid: expected a sequence of values for {name}, got {sequence!r}")
        values[name] = list(sequence)
        if not values[name]:
            raise ValueError(f"grid: expected at least one value for {name}, got none")
    return [dict(zip(values, combination, strict=True)) for combination in itertools.product(*values.values())]


class _Hasher(NumpyHasher):
    """That of joblib, for which equal tensors are not equal."""

    def save(self, obj):
        super().save((str(obj.dtype), obj.numpy(force=True)) if isinstance(obj, Tensor) else obj)


def _hash(value):
    return _Hasher("md5").hash(value)


def _parts(function, seen):
    """A function's source, and the data and functions that it uses by name from its own module."""
    if isinstance(function, functools.partial):
        return [_parts(function.func, seen), function.args, function.keywords]
    if not isinstance(function, types.FunctionType):
        raise TypeError(f"function: expected a Python function to cache the results of, got {function!r}")
    if function in seen:
        return []
    seen.add(function)
    variables = inspect.getclosurevars(function).nonlocals
    variables |= {n: function.__globals__[n] for n in set(_names(function.__code__)) if n in function.__globals__}
    used = {name: _used(value, function.__module__, seen) for name, value in sorted(variables.items())}
    try:
        return [inspect.getsource(function), function.__defaults__, function.__kwdefaults__, used]
    except OSError:
        raise TypeError(f"function: expected one whose source can be read, got {function!r}") from None


def _used(value, module, seen):
    own = getattr(value, "__module__", None) == module
    if isinstance(value, types.ModuleType):
        return value.__name__
    if isinstance(value, type) and own:
        return inspect.getsource(value)
    return _parts(value, seen) if isinstance(value, types.FunctionType) and own else value


def _names(code):
    """Names that a function and the functions inside of it look up."""
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _names(constant)
