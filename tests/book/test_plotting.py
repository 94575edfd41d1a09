import math
from base64 import b64decode
from io import BytesIO
from itertools import combinations

import imagesize
import matplotlib as mpl
import nbformat
import numpy as np
import pytest
import torch
from colorspacious import cspace_convert, deltaE
from nbclient import NotebookClient

mpl.use("agg")

import matplotlib.pyplot as plt

from ntk_helpers.book.plotting import (
    KERNEL,
    LINEARIZED,
    NETWORK,
    PALETTE,
    band,
    fit_power_law,
    legend_above,
    log_log,
    pi_ticks,
    use_style,
)


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


def test_interval_of_two_samples_is_that_of_cauchy():
    """Student's law of one degree of freedom, of tangents as quantiles; half the difference is the standard error."""
    x = np.array([1.0, 10.0])
    law = fit_power_law(x, np.stack([x**-1.0, x**-1.2]), confidence=0.9)
    assert law.interval == pytest.approx((-1.1 - 0.1 * math.tan(0.45 * math.pi), -1.1 + 0.1 * math.tan(0.45 * math.pi)))


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


def shown(drawing):
    """What a notebook shows of a figure, by type, where the style applies."""
    source = "import matplotlib.pyplot as plt\nimport torch\nfrom ntk_helpers.book.plotting import band, use_style\n"
    source += f"use_style()\nfig, ax = plt.subplots()\n{drawing};"
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source)])
    (output,) = NotebookClient(notebook).execute().cells[0].outputs
    return output["data"]


def test_the_same_figure_gives_the_same_file():
    first, second = (shown("band(ax, [0, 1], torch.eye(2))") for _ in range(2))
    assert first == second


def test_figures_are_svg_where_that_is_smaller_and_else_png_of_twice_the_resolution():
    assert set(shown("ax.plot([0, 1])")) == {"image/svg+xml", "text/plain"}
    assert set(shown("ax.plot(range(200), alpha=0.5)")) == {"image/svg+xml", "text/plain"}
    cloud = shown("ax.scatter(*torch.randn(2, 20000, generator=torch.Generator().manual_seed(0)))")
    assert set(cloud) == {"image/png", "text/plain"}
    png = b64decode(cloud["image/png"])
    assert imagesize.getDPI(BytesIO(png))[0] == pytest.approx(2 * mpl.rcParamsDefault["figure.dpi"], rel=0.01)


CONDITIONS = ("deuteranomaly", "protanomaly", "tritanomaly")


def seen_by(colour, condition):
    """A colour, #rrggbb, as an eye sees it that lacks one kind of cones."""
    srgb = np.array([int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)])
    space = {"name": "sRGB1+CVD", "cvd_type": condition, "severity": 100}
    return np.clip(cspace_convert(srgb, space, "sRGB1"), 0, 1)


@pytest.mark.parametrize("condition", CONDITIONS)
def test_colours_are_told_apart_by_eyes_that_lack_a_kind_of_cones(condition):
    """Their distance in CAM02-UCS; 1 is hardly seen side by side."""
    roles = [style["color"] for style in (NETWORK, LINEARIZED, KERNEL)]
    for colours in (PALETTE, roles):
        pairs = {(a, b): deltaE(seen_by(a, condition), seen_by(b, condition)) for a, b in combinations(colours, 2)}
        print(condition, min(pairs.values()))
        assert min(pairs.values()) > 8, pairs


def test_colour_is_never_the_only_difference():
    assert len({style["linestyle"] for style in (NETWORK, LINEARIZED, KERNEL)}) == 3
    with mpl.rc_context():
        use_style()
        _, ax = plt.subplots()
        lines = [ax.plot([0, 1])[0] for _ in PALETTE]
        assert len({str(line._dash_pattern) for line in lines}) == len(PALETTE)
        assert len({line.get_color() for line in lines}) == len(PALETTE)
    plt.close("all")


def test_ticks_of_logarithmic_axes_are_those_asked_for():
    _, ax = plt.subplots()
    ax.plot([1, 4000], [0.01, 1])
    log_log(ax, xticks=[10, 2048], yticks=[0.05, 1], xlabel="width")
    assert (ax.get_xscale(), ax.get_yscale(), ax.get_xlabel()) == ("log", "log", "width")
    assert [label.get_text() for label in ax.get_xticklabels()] == ["10", "2,048"]
    assert [label.get_text() for label in ax.get_yticklabels()] == ["0.05", "1"]
    assert not len(ax.get_xticks(minor=True))


def test_ticks_at_multiples_of_pi():
    _, ax = plt.subplots()
    pi_ticks(ax, (-2, -1 / 2, 0, 1 / 3, 1, 3 / 2))
    assert [label.get_text() for label in ax.get_xticklabels()] == ["−2π", "−π/2", "0", "π/3", "π", "3π/2"]
    np.testing.assert_allclose(ax.get_xticks(), np.pi * np.array([-2, -1 / 2, 0, 1 / 3, 1, 3 / 2]))


def test_one_legend_for_all_panels():
    figure, axes = plt.subplots(1, 2)
    for ax in axes:
        ax.plot([0, 1], label="line")
    legend_above(axes[0])
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == ["line"]
