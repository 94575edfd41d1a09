"""One function over a grid of parameters, such as widths and seeds: in parallel, kept on disk, and resumed."""

import itertools
import pickle
import traceback
import warnings
from concurrent.futures import BrokenExecutor
from contextlib import contextmanager
from dataclasses import dataclass

import cloudpickle
import joblib
import numpy as np

from ntk_helpers._utils.interruption import uninterrupted
from ntk_helpers._utils.progress import progress_bar
from ntk_helpers.sweeps._fingerprint import fingerprint

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

    results: list[tuple[dict, object]]
    failures: list[tuple[dict, str]]

    def values(self, **chosen):
        """The results of the cells with these parameters, in order, as a list: ``sweep.values(width=64)``.

        Raises ValueError for a parameter or value that is not in the grid.
        """
        cells = [cell for cell, _ in (*self.results, *self.failures)]
        for name, value in chosen.items():
            if name not in cells[0]:
                raise ValueError(f"{name}: expected one of the parameters of the grid, {list(cells[0])}")
            if not any(np.array_equal(cell[name], value) for cell in cells):
                raise ValueError(f"{name}: expected one of the values in the grid, got {value!r}")
        return [
            value
            for cell, value in self.results
            if all(np.array_equal(cell[name], wanted) for name, wanted in chosen.items())
        ]


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
        was, and a larger one runs only what is new. A result is known for equal parameters and the same code: that of
        the function, and of whatever functions, classes and data it uses, but for installed packages and this one.
        After a new version of one of these, delete the folder.
    n_jobs : int or None
        As in `joblib.Parallel`; by default one job a core. None leaves it to ``joblib.parallel_config(...)``.

    Returns
    -------
    Sweep

    Raises
    ------
    TypeError, ValueError
        For a grid that is none, and, with `cache`, what can't be recognized again, such as a lock.
    RuntimeError
        Where every cell failed. Where some did, a warning lists them, and the others are kept.
    """
    cells = _cells(grid)
    joblib.effective_n_jobs(n_jobs)  # refuses what is no number of jobs
    values, errors = {}, {}
    remember = _remember if cache is None else joblib.Memory(cache, verbose=0).cache(_remember, ignore=["value"])
    identity = None if cache is None else fingerprint({"function": function})
    keys = [None if cache is None else (identity, fingerprint(cell)) for cell in cells]
    for index, key in enumerate(keys):
        try:
            values[index] = remember(key, _MISSING)
        except LookupError:
            continue
    with progress_bar(len(cells), "cell", done=len(values)) as bar, _replaced_silently():
        for index, value, error in _outcomes(function, {i: c for i, c in enumerate(cells) if i not in values}, n_jobs):
            if error is None:
                try:
                    values[index] = remember(keys[index], pickle.loads(value))
                except Exception as failure:
                    error = _described(failure)
            if error is not None:
                errors[index] = error
            bar.update()
    return _report(cells, values, errors)


def _remember(key, value):
    """What joblib.Memory keeps by `key`: asked for what is not there, it says so."""
    if value is _MISSING:
        raise LookupError(key)
    return value


@contextmanager
def _replaced_silently():
    """Without joblib's warning where it replaces a process that has grown, between two cells: nothing is lost."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "A worker stopped while some jobs were given to the executor", UserWarning)
        yield


def _outcomes(function, cells, n_jobs):
    """Outcomes (index, pickled value, error) as they come, of cells by index; what a dead process took runs again."""
    suspects = {}
    while cells:
        try:
            for outcome in _parallel(function, cells, n_jobs):
                del cells[outcome[0]]
                yield outcome
        except Exception as error:  # of the backend: those of the function come as outcomes
            died = isinstance(error, BrokenExecutor) or type(error).__name__ == "KilledWorker"  # the latter is Dask's
            if not died:
                yield from ((index, None, _described(error)) for index in cells)
                break
            # Whichever killed it, it was at work: the first that are not back. They go one by one, after the others.
            suspects |= {index: cells.pop(index) for index in list(cells)[: joblib.effective_n_jobs(n_jobs)]}
    for index, cell in suspects.items():
        try:
            yield from _parallel(function, {index: cell}, n_jobs)
        except Exception as error:
            yield index, None, _described(error)


def _parallel(function, cells, n_jobs):
    jobs = [joblib.delayed(_attempt)(index, function, cell) for index, cell in cells.items()]
    return joblib.Parallel(n_jobs=n_jobs, return_as="generator_unordered", batch_size=1)(jobs)


def _attempt(index, function, cell):
    try:
        with uninterrupted():
            return index, cloudpickle.dumps(function(**cell)), None
    except (Exception, SystemExit) as error:
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
