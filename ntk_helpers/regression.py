r"""Kernel regression with a given kernel: the ridge solution, gradient flow and descent, and the law of an ensemble.

Kernels are (n, n) on the training points and (m, n) between test and training points, or (S, n, n) and (S, m, n) for S
problems at once, such as the seeds of an ensemble. Targets are (n,), or (n, C) for C outputs that share the kernel;
functions are the same, or have a leading axis S. The loss is half the mean square error, :math:`\frac{1}{2nC} \sum (f
- y)^2`.

Where every pair of outputs has a kernel of its own, as `empirical_ntk` gives it in full, `flatten_outputs` makes it the
kernel of one problem with n C points.
"""

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from scipy.sparse.linalg import LinearOperator, eigsh
from torch import Tensor

from ntk_helpers._checks import Arguments, require_momentum, require_non_negative, require_positive


def flatten_outputs(kernel):
    """Kernel (n1, n2, C, C) of all pairs of outputs as the matrix (n1 C, n2 C) over pairs (point, output).

    The order is that of ``y.reshape(-1)`` for targets (n, C). With a leading axis S, it stays.
    """
    if kernel.ndim not in (4, 5) or kernel.shape[-1] != kernel.shape[-2]:
        raise ValueError(f"kernel: expected shape (n1, n2, C, C) or (S, n1, n2, C, C), got {tuple(kernel.shape)}")
    return kernel.movedim(-2, -3).flatten(-2, -1).flatten(-3, -2)


@dataclass(frozen=True)
class KernelRidge:
    """A fitted kernel ridge regression: a function of ``k_test_train`` (m, n) to predictions (m,) or (m, C).

    With a leading axis S where the kernel or the targets had one; `k_test_train` has it where the kernel had.
    """

    dual_coefficients: Tensor  # (n, C) or (S, n, C)
    kernel_axes: str
    scalar_targets: bool

    def __call__(self, k_test_train):
        """Predict at the test points: the kernel between them and the training points, times the coefficients."""
        arguments = Arguments()
        arguments.tensor("dual_coefficients", self.dual_coefficients, "S? n C")
        arguments.tensor("k_test_train", k_test_train, self.kernel_axes)
        prediction = k_test_train @ self.dual_coefficients
        return prediction.squeeze(-1) if self.scalar_targets else prediction


def kernel_ridge(k_train_train, y_train, ridge):
    r"""Fit :math:`f(x) = k(x, X) (K + \mathrm{ridge}\, I)^{-1} y` by Cholesky factorization.

    Parameters
    ----------
    k_train_train : Tensor (n, n) or (S, n, n)
    y_train : Tensor (n,), (n, C) or (S, n, C)
    ridge : float
        Absolute, added to the diagonal. Zero interpolates.

    Returns
    -------
    KernelRidge
        A function of ``k_test_train``; the fitted coefficients are its ``dual_coefficients`` (n, C) or (S, n, C).

    Raises
    ------
    TypeError, ValueError
        For wrong shapes or types, NaN, a kernel that is not symmetric, a negative ridge.
    torch.linalg.LinAlgError
        Where the matrix to be inverted is singular to rounding, or has a negative eigenvalue.
    """
    targets = _check_problem(k_train_train, y_train)
    require_non_negative("ridge", ridge)
    factor, failed = torch.linalg.cholesky_ex(_with_ridge(k_train_train, ridge))
    _require_positive_pivots(factor, failed, k_train_train, ridge)
    return KernelRidge(torch.cholesky_solve(targets, factor), _test_axes(k_train_train), y_train.ndim == 1)


