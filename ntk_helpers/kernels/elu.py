r"""The dual of the ELU, by one integral over the directions of the plane.

For :math:`(u, v) = r (\sqrt{q_1} \cos \omega, \sqrt{q_2} \cos(\omega - \theta))`, with r and :math:`\omega` polar
coordinates of a standard normal vector of the plane, the signs of u and v depend on :math:`\omega` alone. They are
constant in four sectors, of the angles :math:`\pi - \theta` (both positive, both negative) and :math:`\theta`. Within
one the integral over r is closed and a smooth function of :math:`\omega`, for Gauss quadrature.
"""

import math
from functools import lru_cache

import torch
from scipy.special import roots_legendre
from torch import Tensor
from torch.autograd.function import once_differentiable

from ntk_helpers.kernels.duals import Dual, Smooth, _Angle


class ELU(Smooth):
    """phi(z) = exp(z) - 1 below zero, z above (Clevert et al. 2016)."""

    def __call__(self, q1: Tensor, q2: Tensor, c: Tensor, angle: _Angle | None = None) -> Dual:
        theta = _plain_angle(q1, q2, c) if angle is None else angle.theta.detach()
        return _Mean.apply(q1, q2, c, theta, 0, 0), lambda: _Mean.apply(q1, q2, c, theta, 1, 1)


class _Mean(torch.autograd.Function):
    """E[f(u) g(v)] for derivatives f and g, of the orders m1 and m2, of the ELU; differentiable by Price's theorem."""

    @staticmethod
    def forward(q1, q2, c, theta, m1, m2):
        return _mean(q1, q2, theta, m1, m2)

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(*inputs[:4])
        ctx.orders = inputs[4:]

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient):
        q1, q2, _, theta = ctx.saved_tensors
        m1, m2 = ctx.orders
        of_q1, of_q2, of_c = None, None, None
        if ctx.needs_input_grad[0]:
            of_q1 = (gradient * _mean(q1, q2, theta, m1 + 2, m2) / 2).sum_to_size(q1.shape)
        if ctx.needs_input_grad[1]:
            of_q2 = (gradient * _mean(q2, q1, theta, m2 + 2, m1) / 2).sum_to_size(q2.shape)
        if ctx.needs_input_grad[2]:
            of_c = gradient * _mean(q1, q2, theta, m1 + 1, m2 + 1)
        return of_q1, of_q2, of_c, None, None, None


def _mean(q1, q2, theta, m1, m2):
    """E[f(u) g(v)] for derivatives of the orders m1 <= 3 and m2 <= 2, of which a sum or difference is at most 2."""
    norm1, norm2, rest = q1.sqrt(), q2.sqrt(), math.pi - theta
    total = _both_positive(norm1, norm2, theta, m1, m2)
    for node, weight in _rule(32 if max(q1.max(), q2.max()) <= 10 else 64):
        near, far = torch.sin(theta * node), torch.sin(theta * (1 - node))
        apart = _one_positive(norm1 * near, norm2 * far, m1, m2) + _one_positive(norm2 * near, norm1 * far, m2, m1)
        both = _both_negative(norm1 * torch.sin(rest * node), norm2 * torch.sin(rest * (1 - node)), m1, m2)
        total = total + weight * (theta * apart + rest * both)
    return total / (2 * math.pi) - (_at_the_jump(norm1, norm2, theta) if m1 == 3 else 0)


def _both_positive(norm1, norm2, theta, m1, m2):
    if m1 == m2 == 0:
        return norm1 * norm2 * (torch.sin(theta) + (math.pi - theta) * torch.cos(theta))
    return math.pi - theta if m1 == m2 == 1 else torch.zeros_like(theta)


def _one_positive(a, b, m1, m2):
    """The integral over r for u = r a > 0 and v = -r b < 0: of exp(v), or exp(v) - 1, times u, 1, or 0."""
    if m1 > 1:
        return torch.zeros_like(a)
    mills = _mills(b)
    if m1 == 1:
        return (0 if m2 == 0 else 1) - b * mills
    return a * ((1 + b * b) * mills - b - (_mills(torch.zeros_like(b)) if m2 == 0 else 0))


def _both_negative(a, b, m1, m2):
    """The integral over r for u = -r a < 0 and v = -r b < 0; exp(u) - 1 in place of exp(u) where the order is zero."""
    total = -(a + b) * _mills(a + b)
    if m1 == 0:
        total = total + b * _mills(b)
    if m2 == 0:
        total = total + a * _mills(a)
    return total if m1 == 0 or m2 == 0 else 1 + total


def _at_the_jump(norm1, norm2, theta):
    """E[delta(u) phi'(v)], for the jump of the second derivative; zero of an input that is zero."""
    density = torch.where(norm1 > 0, 1 / (math.sqrt(2 * math.pi) * torch.where(norm1 > 0, norm1, 1.0)), 0.0)
    return density * (1 + torch.special.erfcx(norm2 * torch.sin(theta) / math.sqrt(2))) / 2


def _mills(b):
    r"""Mills' ratio, :math:`\int_0^\infty e^{-r^2 / 2 - r b} dr`."""
    return math.sqrt(math.pi / 2) * torch.special.erfcx(b / math.sqrt(2))


def _plain_angle(q1, q2, c):
    largest = (q1.sqrt() * q2.sqrt()).detach()
    half = ((1 - c.detach() / torch.where(largest > 0, largest, 1.0)) / 2).clamp(0, 1)
    return 2 * torch.atan2(half.sqrt(), (1 - half).sqrt())


@lru_cache
def _rule(number):
    """Nodes in (0, 1) and weights, crowded at both ends, where the integrand changes fast at large variances."""
    t, w = roots_legendre(number)
    t, w = (t + 1) / 2, w / 2
    return list(zip((t**3 * (10 - 15 * t + 6 * t**2)).tolist(), (w * 30 * (t * (1 - t)) ** 2).tolist(), strict=True))
