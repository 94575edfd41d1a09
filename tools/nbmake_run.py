"""Run a notebook by nbmake, in an empty folder, and say how long that took and how much memory."""

import os
import re
import signal
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import nbformat
import psutil

CELL_TIMEOUT = 600  # seconds
SAMPLING = 0.1  # seconds between two looks at the memory
# What nbclient writes to its log.
BEGUN = re.compile(r"^Executing cell:$", re.M)
ENDED = re.compile(r"^(Timeout waiting|Kernel died).*", re.M)


@dataclass(frozen=True)
class Run:
    """What came of a notebook: its outputs, what nbmake said, seconds from first cell to last, most bytes held.

    Also how many cells had begun when it ended, and what ended it other than an error in a cell.
    """

    notebook: nbformat.NotebookNode
    passed: bool
    report: str
    begun: int
    trouble: str | None
    seconds: float
    peak_memory: int


def run_notebook(notebook, name, python=sys.executable, environment=()):
    """Run a notebook as the file ``name.ipynb``, the only one in a new folder, with some variables set beside ours.

    The memory is the resident memory of the kernel and the processes that it starts, together, looked at ten times a
    second.
    """
    with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryDirectory() as beside:
        path, log, report = Path(folder) / f"{name}.ipynb", Path(beside) / "log", Path(beside) / "report"
        nbformat.write(notebook, path)
        options = ["--nbmake", "--overwrite", f"--nbmake-timeout={CELL_TIMEOUT}", "-p", "no:cacheprovider", "-q"]
        options += [
            f"--log-file={log}",
            "--log-file-level=DEBUG",
            "--log-file-format=%(message)s",
            "--log-level=WARNING",
        ]
        with report.open("w") as said:
            process = subprocess.Popen(
                [python, "-m", "pytest", *options, path.name],
                cwd=folder,
                env=os.environ | dict(environment),
                stdout=said,
                stderr=subprocess.STDOUT,
            )
            peak_memory = watch_memory(process)
        executed, logged = nbformat.read(path, as_version=4), log.read_text() if log.exists() else ""
        trouble = ENDED.search(logged)
        return Run(
            executed,
            process.returncode == 0,
            report.read_text(),
            len(BEGUN.findall(logged)),
            trouble and trouble[0],
            seconds_between_cells(executed),
            peak_memory,
        )


@contextmanager
def side_by_side(count):
    """A pool of `count` threads to run notebooks in. An exception, Ctrl-C or SIGTERM ends all runs, and begins none."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("terminated"))
    with ThreadPoolExecutor(count) as pool:
        try:
            yield pool
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            for process in descendants(os.getpid()):
                with suppress(psutil.NoSuchProcess):
                    process.kill()
            raise


def watch_memory(process):
    """Wait until a process ends; return the most bytes that its descendants held at once."""
    peak = 0
    while True:
        try:
            process.wait(SAMPLING)
            return peak
        except subprocess.TimeoutExpired:
            peak = max(peak, sum(map(resident, descendants(process.pid))))


def descendants(pid):
    try:
        return psutil.Process(pid).children(recursive=True)
    except psutil.NoSuchProcess:
        return []


def resident(process):
    try:
        return process.memory_info().rss
    except psutil.NoSuchProcess:  # it ended since it was listed
        return 0


def seconds_between_cells(notebook):
    """From the start of the first cell that ran to the end of the last."""
    times = [
        datetime.fromisoformat(time)
        for cell in notebook.cells
        for what, time in cell.metadata.get("execution", {}).items()
        if what in ("iopub.execute_input", "shell.execute_reply")
    ]
    return (max(times) - min(times)).total_seconds() if times else 0.0