@dataclass(frozen=True)
class _Trajectory:
    """Kernel regression along a path in function space, factored once."""

    eigenvalues: Tensor  # (n,) or (S, n), of K + ridge * I; those below rounding are exactly zero
    eigenvectors: Tensor  # (n, n) or (S, n, n)
    f0_train: Tensor  # (n, C) or (S, n, C)
    residual: Tensor  # (n, C) or (S, n, C): y - f0 in the basis of eigenvectors
    scalar_targets: bool
    has_f0: bool

    def _function(self, progress, filtered, k_test_train, f0_test):
        """The function, of how far each eigenvector has come: `progress` from 0 to 1, and that over the eigenvalue."""
        if k_test_train is None:
            if f0_test is not None:
                raise ValueError("k_test_train: expected a kernel, as f0_test was given, got None")
            f = self.f0_train + self.eigenvectors @ (progress.unsqueeze(-1) * self.residual)
        else:
            f0 = self._check_test(k_test_train, f0_test)
            f = f0 + k_test_train @ (self.eigenvectors @ (filtered.unsqueeze(-1) * self.residual))
        return f.squeeze(-1) if self.scalar_targets else f

    def _check_test(self, k_test_train, f0_test):
        if self.has_f0 != (f0_test is not None):
            raise ValueError(
                "f0_test: expected the initial function at the test points, as f0_train was given, got None"
                if self.has_f0
                else "f0_test: expected None, as f0_train was not given, got a tensor"
            )
        arguments = Arguments()
        arguments.tensor("the residual", self.residual, "S? n C")
        arguments.tensor("k_test_train", k_test_train, _test_axes(self.eigenvectors))
        if f0_test is None:
            return 0.0
        axes = ["S"] * (self.f0_train.ndim - 2) + ["m", "C"]
        arguments.tensor("f0_test", f0_test, " ".join(axes[:-1] if self.scalar_targets else axes))
        return f0_test.unsqueeze(-1) if self.scalar_targets else f0_test


class GradientFlow(_Trajectory):
    r"""The trajectory of kernel gradient flow, factored once; call it with times and test points.

    ``flow(t)`` is the function on the training points, ``flow(t, k_test_train, f0_test)`` elsewhere. The time `t` is a
    number, infinity included, or a 1-d tensor, which gives the result a leading axis over times. `k_test_train` and
    `f0_test` have the axes of `k_train_train` and `f0_train`, with m in the place of n; leave `f0_test` out exactly
    where `f0_train` was left out, and both are zero.
    """

    def __call__(self, t, k_test_train=None, f0_test=None):
        """Evaluate the flow at time `t`, on the training points or where `k_test_train` says."""
        return self._function(*self._filters(t), k_test_train, f0_test)

    def _filters(self, t):
        """1 - exp(-lambda t / (n C)), and that over lambda."""
        times = self._times(t) / self.residual.shape[-2:].numel()
        progress = -torch.expm1(torch.where(self.eigenvalues > 0, -self.eigenvalues * times, 0.0))
        at_zero = torch.where(torch.isfinite(times), times, 0.0)
        return progress, torch.where(self.eigenvalues > 0, progress / self.eigenvalues, at_zero)

    def _times(self, t):
        try:
            times = torch.as_tensor(t, dtype=self.residual.dtype, device=self.residual.device)
        except (TypeError, ValueError, RuntimeError):
            raise TypeError(f"t: expected a number or 1-d tensor, got {t!r}") from None
        if times.ndim > 1 or not (times >= 0).all():
            raise ValueError(f"t: expected a number or 1-d tensor, zero or above, got {t}")
        return times.reshape(*times.shape, *[1] * (self.residual.ndim - 1))


@dataclass(frozen=True)
class GradientDescent(_Trajectory):
    r"""The trajectory of kernel gradient descent, factored once; call it with numbers of steps and test points.

    ``descent(steps)`` is the function on the training points, ``descent(steps, k_test_train, f0_test)`` elsewhere, all
    as in `GradientFlow` with `steps`, an integer or a sequence of them, in the place of the time.
    """

    learning_rate: float
    momentum: float

    def __call__(self, steps, k_test_train=None, f0_test=None):
        """Evaluate the function after so many steps, on the training points or where `k_test_train` says."""
        filtered = self._filtered(steps)
        return self._function(self.eigenvalues * filtered, filtered, k_test_train, f0_test)

    def _filtered(self, steps):
        r"""Displacement w along each eigenvector, of residual 1 - lambda w, by powers of the matrix of one step.

        .. math:: v' = \mu v + 1 - \lambda w, \qquad w' = w + \frac{\eta}{nC} v'.
        """
        step, rate = _require_steps(steps), self.learning_rate / self.residual.shape[-2:].numel()
        eigenvalues, ones = self.eigenvalues, torch.ones_like(self.eigenvalues)
        velocity = torch.stack([-eigenvalues, self.momentum * ones, ones], -1)
        constant = torch.stack([0 * ones, 0 * ones, ones], -1)
        displacement = torch.stack([ones, 0 * ones, 0 * ones], -1) + rate * velocity
        matrix = torch.stack([displacement, velocity, constant], -2)
        found = [torch.linalg.matrix_power(matrix, k)[..., 0, 2] for k in ([step] if isinstance(step, int) else step)]
        return found[0] if isinstance(step, int) else torch.stack(found)


