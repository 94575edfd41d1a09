r"""Kernels of infinitely wide fully connected networks: NNGP and NTK, layer by layer.

With :math:`K_1 = \sigma_w^2 x \cdot x' / d + \sigma_b^2` and :math:`\Theta_1 = K_1`, a hidden layer maps

.. math:: K_{l+1} = \sigma_w^2 E[\phi(u) \phi(v)] + \sigma_b^2, \qquad
          \Theta_{l+1} = K_{l+1} + \sigma_w^2 E[\phi'(u) \phi'(v)]\, \Theta_l,

where (u, v) is Gaussian of mean zero with the variances K_l(x, x), K_l(x', x') and the covariance K_l(x, x') (Jacot et
al. 2018, Proposition 1 and Theorem 1). The two expectations are the *dual* of the activation and of its derivative;
the second is the derivative of the first with respect to the covariance.
"""

from collections import deque
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from ntk_helpers._utils.checks import (
    Arguments,
    Parameterization,
    require_integer,
    require_scales,
    require_single_or_double,
)
from ntk_helpers._utils.precision import full_precision
from ntk_helpers.kernels.duals import GELU, Erf, Identity, PiecewiseLinear, Smooth, cos, leaky_relu, sin
from ntk_helpers.kernels.elu import ELU
from ntk_helpers.kernels.quadrature import Quadrature

Activation = str | Smooth | PiecewiseLinear | Callable[[Tensor], Tensor]

TILE = 2048  # bytes in a row of a tile, by default: the temporary arrays of a square tile stay in the cache


class Kernels(NamedTuple):
    """The kernel of the network at its start (NNGP), and its neural tangent kernel (NTK)."""

    nngp: Tensor
    ntk: Tensor


def kernels(
    x1: Tensor,
    x2: Tensor | None = None,
    *,
    depth: int,
    activation: Activation = "relu",
    w_std: float = 2**0.5,
    b_std: float | None = 0.1,
    parameterization: Parameterization = "ntk",
    width: int | None = None,
    chunk_size: int | None = None,
) -> Kernels:
    r"""NNGP and NTK of an infinitely wide fully connected network with one output.

    All layers, the readout included, share `w_std` and `b_std`; see `MLP` for the parameterizations. In the standard
    one the NTK grows with the width: :math:`\Theta_1 = x \cdot x' + 1` and :math:`\Theta_{l+1} = n E[\phi \phi] +
    \sigma_w^2 E[\phi' \phi'] \Theta_l + 1`, the ones where there are biases, for hidden layers of `width` n.

    Parameters
    ----------
    x1 : Tensor (n1, d)
        Of float32 or float64.
    x2 : Tensor (n2, d), optional
        None means `x1`: half the entries are computed, and the result is exactly symmetric.
    depth : int
        Number of hidden layers; 0 is the linear model.
    activation : str, dual activation or callable
        A name in ``DUALS``, one of the duals themselves (``leaky_relu(0.1)``, ``sin(3.0)``), or any elementwise
        function of a tensor. Those that have a dual in ``DUALS``, such as `torch.relu` or ``nn.GELU()``, get it; that
        of another is computed by `Quadrature`.
    w_std, b_std : float
        ``b_std=None`` leaves the biases out; ``b_std=0.0`` in the standard parameterization keeps them, starting at
        zero and trained.
    parameterization : {"ntk", "standard"}
    width : int
        Of the hidden layers; given exactly in the standard parameterization.
    chunk_size : int, optional
        Rows and columns of the tiles that are computed one after the other; by default 256 in float64. Beside the
        result, a few copies of the inputs and a few arrays of the size of one tile are alive.

    Returns
    -------
    Kernels
        A named tuple (nngp, ntk) of tensors (n1, n2), of the dtype and device of `x1`. Differentiable with respect to
        the inputs; where two inputs coincide the kink of a kernel contributes no gradient.

    Raises
    ------
    TypeError, ValueError
        For arguments of wrong shape, type or value, by name; where the quadrature of a callable does not converge; and
        where a layer's kernel leaves the range of the dtype.

    Examples
    --------
    >>> nngp, ntk = kernels(torch.eye(2), depth=1, b_std=None)
    >>> nngp
    tensor([[1.0000, 0.3183],
            [0.3183, 1.0000]])
    >>> ntk
    tensor([[2.0000, 0.3183],
            [0.3183, 2.0000]])
    """
    options = depth, activation, w_std, b_std, parameterization, width, chunk_size
    return Kernels(*_kernels(Kernels._fields, x1, x2, *options))


