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
    by Parseval, Cauchy and Schwarz, it is at most the root of the product of the tails :math:`E[\phi^2] - \sum_k a_k^2`
    at the two variances. The sum ends where that is rounding for all of them. That of the quadrature shows in
    :math:`\sum_k |a_k^2 - b_k^2|`, the b_k by a rule of other nodes. Gradients are duals themselves, of the derivatives
    of the function, which autograd computes.

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
        both, offset = _Coefficients(self, q1, q2, dtype), 0 if q2 is q1 else len(q1)

        def tile(rows, columns, c, angle):
            start, stop, _ = columns.indices(len(q2))
            at = both, slice(*rows.indices(len(q1))), slice(start + offset, stop + offset)
            pair = q1[rows].double().unsqueeze(1), q2[columns].double().unsqueeze(0), c
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
    def forward(q1, q2, c, coefficients, rows, columns, m1, m2):
        first, second, rest, error = coefficients.of(m1, m2)
        _require_accurate(coefficients, m1, m2, error)
        scale = q1.sqrt() * q2.sqrt()
        rho = torch.where(scale > 0, c / torch.where(scale > 0, scale, 1.0), 0.0).clamp(-1, 1)
        return _series(first[:, rows], second[:, columns], rest, rho)

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(*inputs[:3])
        ctx.at, ctx.orders = inputs[3:6], inputs[6:]

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
        return of_q1, of_q2, of_c, *[None] * 5


class _Coefficients:
    """Hermite coefficients of an activation and of its derivatives, at the variances of the rows and of the columns of
    a kernel, which may be the same; each computed when asked for."""

    def __init__(self, quadrature, q1, q2, dtype):
        one = q2 is q1
        self.quadrature = quadrature
        self.norm = (q1 if one else torch.cat([q1, q2])).detach().double().sqrt()
        self.sides = [slice(None)] * 2 if one else [slice(len(q1)), slice(len(q1), None)]
        self.rounding = max(torch.finfo(dtype).eps, 100 * torch.finfo(torch.float64).eps)
        self._found = {}

    def of(self, *orders):
        """Of a derivative for the rows and one for the columns: coefficients (degree, variances) of each, the relative
        rest after each term, and the error."""
        if orders not in self._found:
            self._found[orders] = self._compute(orders)
        coefficients, rest, error = self._found[orders]
        return *(coefficients[order] for order in orders), rest, error

    def _compute(self, orders):
        """In float64, as the sums over the nodes lose digits; cut where the rest of the product's terms is rounding."""
        for rule in RULES:
            coefficients, rest, error = self._by_rule(orders, *rule)
            if error <= self.rounding:
                break
        for of_order in coefficients.values():
            for half in (of_order[0::2], of_order[1::2]):  # one of them is rounding in odd and even functions
                if (half.abs() <= 1e-15 * of_order.abs().max()).all():
                    half.zero_()
        return coefficients, rest, error

    def _by_rule(self, orders, nodes, other_nodes, degree):
        found = {order: self._by_nodes(order, nodes, degree) for order in orders}
        rest = self._root_of_both(
            orders, {m: total - every.square().cumsum(0) for m, (every, total) in found.items()}, found
        )
        last = int((rest > self.rounding).sum().clamp(max=degree))
        coefficients = {order: every[: last + 1] for order, (every, _) in found.items()}
        others = {order: self._by_nodes(order, other_nodes, last)[0] for order in found}
        apart = {m: (coefficients[m].square() - others[m].square()).abs().sum(0, keepdim=True) for m in found}
        error = torch.maximum(rest[last], self._root_of_both(orders, apart, found)[0])
        return coefficients, rest[: last + 1], error.item()

    def _root_of_both(self, orders, errors, found):
        """Of errors of mean squares (..., variances) by order, relative to these and the largest of either side: the
        root of the product of both sides', which by Cauchy and Schwarz is that of E[f(u) g(v)]."""
        relative = {m: errors[m] / torch.where(total > 0, total, 1.0) for m, (_, total) in found.items()}
        left, right = (relative[m][:, side].amax(1) for m, side in zip(orders, self.sides, strict=True))
        least = torch.finfo(left.dtype).eps  # what is left of a sum may be zero or less by rounding
        return (left.clamp(min=least) * right.clamp(min=least)).sqrt()

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


def _require_accurate(coefficients, m1, m2, error):
    """Raise unless the relative error of E[f(u) g(v)], for derivatives of these orders, is allowed."""
    tolerance = coefficients.quadrature.tolerance
    if not error <= max(tolerance, coefficients.rounding):
        largest = coefficients.norm.max().item() ** 2
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


def _series(a1, a2, rest, rho):
    """The power series in rho whose k-th coefficient is a1[k] * a2[k], by Horner's rule."""
    # The terms beyond k are below rho^(k + 1) times the rest: none matters from where that is rounding.
    powers = rho.abs().max() ** torch.arange(1, len(rest) + 1, dtype=rho.dtype, device=rho.device)
    terms = min(len(rest), int((rest * powers > rest[-1]).sum()) + 1)
    present = [k % 2 for k in range(min(terms, 2)) if a1[k::2].any() and a2[k::2].any()]
    if not present:
        return torch.zeros_like(rho)
    start, step = present[0], 3 - len(present)
    power, total = rho**step, torch.zeros_like(rho)
    for k in reversed(range(start, terms, step)):
        total.mul_(power).addcmul_(a1[k].unsqueeze(1), a2[k].unsqueeze(0))
    return total * rho**start
