"""Run every plain notebook as a stranger does in Colab: newest releases, an empty folder, the package from git.

The environment is made anew in ``_build/colab``, of what Colab comes with (torch alone as we pin it) and what runs
notebooks. Its Python pretends to be Colab's, so that a notebook's first cell installs the package: from the present
commit of this repository, for that notebook alone.
"""

import re
import shutil
import subprocess
import sys
import tempfile
import venv
from dataclasses import replace
from pathlib import Path

from chapters import ROOT, chapters
from execute_chapters import CORES, limits, places
from make_notebooks import Book, Converter
from nbformat.v4 import new_notebook
from nbmake_run import run_notebook, seconds_between_cells, side_by_side
from repository import commit

FOLDER = ROOT / "_build" / "colab"
COLAB_HAS = ["numpy", "scipy", "matplotlib", "seaborn", "pandas", "scikit-learn", "ipython", "ipykernel"]
COLAB_HAS += ["cloudpickle", "joblib", "tqdm", "pillow", "requests", "sympy", "networkx"]
PRETENCE = "import sys, types; sys.modules['google.colab'] = types.ModuleType('google.colab')\n"
INSTALL_TIME = 30  # seconds, at most
PACKAGE = ("ntk_helpers", "pyproject.toml")


def make_environment():
    """A fresh environment with what Colab has; return its Python."""
    torch = re.search(r"^torch==.*$", (ROOT / "requirements.txt").read_text(encoding="utf-8"), re.M)[0]
    shutil.rmtree(FOLDER, ignore_errors=True)
    venv.create(FOLDER, with_pip=True)
    python = FOLDER / "bin" / "python"
    subprocess.run([python, "-m", "pip", "install", "--quiet", torch, *COLAB_HAS, "nbmake"], check=True)
    return python


def packages(environment):
    """Where an environment keeps its packages."""
    return next(environment.glob("lib/python*/site-packages"))


def versions(python):
    """What is installed, as name==version."""
    frozen = subprocess.run([python, "-m", "pip", "freeze"], capture_output=True, text=True, check=True)
    return [line for line in frozen.stdout.split() if line.split("==")[0].lower() in (*COLAB_HAS, "torch", "nbmake")]


def local_source():
    """This repository's present commit, as pip takes it."""
    changed = subprocess.run(["git", "status", "--porcelain", *PACKAGE], cwd=ROOT, capture_output=True, text=True)
    if changed.stdout or changed.returncode:
        raise SystemExit(f"expected a package as committed, got changes:\n{changed.stdout}{changed.stderr}")
    return f"git+{ROOT.as_uri()}@{commit(ROOT)}"


def try_chapter(chapter, book, cores):
    """Run one chapter's notebook; return the run, what its first cell installed, and the seconds that took.

    It runs in an environment over the other, so that the next one finds that as it was.
    """
    with tempfile.TemporaryDirectory() as folder:
        venv.create(folder)
        own = packages(Path(folder))
        (own / "colab.pth").write_text(f"{packages(FOLDER)}\n{PRETENCE}", encoding="utf-8")
        notebook = Converter(chapter, book, chapter.executed()).convert()
        run = run_notebook(notebook, chapter.path.stem, Path(folder) / "bin" / "python", limits(cores))
        install = next(cell for cell in run.notebook.cells if cell.cell_type == "code")
        installed = sorted(path.name for path in own.iterdir() if path.name != "colab.pth")
    return run, installed, seconds_between_cells(new_notebook(cells=[install]))


def main():
    python, source = make_environment(), local_source()
    print("\n".join(versions(python)), flush=True)
    book, todo = replace(Book.read(ROOT), source=source), chapters()
    parts, passed = places(len(todo)), True
    with side_by_side(parts) as pool:
        tries = pool.map(lambda chapter: try_chapter(chapter, book, CORES // parts), todo)
        for chapter, (run, installed, seconds) in zip(todo, tries, strict=True):
            alone = all(name.startswith("ntk_helpers") for name in installed) and installed
            fine = run.passed and alone and seconds < INSTALL_TIME
            passed &= bool(fine)
            if not run.passed:
                print(run.report)
            print(f"{chapter.docname}: {'passed' if fine else 'FAILED'} in {run.seconds:.1f} s", end=", ")
            print(f"{seconds:.1f} s of them to install {', '.join(installed)}", flush=True)
    return passed


if __name__ == "__main__":
    sys.exit(not main())