def nngp_kernel(
    x1: Tensor,
    x2: Tensor | None = None,
    *,
    depth: int,
    activation: Activation = "relu",
    w_std: float = 2**0.5,
    b_std: float | None = 0.1,
    parameterization: Parameterization = "ntk",
    width: int | None = None,
    chunk_size: int | None = None,
) -> Tensor:
    """The NNGP of `kernels` alone, with the same arguments and errors: a tensor (n1, n2).

    Examples
    --------
    >>> nngp_kernel(torch.eye(2), depth=1, b_std=None)
    tensor([[1.0000, 0.3183],
            [0.3183, 1.0000]])
    """
    return _kernels(["nngp"], x1, x2, depth, activation, w_std, b_std, parameterization, width, chunk_size)[0]


def ntk_kernel(
    x1: Tensor,
    x2: Tensor | None = None,
    *,
    depth: int,
    activation: Activation = "relu",
    w_std: float = 2**0.5,
    b_std: float | None = 0.1,
    parameterization: Parameterization = "ntk",
    width: int | None = None,
    chunk_size: int | None = None,
) -> Tensor:
    """The NTK of `kernels` alone, with the same arguments and errors: a tensor (n1, n2).

    Examples
    --------
    >>> x = torch.eye(2)
    >>> ntk_kernel(x, x[:1], depth=1, activation="erf").shape
    torch.Size([2, 1])
    """
    return _kernels(["ntk"], x1, x2, depth, activation, w_std, b_std, parameterization, width, chunk_size)[0]


@full_precision()
def _kernels(wanted, x1, x2, depth, activation, w_std, b_std, parameterization, width, chunk_size):
    """The kernels of these names, tile by tile."""
    arguments = Arguments()
    arguments.tensor("x1", x1, "n1 d")
    if x2 is not None:
        arguments.tensor("x2", x2, "n2 d")
    require_single_or_double("x1", x1)
    depth = require_integer("depth", depth, at_least=0)
    chunk_size = TILE // x1.element_size() if chunk_size is None else chunk_size
    chunk_size = require_integer("chunk_size", chunk_size, at_least=1)
    network = _Network(depth, _dual(activation), *_scales(w_std, b_std, parameterization, width))
    symmetric = x2 is None
    x2 = x1 if symmetric else x2
    layers = network.layers(x1, x2, "ntk" in wanted)
    results = [x1.new_empty(len(x1), len(x2)) for _ in wanted]
    for rows in _chunks(len(x1), chunk_size):
        for columns in _chunks(len(x2), chunk_size):
            if symmetric and columns.start < rows.start:
                continue
            (both,) = deque(layers(rows, columns), maxlen=1)  # of the last layer
            for out, name in zip(results, wanted, strict=True):
                tile = getattr(both, name).to(x1.dtype)
                if not tile.isfinite().all():
                    network.refuse(layers(rows, columns), name, x1.dtype)
                if symmetric:
                    tile = (tile + tile.mT) / 2 if rows == columns else tile
                    out[columns, rows] = tile.mT
                out[rows, columns] = tile
    return results


def _chunks(n, size):
    return [slice(start, min(start + size, n)) for start in range(0, n, size)]


@dataclass(frozen=True)
class _Network:
    """The recursion for one tile of pairs."""

    depth: int
    dual: Smooth | PiecewiseLinear
    w_var: float
    b_var: float
    ntk_scale: float  # of E[phi phi] in the NTK: w_var, or the width in the standard parameterization
    ntk_bias: float  # what each layer's bias adds to the NTK
    standard: bool

    def layers(self, x1, x2, with_ntk):
        """A function of the rows and columns of a tile that yields its kernels after every layer, the NTK if wanted."""
        recursion = (self.dual if self.depth else Identity()).recursion(self, x1, x2)

        def tile(rows, columns):
            duals = recursion(rows, columns)
            nngp: Tensor = next(duals)
            ntk: Any = None
            if with_ntk:
                ntk = x1[rows] @ x2[columns].mT + self.ntk_bias if self.standard else nngp
            yield Kernels(nngp, ntk)
            for dual, slope in duals:
                nngp = self.w_var * dual + self.b_var if self.b_var else self.w_var * dual
                if with_ntk:
                    of_readout = self.ntk_scale * dual + self.ntk_bias if self.standard else nngp
                    ntk = torch.addcmul(of_readout, slope(), ntk, value=self.w_var)
                yield Kernels(nngp, ntk)

        return tile

    def refuse(self, layers, name, dtype):
        """Raise for the first layer whose kernel is not finite."""
        finite = [bool(getattr(both, name).to(dtype).isfinite().all()) for both in layers]
        scales = f"w_std={self.w_var**0.5:.3g}, depth={self.depth}"
        raise ValueError(f"layer {finite.index(False) + 1}: the {name} kernel is not finite in {dtype}; {scales}")


