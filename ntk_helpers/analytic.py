r"""Kernels of infinitely wide fully connected networks: NNGP and NTK, layer by layer.

With :math:`K_1 = \sigma_w^2 x \cdot x' / d + \sigma_b^2` and :math:`\Theta_1 = K_1`, a hidden layer maps

.. math:: K_{l+1} = \sigma_w^2 E[\phi(u) \phi(v)] + \sigma_b^2, \qquad
          \Theta_{l+1} = K_{l+1} + \sigma_w^2 E[\phi'(u) \phi'(v)]\, \Theta_l,

where (u, v) is Gaussian of mean zero with the variances K_l(x, x), K_l(x', x') and the covariance K_l(x, x') (Jacot et
al. 2018, Proposition 1 and Theorem 1). The two expectations are the *dual* of the activation and of its derivative;
the second is the derivative of the first with respect to the covariance.
"""

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import torch
from scipy.special import roots_hermitenorm
from torch import Tensor

from ntk_helpers._checks import Arguments, require_integer, require_scales
from ntk_helpers._precision import full_precision

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


class Smooth:
    """A dual activation that is a smooth function of the variances and the covariance.

    Subclasses define ``__call__(q1, q2, c)``: the dual and its derivative with respect to the covariance c.
    """

    def recursion(self, network, x1, x2, q1, q2, c):
        """Yield the dual and the dual of the derivative, layer after layer, from the first variances and covariance."""
        for _ in range(network.depth):
            dual, slope = self(q1, q2, c)
            yield dual, slope
            c = network.w_var * dual + network.b_var
            q1, q2 = (network.w_var * self.mean_square(q) + network.b_var for q in (q1, q2))

    def mean_square(self, q):
        """E[phi(u)^2] for u of the variance q."""
        return self(q, q, q)[0]


class Identity(Smooth):
    """phi(z) = z: the deep linear network."""

    def __call__(self, q1, q2, c):
        return c, torch.ones_like(c)


class Erf(Smooth):
    """phi(z) = erf(z) (Williams 1997)."""

    def __call__(self, q1, q2, c):
        root = ((1 + 2 * q1) * (1 + 2 * q2) - 4 * c.square()).sqrt()
        return 2 / math.pi * torch.atan2(2 * c, root), 4 / math.pi / root


class GELU(Smooth):
    r"""phi(z) = z \Phi(z), with the normal distribution function (Hendrycks and Gimpel 2016).

    From E[\Phi(u) \Phi(v)] = 1/4 + asin(c / sqrt(a b)) / (2 pi), a = 1 + q1, b = 1 + q2, by integration by parts.
    """

    def __call__(self, q1, q2, c):
        a, b = 1 + q1, 1 + q2
        determinant = a * b - c.square()
        root = determinant.sqrt()
        both = 1 / 4 + torch.atan2(c, root) / (2 * math.pi)
        shrink = 1 / a + 1 / b - 1
        numerator = q1 * q2 + shrink * c.square()
        dual = c * both + numerator / (2 * math.pi * root)
        slope = both + (c * (1 + 2 * shrink) + c * numerator / determinant) / (2 * math.pi * root)
        return dual, slope


class Sin(Smooth):
    """phi(z) = sin(z): the difference of two characteristic functions."""

    def __call__(self, q1, q2, c):
        plus, minus = _cosines(q1, q2, c)
        return (minus - plus) / 2, (minus + plus) / 2


class Cos(Smooth):
    """phi(z) = cos(z): the sum of two characteristic functions."""

    def __call__(self, q1, q2, c):
        plus, minus = _cosines(q1, q2, c)
        return (minus + plus) / 2, (minus - plus) / 2


def _cosines(q1, q2, c):
    """E cos(u + v) and E cos(u - v)."""
    return torch.exp(-(q1 + q2) / 2 - c), torch.exp(-(q1 + q2) / 2 + c)


