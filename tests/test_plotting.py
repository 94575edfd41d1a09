import matplotlib as mpl
import nbformat
import numpy as np
import pytest
import torch
from nbclient import NotebookClient

mpl.use("agg")

import matplotlib.pyplot as plt

from ntk_helpers.plotting import band, fit_power_law


def test_power_law_is_recovered_exactly():
    x = np.array([1.0, 2.0, 8.0])
    law = fit_power_law(x, np.stack([3 * x**-0.5, 12 * x**-0.5]))
    assert law.exponent == pytest.approx(-0.5)
    assert law.interval == pytest.approx((-0.5, -0.5))
    assert law.prefactor == pytest.approx(6.0)  # the geometric mean
    np.testing.assert_allclose(law(4), 3.0)


def test_interval_covers_the_truth_as_often_as_it_says():
    rng = np.random.default_rng(0)
    x = np.array([10.0, 100.0, 1000.0])
    covered = 0
    for _ in range(500):
        law = fit_power_law(x, x**-1.0 * np.exp(rng.normal(scale=0.3, size=(6, 3))), confidence=0.8)
        covered += law.low <= -1 <= law.high
    assert 0.75 < covered / 500 < 0.85  # 0.8, with a standard error of 0.018


@pytest.mark.parametrize("samples", [np.ones((1, 3)), np.ones((2, 2)), np.ones(3), -np.ones((2, 3)), np.zeros((2, 3))])
def test_refused_samples(samples):
    with pytest.raises(ValueError, match="samples: expected"):
        fit_power_law([1.0, 2.0, 3.0], samples)


@pytest.mark.parametrize("x", [2.0, [2.0, 2.0], [[1.0, 2.0]], [1.0, np.inf], [0.0, 1.0]])
def test_refused_x(x):
    with pytest.raises(ValueError, match="x: expected"):
        fit_power_law(x, np.ones((2, 2)))


def test_band_draws_the_median_and_quantiles():
    _, ax = plt.subplots()
    samples = torch.arange(11.0).unsqueeze(1) * torch.ones(1, 2)
    line = band(ax, [0, 1], samples, label="name", color="#123456")
    assert line.get_ydata().tolist() == [5, 5]
    (patch,) = ax.collections
    vertices = patch.get_paths()[0].vertices[:, 1]
    assert (vertices.min(), vertices.max()) == pytest.approx((1, 9))
    plt.close("all")


def test_the_same_figure_gives_the_same_file():
    """In notebooks, where the options of the style apply, run one after the other."""
    source = """
import matplotlib.pyplot as plt
import torch

from ntk_helpers.plotting import band, use_style

use_style()
fig, ax = plt.subplots()
band(ax, [0, 1], torch.eye(2));
"""
    figures = []
    for _ in range(2):
        notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source)])
        (output,) = NotebookClient(notebook).execute().cells[0].outputs
        figures.append(output["data"]["image/svg+xml"])
    assert figures[0] == figures[1]