def gradient_flow(k_train_train, y_train, *, f0_train=None, ridge=0.0):
    r"""Gradient flow on half the mean square error, for a fixed kernel: closed form at every time.

    .. math:: f_t(X) = y + e^{-t \tilde K / (nC)} (f_0(X) - y),

              f_t(x) = f_0(x) + k(x, X) \tilde K^{-1} \left(1 - e^{-t \tilde K / (nC)}\right) (y - f_0(X)),

    with :math:`\tilde K = K + \mathrm{ridge}\, I` (Lee et al. 2019, section 2.2, where the loss is half the *sum*
    of squares). The kernel is factored once. Singular kernels are welcome: a direction of eigenvalue zero does not
    move on the training points, and :math:`(1 - e^{-\lambda t}) / \lambda` there is its limit `t`, or at infinite time
    left out, as in the pseudo-inverse. An eigenvalue counts as zero below ``max(n, 100) * eps * (the largest)``.

    Parameters
    ----------
    k_train_train : Tensor (n, n) or (S, n, n)
    y_train : Tensor (n,), (n, C) or (S, n, C)
    f0_train : Tensor (n,) or (S, n) where `y_train` is (n,), else (n, C) or (S, n, C), optional
        The function at time zero; None means zero.
    ridge : float
        Absolute, added to the diagonal of `k_train_train` alone: test predictions tend to those of `kernel_ridge`,
        while ``flow(t)`` on the training points tends to the targets.

    Returns
    -------
    GradientFlow

    Raises
    ------
    TypeError, ValueError
        For wrong shapes or types, NaN, a negative ridge, and a kernel that is not symmetric or not positive
        semi-definite to rounding.
    """
    return GradientFlow(*_factored(k_train_train, y_train, f0_train, ridge))


def gradient_descent(k_train_train, y_train, *, learning_rate, momentum=0.0, f0_train=None, ridge=0.0):
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
    """
    require_positive("learning_rate", learning_rate)
    require_momentum(momentum)
    factored = _factored(k_train_train, y_train, f0_train, ridge)
    eigenvalues, residual = factored[0], factored[3]
    largest = eigenvalues.max().item()
    bound = 2 * (1 + momentum) * residual.shape[-2:].numel() / largest if largest else math.inf
    if learning_rate >= bound:
        raise ValueError(f"learning_rate: expected below {bound:.6g}, where descent diverges, got {learning_rate}")
    return GradientDescent(*factored, float(learning_rate), float(momentum))


class Law(NamedTuple):
    """Mean and covariance of the function over initializations."""

    mean: Tensor
    covariance: Tensor


@dataclass(frozen=True)
class EnsembleLaw:
    """The law of infinitely wide networks in training: ``law(t)`` is their mean (m, C) and covariance (m, m) at time t.

    With leading axes over the times where `t` is a 1-d tensor; the outputs are independent and share the covariance.
    """

    flow: GradientFlow
    k_test_train: Tensor  # (m, n)
    root_train: Tensor  # (n, n + m)
    root_test: Tensor  # (m, n + m): the two times their transposes are the initial covariances

    def __call__(self, t):
        """The law at time `t`, a number, infinity included, or a 1-d tensor."""
        filtered, vectors = self.flow._filters(t)[1], self.flow.eigenvectors
        memory = (self.k_test_train @ vectors) * filtered.unsqueeze(-2) @ vectors.mT
        root = self.root_test - memory @ self.root_train
        covariance = root @ root.mT
        return Law(self.flow(t, self.k_test_train), (covariance + covariance.mT) / 2)


def ensemble_law(y_train, nngp, ntk=None, *, ridge=0.0):
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
    """
    scalar = isinstance(y_train, Tensor) and y_train.ndim == 1
    arguments = Arguments()
    arguments.tensor("y_train", y_train, "n" if scalar else "n C")
    _check_kernel(arguments, "nngp", nngp, "N")
    if nngp.ndim != 2 or len(nngp) <= len(y_train):
        raise ValueError(f"nngp: expected shape (N, N), N > {len(y_train)}, got {tuple(nngp.shape)}")
    if ntk is not None:
        _check_kernel(arguments, "ntk", ntk, "N")
    n, kernel = len(y_train), nngp if ntk is None else ntk
    flow = gradient_flow(kernel[:n, :n], y_train, ridge=ridge)
    start = nngp.clone()
    if ntk is None:
        start.diagonal()[:n] += ridge
    eigenvalues, eigenvectors = torch.linalg.eigh(start)
    root = eigenvectors * _without_rounding(eigenvalues, "nngp").sqrt()
    return EnsembleLaw(flow, kernel[n:, :n], root[:n], root[n:])


