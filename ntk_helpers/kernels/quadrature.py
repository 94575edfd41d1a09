"""The dual of any smooth activation, by quadrature."""

import math
from functools import lru_cache

import torch
from scipy.special import roots_hermitenorm
from torch import Tensor

from ntk_helpers.kernels.duals import Smooth, _sqrt


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
