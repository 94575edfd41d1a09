"""The unit circle: its points, targets on it, and what a rotation-invariant kernel does to each harmonic."""

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from ntk_helpers._utils.checks import Arguments, require_finite, require_integer, require_number, require_tensor


def grid_angles(n: int) -> Tensor:
    r"""The n angles :math:`-\pi + 2 \pi j / n`, j from 0 to n - 1: Tensor (n,), float64."""
    n = require_integer("n", n, at_least=1)
    return -math.pi + 2 * math.pi / n * torch.arange(n, dtype=torch.float64)


def random_angles(n: int, *, seed: int, grid: int | None = None) -> Tensor:
    r"""n angles drawn uniformly from :math:`[-\pi, \pi)`, or from ``grid_angles(grid)`` without repetition.

    Tensor (n,), float64. The draws come from a generator of their own with this integer seed, on the CPU whatever the
    default device. Those from a grid are in increasing order.
    """
    n = require_integer("n", n, at_least=1)
    generator = torch.Generator("cpu").manual_seed(require_integer("seed", seed, at_least=0))
    if grid is None:
        draws = torch.rand(n, generator=generator, dtype=torch.float64, device="cpu")
        return math.pi * (2 * draws.to(torch.get_default_device()) - 1)
    grid = require_integer("grid", grid, at_least=n)
    chosen = torch.randperm(grid, generator=generator, device="cpu")[:n].sort().values
    return grid_angles(grid)[chosen.to(torch.get_default_device())]


def circle_points(angles: Tensor) -> Tensor:
    r"""The points :math:`(\cos\gamma, \sin\gamma)` at angles (n,), in radians: (n, 2), of their dtype and device."""
    Arguments().tensor("angles", angles, "n")
    return torch.stack([torch.cos(angles), torch.sin(angles)], 1)


def coordinate_product(x: Tensor) -> Tensor:
    r"""The target :math:`x_1 x_2` of Jacot et al. 2018, section 6, at points x (n, 2): (n,).

    On the circle it is a single harmonic, :math:`\sin(2 \gamma) / 2`.
    """
    Arguments().tensor("x", x, "n 2")
    return x[:, 0] * x[:, 1]


@dataclass(frozen=True)
class FourierMixture:
    r"""The function :math:`\sum_k a_k \sin(k \gamma + \varphi_k)` of angles (n,) in radians.

    Attributes
    ----------
    modes : tuple of int
        The frequencies k, zero or above.
    amplitudes, phases : tuple of float
        One each for every mode; the phases in radians.

    Raises
    ------
    TypeError, ValueError
        For tuples of different lengths, frequencies that are not integers, or numbers that are not finite.
    """

    modes: tuple[int, ...]
    amplitudes: tuple[float, ...]
    phases: tuple[float, ...]

    def __post_init__(self):
        modes = tuple(require_integer("modes", k, at_least=0) for k in self.modes)
        object.__setattr__(self, "modes", modes)
        for name in ("amplitudes", "phases"):
            values = getattr(self, name)
            if len(values) != len(self.modes):
                raise ValueError(f"{name}: expected {len(self.modes)} of them, one for each mode, got {len(values)}")
            require_finite(name, torch.tensor([require_number(name, value) for value in values], device="cpu"))

    def __call__(self, angles: Tensor) -> Tensor:
        """The values at angles (n,): (n,), of their dtype and device."""
        Arguments().tensor("angles", angles, "n")
        modes, amplitudes, phases = (angles.new_tensor(v) for v in (self.modes, self.amplitudes, self.phases))
        return torch.sin(angles.unsqueeze(1) * modes + phases) @ amplitudes


_MODES = (2, 4, 7, 11, 16, 23, 32)
SEVEN_MODES = FourierMixture(
    _MODES, tuple(k**-0.5 for k in _MODES), (0.0, 0.5 * math.pi, 1.2, 2.0, 0.3 * math.pi, 4.5, 5.8)
)
r"""Seven frequencies over four octaves, even and odd, in :math:`\sum_k k^{-1/2} \sin(k \gamma + \varphi_k)`.

The frequencies 2, 4, 7, 11, 16, 23, 32 and their phases 0, pi/2, 1.2, 2, 0.3 pi, 4.5, 5.8 are those of a public
experiment, which leaves open how its amplitudes decay: :math:`k^{-1/2}` is our choice. Noise is for the user to add.
"""