def max_learning_rate(kernel, like=None):
    r"""Learning rate at which gradient descent on half the mean square error becomes unstable, :math:`2 N / \lambda_1`.

    Parameters
    ----------
    kernel : Tensor (N, N) or (S, N, N), or callable
        Kernel of all N = n C residuals: of the n points for one output; for more, `flatten_outputs` of the full one.
        Or, where that is too large, the function v -> K v, for example ``lambda v: ntk_vector_product(model, x, v)``,
        whose largest eigenvalue is then found by the Lanczos method (of ARPACK, in `scipy.sparse.linalg.eigsh`).
    like : Tensor, optional
        Given exactly where `kernel` is a function: of the shape, dtype and device of v, such as the targets.

    Returns
    -------
    Tensor () or (S,)
        Below it every mode of the linearized model contracts; above it the leading one, of eigenvalue
        :math:`\lambda_1`, grows. Infinite for a zero kernel.

    Raises
    ------
    TypeError, ValueError
        For a kernel that is not a finite symmetric matrix, and `like` without need or missing.
    """
    if callable(kernel) != (like is not None):
        raise ValueError(f"like: expected a tensor where kernel is a function, and only there, got {like!r}")
    if callable(kernel):
        return 2 * like.numel() / _largest_eigenvalue(kernel, like).clamp_min(0)
    _check_kernel(Arguments(), "kernel", kernel, "N")
    return 2 * kernel.shape[-1] / torch.linalg.eigvalsh(kernel)[..., -1].clamp_min(0)


def _largest_eigenvalue(product, like):
    """Of a symmetric operator on tensors of the shape, dtype and device of `like`."""

    def on_array(v):
        return product(torch.from_numpy(v).to(like).reshape(like.shape)).detach().cpu().numpy().reshape(-1)

    size, generator = like.numel(), torch.Generator().manual_seed(0)
    start = torch.randn(size, generator=generator, dtype=torch.float64).to(like).cpu().numpy()
    image = on_array(start)
    if size == 1 or not image.any():  # of which eigsh can't start
        return like.new_tensor(image[0] / start[0])
    operator = LinearOperator((size, size), matvec=on_array, dtype=start.dtype)
    return like.new_tensor(eigsh(operator, k=1, which="LA", v0=start, return_eigenvectors=False).item())


def _factored(k_train_train, y_train, f0_train, ridge):
    """What a trajectory keeps of a problem, checked."""
    require_non_negative("ridge", ridge)
    targets = _check_problem(k_train_train, y_train, f0_train)
    eigenvalues, eigenvectors = torch.linalg.eigh(_with_ridge(k_train_train, ridge))
    eigenvalues = _without_rounding(eigenvalues, "k_train_train")
    f0 = torch.zeros_like(targets) if f0_train is None else f0_train.reshape(_columns(f0_train, y_train))
    residual = eigenvectors.mT @ (targets - f0)
    return eigenvalues, eigenvectors, f0, residual, y_train.ndim == 1, f0_train is not None


