"""Dual activations in closed form: what a layer does to the covariances of an infinitely wide network.

The dual of an activation is E[phi(u) phi(v)], for (u, v) Gaussian of mean zero with the variances q1, q2 and the
covariance c; that of its derivative is the derivative of the dual by the covariance.
"""

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor


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
