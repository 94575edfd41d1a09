import signal
import sys
from datetime import date
from pathlib import Path

import numpy as np
import pytest
import torch

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT / "tools"), str(ROOT / "_ext")]


@pytest.hookimpl(tryfirst=True)  # before that of hypothesis, which takes it from there
def pytest_configure(config):
    """What hypothesis draws changes with the week, unless ``--hypothesis-seed`` is given."""
    if config.option.hypothesis_seed is None:
        config.option.hypothesis_seed = f"{date.today():%G%V}"  # year and week


def pytest_report_header(config):
    return f"drawn with --hypothesis-seed={config.option.hypothesis_seed}"


@pytest.fixture
def ctrl_c():
    """For tests of an interruption."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        pytest.skip("SIGINT is ignored, as in a job in the background of a script: Ctrl-C cannot be tested")


@pytest.fixture
def generator():
    return torch.Generator().manual_seed(0)


@pytest.fixture
def normal(generator):
    """Standard normal float64 tensors of a given shape, the same in every run."""
    return lambda *shape: torch.randn(shape, generator=generator, dtype=torch.float64)


@pytest.fixture(scope="session")
def reference():
    with np.load(ROOT / "tests" / "data" / "reference.npz") as arrays:
        return dict(arrays)
