"""The dual of any smooth activation, by quadrature."""

import math
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import torch
from scipy.special import roots_hermitenorm
from torch import Tensor

from ntk_helpers.kernels.duals import Dual, Smooth, _sqrt

# Nodes of a rule, of the one that it is compared with, and the largest degree; the first that does is taken.
RULES = ((120, 110, 100), (350, 330, 300), (700, 640, 600))


class Quadrature(Smooth):
    r"""The dual of any smooth function, from its Hermite coefficients by Gauss quadrature.

    With :math:`a_k(q) = E[\phi(\sqrt q z) h_k(z)]` for the normalized Hermite polynomials, the dual is :math:`\sum_k
    a_k(q_1) a_k(q_2) \rho^k` (Daniely et al. 2016), :math:`\rho` the correlation. The error of a truncation is known:
    by Parseval, it is at most the tail :math:`E[\phi^2] - \sum_k a_k^2`, the larger one of the two variances. The sum
    ends where the tail is rounding. That of the quadrature shows in :math:`\sum_k |a_k^2 - b_k^2|`, the b_k by a rule
    of other nodes. Gradients are duals themselves, of the derivatives of the function, which autograd computes.

    Parameters
    ----------
    function : callable
        Elementwise, of a tensor, differentiable.
    tolerance : float
        Largest of either error allowed, relative to :math:`E[\phi^2]`.
    """

    def __init__(self, function: Callable[[Tensor], Tensor], tolerance: float = 1e-6) -> None:
        self.function, self.tolerance = function, tolerance

    def __call__(self, q1: Tensor, q2: Tensor, c: Tensor, angle: Any = None) -> Dual:
        everything = slice(None)
        dual, slope = self.layer(q1.flatten(), q2.flatten(), c.dtype)(everything, everything, c.double(), angle)
        return dual.to(c), lambda: slope().to(c)

    def layer(self, q1: Tensor, q2: Tensor, dtype: torch.dtype) -> Callable[..., Dual]:
        left = _Coefficients(self, q1, dtype)
        right = left if q2 is q1 else _Coefficients(self, q2, dtype)

        def tile(rows, columns, c, angle):
            pair = q1[rows].double().unsqueeze(1), q2[columns].double().unsqueeze(0), c
            at = left, right, rows, columns
            return _Dual.apply(*pair, *at, 0, 0), lambda: _Dual.apply(*pair, *at, 1, 1)

        return tile

    def mean_square(self, q: Tensor) -> Tensor:
        """By the nodes themselves, without the coefficients."""
        nodes, _, weights = (t.to(q.device) for t in _hermite(RULES[-1][0]))
        values = self.values(_sqrt(q).double().unsqueeze(-1) * nodes)
        return (values.square() @ weights).to(q)

    def values(self, z: Tensor) -> Tensor:
        """The function at z; raise unless it is elementwise."""
        found = self.function(z)
        if not isinstance(found, Tensor) or found.shape != z.shape:
            raise ValueError(f"activation: expected an elementwise function, got output {found!r} for input {z!r}")
        return found


class _Dual(torch.autograd.Function):
    """E[f(u) g(v)] for derivatives f and g, of the orders m1 and m2, of an activation.

    By Price's theorem, its derivatives are E[f' g'] with respect to c, and E[f'' g] / 2 with respect to q1.
    """

    @staticmethod
    def forward(q1, q2, c, left, right, rows, columns, m1, m2):
        first, second = left.of(m1), right.of(m2)
        _require_accurate(left, right, m1, m2, math.sqrt(first[2] * second[2]))
        scale = q1.sqrt() * q2.sqrt()
        rho = torch.where(scale > 0, c / torch.where(scale > 0, scale, 1.0), 0.0).clamp(-1, 1)
        return _series(first[:2], second[:2], rows, columns, rho)

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(*inputs[:3])
        ctx.at, ctx.orders = inputs[3:7], inputs[7:]

    @staticmethod
    def backward(ctx, gradient):
        m1, m2 = ctx.orders
        of_q1, of_q2, of_c = None, None, None
        if ctx.needs_input_grad[0]:
            of_q1 = (gradient * _Dual.apply(*ctx.saved_tensors, *ctx.at, m1 + 2, m2) / 2).sum(1, keepdim=True)
        if ctx.needs_input_grad[1]:
            of_q2 = (gradient * _Dual.apply(*ctx.saved_tensors, *ctx.at, m1, m2 + 2) / 2).sum(0, keepdim=True)
        if ctx.needs_input_grad[2]:
            of_c = gradient * _Dual.apply(*ctx.saved_tensors, *ctx.at, m1 + 1, m2 + 1)
        return of_q1, of_q2, of_c, *[None] * 6


