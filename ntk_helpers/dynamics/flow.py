r"""Kernel gradient flow and descent in closed form, and the law of an ensemble; shapes as in `kernel_ridge`."""

import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import ClassVar, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ntk_helpers._utils.checks import Arguments, require_momentum, require_non_negative, require_positive
from ntk_helpers.dynamics.regression import (
    axes_of_test,
    check_kernel,
    check_problem,
    columns,
    described,
    rounding,
    with_ridge,
)


@dataclass(frozen=True, eq=False, repr=False)
class _Trajectory:
    """Kernel regression along a path in function space, factored once; all in float64."""

    kernel: Tensor  # (n, n) or (S, n, n): K + ridge * I
    eigenvalues: Tensor  # (n,) or (S, n), of `kernel`; those below rounding are exactly zero
    eigenvectors: Tensor  # (n, n) or (S, n, n)
    f0_train: Tensor  # (n, C) or (S, n, C)
    difference: Tensor  # (n, C) or (S, n, C): y - f0
    arguments: Arguments  # of the problem, which those of a prediction must go with
    scalar_targets: bool
    has_f0: bool

    _filtered: ClassVar[Callable[..., Tensor]]  # along each eigenvector, as far as the trajectory has come
    _divided_differences: ClassVar[Callable[..., Tensor]]  # of that, between the eigenvalues
    predict: ClassVar[Callable[..., Tensor]]

    def __repr__(self):
        return f"{type(self).__name__}({described(self.difference, self.kernel, self.arguments)})"

    def _on_training_points(self, at):
        values, filtered = self.eigenvalues, self._filtered(at)

        def differences():  # of the eigenvalue times the filter
            return values.unsqueeze(-1) * self._divided_differences(at) + filtered.unsqueeze(-2)

        return self._shaped(self.f0_train + self._of_kernel(values * filtered, differences, self.difference))

    def _elsewhere(self, at, k_test_train, f0_test):
        f0 = self._check_test(k_test_train, f0_test)
        weights = self._of_kernel(self._filtered(at), lambda: self._divided_differences(at), self.difference)
        return self._shaped(f0 + k_test_train.double() @ weights)

    def _predict_as_once(self, at, *elsewhere):
        """Predictions by a call with a kernel, as of version 0.1."""
        text = "expected predict(...) for the function elsewhere; a call with a kernel will be an error in version 0.3"
        warnings.warn(text, DeprecationWarning, stacklevel=3)
        return self.predict(at, *elsewhere)

    def _shaped(self, f):
        """A function as the caller's targets: of their dtype, without the axis of outputs that they did not have."""
        f = f.to(self.arguments.first[1].dtype)
        return f.squeeze(-1) if self.scalar_targets else f

    def _of_kernel(self, values, differences, b):
        return _OfKernel.apply(self.kernel, b, self.eigenvalues, self.eigenvectors, values, differences)

    def _check_test(self, k_test_train, f0_test):
        if self.has_f0 != (f0_test is not None):
            raise ValueError(
                "f0_test: expected the initial function at the test points, as f0_train was given, got None"
                if self.has_f0
                else "f0_test: expected None, as f0_train was not given, got a tensor"
            )
        arguments = self.arguments.copy()
        arguments.tensor("k_test_train", k_test_train, axes_of_test(self.eigenvectors))
        if f0_test is None:
            return 0.0
        axes = ["S"] * (self.f0_train.ndim - 2) + ["m", "C"]
        arguments.tensor("f0_test", f0_test, " ".join(axes[:-1] if self.scalar_targets else axes))
        return columns(f0_test, self.scalar_targets)


