"""What chapters measure again and again: errors, medians over seeds, the kernel at a moment of training."""

from collections.abc import Callable, Mapping, Sequence
from time import perf_counter
from typing import Any

import torch
from torch import Tensor, nn

from ntk_helpers.kernels.empirical import empirical_ntk

Dim = int | tuple[int, ...]


def rms(values: Tensor, dim: Dim = (-2, -1)) -> Tensor:
    """Root mean square of a tensor over `dim`: by default over points and outputs, for each seed and time."""
    return values.square().mean(dim=dim).sqrt()


def rmse(f: Tensor, g: Tensor, dim: Dim = (-2, -1)) -> Tensor:
    """Root mean square error between two tensors of functions' values, over `dim` as in `rms`."""
    return rms(f - g, dim)


def relative_error(f: Tensor, reference: Tensor, dim: Dim = (-2, -1)) -> Tensor:
    """Norm of the difference over the norm of the reference, both over `dim`; shapes may broadcast."""
    return (f - reference).norm(dim=dim) / reference.norm(dim=dim)


def median(samples: Tensor, dim: int = 0) -> Tensor:
    """Median of a tensor over `dim` (seeds, first by custom), the mean of the middle two where their number is even."""
    return samples.quantile(0.5, dim=dim)


def over_widths(values: Mapping[int, Tensor | Sequence[float]]) -> Tensor:
    """Stack what was measured at each width, {width: (S,)}, to samples (S, widths), as `fit_power_law` takes them."""
    return torch.stack([torch.as_tensor(value) for value in values.values()], dim=-1)


def kernel_now(x1: Tensor, x2: Tensor | None = None) -> Callable[[nn.Module], Tensor]:
    """What to record in training to have the kernel on the way: a function of the network, with the trace kernel."""
    return lambda net: empirical_ntk(net, x1, x2, output="trace")


def alignment(kernel: Tensor, y: Tensor) -> Tensor:
    """Alignment of kernels (..., n, n) with targets y (n, C): cosine of K and y yᵀ (Cristianini et al. 2001)."""
    target = y @ y.mT
    norm = torch.linalg.matrix_norm
    return (kernel * target).sum((-2, -1)) / (norm(kernel) * norm(target))


def sphere(n: int, d: int, generator: torch.Generator, radius: float = 1.0) -> Tensor:
    """Points (n, d), float64, uniform on the sphere of a radius."""
    x = torch.randn(n, d, generator=generator, dtype=torch.float64)
    return radius * x / x.norm(dim=1, keepdim=True)


def seconds(function: Callable[..., object], *arguments: Any, repetitions: int = 3) -> float:
    """Median wall time of a call, in seconds."""
    times = []
    for _ in range(repetitions):
        since = perf_counter()
        function(*arguments)
        times.append(perf_counter() - since)
    return sorted(times)[repetitions // 2]
