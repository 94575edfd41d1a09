"""One function over a grid of parameters, such as widths and seeds: in parallel, kept on disk, and resumed."""

import itertools
import json
import pickle
import traceback
import warnings
from collections.abc import Callable
from concurrent.futures import BrokenExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import md5
from pathlib import Path
from typing import Any, Generic, TypeVar
from uuid import uuid4

import cloudpickle
import joblib
import numpy as np
import torch
from joblib.externals.loky import get_reusable_executor

from ntk_helpers._utils.interruption import uninterrupted
from ntk_helpers._utils.progress import progress_bar
from ntk_helpers.sweeps._fingerprint import digest, fingerprint, sources

T = TypeVar("T")

_MISSING = object()
# Digests by path of the source files that processes had loaded, as far as they said.
_seen_by_workers: dict[str, str | None] = {}


@dataclass
class Sweep(Generic[T]):
    """What a sweep found, in the order of its grid.

    Attributes
    ----------
    results : list of (dict, object)
        The parameters of each cell and what the function returned for it.
    failures : list of (dict, str)
        The parameters of each cell that failed, and its traceback.
    """

    results: list[tuple[dict[str, Any], T]]
    failures: list[tuple[dict[str, Any], str]]

    def values(self, **chosen: Any) -> list[T]:
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


def sweep(
    function: Callable[..., T],
    grid: dict[str, Any],
    *,
    cache: str | Path | None = None,
    n_jobs: int | None = -1,
) -> Sweep[T]:
    """Call a function for every combination of parameters, in parallel processes.

    The work goes to joblib: to processes of this machine, or wherever the user's ``joblib.parallel_config(...)`` says,
    for example to a Dask cluster. Where a worker dies, its cells run again elsewhere.

    Parameters
    ----------
    function : callable
        Called as ``function(width=64, seed=0)`` for the grid ``{"width": [64, 128], "seed": range(10)}``, with the
        default dtype of the caller. Each process has its share of the cores.
    grid : dict of str to sequence
        The values of each parameter. The last one varies fastest.
    cache : path, optional
        A folder where results are kept as they come, so that an interrupted sweep resumes where it was, and a larger
        one runs only what is new. A result is used again for equal parameters as long as none of these has changed:

        - what `function` names, and what that names: functions, classes and data of the script, the notebook, and
          modules that are yours;
        - any source file of a module that was loaded where it was computed, of this package too, so that its upgrade
          makes results new, but for those of Python and of installed packages;
        - PyTorch's default dtype and device.

        Whatever else it depends on, such as files that it reads or the version of PyTorch, is for you to know: take
        another folder then. Nothing is deleted, so that what was computed before a change is there again without it.
        Processes on other machines must have the source files at the same paths.
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
        Where every cell failed. Where some did, a warning lists them, and the others are kept. Results that can't be
        kept are returned all the same, with a warning.

    Examples
    --------
    >>> def size(width, seed):
    ...     return sum(p.numel() for p in MLP(2, width, 1, seed=seed).parameters())
    >>> found = sweep(size, {"width": [64, 128], "seed": range(3)}, n_jobs=1)
    >>> found.values(width=64)
    [257, 257, 257]
    """
    cells = _cells(grid)
    joblib.effective_n_jobs(n_jobs)  # refuses what is no number of jobs
    values, errors = {}, {}
    results = None if cache is None else _Results(cache, function, cells)
    if results:
        for index in range(len(cells)):
            if (value := results.read(index)) is not _MISSING:
                values[index] = value
    missing = {index: cell for index, cell in enumerate(cells) if index not in values}
    _end_outdated_workers()
    with progress_bar(len(cells), "cell", done=len(values)) as bar, _replaced_silently():
        for index, value, used, error in _outcomes(function, missing, n_jobs):
            _seen_by_workers.update(used)
            if error is None:
                try:
                    values[index] = pickle.loads(value)
                except Exception as failure:
                    error = _described(failure)
            if error is not None:
                errors[index] = error
            elif results:
                results.write(index, values[index], used)
            bar.update()
    return _report(cells, values, errors)