class _OfKernel(torch.autograd.Function):
    r"""f(K) b, of a function f of a symmetric matrix by its eigenvalues: :math:`K = U \Lambda U^\top`.

    Its derivative by K is :math:`U (f[\lambda_i, \lambda_j] \circ U^\top dK\, U) U^\top`, with the divided differences
    of f (Daleckii and Krein 1965). That of the eigenvectors, which autograd would take, is infinite where eigenvalues
    coincide; these are not.
    """

    @staticmethod
    def forward(ctx, kernel, b, eigenvalues, vectors, values, differences):
        ctx.save_for_backward(b, vectors, values)
        ctx.shape, ctx.differences = kernel.shape, differences
        return vectors @ (values.unsqueeze(-1) * (vectors.mT @ b))

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient):
        b, vectors, values = ctx.saved_tensors
        left, right = vectors.mT @ gradient, vectors.mT @ b
        of_b = (vectors @ (values.unsqueeze(-1) * left)).sum_to_size(b.shape)
        of_kernel = None
        if ctx.needs_input_grad[0]:
            inner = (ctx.differences() * (left @ right.mT)).sum_to_size(ctx.shape)
            of_kernel = vectors @ ((inner + inner.mT) / 2) @ vectors.mT
        return of_kernel, of_b, None, None, None, None


class GradientFlow(_Trajectory):
    """The trajectory of kernel gradient flow, factored once: ``flow(t)`` on the training points, `predict` elsewhere.

    The time `t` is a number, infinity included, or a 1-d tensor, which gives the result a leading axis over times.
    """

    def __call__(self, t: float | Tensor, *elsewhere: Tensor | None) -> Tensor:
        """The function on the training points at time `t`: of the shape of the targets."""
        if elsewhere:
            return self._predict_as_once(t, *elsewhere)
        return self._on_training_points(self._times(t))

    def predict(self, t: float | Tensor, k_test_train: Tensor, f0_test: Tensor | None = None) -> Tensor:
        """The function elsewhere at time `t`; `k_test_train` is the kernel between there and the training points.

        `k_test_train` and `f0_test` have the axes of `k_train_train` and `f0_train`, with m in the place of n; leave
        `f0_test` out exactly where `f0_train` was left out, and both are zero.
        """
        return self._elsewhere(self._times(t), k_test_train, f0_test)

    def _times(self, t):
        """Times over n C, with the axes of the residual beside their own."""
        try:
            times = torch.as_tensor(t, dtype=torch.float64, device=self.difference.device)
        except (TypeError, ValueError, RuntimeError):
            raise TypeError(f"t: expected a number or 1-d tensor, got {t!r}") from None
        if times.ndim > 1 or not (times >= 0).all():
            raise ValueError(f"t: expected a number or 1-d tensor, zero or above, got {t}")
        axes = max(self.difference.ndim - 1, self.eigenvalues.ndim)
        times = times.reshape(*times.shape, *[1] * axes)
        return times / self.difference.shape[-2:].numel()

    def _filtered(self, times):
        return _flow_filter(self.eigenvalues, times)

    def _divided_differences(self, times):
        r"""Of :math:`\phi(\lambda) = (1 - e^{-\lambda t}) / \lambda`, at all pairs of eigenvalues.

        :math:`\phi[a, b] = (e^{-at} \phi(b - a) - \phi(a)) / b` for a <= b, in which nothing cancels where b t >= 1;
        and :math:`\phi[a, b] = -\int_0^t e^{-as} \phi_s(b - a) ds`, smooth where b t < 1.
        """
        low = torch.minimum(self.eigenvalues.unsqueeze(-1), self.eigenvalues.unsqueeze(-2))
        high, times = torch.maximum(self.eigenvalues.unsqueeze(-1), self.eigenvalues.unsqueeze(-2)), times.unsqueeze(-1)
        decay = torch.exp(-torch.where(low > 0, low * times, 0.0))
        far = (decay * _flow_filter(high - low, times) - _flow_filter(low, times)) / torch.where(high > 0, high, 1.0)
        near, few = torch.zeros_like(far), torch.where(high * times < 1, times, 0.0)
        for node, weight in zip(*_gauss_legendre(), strict=True):
            s = node * few
            near -= weight * few * torch.exp(-low * s) * _flow_filter(high - low, s)
        return torch.where(high * times < 1, near, far)