def _require_steps(steps):
    """The number of steps as an int, or several as a list of them."""
    try:
        values = torch.as_tensor(steps)
    except (TypeError, ValueError, RuntimeError):
        raise TypeError(f"steps: expected an integer or a sequence of integers, got {steps!r}") from None
    if values.is_floating_point() or values.is_complex() or values.dtype == torch.bool:
        raise TypeError(f"steps: expected an integer or a sequence of integers, got {steps!r}")
    if values.ndim > 1 or values.numel() == 0 or (values < 0).any():
        raise ValueError(f"steps: expected an integer or a sequence of integers, zero or above, got {steps!r}")
    return values.tolist()


def _without_rounding(eigenvalues, name):
    largest = eigenvalues[..., -1:]
    rounding = _rounding(eigenvalues) * largest.abs()
    if (eigenvalues < -rounding).any():
        double = "" if eigenvalues.dtype == torch.float64 else "compute the kernel in float64, or "
        raise ValueError(
            f"{name}: expected a positive semi-definite matrix, got an eigenvalue of "
            f"{eigenvalues.min().item():.3g} (the largest is {largest.max().item():.3g}); {double}add a ridge above it"
        )
    return torch.where(eigenvalues > rounding, eigenvalues, 0.0)


def _require_positive_pivots(factor, failed, kernel, ridge):
    needed = _rounding(kernel) * (kernel.diagonal(dim1=-2, dim2=-1).abs().amax(-1) + ridge)
    pivots = factor.diagonal(dim1=-2, dim2=-1).nan_to_num(0.0).clamp_min(0.0).amin(-1).square()
    pivots = torch.where(failed > 0, 0.0, pivots)
    if (pivots <= needed).any():
        pivot, bound = pivots.min().item(), needed.max().item()
        raise torch.linalg.LinAlgError(
            f"k_train_train + ridge * I is singular to rounding or not positive (ridge={ridge:g}): expected pivots "
            f"above {bound:.1g}, got {pivot:.1g} or less. Duplicate points make a kernel singular, and smooth kernels "
            f"nearly are. Pass a larger ridge, for example ridge={1e4 * bound:.0e}, or use gradient_flow, which needs "
            "no inverse"
        )


def _rounding(values):
    """Relative size below which an eigenvalue or a pivot of a computed n x n kernel is rounding."""
    return max(values.shape[-1], 100) * torch.finfo(values.dtype).eps


def _with_ridge(kernel, ridge):
    return kernel + ridge * torch.eye(kernel.shape[-1], dtype=kernel.dtype, device=kernel.device)


def _check_problem(k_train_train, y_train, f0_train=None):
    """Check the arguments of one regression against each other; return the targets with an output axis."""
    arguments = Arguments()
    _check_kernel(arguments, "k_train_train", k_train_train, "n")
    scalar = isinstance(y_train, Tensor) and y_train.ndim == 1
    arguments.tensor("y_train", y_train, "n" if scalar else "S? n C")
    if f0_train is not None:
        arguments.tensor("f0_train", f0_train, "S? n" if scalar else "S? n C")
    return y_train.reshape(_columns(y_train, y_train))


def _check_kernel(arguments, name, kernel, size):
    if isinstance(kernel, Tensor) and kernel.ndim > 3:
        raise ValueError(
            f"{name}: expected shape ({size}, {size}) or (S, {size}, {size}), got {tuple(kernel.shape)}; "
            "for the full kernel of several outputs see flatten_outputs"
        )
    arguments.tensor(name, kernel, f"S? {size} {size}")
    asymmetry, scale = (kernel - kernel.mT).abs().max().item(), kernel.abs().max().item()
    if asymmetry > math.sqrt(torch.finfo(kernel.dtype).eps) * scale:
        raise ValueError(
            f"{name}: expected a symmetric matrix, got entries that differ by {asymmetry:.3g} (largest {scale:.3g})"
        )


def _test_axes(kernel):
    """Pattern of the kernel between test and training points that goes with one on the training points."""
    return "S m n" if kernel.ndim == 3 else "m n"


def _columns(values, y_train):
    """Shape of targets or functions with their output axis written out."""
    return (*values.shape, 1) if y_train.ndim == 1 else values.shape
