"""What the book's chapters need beside the kernels: claims, figures, animations, and what they measure alike."""

from ntk_helpers.book.animation import animate
from ntk_helpers.book.claims import ClaimError, claim, glue
from ntk_helpers.book.measures import (
    alignment,
    kernel_now,
    median,
    over_widths,
    relative_error,
    rms,
    rmse,
    seconds,
    sphere,
)
from ntk_helpers.book.plotting import (
    DASHES,
    KERNEL,
    LINEARIZED,
    NETWORK,
    PALETTE,
    PowerLaw,
    band,
    fit_power_law,
    legend_above,
    log_log,
    pi_ticks,
    use_style,
)

__all__ = [
    "DASHES",
    "KERNEL",
    "LINEARIZED",
    "NETWORK",
    "PALETTE",
    "ClaimError",
    "PowerLaw",
    "alignment",
    "animate",
    "band",
    "claim",
    "fit_power_law",
    "glue",
    "kernel_now",
    "legend_above",
    "log_log",
    "median",
    "over_widths",
    "pi_ticks",
    "relative_error",
    "rms",
    "rmse",
    "seconds",
    "sphere",
    "use_style",
]