@dataclass(frozen=True)
class PiecewiseLinear:
    r"""phi(z) = negative * z below zero, positive * z above: ReLU, leaky ReLU, the absolute value.

    With phi(z) = p z + m |z| and the angle theta between u and v, that is cos(theta) = c / sqrt(q1 q2) (Cho and Saul
    2009, orders 0 and 1):

    E[phi phi] = sqrt(q1 q2) (p^2 cos(theta) + m^2 g(theta)), g = (2 / pi) (sin(theta) + (pi / 2 - theta) cos(theta)),
    E[phi' phi'] = p^2 + m^2 (1 - 2 theta / pi).

    Near theta = 0 the cosine has lost half the digits of the angle. The recursion therefore runs on the angle and on
    what E[phi phi] lacks to its largest value, in which no term cancels; g(theta) = g(pi - theta) is used folded.
    """

    negative: float
    positive: float

    def recursion(self, network, x1, x2, q1, q2, c):
        """As for smooth duals; the angles come from the inputs, since the covariance has lost half their digits."""
        p, m = (self.positive + self.negative) / 2, (self.positive - self.negative) / 2
        s, kink = p**2 + m**2, 2 / math.pi * m**2
        angle = _Angle.between(network, x1, x2)
        for _ in range(network.depth):
            folded = angle.folded()
            # s - E[phi phi] / sqrt(q1 q2)
            lost = m**2 * folded.one_minus_cos - kink * folded.sin_minus_theta_cos()
            lost = lost + p**2 * angle.one_minus_cos if p else lost
            norm1, norm2 = _sqrt(q1), _sqrt(q2)
            yield norm1 * norm2 * (s - lost), s - kink * angle.theta
            q1, q2 = (network.w_var * s * q + network.b_var for q in (q1, q2))
            cosine_lost = self._cosine_lost(network, s, norm1, norm2, lost, q1, q2)
            angle = _Angle.from_one_minus_cos(cosine_lost, acute=self.negative * self.positive <= 0)

    @staticmethod
    def _cosine_lost(network, s, norm1, norm2, lost, q1, q2):
        """1 - cos(theta) after a layer, from the norms before it and the variances after it; no term is negative."""
        w_var, b_var = network.w_var, network.b_var
        if not b_var:  # every norm is multiplied by the same number
            return lost / s
        scale, after = norm1 * norm2, q1.sqrt() * q2.sqrt()
        apart = w_var * s * b_var * (norm1 - norm2).square() / (after + w_var * s * scale + b_var)
        return (apart + w_var * scale * lost) / after


class _Angle(NamedTuple):
    """Angles between pairs, with what would lose digits if it were computed from them."""

    theta: Tensor
    one_minus_cos: Tensor
    one_plus_cos: Tensor
    sin: Tensor
    acute: bool  # all of them, known beforehand

    @classmethod
    def between(cls, network, x1, x2):
        """Angles between inputs, a constant coordinate appended for the bias: accurate to rounding at 0 and at pi.

        By Kahan's formula, from the distances between the unit vectors and between one and the other's opposite.
        """
        d, unit = x1.shape[1], []
        for x in (x1, x2):
            scaled = math.sqrt(network.w_var / d) * x
            v = torch.cat([scaled, torch.full_like(x[:, :1], math.sqrt(network.b_var))], dim=1)
            norm = _sqrt(v.square().sum(1, keepdim=True))
            unit.append(v / torch.where(norm > 0, norm, 1.0))
        exact = {"compute_mode": "donot_use_mm_for_euclid_dist"}  # a matrix product would lose what this is for
        apart, along = torch.cdist(unit[0], unit[1], **exact), torch.cdist(unit[0], -unit[1], **exact)
        return cls(2 * torch.atan2(apart, along), apart.square() / 2, along.square() / 2, apart * along / 2, False)

    @classmethod
    def from_one_minus_cos(cls, one_minus_cos, acute):
        """Angles of cosine 1 - delta, rounding outside of [-1, 1] removed."""
        half = (one_minus_cos / 2).clamp(0, 1)
        root = _sqrt(half)
        return cls(2 * torch.asin(root), one_minus_cos, 2 - one_minus_cos, 2 * root * _sqrt(1 - half), acute)

    def folded(self):
        """The angles themselves where they are acute, and theirs to pi where they are not."""
        if self.acute:
            return self
        theta = torch.minimum(self.theta, math.pi - self.theta)
        return self._replace(theta=theta, one_minus_cos=torch.minimum(self.one_minus_cos, self.one_plus_cos))

    def sin_minus_theta_cos(self):
        """sin(theta) - theta cos(theta) of acute angles, by its series where the terms cancel."""
        t = self.theta.square()
        series = t * self.theta * (1 / 3 - t * (1 / 30 - t * (1 / 840 - t * (1 / 45360 - t / 3991680))))
        return torch.where(self.theta < 0.25, series, self.sin - self.theta + self.theta * self.one_minus_cos)


def leaky_relu(slope):
    """phi(z) = slope * z below zero, z above."""
    return PiecewiseLinear(slope, 1.0)


def _sqrt(x):
    """Square root, with gradient zero at zero."""
    if not x.requires_grad:
        return x.sqrt()
    positive = x > 0
    return torch.where(positive, torch.where(positive, x, 1.0).sqrt(), 0.0)


