"""Execute every chapter whose present state has not been executed yet: by nbmake, side by side, each once.

The outputs go into the cache that the site is rendered from, so that the run that was tested is the run that is read.
"""

import sys
import time
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path

import joblib
import psutil
from chapters import ROOT, chapters
from execution_cache import keep_outputs
from nbmake_run import run_notebook

MEMORY = 3 * 2**30  # bytes that must be free for each chapter that runs beside another
CORES = joblib.cpu_count()


def places(count):
    """How many of `count` chapters run at once: one for each core, where memory allows."""
    return max(1, min(count, CORES, psutil.virtual_memory().available // MEMORY))


def limits(cores):
    """Variables that keep a chapter to its share of the cores, so that those side by side don't fight for them."""
    names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "LOKY_MAX_CPU_COUNT")
    return dict.fromkeys(names, str(cores)) | {"TQDM_DISABLE": "1"}


def failure(chapter, run):
    """Where a chapter failed, and how: its own line, not the notebook's."""
    for cell, line in zip(run.notebook.cells, chapter.first_lines(), strict=True):
        for output in cell.get("outputs", []):
            if output["output_type"] == "error":
                return f"{chapter.path}:{line}: the cell fails: {output['ename']}: {output['evalue']}"
    return f"{chapter.path}: the run failed"


def execute(book):
    """Execute the chapters of a book that need it; return whether all passed."""
    todo = [chapter for chapter in chapters(book) if chapter.executed() is None]
    print(
        f"{len(chapters(book)) - len(todo)} chapters have been executed as they are, {len(todo)} are to be", flush=True
    )
    if not todo:
        return True
    parts, passed, since = places(len(todo)), True, time.perf_counter()
    cores = CORES // parts
    with ThreadPoolExecutor(parts) as pool:
        waiting = {pool.submit(run_notebook, c.read(), c.path.stem, environment=limits(cores)): c for c in todo}
        for future in as_completed(waiting):
            chapter, run = waiting[future], future.result()
            if run.passed:
                keep_outputs(book, chapter.path, run, cores)
                print(f"{chapter.docname}: {run.seconds:.1f} s, {run.peak_memory / 2**20:.0f} MiB", flush=True)
            else:
                passed = False
                print(run.report, failure(chapter, run), sep="\n", flush=True)
    took = time.perf_counter() - since
    print(f"{len(todo)} chapters in {took:.0f} s, {parts} at a time on {cores} of {CORES} cores each", flush=True)
    return passed


if __name__ == "__main__":
    book = Path(sys.argv[1]).resolve() if len(sys.argv) > 1 else ROOT
    raise SystemExit(not execute(book))
