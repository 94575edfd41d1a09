"""One style for all figures: palette, bands over seeds, and power laws on log-log axes."""

import zlib
from binascii import b2a_base64
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np
import seaborn as sns
from cycler import cycler
from IPython import get_ipython
from IPython.core.pylabtools import print_figure
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.legend import Legend
from matplotlib.lines import Line2D
from matplotlib_inline.backend_inline import set_matplotlib_formats
from numpy.typing import ArrayLike
from scipy import stats

# Three roles that every chapter shares: colour-blind safe (Okabe and Ito 2008), and never told apart by colour alone.
NETWORK = {"color": "#0072B2", "linestyle": "-"}
LINEARIZED = {"color": "#D55E00", "linestyle": "--"}
KERNEL = {"color": "#000000", "linestyle": ":"}
PALETTE = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9"]
DASHES = ["-", "--", ":", "-.", (0, (5, 1)), (0, (3, 1, 1, 1, 1, 1))]
SMALL = 20_000  # bytes; no PNG of a figure is smaller


def use_style() -> None:
    """Set the style of the book's figures for this session: fonts, grid, palette, and their form in notebooks.

    The lines of a plot differ in colour and in dashes. In a notebook a figure is shown as SVG, or as PNG of twice the
    resolution of a screen where that is smaller.
    """
    sns.set_theme(
        context="notebook",
        style="whitegrid",
        palette=PALETTE,
        rc={
            "axes.prop_cycle": cycler(color=PALETTE) + cycler(linestyle=DASHES),
            "figure.constrained_layout.use": True,
            "figure.figsize": (6.4, 3.4),  # inches; a wider one has letters too small to read on a phone
            "axes.spines.top": False,
            "axes.spines.right": False,
            "grid.color": "#e6e6e6",
            "legend.frameon": False,
            "lines.linewidth": 1.8,
            "svg.hashsalt": "kernel-regimes",  # the same figure gives the same file
        },
    )
    if shell := get_ipython():
        set_matplotlib_formats("svg")  # takes the place of whatever form was set
        shell.display_formatter.formatters["image/svg+xml"].pop(Figure)
        shell.display_formatter.mimebundle_formatter.for_type(Figure, smaller_form)


def smaller_form(figure: Figure) -> dict[str, str]:
    """A figure in the form that takes fewer bytes as the web packs them; as IPython shows it, {MIME type: data}."""
    svg = print_figure(figure, "svg", metadata={"Date": None})
    packed = len(zlib.compress(svg.encode()))
    if packed <= SMALL:
        return {"image/svg+xml": svg}
    png = print_figure(figure, "png", dpi=2 * figure.dpi)
    return {"image/svg+xml": svg} if packed <= len(png) else {"image/png": b2a_base64(png, newline=False).decode()}


def band(
    ax: Axes,
    x: ArrayLike,
    samples: ArrayLike,
    *,
    quantiles: tuple[float, float] = (0.1, 0.9),
    label: str | None = None,
    **style: Any,
) -> Line2D:
    """Draw the median of samples (S, len(x)) over their first axis, and a band between two quantiles.

    `x` and `samples` are tensors or arrays; `style` goes to the line, its colour to the band too.
    """
    x, samples = np.asarray(x), np.asarray(samples)
    (line,) = ax.plot(x, np.median(samples, axis=0), label=label, **style)
    low, high = np.quantile(samples, quantiles, axis=0)
    ax.fill_between(x, low, high, color=line.get_color(), alpha=0.2, linewidth=0)
    return line


def log_log(
    ax: Axes, *, xticks: Sequence[float] | None = None, yticks: Sequence[float] | None = None, **labels: Any
) -> None:
    """Give a panel logarithmic axes, with ticks only where they are asked for; `labels` go to ``ax.set``."""
    ax.set(xscale="log", yscale="log", **labels)
    for axis, ticks in ((ax.xaxis, xticks), (ax.yaxis, yticks)):
        if ticks is not None:
            axis.set_ticks(ticks, [f"{tick:,g}" for tick in ticks])
            axis.set_ticks([], minor=True)


def pi_ticks(ax: Axes, multiples: Sequence[float] = (-1, 0, 1)) -> None:
    """Put ticks on the x axis at multiples of π, written as such: "−π", "π/2", "2π"."""
    fractions = [Fraction(multiple).limit_denominator(64) for multiple in multiples]
    ax.set_xticks([np.pi * float(fraction) for fraction in fractions], map(_times_pi, fractions))


def _times_pi(fraction):
    if not fraction:
        return "0"
    sign, size = "\N{MINUS SIGN}" if fraction < 0 else "", abs(fraction.numerator)
    return f"{sign}{size if size > 1 else ''}π" + (f"/{fraction.denominator}" if fraction.denominator > 1 else "")


def legend_above(ax: Axes, ncols: int = 3) -> Legend:
    """One legend for a whole figure, above its panels: what is labelled in one of them."""
    return ax.figure.legend(*ax.get_legend_handles_labels(), ncols=ncols, loc="outside upper center")


@dataclass(frozen=True)
class PowerLaw:
    """A law ``prefactor * x ** exponent``; `low` and `high` are the ends of the exponent's confidence interval."""

    exponent: float
    low: float
    high: float
    prefactor: float

    @property
    def interval(self) -> tuple[float, float]:
        """The confidence interval of the exponent, (low, high)."""
        return self.low, self.high

    def __call__(self, x: ArrayLike) -> np.ndarray | np.float64:
        """Evaluate the law at `x`."""
        return self.prefactor * np.asarray(x, dtype=float) ** self.exponent


def fit_power_law(x: ArrayLike, samples: ArrayLike, *, confidence: float = 0.95) -> PowerLaw:
    """Fit a line to log(samples) against log(x) for each sample, and average over them.

    The samples are independent repetitions (seeds), so that the spread of their slopes gives a Student t interval for
    the mean slope, whatever the errors along one curve have in common.

    Parameters
    ----------
    x : array (k,)
        At least two distinct positive values.
    samples : array (S, k)
        Positive, S at least 2.

    Returns
    -------
    PowerLaw

    Raises
    ------
    ValueError
        For wrong shapes or values that have no logarithm.
    """
    x, samples = np.asarray(x, dtype=float), np.asarray(samples, dtype=float)
    if x.ndim != 1 or len(np.unique(x)) < 2:
        raise ValueError(f"x: expected at least two distinct values along one axis, got {x}")
    if samples.ndim != 2 or samples.shape[0] < 2 or x.shape != samples.shape[1:]:
        raise ValueError(f"samples: expected shape (S, {len(x)}) with S at least 2, got {samples.shape}")
    for name, values in {"x": x, "samples": samples}.items():
        if not (np.isfinite(values).all() and (values > 0).all()):
            raise ValueError(f"{name}: expected positive finite values, got others")
    slopes, intercepts = np.polyfit(np.log(x), np.log(samples).T, deg=1)
    mean, error = slopes.mean(), stats.sem(slopes)
    reach = error * stats.t.ppf((1 + confidence) / 2, df=len(slopes) - 1)
    return PowerLaw(mean, mean - reach, mean + reach, np.exp(intercepts.mean()))
