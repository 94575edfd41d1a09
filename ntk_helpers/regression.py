r"""Kernel regression with a given kernel: the ridge solution, and gradient flow at any time.

Kernels are ``(..., n, n)`` on the training points and ``(..., m, n)`` between test and training points; leading axes
are independent problems (the seeds of an ensemble). Targets are ``(n,)``, or ``(..., n, C)`` for C outputs that share
the kernel; predictions follow suit. The loss is half the mean square error, :math:`\frac{1}{2nC} \sum (f - y)^2`.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ntk_helpers._checks import Arguments, require_non_negative


@dataclass(frozen=True)
class KernelRidge:
    """A fitted kernel ridge regression: a function of ``k_test_train`` (..., m, n) to (..., m) or (..., m, C)."""

    dual_coefficients: Tensor
    scalar_targets: bool

    def __call__(self, k_test_train):
        """Predict at the test points: the kernel between them and the training points, times the coefficients."""
        arguments = Arguments()
        arguments.tensor("dual_coefficients", self.dual_coefficients, "... n C")
        arguments.tensor("k_test_train", k_test_train, "... m n")
        prediction = k_test_train @ self.dual_coefficients
        return prediction.squeeze(-1) if self.scalar_targets else prediction


def kernel_ridge(k_train_train, y_train, ridge):
    r"""Fit :math:`f(x) = k(x, X) (K + \mathrm{ridge}\, I)^{-1} y` by Cholesky factorization.

    Parameters
    ----------
    k_train_train : Tensor (..., n, n)
    y_train : Tensor (n,) or (..., n, C)
    ridge : float
        Absolute, added to the diagonal. Zero interpolates.

    Returns
    -------
    KernelRidge
        A function of ``k_test_train``; the fitted coefficients are its ``dual_coefficients`` (..., n, C).

    Raises
    ------
    TypeError, ValueError
        For wrong shapes or types, NaN, a kernel that is not symmetric, a negative ridge.
    torch.linalg.LinAlgError
        Where the matrix to be inverted is singular to rounding.
    """
    targets = _check_problem(k_train_train, y_train)
    require_non_negative("ridge", ridge)
    factor, _ = torch.linalg.cholesky_ex(_with_ridge(k_train_train, ridge))
    _require_positive_pivots(factor, k_train_train, ridge)
    return KernelRidge(torch.cholesky_solve(targets, factor), scalar_targets=y_train.ndim == 1)


@dataclass(frozen=True)
class GradientFlow:
    r"""The trajectory of kernel gradient flow, factored once; call it with times and test points.

    ``flow(t)`` is the function on the training points, ``flow(t, k_test_train, f0_test)`` elsewhere. The time `t` is a
    number, infinity included, or a 1-d tensor, which gives the result a leading axis over times. `f0_test` (..., m) or
    (..., m, C) is the initial function there; leave it out exactly where `f0_train` was left out, and both are zero.
    """

    eigenvalues: Tensor  # (..., n), of K + ridge * I; those below rounding are exactly zero
    eigenvectors: Tensor  # (..., n, n)
    f0_train: Tensor  # (..., n, C)
    residual: Tensor  # (..., n, C): y - f0 in the basis of eigenvectors
    scalar_targets: bool
    has_f0: bool

    def __call__(self, t, k_test_train=None, f0_test=None):
        """Evaluate the flow at time `t`, on the training points or where `k_test_train` says."""
        rate_times = self._times(t) / self.residual.shape[-2:].numel()
        progress = _progress(self.eigenvalues, rate_times)  # 1 - exp(-lambda t / (n C))
        if k_test_train is None:
            if f0_test is not None:
                raise ValueError("k_test_train: expected a kernel, as f0_test was given, got None")
            f = self.f0_train + self.eigenvectors @ (progress.unsqueeze(-1) * self.residual)
        else:
            f0 = self._check_test(k_test_train, f0_test)
            filtered = _progress_over_eigenvalue(self.eigenvalues, rate_times, progress)
            f = f0 + k_test_train @ (self.eigenvectors @ (filtered.unsqueeze(-1) * self.residual))
        return f.squeeze(-1) if self.scalar_targets else f

    def _times(self, t):
        times = torch.as_tensor(t, dtype=self.residual.dtype, device=self.residual.device)
        if times.ndim > 1 or not (times >= 0).all():
            raise ValueError(f"t: expected a number or 1-d tensor, zero or above, got {t}")
        return times.reshape(*times.shape, *[1] * (self.residual.ndim - 1))

    def _check_test(self, k_test_train, f0_test):
        if self.has_f0 != (f0_test is not None):
            raise ValueError(
                "f0_test: expected the initial function at the test points, as f0_train was given, got None"
                if self.has_f0
                else "f0_test: expected None, as f0_train was not given, got a tensor"
            )
        arguments = Arguments()
        arguments.tensor("f0_train", self.f0_train, "... n C")
        arguments.tensor("k_test_train", k_test_train, "... m n")
        if f0_test is None:
            return 0.0
        f0_test = f0_test.unsqueeze(-1) if self.scalar_targets else f0_test
        arguments.tensor("f0_test", f0_test, "... m C")
        return f0_test


def gradient_flow(k_train_train, y_train, *, f0_train=None, ridge=0.0):
    r"""Gradient flow on half the mean square error, for a fixed kernel: closed form at every time.

    .. math:: f_t(X) = y + e^{-t \tilde K / (nC)} (f_0(X) - y), \qquad
              f_t(x) = f_0(x) + k(x, X) \tilde K^{-1} \left(1 - e^{-t \tilde K / (nC)}\right) (y - f_0(X)),

    with :math:`\tilde K = K + \mathrm{ridge}\, I` (Lee et al. 2019, equations 8 to 11, where the loss is half the *sum*
    of squares). The kernel is factored once. Singular kernels are welcome: a direction of eigenvalue zero does not
    move on the training points, and :math:`(1 - e^{-\lambda t}) / \lambda` there is its limit `t`, or at infinite time
    left out, as in the pseudo-inverse. An eigenvalue counts as zero below ``n * eps * (the largest)``.

    Parameters
    ----------
    k_train_train : Tensor (..., n, n)
    y_train : Tensor (n,) or (..., n, C)
    f0_train : Tensor (..., n) or (..., n, C), optional
        The function at time zero; None means zero.
    ridge : float
        Absolute, added to the diagonal of `k_train_train` alone.

    Returns
    -------
    GradientFlow

    Raises
    ------
    TypeError, ValueError
        For wrong shapes or types, NaN, a negative ridge, and a kernel that is not symmetric or not positive
        semi-definite to rounding.
    """
    require_non_negative("ridge", ridge)
    targets = _check_problem(k_train_train, y_train, f0_train)
    eigenvalues, eigenvectors = torch.linalg.eigh(_with_ridge(k_train_train, ridge))
    eigenvalues = _without_rounding(eigenvalues)
    f0 = torch.zeros_like(targets) if f0_train is None else f0_train.reshape(_columns(f0_train, y_train))
    residual = eigenvectors.mT @ (targets - f0)
    return GradientFlow(eigenvalues, eigenvectors, f0, residual, y_train.ndim == 1, f0_train is not None)


def max_learning_rate(kernel):
    r"""Learning rate at which gradient descent on half the mean square error becomes unstable, :math:`2 N / \lambda_1`.

    Parameters
    ----------
    kernel : Tensor (..., N, N)
        Kernel of all N = n C residuals: of the n points for one output, of all pairs (point, output) for more.

    Returns
    -------
    Tensor (...)
        Below it every mode of the linearized model contracts; above it the leading one, of eigenvalue
        :math:`\lambda_1`, grows. Infinite for a zero kernel.

    Raises
    ------
    TypeError, ValueError
        For a kernel that is not a finite symmetric matrix.
    """
    Arguments().tensor("kernel", kernel, "... N N")
    _require_symmetric("kernel", kernel)
    return 2 * kernel.shape[-1] / torch.linalg.eigvalsh(kernel)[..., -1].clamp_min(0)


def _progress(eigenvalues, times):
    exponent = torch.where(eigenvalues > 0, -eigenvalues * times, 0.0)
    return -torch.expm1(exponent)


def _progress_over_eigenvalue(eigenvalues, times, progress):
    at_zero = torch.where(torch.isfinite(times), times, 0.0)
    return torch.where(eigenvalues > 0, progress / eigenvalues, at_zero)


def _without_rounding(eigenvalues):
    n, largest = eigenvalues.shape[-1], eigenvalues[..., -1:]
    rounding = n * torch.finfo(eigenvalues.dtype).eps * largest.abs()
    if (eigenvalues < -rounding).any():
        raise ValueError(
            "k_train_train: expected a positive semi-definite matrix, got an eigenvalue of "
            f"{eigenvalues.min().item():.3g} (largest {largest.max().item():.3g}); compute the kernel in float64, "
            "or add a ridge above it"
        )
    return torch.where(eigenvalues > rounding, eigenvalues, 0.0)


def _require_positive_pivots(factor, kernel, ridge):
    scale = kernel.diagonal(dim1=-2, dim2=-1).amax(-1) + ridge
    smallest = factor.diagonal(dim1=-2, dim2=-1).nan_to_num(0.0).amin(-1).square()
    needed = kernel.shape[-1] * torch.finfo(kernel.dtype).eps * scale
    if (smallest <= needed).any():
        pivot, bound = smallest.min().item(), needed.max().item()
        raise torch.linalg.LinAlgError(
            f"k_train_train + ridge * I is singular to rounding (ridge={ridge:g}): expected pivots above {bound:.1g}, "
            f"got {pivot:.1g}. Duplicate points make a kernel singular, and smooth kernels nearly are. Pass a larger "
            f"ridge, for example ridge={1e4 * bound:.0e}, or use gradient_flow, which needs no inverse"
        )


def _with_ridge(kernel, ridge):
    return kernel + ridge * torch.eye(kernel.shape[-1], dtype=kernel.dtype, device=kernel.device)


def _check_problem(k_train_train, y_train, f0_train=None):
    """Check the arguments of one regression against each other; return the targets as (..., n, C)."""
    arguments = Arguments()
    arguments.tensor("k_train_train", k_train_train, "... n n")
    _require_symmetric("k_train_train", k_train_train)
    scalar = isinstance(y_train, Tensor) and y_train.ndim == 1
    arguments.tensor("y_train", y_train, "n" if scalar else "... n C")
    if f0_train is not None:
        arguments.tensor("f0_train", f0_train, "... n" if scalar else "... n C")
    return y_train.reshape(_columns(y_train, y_train))


def _columns(values, y_train):
    """Shape of targets or functions with their output axis written out."""
    return (*values.shape, 1) if y_train.ndim == 1 else values.shape


def _require_symmetric(name, kernel):
    asymmetry, scale = (kernel - kernel.mT).abs().max().item(), kernel.abs().max().item()
    if asymmetry > math.sqrt(torch.finfo(kernel.dtype).eps) * scale:
        raise ValueError(
            f"{name}: expected a symmetric matrix, got entries that differ by {asymmetry:.3g} (largest {scale:.3g})"
        )