class _Coefficients:
    """Hermite coefficients of an activation and of its derivatives, at some variances; each computed when asked for."""

    def __init__(self, quadrature, variances, dtype):
        self.quadrature = quadrature
        self.norm = variances.detach().double().sqrt()
        self.rounding = max(torch.finfo(dtype).eps, 100 * torch.finfo(torch.float64).eps)
        self._found = {}

    def of(self, order):
        """Of this derivative, the coefficients (degree, variances), the relative tail after each, and the error."""
        if order not in self._found:
            self._found[order] = self._compute(order)
        return self._found[order]

    def _compute(self, order):
        """In float64, as the sums over the nodes lose digits; cut where the tail is rounding."""
        for rule in RULES:
            coefficients, tails, error = self._by_rule(order, *rule)
            if error <= self.rounding:
                break
        for half in (coefficients[0::2], coefficients[1::2]):  # one of them is rounding in odd and even functions
            if (half.abs() <= 1e-15 * coefficients.abs().max()).all():
                half.zero_()
        return coefficients, tails, error

    def _by_rule(self, order, nodes, other_nodes, degree):
        coefficients, total = self._by_nodes(order, nodes, degree)
        relative = torch.where(total > 0, total, 1.0)
        tails = ((total - coefficients.square().cumsum(0)) / relative).amax(1)
        last = int((tails > self.rounding).sum().clamp(max=degree))
        coefficients = coefficients[: last + 1]
        other, _ = self._by_nodes(order, other_nodes, last)
        apart = ((coefficients.square() - other.square()).abs().sum(0) / relative).max()
        error = torch.maximum(tails[-1], apart).clamp(min=0)
        return coefficients, tails[: last + 1], error.item()

    def _by_nodes(self, order, number, degree):
        """Coefficients and the mean square, by the rule of this number of nodes."""
        nodes, basis, weights = (t.to(self.norm.device) for t in _hermite(number))
        z = self.norm * nodes.unsqueeze(1)
        with torch.enable_grad():
            z.requires_grad_()
            value = self.quadrature.values(z)
            for left in reversed(range(order)):
                if not value.requires_grad:  # a constant
                    value = torch.zeros_like(z)
                    break
                (value,) = torch.autograd.grad(value.sum(), z, create_graph=left > 0)
        value = value.detach()
        return basis[: degree + 1] @ value, weights @ value.square()


def _require_accurate(left, right, m1, m2, error):
    """Raise unless the relative error of E[f(u) g(v)], for derivatives of these orders, is allowed."""
    tolerance = left.quadrature.tolerance
    if not error <= max(tolerance, left.rounding):
        largest = max(side.norm.max().item() ** 2 for side in (left, right))
        raise ValueError(
            f"activation: expected a function smooth enough for quadrature with {RULES[-1][-1]} Hermite polynomials, "
            f"got a relative error of {error:.1g} (allowed: {tolerance:g}) with its derivatives of the orders {m1} and "
            f'{m2}, at variances of up to {largest:.3g}; kinks need a closed form ("relu", "leaky_relu", "abs", '
            "leaky_relu(slope), PiecewiseLinear(negative, positive)), as do fast oscillations (sin(frequency), "
            "cos(frequency)), and large variances a smoother function"
        )


@lru_cache
def _hermite(nodes):
    """Gauss-Hermite nodes, the normalized polynomials at them times the weights, and the weights; for N(0, 1)."""
    z = torch.from_numpy(roots_hermitenorm(nodes)[0])
    rows = [torch.exp(-z.square() / 4)]  # Hermite functions, in which nothing overflows
    rows.append(z * rows[0])
    for k in range(1, nodes - 1):
        rows.append((z * rows[k] - math.sqrt(k) * rows[k - 1]) / math.sqrt(k + 1))
    # The weight of a node is 1 / (nodes * h_{nodes-1}^2), which underflows at the outer ones where its root does not.
    basis = torch.stack(rows) / (math.sqrt(nodes) * rows[-1].abs())
    return z, basis * basis[0], basis[0].square()


def _series(first, second, rows, columns, rho):
    """The power series in rho whose k-th coefficient is a1[k] * a2[k], by Horner's rule."""
    (a1, tails1), (a2, tails2) = first, second
    a1, a2 = a1[:, rows], a2[:, columns]
    terms = min(len(a1), len(a2))
    # The terms beyond k are below rho^(k + 1) times the root of the tails: none matters from where that is rounding.
    powers = rho.abs().max() ** torch.arange(1, terms + 1, dtype=rho.dtype, device=rho.device)
    rest = (tails1[:terms].clamp(min=0) * tails2[:terms].clamp(min=0)).sqrt() * powers
    terms = min(terms, int((rest > min(tails1[-1].item(), tails2[-1].item())).sum()) + 1)
    present = [k % 2 for k in range(min(terms, 2)) if a1[k::2].any() and a2[k::2].any()]
    if not present:
        return torch.zeros_like(rho)
    start, step = present[0], 3 - len(present)
    power, total = rho**step, torch.zeros_like(rho)
    for k in reversed(range(start, terms, step)):
        total.mul_(power).addcmul_(a1[k].unsqueeze(1), a2[k].unsqueeze(0))
    return total * rho**start
