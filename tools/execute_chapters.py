"""Execute every chapter whose present state has not been executed yet: by nbmake, side by side, each once.

The outputs go into the cache that the site is rendered from, so that the run that was tested is the run that is read.
"""

import sys
import time
from concurrent.futures import as_completed
from pathlib import Path

import joblib
import psutil
from chapters import ROOT, chapters
from execution_cache import cache_folder
from jupyter_cache import get_cache
from jupyter_cache.base import CacheBundleIn
from nbmake_run import run_notebook, side_by_side

MEMORY = 3 * 2**30  # bytes that must be free for each chapter that runs beside another
CORES = joblib.cpu_count()


def places(count):
    """How many of `count` chapters run at once: one for each core, where memory allows."""
    return max(1, min(count, CORES, psutil.virtual_memory().available // MEMORY))


def limits(cores):
    """Variables of a chapter that has some cores for itself: as many processes for its sweeps, and one thread.

    On one thread, its numbers are the same to the last digit whatever runs beside it.
    """
    return {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "LOKY_MAX_CPU_COUNT": str(cores), "TQDM_DISABLE": "1"}


def failure(path, run, lines):
    """Where a chapter failed, and how: its own line, not the notebook's."""
    cells = [c for c in zip(run.notebook.cells, lines, strict=True) if c[0].cell_type == "code" and c[0].source.strip()]
    if not run.begun:
        return f"{path}: the run failed"
    cell, line = cells[run.begun - 1]
    errors = [f"{out['ename']}: {out['evalue']}" for out in cell.outputs if out["output_type"] == "error"]
    return f"{path}:{line}: the cell fails: {run.trouble or ' '.join(errors)}"


def keep_outputs(folder, notebook, run, cores, uri):
    """Keep in a cache's folder what a run of a notebook on some cores gave; `run` is as `run_notebook` gives it."""
    for cell, ran in zip(notebook.cells, run.notebook.cells, strict=True):
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = ran.outputs, ran.execution_count
    notebook.metadata["language_info"] = run.notebook.metadata["language_info"]
    took = {"execution_seconds": run.seconds, "peak_memory": run.peak_memory, "cores": cores}
    bundle = CacheBundleIn(notebook, uri, data=took)
    get_cache(folder).cache_notebook_bundle(bundle, check_validity=False, overwrite=True)


def execute(book):
    """Execute the chapters of a book that need it; return whether all passed."""
    known = chapters(book)
    todo = [chapter for chapter in known if chapter.executed() is None]
    print(f"{len(known) - len(todo)} chapters have been executed as they are, {len(todo)} are to be", flush=True)
    if not todo:
        return True
    # Read once: outputs belong to what ran, whatever is edited meanwhile.
    # The last come first: they are the longest, and at the end no core waits for one.
    folder, sources = cache_folder(book), [(c, c.read(), list(c.first_lines())) for c in reversed(todo)]
    parts, passed, since = places(len(todo)), True, time.perf_counter()
    cores = CORES // parts
    with side_by_side(parts) as pool:
        waiting = {pool.submit(run_notebook, s[1], s[0].path.stem, environment=limits(cores)): s for s in sources}
        for future in as_completed(waiting):
            (chapter, notebook, lines), run = waiting[future], future.result()
            if cache_folder(book) != folder:
                raise SystemExit("the package changed while chapters ran: what ran is not known; run them again")
            if run.passed:
                keep_outputs(folder, notebook, run, cores, str(chapter.path))
                print(f"{chapter.docname}: {run.seconds:.1f} s, {run.peak_memory / 2**20:.0f} MiB", flush=True)
            else:
                passed = False
                print(run.report, failure(chapter.path, run, lines), sep="\n", flush=True)
    took = time.perf_counter() - since
    print(f"{len(todo)} chapters in {took:.0f} s, {parts} at a time on {cores} of {CORES} cores each", flush=True)
    return passed


if __name__ == "__main__":
    book = Path(sys.argv[1]).resolve() if len(sys.argv) > 1 else ROOT
    raise SystemExit(not execute(book))