def _flow_filter(eigenvalues, times):
    """(1 - exp(-lambda t)) / lambda; at zero t, or where that is infinite zero, as in the pseudo-inverse."""
    positive = eigenvalues > 0
    progress = -torch.expm1(-torch.where(positive, eigenvalues, 0.0) * torch.where(positive, times, 0.0))
    at_zero = torch.where(torch.isfinite(times), times, 0.0)
    return torch.where(positive, progress / torch.where(positive, eigenvalues, 1.0), at_zero)


@cache
def _gauss_legendre():
    """Nodes and weights on [0, 1]: enough for what is smooth there."""
    nodes, weights = np.polynomial.legendre.leggauss(12)
    return ((nodes + 1) / 2).tolist(), (weights / 2).tolist()


@dataclass(frozen=True, eq=False, repr=False)
class GradientDescent(_Trajectory):
    """The trajectory of kernel gradient descent, factored once: ``descent(steps)`` where trained, `predict` elsewhere.

    `steps` is an integer, or a sequence of them, which gives the result a leading axis.
    """

    learning_rate: float
    momentum: float

    def __call__(self, steps: int | Sequence[int], *elsewhere: Tensor | None) -> Tensor:
        """The function on the training points after so many steps: of the shape of the targets."""
        return (
            self._predict_as_once(steps, *elsewhere) if elsewhere else self._on_training_points(_require_steps(steps))
        )

    def predict(self, steps: int | Sequence[int], k_test_train: Tensor, f0_test: Tensor | None = None) -> Tensor:
        """The function elsewhere after so many steps; all as in `GradientFlow.predict`."""
        return self._elsewhere(_require_steps(steps), k_test_train, f0_test)

    def _filtered(self, steps):
        """The displacement w along each eigenvector, of residual 1 - lambda w."""
        return self._powers(_matrix_of_a_step(self.eigenvalues, self._rate, self.momentum), steps)[..., 0, 2]

    def _divided_differences(self, steps):
        """Of w: the upper right block of a power of [[M(a), M[a, b]], [0, M(b)]], M a step: linear in eigenvalues."""
        step = _matrix_of_a_step(self.eigenvalues, self._rate, self.momentum)
        slope = _matrix_of_a_step(torch.ones_like(self.eigenvalues), self._rate, self.momentum)
        slope = slope - _matrix_of_a_step(torch.zeros_like(self.eigenvalues), self._rate, self.momentum)
        first, second, slope = torch.broadcast_tensors(step.unsqueeze(-3), step.unsqueeze(-4), slope.unsqueeze(-3))
        upper, lower = torch.cat([first, slope], -1), torch.cat([torch.zeros_like(second), second], -1)
        return self._powers(torch.cat([upper, lower], -2), steps)[..., 0, 5]

    @property
    def _rate(self):
        return self.learning_rate / self.difference.shape[-2:].numel()

    def _powers(self, matrix, steps):
        if isinstance(steps, int):
            return torch.linalg.matrix_power(matrix, steps)
        return torch.stack([torch.linalg.matrix_power(matrix, k) for k in steps])


def _matrix_of_a_step(eigenvalues, rate, momentum):
    r"""Of gradient descent along an eigenvector, acting on (w, v, 1).

    .. math:: v' = \mu v + 1 - \lambda w, \qquad w' = w + \frac{\eta}{nC} v'.
    """
    ones, zeros = torch.ones_like(eigenvalues), torch.zeros_like(eigenvalues)
    velocity = torch.stack([-eigenvalues, momentum * ones, ones], -1)
    displacement = torch.stack([ones, zeros, zeros], -1) + rate * velocity
    return torch.stack([displacement, velocity, torch.stack([zeros, zeros, ones], -1)], -2)