class Quadrature(Smooth):
    r"""The dual of any function, from its Hermite coefficients by Gauss quadrature; its derivative by autograd.

    With :math:`a_k(q) = E[\phi(\sqrt q z) h_k(z)]` for the normalized Hermite polynomials, the dual is :math:`\sum_k
    a_k(q_1) a_k(q_2) \rho^k` (Daniely et al. 2016), :math:`\rho` the correlation. The error of a truncation is known:
    by Parseval, it is at most the tail :math:`E[\phi^2] - \sum_k a_k^2`, the larger one of the two variances. The sum
    ends where the tail is rounding.

    Parameters
    ----------
    function : callable
        Elementwise, of a tensor, differentiable.
    tolerance : float
        Largest tail allowed, relative to :math:`E[\phi^2]`.
    """

    def __init__(self, function, tolerance=1e-6):
        self.function, self.tolerance = function, tolerance

    def __call__(self, q1, q2, c):
        norm1, norm2 = (_sqrt(q) for q in (q1, q2))
        scale = norm1 * norm2
        rho = torch.where(scale > 0, c / torch.where(scale > 0, scale, 1.0), 0.0).clamp(-1, 1)
        values, slopes = [], []
        for norm in (norm1, norm2):
            of_value, of_slope = self._coefficients(norm.flatten())
            values.append(of_value.reshape(-1, *norm.shape))
            slopes.append(of_slope.reshape(-1, *norm.shape))
        return _series(*values, rho), _series(*slopes, rho)

    def mean_square(self, q):
        """By the nodes themselves, without the coefficients."""
        nodes, _, weights = (t.to(q.device) for t in _hermite(NODES, DEGREE))
        values = self.function(_sqrt(q).double().unsqueeze(-1) * nodes)
        return (values.square() @ weights).to(q)

    def _coefficients(self, norm):
        """Hermite coefficients (degree, len(norm)) of phi and of phi', at the standard deviations `norm`.

        In float64 whatever the dtype, as the sums over the nodes lose digits; cut where the tail is rounding in it.
        """
        dtype, norm = norm.dtype, norm.double()
        nodes, basis, weights = (t.to(norm) for t in _hermite(NODES, DEGREE))
        z = norm * nodes.unsqueeze(1)
        with torch.enable_grad():
            z = z if z.requires_grad else z.detach().requires_grad_()
            value = self.function(z)
            if not isinstance(value, Tensor) or value.shape != z.shape:
                raise ValueError(f"activation: expected an elementwise function, got output {value!r} for input {z!r}")
            (slope,) = torch.autograd.grad(value.sum(), z, create_graph=norm.requires_grad)
        found = []
        for f in (value if norm.requires_grad else value.detach(), slope):
            coefficients, total = basis @ f, weights @ f.square()
            tails = (total - coefficients.square().cumsum(0)).detach().amax(1) / total.detach().max()
            rounding = max(torch.finfo(dtype).eps, 100 * torch.finfo(torch.float64).eps)
            if not tails[-1] <= max(self.tolerance, rounding):
                raise ValueError(
                    f"activation: expected a function smooth enough for quadrature with {DEGREE} Hermite polynomials, "
                    f"got a relative tail of {tails[-1].item():.1g} (allowed: {self.tolerance:g}) at a variance of "
                    f"{norm.max().item() ** 2:.3g}; kinks need a closed form, large variances a smoother function"
                )
            found.append(coefficients[: int((tails > rounding).sum()) + 1].to(dtype))
        return found


NODES, DEGREE = 700, 600


@lru_cache
def _hermite(nodes, degree):
    """Gauss-Hermite nodes, the normalized polynomials at them times the weights, and the weights; for N(0, 1)."""
    z = torch.from_numpy(roots_hermitenorm(nodes)[0])
    rows = [torch.exp(-z.square() / 4)]  # Hermite functions, in which nothing overflows
    rows.append(z * rows[0])
    for k in range(1, nodes - 1):
        rows.append((z * rows[k] - math.sqrt(k) * rows[k - 1]) / math.sqrt(k + 1))
    # The weight of a node is 1 / (nodes * h_{nodes-1}^2), which underflows at the outer ones where its root does not.
    basis = torch.stack(rows) / (math.sqrt(nodes) * rows[-1].abs())
    return z, basis[: degree + 1] * basis[0], basis[0].square()


def _series(a1, a2, rho):
    """The power series in rho whose k-th coefficient is a1[k] * a2[k], by Horner's rule; where one ends, both do."""
    total, terms = torch.zeros_like(rho), min(len(a1), len(a2))
    for left, right in zip(a1[:terms].flip(0), a2[:terms].flip(0), strict=True):
        total = total * rho + left * right
    return total


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
