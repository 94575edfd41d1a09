"""Fully connected networks in the parameterizations of the theory, one at a time or many seeds at once."""

import copy
import math
from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from ntk_helpers._utils.checks import Parameterization, require_integer, require_positive, require_scales


def _identity(z):
    return z


ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": torch.relu,
    "tanh": torch.tanh,
    "erf": torch.erf,
    "gelu": nn.functional.gelu,
    "sin": torch.sin,
    "cos": torch.cos,
    "abs": torch.abs,
    "identity": _identity,
}

# Drawn from the generator of the same seed, data and weights would be made of the same random numbers.
_SEED_OF_WEIGHTS = 0x9E3779B9


class MLP(nn.Module):
    r"""A fully connected network, or an ensemble of them that trains as one.

    In the NTK parameterization (Jacot et al. 2018, section 2) a layer is
    :math:`z = (\sigma_w / \sqrt{n_\mathrm{in}}) W h + \sigma_b b` with all entries of :math:`W` and :math:`b`
    drawn from N(0, 1); in the standard one it is :math:`z = W h + b` with :math:`W \sim N(0, \sigma_w^2 /
    n_\mathrm{in})` and :math:`b \sim N(0, \sigma_b^2)`. All layers, the readout included, share `w_std` and `b_std`.
    The output is the last :math:`z`, times `output_scale`.

    Parameters
    ----------
    d_in, width, depth, d_out : int
        Input dimension, size of each hidden layer, number of hidden layers (0 for the linear model), outputs.
    activation : str or callable
        A name in ``ACTIVATIONS``, or an elementwise function of a tensor.
    w_std, b_std : float
        Standard deviations. ``b_std=None`` leaves the biases out; ``b_std=0.0`` in the standard parameterization
        keeps them, starting at zero and trained.
    parameterization : {"ntk", "standard"}
    seed : int
        Its generator's stream is not that of ``torch.Generator().manual_seed(seed)``, which is free for the data. One
        network: parameters ``weights.l`` of shape (fan_out, fan_in) and ``biases.l`` of shape (fan_out,).
    seeds : sequence of int
        An ensemble instead: every parameter has a leading axis over the seeds, and member s is the network of
        ``seed=seeds[s]``. Exactly one of `seed` and `seeds` is given.
    antisymmetric : bool
        Whether the network is the difference of two that start the same, :math:`(g_\theta - g_{\theta'}) / \sqrt 2`,
        and so exactly zero at the start, with the kernel of one of them (Zhang et al. 2020; Chizat et al.
        2019, who call it doubling). The second, `twin`, has parameters of its own.
    output_scale : float
        The factor :math:`\alpha` of lazy training (Chizat et al. 2019). The kernel grows as its square, so that the
        learning rate :math:`\eta / \alpha^2` takes as many steps as :math:`\eta` does without.
    dtype, device
        Of the parameters; PyTorch's default device unless given. The draws do not depend on them: they are made on the
        CPU in float64, then converted.

    Raises
    ------
    TypeError, ValueError
        For an argument of wrong type or value, by name.

    Examples
    --------
    >>> x = torch.ones(5, 2, dtype=torch.float64)
    >>> MLP(d_in=2, width=64, depth=1, seed=0)(x).shape
    torch.Size([5, 1])
    >>> ensemble = MLP(d_in=2, width=64, depth=1, seeds=range(10))
    >>> ensemble(x).shape
    torch.Size([10, 5, 1])
    """

    def __init__(
        self,
        d_in: int,
        width: int,
        depth: int,
        d_out: int = 1,
        *,
        activation: str | Callable[[Tensor], Tensor] = "relu",
        w_std: float = 2**0.5,
        b_std: float | None = 0.1,
        parameterization: Parameterization = "ntk",
        seed: int | None = None,
        seeds: Sequence[int] | None = None,
        antisymmetric: bool = False,
        output_scale: float = 1.0,
        dtype: torch.dtype = torch.float64,
        device: torch.device | str | None = None,
    ) -> None:
        super().__init__()
        d_in = require_integer("d_in", d_in, at_least=1)
        width = require_integer("width", width, at_least=1)
        depth = require_integer("depth", depth, at_least=0)
        d_out = require_integer("d_out", d_out, at_least=1)
        require_scales(w_std, b_std, parameterization)
        require_positive("output_scale", output_scale)
        single = seeds is None
        if (seed is None) == single:
            raise ValueError(f"seed, seeds: expected exactly one, got seed={seed}, seeds={seeds}")
        given = [seed] if seeds is None else list(seeds)
        if not given:
            raise ValueError("seeds: expected at least one seed, got none")
        seeds = [require_integer("seed" if single else "seeds", value, at_least=0) for value in given]
        device = torch.get_default_device() if device is None else device

        self.activation = _activation(activation)
        self.d_in, self.ntk_ensemble_size = d_in, None if single else len(seeds)
        self.output_scale = output_scale
        sizes = [d_in, *[width] * depth, d_out]
        scales = [(w_std / math.sqrt(fan_in), b_std or 0.0) for fan_in in sizes[:-1]]
        ones = [(1.0, 1.0)] * len(scales)
        self._scales, of_draws = (scales, ones) if parameterization == "ntk" else (ones, scales)

        generators = [torch.Generator("cpu").manual_seed(seed ^ _SEED_OF_WEIGHTS) for seed in seeds]

        def normal(scale, *shape):
            draws = (torch.randn(shape, generator=g, dtype=torch.float64, device="cpu") for g in generators)
            scaled = [draw.mul_(scale).to(device, dtype) for draw in draws]
            return scaled[0] if single else torch.stack(scaled)

        self.weights, self.biases = nn.ParameterList(), nn.ParameterList()
        for (fan_in, fan_out), (w_scale, b_scale) in zip(pairwise(sizes), of_draws, strict=True):
            self.weights.append(normal(w_scale, fan_out, fan_in))
            if b_std is not None:
                self.biases.append(normal(b_scale, fan_out))
        self.twin = None
        if antisymmetric:
            self.twin = copy.deepcopy(self)
            self.twin.output_scale = 1.0

    @property
    def ensemble_size(self) -> int | None:
        """How many networks these are; None for one by `seed`."""
        return self.ntk_ensemble_size

    def forward(self, x: Tensor) -> Tensor:
        """Map inputs (n, d_in) to outputs (n, d_out), or (S, n, d_out) for an ensemble of S seeds."""
        if x.ndim != 2 or x.shape[1] != self.d_in:
            raise ValueError(f"x: expected shape (n, {self.d_in}), got {tuple(x.shape)}")
        f = self._layers(x)
        if self.twin is not None:
            f = (f - self.twin(x)) / math.sqrt(2)
        return self.output_scale * f

    def _layers(self, x):
        h = self._layer(0, x)
        for layer in range(1, len(self.weights)):
            h = self._layer(layer, self.activation(h))
        return h

    def _layer(self, layer, h):
        weight, (w_scale, b_scale) = self.weights[layer], self._scales[layer]
        if h.numel() < weight.numel():  # the scale multiplies the smaller factor
            h = w_scale * h
        else:
            weight = w_scale * weight
        bias = b_scale * self.biases[layer] if len(self.biases) else None
        if weight.ndim == 2:
            return nn.functional.linear(h, weight, bias)
        return h @ weight.mT if bias is None else h @ weight.mT + bias.unsqueeze(-2)


def _activation(activation):
    if callable(activation):
        return activation
    if activation not in ACTIVATIONS:
        raise ValueError(f"activation: expected a callable or one of {sorted(ACTIVATIONS)}, got {activation!r}")
    return ACTIVATIONS[activation]