class _Results:
    """Results on disk, ``<function>/<cell>/<sources>.pkl``: of a cell, by the source files that it was computed with.

    ``sources/<sources>.json`` has the digests of these by path.
    """

    def __init__(self, folder, function, cells):
        defaults = str(torch.get_default_dtype()), str(torch.get_default_device())
        self.folder, self.now, self.valid, self.warned = Path(folder), sources(), {}, set()
        of_function = self.folder / fingerprint({"function": function, "torch": defaults})
        self.folders = [of_function / fingerprint(cell) for cell in cells]

    def read(self, index):
        """The result of a cell, or what says that there is none."""
        for path in self.folders[index].glob("*.pkl"):
            try:
                if self._valid(path.stem):
                    return joblib.load(path)
            except Exception as error:
                self._warn(f"{path}: could not be read, so that its cell runs again: {error!r}")
        return _MISSING

    def write(self, index, value, used):
        table = json.dumps(used, sort_keys=True)
        name = md5(table.encode(), usedforsecurity=False).hexdigest()
        try:
            _put(self.folder / "sources" / f"{name}.json", lambda path: path.write_text(table))
            _put(self.folders[index] / f"{name}.pkl", lambda path: joblib.dump(value, path))
        except Exception as error:
            self._warn(f"cache: a result could not be kept, so that its cell will run again: {error!r}")

    def _valid(self, name):
        """Whether the source files of this name are those of now, on disk and as far as they are loaded here."""
        if name not in self.valid:
            then = json.loads((self.folder / "sources" / f"{name}.json").read_text())
            self.valid[name] = all(
                found is not None and found == digest(path) == self.now.get(path, found) for path, found in then.items()
            )
        return self.valid[name]

    def _warn(self, message):
        if message not in self.warned:
            warnings.warn(message, RuntimeWarning, stacklevel=4)
        self.warned.add(message)


def _put(path, write):
    """Write a file whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{uuid4().hex}.part")
    try:
        write(part)
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def _end_outdated_workers():
    """End the processes of joblib, which outlive a sweep, where source files are no longer what they loaded."""
    if any(digest(path) != found for path, found in _seen_by_workers.items()):
        get_reusable_executor().shutdown(wait=True)
        _seen_by_workers.clear()


@contextmanager
def _replaced_silently():
    """Without joblib's warning where it replaces a process that has grown, between two cells: nothing is lost."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "A worker stopped while some jobs were given to the executor", UserWarning)
        yield


def _outcomes(function, cells, n_jobs):
    """Outcomes (index, pickled value, source files, error) as they come, of cells by index.

    What a dead process took runs again.
    """
    suspects: dict[int, dict] = {}
    while cells:
        try:
            for outcome in _parallel(function, cells, n_jobs):
                del cells[outcome[0]]
                yield outcome
        except Exception as error:  # of the backend: those of the function come as outcomes
            died = isinstance(error, BrokenExecutor) or type(error).__name__ == "KilledWorker"  # the latter is Dask's
            if not died:
                yield from ((index, None, {}, _described(error)) for index in cells)
                break
            # Whichever killed it, it was at work: the first that are not back. They go one by one, after the others.
            suspects |= {index: cells.pop(index) for index in list(cells)[: joblib.effective_n_jobs(n_jobs)]}
    for index, cell in suspects.items():
        try:
            yield from _parallel(function, {index: cell}, n_jobs)
        except Exception as error:
            yield index, None, {}, _described(error)


def _parallel(function, cells, n_jobs):
    jobs = [joblib.delayed(_attempt)(i, function, cell, torch.get_default_dtype()) for i, cell in cells.items()]
    return joblib.Parallel(n_jobs=n_jobs, return_as="generator_unordered", batch_size=1)(jobs)


def _attempt(index, function, cell, dtype):
    torch.set_default_dtype(dtype)
    sources()  # as early as can be, to see files change after they were loaded
    try:
        with uninterrupted():
            return index, cloudpickle.dumps(function(**cell)), sources(), None
    except (Exception, SystemExit) as error:
        return index, None, sources(), _described(error)


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
