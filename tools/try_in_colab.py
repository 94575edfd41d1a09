"""Run every plain notebook as a stranger does in Colab: newest releases, an empty folder, the package from git.

The environment is made anew in ``_build/colab``, of what Colab comes with (torch alone as we pin it) and what runs
notebooks. The notebooks' first cell, run once where Python pretends to be Colab's, installs the package into it, from
the present commit of this repository.
"""

import os
import re
import shutil
import subprocess
import sys
import tempfile
import venv
from pathlib import Path

import nbformat
from chapters import ROOT
from nbformat.v4 import new_code_cell, new_notebook
from plain_notebooks import INSTALL, KERNEL
from repository import commit

FOLDER, NOTEBOOKS = ROOT / "_build" / "colab", ROOT / "notebooks"
PYTHON = FOLDER / "bin" / "python"
COLAB_HAS = ["numpy", "scipy", "matplotlib", "seaborn", "pandas", "scikit-learn", "ipython", "ipykernel"]
COLAB_HAS += ["cloudpickle", "joblib", "tqdm", "pillow", "requests", "sympy", "networkx"]
RUNNERS = ["nbmake", "pytest-xdist"]
# Before the cell that installs the package, and after it.
PRETENCE = """import sys, time, types
sys.modules["google.colab"] = types.ModuleType("google.colab")
since = time.perf_counter()"""
SOON = """took = time.perf_counter() - since
assert took < 60, f'expected to install the package within 60 s, took {took:.0f} s'"""
CELL_TIMEOUT = 600  # seconds
PACKAGE = ("ntk_helpers", "pyproject.toml")
# One process for each core, each with one thread and no more processes.
ALONE = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "LOKY_MAX_CPU_COUNT": "1"}


def make_environment():
    """A fresh environment with what Colab has."""
    torch = re.search(r"^torch==.*$", (ROOT / "requirements.txt").read_text(encoding="utf-8"), re.M)[0]
    shutil.rmtree(FOLDER, ignore_errors=True)
    venv.create(FOLDER, with_pip=True)
    subprocess.run([PYTHON, "-m", "pip", "install", "--quiet", torch, *COLAB_HAS, *RUNNERS], check=True)


def versions():
    """What is installed, as name==version; the package with the commit that it comes from."""
    frozen = subprocess.run([PYTHON, "-m", "pip", "freeze"], capture_output=True, text=True, check=True)
    return set(frozen.stdout.splitlines())


def local_source():
    """This repository's present commit, as pip takes it."""
    changed = subprocess.run(["git", "status", "--porcelain", *PACKAGE], cwd=ROOT, capture_output=True, text=True)
    if changed.stdout or changed.returncode:
        raise SystemExit(f"expected a package as committed, got changes:\n{changed.stdout}{changed.stderr}")
    return f"git+{ROOT.as_uri()}@{commit(ROOT)}"


def run(notebooks):
    """Run notebooks by nbmake, each alone in a new folder, side by side; return whether all passed."""
    with tempfile.TemporaryDirectory() as folder:
        for name, notebook in notebooks.items():
            (Path(folder) / name).mkdir(parents=True)
            nbformat.write(notebook, Path(folder) / name / f"{Path(name).name}.ipynb")
        options = ["--nbmake", f"--nbmake-timeout={CELL_TIMEOUT}", "--numprocesses=auto", "--dist=worksteal"]
        options += ["--durations=0", "--durations-min=0", "-p", "no:cacheprovider", "-q"]
        pytest = [PYTHON, "-m", "pytest", *options]
        return subprocess.run([*pytest, "."], cwd=folder, env=os.environ | ALONE, check=False).returncode == 0


def install():
    """Run the first cell of the notebooks as in Colab; return whether it brought the package, alone and soon."""
    cells = [new_code_cell(source) for source in (PRETENCE, INSTALL.format(source=local_source()), SOON)]
    before = versions()
    passed = run({"install": new_notebook(cells=cells, metadata={"kernelspec": KERNEL})})
    changed = before ^ versions()
    print(f"installed: {', '.join(changed) or 'nothing'}", flush=True)
    return passed and len(changed) == 1 and changed.pop().startswith("ntk-helpers")


def main():
    make_environment()
    print("\n".join(sorted(versions())), flush=True)
    paths = sorted(NOTEBOOKS.rglob("*.ipynb"))
    if not paths:
        raise SystemExit("expected notebooks in notebooks/, found none: run make notebooks")
    notebooks = {path.relative_to(NOTEBOOKS).with_suffix("").as_posix(): nbformat.read(path, 4) for path in paths}
    return install() and run(notebooks)


if __name__ == "__main__":
    sys.exit(not main())
