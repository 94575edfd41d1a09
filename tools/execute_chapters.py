"""Execute every chapter whose present state has not been executed yet: by nbmake, side by side, each once.

The outputs go into the cache that the site is rendered from, so that the run that was tested is the run that is read.
"""

import os
import signal
import sys
import time
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import Thread

import joblib
import nbformat
import psutil
import pytest
from chapters import ROOT, chapters
from execution_cache import cache_folder
from jupyter_cache import get_cache
from jupyter_cache.base import CacheBundleIn
from nbmake_worker import LIMIT, cell_file

MEMORY = 3 * 2**30  # bytes that must be free for each chapter that runs beside another
CORES = joblib.cpu_count()
OPTIONS = ["--disable-plugin-autoload", "-p", "xdist", "-p", "nbmake", "-p", "nbmake_worker", "-p", "no:cacheprovider"]
OPTIONS += ["--nbmake", "--overwrite", f"--nbmake-timeout={LIMIT}", "--maxschedchunk=1", "-qq", "--no-summary"]
# On one thread, a chapter's numbers are the same to the last digit whatever runs beside it.
ENVIRONMENT = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "TQDM_DISABLE": "1"}


class Run:
    """A chapter as it is now, and its run in a folder of its own: outputs belong to what ran, whatever is edited."""

    def __init__(self, chapter, folder):
        self.chapter, self.lines, self.since = chapter, chapter.lines(), None
        self.file = folder / f"{chapter.path.stem}.ipynb"
        folder.mkdir()
        nbformat.write(chapter.read(), self.file)

    @property
    def cell(self):
        """The number of the present cell, from 0; before the first, that of the first."""
        with suppress(FileNotFoundError, ValueError):  # it is being written
            return int(cell_file(self.file).read_text())
        return 0

    def progress(self):
        took = time.perf_counter() - self.since
        return f"{self.chapter.docname} for {took:.0f} s (cell {self.cell + 1} of {len(self.lines)})"

    def failure(self, trouble):
        """Where the chapter failed, and how: its own line, not the notebook's."""
        return f"{self.chapter.path}:{self.lines[self.cell]}: the cell fails: {trouble}"

    def keep_outputs(self, folder, seconds):
        """Keep in a cache's folder what the run gave."""
        notebook = nbformat.read(self.file, as_version=4)
        for cell in notebook.cells:
            cell.metadata.pop("execution", None)  # times: with them, it would not be known as the chapter's
        bundle = CacheBundleIn(notebook, str(self.chapter.path), data={"execution_seconds": seconds})
        get_cache(folder).cache_notebook_bundle(bundle, check_validity=False, overwrite=True)


class Reporter:
    """Hooks of pytest: as the runs go, they say so, and keep what comes of them."""

    def __init__(self, book, runs):
        self.book, self.folder, self.runs, self.running = book, cache_folder(book), runs, {}

    def say_progress(self, every):
        while True:
            time.sleep(every)
            if running := list(self.running.values()):
                print("running:", "; ".join(run.progress() for run in running), flush=True)

    def pytest_runtest_logstart(self, nodeid):
        run = self.running[nodeid] = self.runs[nodeid.split("/")[0]]
        run.since = time.perf_counter()

    def pytest_runtest_logreport(self, report):
        if report.when in ("setup", "teardown"):
            return
        run = self.running.pop(report.nodeid)
        if cache_folder(self.book) != self.folder:
            pytest.exit("the package changed while chapters ran: what ran is not known; run them again", returncode=1)
        if report.passed:
            run.keep_outputs(self.folder, report.duration)
            print(f"{run.chapter.docname}: {report.duration:.1f} s", flush=True)
        else:
            trouble = dict(report.user_properties).get("trouble", "the process that ran it ended")
            print(report.longreprtext, run.failure(trouble), sep="\n", flush=True)

    def pytest_report_teststatus(self):
        return "", "", ""  # all is said

    def pytest_keyboard_interrupt(self):
        """End all that runs, kernels too."""
        print("interrupted: what was running has been ended", flush=True)
        for process in psutil.Process().children(recursive=True):
            with suppress(psutil.NoSuchProcess):
                process.kill()


def execute(book, every=60):
    """Execute the chapters of a book that need it, and say every so many seconds how far; return whether all passed."""
    known = chapters(book)
    todo = [chapter for chapter in known if chapter.executed() is None]
    print(f"{len(known) - len(todo)} chapters have been executed as they are, {len(todo)} are to be", flush=True)
    if not todo:
        return True
    since = time.perf_counter()
    parts = max(1, min(len(todo), CORES, psutil.virtual_memory().available // MEMORY))
    os.environ |= ENVIRONMENT | {"LOKY_MAX_CPU_COUNT": str(CORES // parts)}  # processes for its sweeps
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # ends all, as Ctrl-C does
    with TemporaryDirectory() as folder:
        # The last come first: they are the longest, and at the end no core waits for one.
        runs = {f"{i:03}": Run(chapter, Path(folder) / f"{i:03}") for i, chapter in enumerate(reversed(todo))}
        reporter = Reporter(book, runs)
        Thread(target=reporter.say_progress, args=[every], daemon=True).start()
        status = pytest.main([*OPTIONS, f"--numprocesses={parts}", f"--rootdir={folder}", folder], [reporter])
    print(f"{len(todo)} chapters in {time.perf_counter() - since:.0f} s, {parts} at a time", flush=True)
    return status == pytest.ExitCode.OK


if __name__ == "__main__":
    book = Path(sys.argv[1]).resolve() if len(sys.argv) > 1 else ROOT
    raise SystemExit(not execute(book))