def gradient_flow(
    k_train_train: Tensor, y_train: Tensor, *, f0_train: Tensor | None = None, ridge: float = 0.0
) -> GradientFlow:
    r"""Gradient flow on half the mean square error, for a fixed kernel: closed form at every time.

    .. math:: f_t(X) = y + e^{-t \tilde K / (nC)} (f_0(X) - y),

              f_t(x) = f_0(x) + k(x, X) \tilde K^{-1} \left(1 - e^{-t \tilde K / (nC)}\right) (y - f_0(X)),

    with :math:`\tilde K = K + \mathrm{ridge}\, I` (Lee et al. 2019, section 2.2, where the loss is half the *sum*
    of squares). The kernel is factored once. Singular kernels are welcome: a direction of eigenvalue zero does not
    move on the training points, and :math:`(1 - e^{-\lambda t}) / \lambda` there is its limit `t`, or at infinite time
    left out, as in the pseudo-inverse. An eigenvalue counts as zero below the rounding of the kernel's entries,
    ``4 * eps * sqrt(n) * (the largest entry)``, and of the algebra in float64. The flow can be differentiated with
    respect to the kernels, once, where eigenvalues coincide too.

    Parameters
    ----------
    k_train_train : Tensor (n, n) or (S, n, n)
    y_train : Tensor (n,), (n, C) or (S, n, C)
    f0_train : Tensor (n,) or (S, n) where `y_train` is (n,), else (n, C) or (S, n, C), optional
        The function at time zero; None means zero.
    ridge : float
        Absolute, added to the diagonal of `k_train_train` alone, as by noise on the targets. Predictions tend to those
        of `kernel_ridge`, while ``flow(t)``, noise included, tends to the targets.

    Returns
    -------
    GradientFlow

    Raises
    ------
    TypeError, ValueError
        For wrong shapes or types, NaN, a negative ridge, and a kernel that is not symmetric or not positive
        semi-definite to rounding.

    Examples
    --------
    >>> flow = gradient_flow(2 * torch.eye(2), torch.tensor([1.0, 2.0]))
    >>> flow(torch.tensor([0.0, 1.0, torch.inf]))
    tensor([[0.0000, 0.0000],
            [0.6321, 1.2642],
            [1.0000, 2.0000]])
    >>> flow.predict(torch.inf, torch.tensor([[1.0, 1.0]]))
    tensor([1.5000])
    """
    return GradientFlow(*_factored(k_train_train, y_train, f0_train, ridge))


def gradient_descent(
    k_train_train: Tensor,
    y_train: Tensor,
    *,
    learning_rate: float,
    momentum: float = 0.0,
    f0_train: Tensor | None = None,
    ridge: float = 0.0,
) -> GradientDescent:
    r"""Gradient descent on half the mean square error, for a fixed kernel: closed form after any number of steps.

    Without momentum, and with :math:`\tilde K = K + \mathrm{ridge}\, I`,

    .. math:: f_k(X) = y + \left(1 - \tfrac{\eta}{nC} \tilde K\right)^k (f_0(X) - y);

    with it, as `torch.optim.SGD` has it, :math:`v \leftarrow \mu v + \nabla L,\ \theta \leftarrow \theta - \eta v`.
    This is what training does to the parameters of a linear model, such as `linearize` makes, step by step.

    Parameters
    ----------
    k_train_train : Tensor (n, n) or (S, n, n)
    y_train : Tensor (n,), (n, C) or (S, n, C)
    learning_rate : float
    momentum : float
        From 0 to below 1.
    f0_train : Tensor (n,) or (S, n) where `y_train` is (n,), else (n, C) or (S, n, C), optional
        The function before the first step; None means zero.
    ridge : float
        Absolute, as in `gradient_flow`.

    Returns
    -------
    GradientDescent

    Raises
    ------
    TypeError, ValueError
        As `gradient_flow`; for a learning rate at which the steps diverge, :math:`2 (1 + \mu) nC / \lambda_1` and
        above; and for a momentum outside of [0, 1).

    Examples
    --------
    >>> descent = gradient_descent(2 * torch.eye(2), torch.tensor([1.0, 2.0]), learning_rate=0.5)
    >>> descent([0, 1, 2])
    tensor([[0.0000, 0.0000],
            [0.5000, 1.0000],
            [0.7500, 1.5000]])
    """
    require_positive("learning_rate", learning_rate)
    require_momentum(momentum)
    factored = _factored(k_train_train, y_train, f0_train, ridge)
    largest, problem = factored[1].max().item(), factored[4].shape[-2:]
    bound = 2 * (1 + momentum) * problem.numel() / largest if largest else math.inf
    if learning_rate >= bound:
        raise ValueError(f"learning_rate: expected below {bound:.6g}, where descent diverges, got {learning_rate}")
    return GradientDescent(*factored, float(learning_rate), float(momentum))


