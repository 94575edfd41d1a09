r"""Kernels of infinitely wide fully connected networks: NNGP and NTK, layer by layer.

With :math:`K_1 = \sigma_w^2 x \cdot x' / d + \sigma_b^2` and :math:`\Theta_1 = K_1`, a hidden layer maps

.. math:: K_{l+1} = \sigma_w^2 E[\phi(u) \phi(v)] + \sigma_b^2, \qquad
          \Theta_{l+1} = K_{l+1} + \sigma_w^2 E[\phi'(u) \phi'(v)]\, \Theta_l,

where (u, v) is Gaussian of mean zero with the variances K_l(x, x), K_l(x', x') and the covariance K_l(x, x') (Jacot et
al. 2018, Proposition 1 and Theorem 1). The two expectations are the *dual* of the activation and of its derivative;
the second is the derivative of the first with respect to the covariance.
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from ntk_helpers._utils.checks import Arguments, require_integer, require_scales
from ntk_helpers._utils.precision import full_precision
from ntk_helpers.kernels.duals import GELU, Cos, Erf, Identity, PiecewiseLinear, Sin, Smooth, leaky_relu
from ntk_helpers.kernels.quadrature import Quadrature

TILE = 2048  # bytes in a row of a tile, by default: the temporary arrays of a square tile stay in the cache


class Kernels(NamedTuple):
    """The kernel of the network at its start (NNGP), and its neural tangent kernel (NTK)."""

    nngp: Tensor
    ntk: Tensor


@full_precision()
def kernels(
    x1,
    x2=None,
    *,
    depth,
    activation="relu",
    w_std=2**0.5,
    b_std=0.0,
    parameterization="ntk",
    width=None,
    chunk_size=None,
):
    r"""NNGP and NTK of an infinitely wide fully connected network with one output.

    All layers, the readout included, share `w_std` and `b_std`; see `MLP` for the parameterizations. In the standard
    one the NTK grows with the width: :math:`\Theta_1 = x \cdot x' + 1` and :math:`\Theta_{l+1} = n E[\phi \phi] +
    \sigma_w^2 E[\phi' \phi'] \Theta_l + 1`, the ones where there are biases, for hidden layers of `width` n.

    Parameters
    ----------
    x1 : Tensor (n1, d)
    x2 : Tensor (n2, d), optional
        None means `x1`: half the entries are computed, and the result is exactly symmetric.
    depth : int
        Number of hidden layers; 0 is the linear model.
    activation : str, dual activation or callable
        A name in ``DUALS``, one of the duals themselves (``leaky_relu(0.1)``), or any elementwise function of
        a tensor, such as `torch.tanh`, whose dual is then computed by `Quadrature`.
    w_std, b_std : float
        ``b_std=None`` leaves the biases out; ``b_std=0.0`` in the standard parameterization keeps them, starting at
        zero and trained.
    parameterization : {"ntk", "standard"}
    width : int
        Of the hidden layers; given exactly in the standard parameterization.
    chunk_size : int, optional
        Rows and columns of the tiles that are computed one after the other; by default 256 in float64. Beside the
        result a few arrays of the size of one tile are alive.

    Returns
    -------
    Kernels
        A named tuple (nngp, ntk) of tensors (n1, n2), of the dtype and device of `x1`. Differentiable with respect to
        the inputs; where two inputs coincide the kink of a kernel contributes no gradient.

    Raises
    ------
    TypeError, ValueError
        For arguments of wrong shape, type or value, by name; and where the quadrature of a callable does not converge.
    """
    arguments = Arguments()
    arguments.tensor("x1", x1, "n1 d")
    if x2 is not None:
        arguments.tensor("x2", x2, "n2 d")
    require_integer("depth", depth, at_least=0)
    chunk_size = TILE // x1.element_size() if chunk_size is None else chunk_size
    require_integer("chunk_size", chunk_size, at_least=1)
    network = _Network(depth, _dual(activation), *_scales(w_std, b_std, parameterization, width))
    rows, columns = x1.split(chunk_size), (x1 if x2 is None else x2).split(chunk_size)
    nngp = x1.new_empty(len(x1), sum(map(len, columns)))
    ntk = torch.empty_like(nngp)
    for i, row in enumerate(rows):
        for j, column in enumerate(columns):
            if x2 is None and j < i:
                continue
            at = slice(i * chunk_size, i * chunk_size + len(row)), slice(j * chunk_size, j * chunk_size + len(column))
            for out, tile in zip((nngp, ntk), network.tile(row, column), strict=True):
                if x2 is None:
                    tile = (tile + tile.mT) / 2 if i == j else tile
                    out[at[::-1]] = tile.mT
                out[at] = tile
    return Kernels(nngp, ntk)


def nngp_kernel(x1, x2=None, **options):
    """The NNGP of `kernels`, with the same arguments."""
    return kernels(x1, x2, **options).nngp


def ntk_kernel(x1, x2=None, **options):
    """The NTK of `kernels`, with the same arguments."""
    return kernels(x1, x2, **options).ntk


@dataclass(frozen=True)
class _Network:
    """The recursion for one tile of pairs."""

    depth: int
    dual: object
    w_var: float
    b_var: float
    ntk_scale: float  # of E[phi phi] in the NTK: w_var, or the width in the standard parameterization
    ntk_bias: float  # what each layer's bias adds to the NTK
    standard: bool

    def tile(self, x1, x2):
        d = x1.shape[1]
        inner = x1 @ x2.mT
        q1, q2 = (self.w_var / d * x.square().sum(1) + self.b_var for x in (x1, x2))
        c = self.w_var / d * inner + self.b_var
        ntk = inner + self.ntk_bias if self.standard else c
        dual = None
        for dual, slope in self.dual.recursion(self, x1, x2, q1.unsqueeze(1), q2.unsqueeze(0), c):
            ntk = self.ntk_scale * dual + self.ntk_bias + self.w_var * slope * ntk
        return c if dual is None else self.w_var * dual + self.b_var, ntk


#: The activations that `kernels` knows by name; ``sorted(DUALS)`` lists them.
DUALS = {
    "relu": PiecewiseLinear(0.0, 1.0),
    "leaky_relu": leaky_relu(0.01),
    "abs": PiecewiseLinear(-1.0, 1.0),
    "erf": Erf(),
    "gelu": GELU(),
    "sin": Sin(),
    "cos": Cos(),
    "identity": Identity(),
    "tanh": Quadrature(torch.tanh),
}


def _dual(activation):
    if isinstance(activation, Smooth | PiecewiseLinear):
        return activation
    if callable(activation):
        return Quadrature(activation)
    if activation not in DUALS:
        raise ValueError(f"activation: expected a callable, a dual or one of {sorted(DUALS)}, got {activation!r}")
    return DUALS[activation]


def _scales(w_std, b_std, parameterization, width):
    """The variances of the NNGP, the two scales of the NTK, and whether the parameterization is the standard one."""
    require_scales(w_std, b_std, parameterization)
    standard = parameterization == "standard"
    if standard:
        require_integer("width", width, at_least=1)
    elif width is not None:
        raise ValueError(f"width: expected None, as the kernel does not depend on it, got {width}")
    w_var, b_var = w_std**2, 0.0 if b_std is None else b_std**2
    ntk = (float(width), float(b_std is not None)) if standard else (w_var, b_var)
    return w_var, b_var, *ntk, standard