#: The activations that `kernels` knows by name; ``sorted(DUALS)`` lists them.
DUALS: dict[str, Smooth | PiecewiseLinear] = {
    "relu": PiecewiseLinear(0.0, 1.0),
    "leaky_relu": leaky_relu(0.01),
    "abs": PiecewiseLinear(-1.0, 1.0),
    "erf": Erf(),
    "gelu": GELU(),
    "sin": sin(1.0),
    "cos": cos(1.0),
    "identity": Identity(),
    "tanh": Quadrature(torch.tanh),
    "sigmoid": Quadrature(torch.sigmoid),
    "silu": Quadrature(functional.silu),
    "elu": ELU(),
    # by default linear from 20 on, a step of 2e-9
    "softplus": Quadrature(lambda z: functional.softplus(z, threshold=40)),
}

_NAMES: dict[str, list[Callable]] = {
    "relu": [torch.relu, functional.relu],
    "leaky_relu": [functional.leaky_relu],
    "abs": [torch.abs, torch.absolute, abs],
    "erf": [torch.erf, torch.special.erf],
    "gelu": [functional.gelu],
    "sin": [torch.sin],
    "cos": [torch.cos],
    "tanh": [torch.tanh, functional.tanh],
    "sigmoid": [torch.sigmoid, functional.sigmoid, torch.special.expit],
    "silu": [functional.silu],
    "elu": [functional.elu],
    "softplus": [functional.softplus],
}
_DUALS_OF_FUNCTIONS = {function: DUALS[name] for name, functions in _NAMES.items() for function in functions}

_DUALS_OF_MODULES = {
    nn.ReLU: lambda module: DUALS["relu"],
    nn.LeakyReLU: lambda module: leaky_relu(module.negative_slope),
    nn.GELU: lambda module: DUALS["gelu"] if module.approximate == "none" else Quadrature(module),
    nn.Identity: lambda module: DUALS["identity"],
    nn.Tanh: lambda module: DUALS["tanh"],
    nn.Sigmoid: lambda module: DUALS["sigmoid"],
    nn.SiLU: lambda module: DUALS["silu"],
    nn.ELU: lambda module: DUALS["elu"] if module.alpha == 1 else Quadrature(module),
    nn.Softplus: lambda module: DUALS["softplus"] if module.beta == 1 else Quadrature(module),
}


def _dual(activation):
    if isinstance(activation, Smooth | PiecewiseLinear):
        return activation
    if isinstance(activation, str):
        if activation not in DUALS:
            raise ValueError(f"activation: expected a callable, a dual or one of {sorted(DUALS)}, got {activation!r}")
        return DUALS[activation]
    if not callable(activation):
        raise TypeError(f"activation: expected a callable, a dual or one of {sorted(DUALS)}, got {activation!r}")
    if type(activation) in _DUALS_OF_MODULES:
        return _DUALS_OF_MODULES[type(activation)](activation)
    if isinstance(activation, Hashable) and activation in _DUALS_OF_FUNCTIONS:
        return _DUALS_OF_FUNCTIONS[activation]
    return Quadrature(activation)


def _scales(w_std, b_std, parameterization, width):
    """The variances of the NNGP, the two scales of the NTK, and whether the parameterization is the standard one."""
    require_scales(w_std, b_std, parameterization)
    standard = parameterization == "standard"
    if standard:
        width = require_integer("width", width, at_least=1)
    elif width is not None:
        raise ValueError(f"width: expected None, as the kernel does not depend on it, got {width}")
    w_var, b_var = w_std**2, 0.0 if b_std is None else b_std**2
    ntk = (float(width), float(b_std is not None)) if standard else (w_var, b_var)
    return w_var, b_var, *ntk, standard
