"""Dual activations in closed form: what a layer does to the covariances of an infinitely wide network.

The dual of an activation is E[phi(u) phi(v)], for (u, v) Gaussian of mean zero with the variances q1, q2 and the
covariance c; that of its derivative is the derivative of the dual by the covariance.

Every dual has a `recursion` for all layers: a function of the rows and columns of a tile that yields the covariances of
the first layer, then of each hidden layer the dual, and a function that returns the dual of the derivative.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

Dual = tuple[Tensor, Callable[[], Tensor]]  # the dual, and a function that returns that of the derivative


class Smooth:
    r"""A dual activation that is a smooth function of the variances and the covariance; computed in float64.

    Subclasses define ``__call__(q1, q2, c, angle=None)``: the dual, and a function that returns its derivative with
    respect to the covariance c. Where u and v are nearly parallel, what the formulas need of them cancels:
    :math:`q_1 q_2 - c^2` and :math:`(q_1 + q_2) / 2 - c`. In the first layer, where the inputs may be of any size, it
    is then taken from their angle. In later ones rounding in float64 remains, of variances that `w_std` and `b_std`
    set.
    """

    __call__: Callable[..., Dual]

    def recursion(self, network: Any, x1: Tensor, x2: Tensor) -> Callable[[slice, slice], Iterator]:
        """The layers of any tile, as the head of this module describes them."""
        dtype, same = x1.dtype, x2 is x1
        x1 = x1.double()
        x2 = x1 if same else x2.double()
        q1 = self._variances(network, x1, dtype)
        q2 = q1 if same else self._variances(network, x2, dtype)
        hidden = [self.layer(q1[i], q2[i], dtype) for i in range(network.depth)]
        # below, the plain differences are exact to 1e-13
        angles = _angles(network, x1, x2) if max(q1[0].max(), q2[0].max()) > 1000 else lambda rows, columns: None

        def layers(rows, columns):
            c = network.w_var / x1.shape[1] * (x1[rows] @ x2[columns].mT) + network.b_var
            yield c
            angle = angles(rows, columns)
            for layer in hidden:
                dual, slope = layer(rows, columns, c, angle)
                yield dual, slope
                c, angle = network.w_var * dual + network.b_var, None

        return layers

    def layer(self, q1: Tensor, q2: Tensor, dtype: torch.dtype) -> Callable[..., Dual]:
        """The dual and its slope as a function of the rows and columns of a tile, its covariances and its angles."""
        return lambda rows, columns, c, angle: self(q1[rows].unsqueeze(1), q2[columns].unsqueeze(0), c, angle)

    def mean_square(self, q: Tensor) -> Tensor:
        """E[phi(u)^2] for u of the variance q."""
        return self(q, q, q)[0]

    def _variances(self, network, x, dtype):
        """Of each layer, the readout included."""
        nonzero = bool(x.any())
        found = [network.w_var / x.shape[1] * _squares(x) + network.b_var]
        require_in_range(network, 1, found[0], dtype, nonzero)
        for layer in range(2, network.depth + 2):
            found.append(network.w_var * self.mean_square(found[-1]) + network.b_var)
            require_in_range(network, layer, found[-1], dtype, nonzero)
        return found


class Identity(Smooth):
    """phi(z) = z: the deep linear network."""

    def __call__(self, q1: Tensor, q2: Tensor, c: Tensor, angle: "_Angle | None" = None) -> Dual:
        return c, lambda: torch.ones_like(c)


class Erf(Smooth):
    """phi(z) = erf(z) (Williams 1997)."""

    def __call__(self, q1: Tensor, q2: Tensor, c: Tensor, angle: "_Angle | None" = None) -> Dual:
        root = (1 + 2 * q1 + 2 * q2 + 4 * _determinant(q1, q2, c, angle)).sqrt()
        return 2 / math.pi * torch.atan2(2 * c, root), lambda: 4 / math.pi / root


class GELU(Smooth):
    r"""phi(z) = z \Phi(z), with the normal distribution function (Hendrycks and Gimpel 2016).

    From E[\Phi(u) \Phi(v)] = 1/4 + asin(c / sqrt(a b)) / (2 pi), a = 1 + q1, b = 1 + q2, by integration by parts. With
    D = q1 q2 - c^2 and s = 1 + q1 + q2, written as sums of positive terms where c is positive.
    """

    def __call__(self, q1: Tensor, q2: Tensor, c: Tensor, angle: "_Angle | None" = None) -> Dual:
        d, s = _determinant(q1, q2, c, angle), 1 + q1 + q2
        a, b = 1 + q1, 1 + q2
        root = (s + d).sqrt()
        both = torch.atan2(root, -c) / (2 * math.pi)  # E[Phi(u) Phi(v)]
        dual = c * both + (d + c * (c / a + c / b)) / (2 * math.pi * root)

        def slope():
            rest = (s * s + 2 * s + q1 * q2) / (a * b) + d / a / b * (s + 1)
            return both + c / root * rest / (2 * math.pi * (s + d))

        return dual, slope


@dataclass(frozen=True)
class _Wave(Smooth):
    """phi(z) = sin(frequency * z), or cos(frequency * z) where it is even."""

    frequency: float
    even: bool

    def __call__(self, q1: Tensor, q2: Tensor, c: Tensor, angle: "_Angle | None" = None) -> Dual:
        sines, cosines = _waves(self.frequency, q1, q2, c, angle)
        dual, of_derivative = (cosines, sines) if self.even else (sines, cosines)
        return dual, lambda: self.frequency**2 * of_derivative


def _waves(frequency, q1, q2, c, angle):
    """E sin(w u) sin(w v) and E cos(w u) cos(w v) for the frequency w, from the characteristic functions of u +- v."""
    mean, square = (q1 + q2) / 2, frequency**2
    halves = [_not_negative(mean + c), _not_negative(mean - c)]  # of the variances of u + v and u - v
    if angle is not None:
        norm1, norm2 = _sqrt(q1), _sqrt(q2)
        exact = ((norm1 - norm2).square() / 2 + 2 * norm1 * norm2 * share for share in (angle.rest, angle.half))
        halves = [torch.where(half > mean / 4, half, better) for half, better in zip(halves, exact, strict=True)]
    plus, minus = (torch.exp(-square * half) for half in halves)
    exponent = square * c
    small = torch.exp(-square * mean) * torch.sinh(exponent.clamp(-1, 1))  # where the difference would cancel
    return torch.where(exponent.abs() < 1, small, (minus - plus) / 2), (minus + plus) / 2


def _determinant(q1, q2, c, angle):
    """q1 q2 - c^2, not negative."""
    product = q1 * q2
    plain = _not_negative(product - c.square())
    return plain if angle is None else torch.where(plain >= product / 4, plain, 4 * product * angle.half * angle.rest)


def _not_negative(x):
    """Rounding below zero removed, with all derivatives kept."""
    return x + (x.clamp(min=0) - x).detach()


@dataclass(frozen=True)
class PiecewiseLinear:
    r"""phi(z) = negative * z below zero, positive * z above: ReLU, leaky ReLU, the absolute value.

    With phi(z) = p z + m |z| and the angle theta between u and v, that is cos(theta) = c / sqrt(q1 q2) (Cho and Saul
    2009, orders 0 and 1):

    E[phi phi] = sqrt(q1 q2) (p^2 cos(theta) + m^2 g(theta)), g = (2 / pi) (sin(theta) + (pi / 2 - theta) cos(theta)),
    E[phi' phi'] = p^2 + m^2 (1 - 2 theta / pi).

    Near theta = 0 the cosine has lost half the digits of the angle. The recursion therefore runs on sin(theta / 2)^2,
    and on what E[phi phi] lacks to its largest value.
    """

    negative: float
    positive: float

    def recursion(self, network: Any, x1: Tensor, x2: Tensor) -> Callable[[slice, slice], Iterator]:
        """The layers of any tile, as the head of this module describes them; in the dtype of the inputs."""
        p, m = (self.positive + self.negative) / 2, (self.positive - self.negative) / 2
        s, kink = p**2 + m**2, 2 / math.pi * m**2
        gain, b_var = network.w_var * s, network.b_var
        left, right = _directions(network, x1, x2)
        norms1, norms2 = (self._norms(network, gain, side.norm) for side in (left, right))

        def layers(rows, columns):
            angle, others = _Angle.between(left.at(rows), right.at(columns)), None
            if x1.requires_grad and x2 is x1 and rows == columns:  # an input is at no kink to itself
                others = 1 - torch.eye(len(angle.theta), dtype=x1.dtype, device=x1.device)
            scale = norms1[0][rows].unsqueeze(1) * norms2[0][columns]
            yield scale * (1 - 2 * angle.half)
            for i in range(network.depth):
                lost = self._lost(p, m, angle)
                theta = angle.theta if others is None else angle.theta * others
                yield scale * (s - lost), lambda theta=theta: s - kink * theta
                if i + 1 < network.depth:
                    # 1 - cos(theta) after the layer; no term is negative
                    if not b_var:  # every norm is multiplied by the same number
                        angle = _Angle.from_half(lost / (2 * s))
                        scale = network.w_var * s * scale
                        continue
                    after = norms1[i + 1][rows].unsqueeze(1) * norms2[i + 1][columns]
                    apart = (norms1[i][rows].unsqueeze(1) - norms2[i][columns]).square()
                    apart = gain * b_var * apart / (after + gain * scale + b_var)
                    angle = _Angle.from_half((apart + network.w_var * scale * lost) / (2 * after))
                    scale = after

        return layers

    @staticmethod
    def _norms(network, gain, norm):
        """Standard deviations of each layer, the readout included."""
        found, nonzero = [norm], bool(norm.any())
        for layer in range(1, network.depth + 2):
            require_in_range(network, layer, norm.square(), norm.dtype, nonzero)
            norm = (gain * norm.square() + network.b_var).sqrt() if network.b_var else math.sqrt(gain) * norm
            found.append(norm)
        return found

    def _lost(self, p, m, angle):
        """s - E[phi phi] / sqrt(q1 q2) = p^2 (1 - cos(theta)) + m^2 (1 - g(theta))."""
        lost = 2 * p**2 * angle.half
        if self.negative * self.positive < 0:  # g(theta) = g(pi - theta) may count alone: it must not cancel at pi
            angle = angle.acute()
        return lost + m**2 * (2 * angle.half - 2 / math.pi * angle.sin_minus_theta_cos())


def _angles(network, x1, x2):
    """The angles between inputs as a function of the rows and columns of a tile."""
    left, right = _directions(network, x1, x2)
    return lambda rows, columns: _Angle.between(left.at(rows), right.at(columns))


def _directions(network, x1, x2):
    """Of the two sets of inputs, around their common centre."""
    sides = [_Directions.of(network, x) for x in ((x1,) if x2 is x1 else (x1, x2))]
    centre = sum(side.unit.detach().mean(0) for side in sides) / len(sides)
    sides = [side.around(centre) for side in sides]
    return sides[0], sides[-1]


@dataclass(frozen=True)
class _Directions:
    """Inputs as norms and unit vectors, a constant coordinate appended for the bias."""

    norm: Tensor
    unit: Tensor
    centred: Tensor | None = None  # the unit vectors without what they have in common
    square: Tensor | None = None  # of the norms of these

    @classmethod
    def of(cls, network, x):
        scale = math.sqrt(network.w_var / x.shape[1])
        if network.b_var:
            x = torch.cat([x, torch.full_like(x[:, :1], math.sqrt(network.b_var) / scale)], dim=1)
        largest = torch.linalg.vector_norm(x.detach(), math.inf, dim=1, keepdim=True)  # its square may not fit
        largest = torch.where(largest > 0, largest, 1.0)
        v = x / largest
        norm = _sqrt(_squares(v)).unsqueeze(1)
        return cls((scale * largest * norm).squeeze(1), v / torch.where(norm > 0, norm, 1.0))

    def around(self, centre):
        centred = self.unit - centre
        return replace(self, centred=centred, square=_squares(centred))

    def at(self, rows):
        return _Directions(self.norm[rows], self.unit[rows], self.centred[rows], self.square[rows])


class _Angle(NamedTuple):
    """Angles theta between pairs, with what would lose digits if it were computed from them."""

    theta: Tensor
    half: Tensor  # sin(theta / 2)^2 = (1 - cos(theta)) / 2
    rest: Tensor  # 1 - half
    sin: Tensor

    @classmethod
    def between(cls, left, right):
        """Angles between directions, accurate to rounding at 0 and at pi by Kahan's formula.

        It takes the distance between the unit vectors and that between one and the other's opposite. A matrix product
        gives their squares to rounding of r^2, the squares of the centred norms; so angles below r^2 / 8, and those to
        pi below 1 / 4, are computed once more, from differences.
        """
        apart = torch.addmm(right.square.unsqueeze(0), left.centred, right.centred.mT, alpha=-2)
        apart = apart + left.square.unsqueeze(1)
        r_squared = left.square + right.square.max()
        rounding = torch.finfo(apart.dtype).eps
        near = apart < (r_squared * (r_squared / 64).clamp(min=256 * rounding)).unsqueeze(1)
        far = apart > 4 - 1 / 16
        along = 4 - apart
        for squares, others, where, sign in ((apart, along, near, 1), (along, apart, far, -1)):
            i, j = where.nonzero(as_tuple=True)
            if not len(i):
                continue
            exact = _squared_distances(left.unit, sign * right.unit, i, j)
            squares[i, j], others[i, j] = exact, 4 - exact
        root, other = _sqrt(apart / 4), _sqrt(along / 4)
        return cls(2 * torch.atan2(root, other), apart / 4, along / 4, 2 * root * other)

    @classmethod
    def from_half(cls, half):
        """Angles from (1 - cos(theta)) / 2, rounding outside of [0, 1] removed."""
        half = half.clamp(0, 1)
        root, rest = _sqrt(half), 1 - half
        return cls(2 * torch.asin(root), half, rest, 2 * root * _sqrt(rest))

    def acute(self):
        """The angles themselves where they are acute, and theirs to pi where they are not."""
        half = torch.minimum(self.half, self.rest)
        return self._replace(theta=2 * torch.asin(_sqrt(half)), half=half)

    def sin_minus_theta_cos(self):
        """sin(theta) - theta cos(theta), by its series where the terms cancel."""
        whole = self.sin - self.theta + 2 * self.theta * self.half
        small = self.theta < 0.25
        if not small.any():
            return whole
        t = self.theta.square()
        series = t * self.theta * (1 / 3 - t * (1 / 30 - t * (1 / 840 - t * (1 / 45360 - t / 3991680))))
        return torch.where(small, series, whole)


def _squared_distances(u, v, i, j):
    """|u_i - v_j|^2 by differences for these pairs; where they are many, or would fill the memory, for all at once."""
    d, size = u.shape[1], len(u) * len(v)
    # `cdist` has no second derivatives, where the pairs have; but these keep their differences
    if len(i) * d > 32 * size if u.requires_grad or v.requires_grad else 4 * len(i) > size:
        return torch.cdist(u, v, compute_mode="donot_use_mm_for_euclid_dist")[i, j].square()
    chunks = (at.split(max(1, size // d)) for at in (i, j))
    return torch.cat([_squares(u[a].sub_(v[b])) for a, b in zip(*chunks, strict=True)])


def _squares(x):
    """The squared norms of rows, some at a time: their squares stay in the cache, and `sum` is accurate."""
    return torch.cat([part.square().sum(1) for part in x.split(max(1, 2**16 // x.shape[1]))])


def require_in_range(network: Any, layer: int, variances: Tensor, dtype: torch.dtype, nonzero: bool) -> None:
    """Raise ValueError unless the variances of a layer, of nonzero inputs or not, are in the range of the dtype."""
    largest, limits = variances.detach().max().item(), torch.finfo(dtype)
    vanish = nonzero and largest < limits.tiny
    if vanish or not largest <= limits.max:
        raise ValueError(
            f"layer {layer}: the kernel {'vanishes' if vanish else 'is not finite'} in {dtype}, with variances of up "
            f"to {largest:.3g}; w_std={math.sqrt(network.w_var):.3g}, depth={network.depth}"
        )


def leaky_relu(slope: float) -> PiecewiseLinear:
    """phi(z) = slope * z below zero, z above."""
    return PiecewiseLinear(slope, 1.0)


def sin(frequency: float) -> Smooth:
    """phi(z) = sin(frequency * z)."""
    return _Wave(frequency, even=False)


def cos(frequency: float) -> Smooth:
    """phi(z) = cos(frequency * z)."""
    return _Wave(frequency, even=True)


def _sqrt(x):
    """Square root, with gradient zero at zero."""
    return _Root.apply(x) if x.requires_grad else x.sqrt()


class _Root(torch.autograd.Function):
    """The square root, whose second derivative is refused where it is infinite and counts."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x):
        return x.sqrt()

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx, gradient):
        return _RootGradient.apply(*ctx.saved_tensors, gradient)


class _RootGradient(torch.autograd.Function):
    """The gradient of the square root at x times another."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x, gradient):
        return gradient * _root_slope(x)

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx, of_result):
        x, gradient = ctx.saved_tensors
        if ((x == 0) & (gradient != 0)).any():
            raise ValueError(
                "x1, x2: expected no two inputs that are parallel or opposite, and none that is zero, for second "
                "derivatives, got some; the kernel has a kink there, and its second derivative is infinite"
            )
        slope = _root_slope(x)
        return -2 * of_result * gradient * slope**3, of_result * slope


def _root_slope(x):
    positive = x > 0
    return torch.where(positive, 0.5 / torch.where(positive, x, 1.0).sqrt(), 0.0)