class Law(NamedTuple):
    """Mean and covariance of the function over initializations."""

    mean: Tensor
    covariance: Tensor


@dataclass(frozen=True, eq=False, repr=False)
class EnsembleLaw:
    """The law of infinitely wide networks in training: ``law(t)`` is their mean (m, C) and covariance (m, m) at time t.

    With leading axes over the times where `t` is a 1-d tensor; the outputs are independent and share the covariance.
    """

    flow: GradientFlow
    k_test_train: Tensor  # (m, n)
    root_train: Tensor  # (n, n + m), in float64 as the next: of the symmetric root of the initial covariance, its rows
    root_test: Tensor  # (m, n + m)

    def __repr__(self):
        return f"EnsembleLaw({len(self.k_test_train)} points, {self.flow!r})"

    def __call__(self, t: float | Tensor) -> Law:
        """The law at time `t`, a number, infinity included, or a 1-d tensor."""
        flow, times = self.flow, self.flow._times(t)
        options = flow._filtered(times), lambda: flow._divided_differences(times)
        memory = flow._of_kernel(*options, self.k_test_train.double().mT).mT
        root = self.root_test - memory @ self.root_train
        covariance = root @ root.mT
        mean = flow.predict(t, self.k_test_train)
        return Law(mean, ((covariance + covariance.mT) / 2).to(mean.dtype))