def circle_eigenvalues(profile: Tensor) -> Tensor:
    r"""Eigenvalues of a rotation-invariant kernel on the circle, by FFT.

    On a uniform grid its Gram matrix is circulant, and its eigenvalues, divided by N as here, are

    .. math:: \lambda_k = \frac{1}{N} \sum_j K(2 \pi j / N) \cos(2 \pi j k / N),

    with K a function of the angle between two points. They tend to those of the integral operator over the uniform
    probability measure as N grows, with the error :math:`\sum_{m \neq 0} \lambda_{|k + m N|}` of what the grid can't
    tell apart. For eigenvalues that fall as :math:`k^{-2}` it is about :math:`3 (k / N)^2` of :math:`\lambda_k`: 2.6 %
    at k = 32 and N = 360, and 1e-13 in all with a million points.

    Parameters
    ----------
    profile : Tensor (N,)
        The kernel of the first point of a uniform grid with all points of the grid, as ``ntk_kernel(x[:1], x,
        depth=1)[0]`` with ``x = circle_points(grid_angles(N))``. In float64: small eigenvalues are differences.

    Returns
    -------
    Tensor (N // 2 + 1,)
        :math:`\lambda_k` for the frequencies k = 0, 1, ...: sine and cosine of a frequency share it, where both exist.

    Raises
    ------
    TypeError, ValueError
        For a wrong shape or type, and where the profile can't be one: where values at equal angles on both sides of the
        first point differ, or an eigenvalue is negative, both beyond rounding.
    """
    Arguments().tensor("profile", profile, "N")
    mirrored = torch.cat([profile[:1], profile[1:].flip(0)])
    rounding = math.sqrt(torch.finfo(profile.dtype).eps) * profile.abs().max()
    if (asymmetry := (profile - mirrored).abs().max()) > rounding:
        raise ValueError(f"profile: expected equal values at j and N - j, got some that differ by {asymmetry:.3g}")
    eigenvalues = torch.fft.rfft(profile).real / len(profile)
    if (least := eigenvalues.min()) < -rounding:
        raise ValueError(
            "profile: expected a positive semi-definite kernel that depends on the angle alone, from the point with "
            f"itself on, got an eigenvalue of {least:.3g} (the largest is {eigenvalues.max():.3g})"
        )
    return eigenvalues


class Harmonics(NamedTuple):
    """Amplitudes and phases by frequency, from 0 to N // 2, on the last axis."""

    amplitude: Tensor
    phase: Tensor


def harmonics(values: Tensor) -> Harmonics:
    r"""Amplitude and phase of each harmonic of functions on a grid: :math:`\sum_k A_k \sin(k \gamma + \varphi_k)`.

    Parameters
    ----------
    values : Tensor (..., N)
        The functions at ``grid_angles(N)``.

    Returns
    -------
    Harmonics
        :math:`A_k \geq 0` and :math:`\varphi_k` in :math:`(-\pi, \pi]`, each (..., N // 2 + 1). The constant is
        :math:`A_0 \sin\varphi_0`. Frequencies beyond N / 2 fold back to below; at N / 2 itself the grid sees the
        cosine alone. Where an amplitude is zero to rounding, the phase is rounding too.

    Raises
    ------
    TypeError, ValueError
        For what is not a tensor of finite real numbers, or has no entries.
    """
    require_tensor("values", values)
    Arguments().like_the_first("values", values)
    if values.ndim == 0 or 0 in values.shape:
        raise ValueError(f"values: expected shape (..., N) with N > 0, got {tuple(values.shape)}")
    n = values.shape[-1]
    frequencies = torch.arange(n // 2 + 1, device=values.device)
    coefficients = torch.fft.rfft(values) / n * (1 - 2 * (frequencies % 2))  # the grid starts at -pi
    both_signs = torch.where((frequencies == 0) | (2 * frequencies == n), 1, 2)
    phase = torch.angle(1j * coefficients)
    return Harmonics(both_signs * coefficients.abs(), torch.where(phase > -math.pi, phase, math.pi))