def ensemble_law(y_train: Tensor, nngp: Tensor, ntk: Tensor | None = None, *, ridge: float = 0.0) -> EnsembleLaw:
    r"""Mean and covariance, over random initializations, of infinitely wide networks trained by gradient flow.

    The initial functions are Gaussian with covariance K, the NNGP kernel, and each follows the flow of `gradient_flow`
    with the kernel :math:`\Theta`, which is linear: :math:`f_t(x) = f_0(x) + \Theta(x, X) B (y - f_0(X))`, with
    :math:`B = \tilde\Theta^{-1} (1 - e^{-t \tilde\Theta / (nC)})` (Lee et al. 2019, section 2.2, there for half the
    *sum* of squares). Where the readout alone is trained, the kernel of the flow is K itself.

    Parameters
    ----------
    y_train : Tensor (n,) or (n, C)
    nngp : Tensor (n + m, n + m)
        NNGP kernel of the n training points followed by the m points where the law is wanted.
    ntk : Tensor (n + m, n + m), optional
        NTK of the same points, where all parameters are trained; None where the readout alone is.
    ridge : float
        Absolute, added to the kernel of the flow on the training points, as in `gradient_flow`. For the readout alone,
        where that makes it the variance of noise on the targets, also to K there.

    Returns
    -------
    EnsembleLaw
        A function of the time. Covariances are symmetric and positive semi-definite, as products of roots.

    Raises
    ------
    TypeError, ValueError
        As `gradient_flow`, by the names of the arguments here; also where there is no point beyond the training points.

    Examples
    --------
    >>> law = ensemble_law(torch.tensor([1.0]), torch.tensor([[1.0, 0.5], [0.5, 1.0]]))
    >>> law(torch.inf)  # the readout alone is trained: to the posterior of a Gaussian process
    Law(mean=tensor([0.5000]), covariance=tensor([[0.7500]]))
    """
    scalar = isinstance(y_train, Tensor) and y_train.ndim == 1
    arguments = Arguments()
    arguments.tensor("y_train", y_train, "n" if scalar else "n C")
    check_kernel(arguments, "nngp", nngp, "N")
    if nngp.ndim != 2 or len(nngp) <= len(y_train):
        raise ValueError(f"nngp: expected shape (N, N), N > {len(y_train)}, got {tuple(nngp.shape)}")
    if ntk is not None:
        check_kernel(arguments, "ntk", ntk, "N")
    n, kernel = len(y_train), nngp if ntk is None else ntk
    flow = gradient_flow(kernel[:n, :n], y_train, ridge=ridge)
    start = nngp.double().clone()
    if ntk is None:
        start.diagonal()[:n] += ridge
    eigenvalues, eigenvectors = torch.linalg.eigh(start.detach())
    roots = _without_rounding(eigenvalues, nngp, "nngp").sqrt()
    identity = torch.eye(len(start), dtype=start.dtype, device=start.device)

    def differences():
        both = roots.unsqueeze(-1) + roots.unsqueeze(-2)
        return torch.where(both > 0, 1 / both, 0.0)

    root = _OfKernel.apply(start, identity, eigenvalues, eigenvectors, roots, differences)
    return EnsembleLaw(flow, kernel[n:, :n], root[:n], root[n:])


def _factored(
    k_train_train: Tensor, y_train: Tensor, f0_train: Tensor | None, ridge: float
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Arguments, bool, bool]:
    """What a trajectory keeps of a problem, checked."""
    require_non_negative("ridge", ridge)
    arguments, targets = check_problem(k_train_train, y_train, f0_train)
    kernel, scalar = with_ridge(k_train_train, ridge), y_train.ndim == 1
    eigenvalues, eigenvectors = torch.linalg.eigh(kernel.detach())
    eigenvalues = _without_rounding(eigenvalues, k_train_train, "k_train_train")
    f0 = torch.zeros_like(targets) if f0_train is None else columns(f0_train, scalar)
    return kernel, eigenvalues, eigenvectors, f0, targets - f0, arguments, scalar, f0_train is not None


def _require_steps(steps):
    """The number of steps as an int, or several as a list of them."""
    try:
        values = torch.as_tensor(steps, device="cpu")
    except (TypeError, ValueError, RuntimeError):
        raise TypeError(f"steps: expected an integer or a sequence of integers, got {steps!r}") from None
    if values.is_floating_point() or values.is_complex() or values.dtype == torch.bool:
        raise TypeError(f"steps: expected an integer or a sequence of integers, got {steps!r}")
    if values.ndim > 1 or values.numel() == 0 or (values < 0).any():
        raise ValueError(f"steps: expected an integer or a sequence of integers, zero or above, got {steps!r}")
    return values.tolist()


def _without_rounding(eigenvalues, kernel, name):
    """The eigenvalues of a kernel, in ascending order, with those below rounding zero."""
    largest = eigenvalues[..., -1:]
    bound = rounding(kernel, largest.squeeze(-1)).unsqueeze(-1)
    if (eigenvalues < -bound).any():
        double = "" if kernel.dtype == torch.float64 else "compute the kernel in float64, or "
        raise ValueError(
            f"{name}: expected a positive semi-definite matrix, got an eigenvalue of "
            f"{eigenvalues.min().item():.3g} (the largest is {largest.max().item():.3g}); {double}add a ridge above it"
        )
    return torch.where(eigenvalues > bound, eigenvalues, 0.0)
