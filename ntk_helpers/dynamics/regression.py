r"""Kernel regression with a given kernel, by its ridge; and what all that takes a kernel asks of it.

Kernels are (n, n) on the training points and (m, n) between test and training points, or (S, n, n) and (S, m, n) for S
problems at once, such as the seeds of an ensemble. Targets are (n,), or (n, C) for C outputs that share the kernel;
functions are the same, or have a leading axis S. The loss is half the mean square error, :math:`\frac{1}{2nC} \sum (f
- y)^2`. Kernels and targets are float32 or float64, and so are the results; the algebra between them is in float64.

Where every pair of outputs has a kernel of its own, as `empirical_ntk` gives it in full, `flatten_outputs` makes it the
kernel of one problem with n C points.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ntk_helpers._utils.checks import Arguments, require_non_negative, require_single_or_double

# Relative rounding of a kernel's entry, in units of that of its dtype: a recursion over layers makes a few.
ENTRY = 4


def flatten_outputs(kernel: Tensor) -> Tensor:
    """Kernel (n1, n2, C, C) of all pairs of outputs as the matrix (n1 C, n2 C) over pairs (point, output).

    The order is that of ``y.reshape(-1)`` for targets (n, C). With a leading axis S, it stays.

    Examples
    --------
    >>> kernel = empirical_ntk(torch.nn.Linear(2, 3), torch.eye(2))
    >>> kernel.shape, flatten_outputs(kernel).shape
    (torch.Size([2, 2, 3, 3]), torch.Size([6, 6]))
    """
    if kernel.ndim not in (4, 5) or kernel.shape[-1] != kernel.shape[-2]:
        raise ValueError(f"kernel: expected shape (n1, n2, C, C) or (S, n1, n2, C, C), got {tuple(kernel.shape)}")
    return kernel.movedim(-2, -3).flatten(-2, -1).flatten(-3, -2)


@dataclass(frozen=True, eq=False, repr=False)
class KernelRidge:
    """A fitted kernel ridge regression: a function of ``k_test_train`` (m, n) to predictions (m,) or (m, C).

    With a leading axis S where the kernel or the targets had one; `k_test_train` has it where the kernel had.
    """

    dual_coefficients: Tensor  # (n, C) or (S, n, C), in float64
    arguments: Arguments  # those of the fit, which k_test_train must go with
    kernel_axes: str
    scalar_targets: bool

    def __repr__(self):
        return f"KernelRidge({described(self.dual_coefficients, self.dual_coefficients, self.arguments)})"

    def __call__(self, k_test_train: Tensor) -> Tensor:
        """Predict at the test points: the kernel between them and the training points, times the coefficients."""
        self.arguments.copy().tensor("k_test_train", k_test_train, self.kernel_axes)
        prediction = (k_test_train.double() @ self.dual_coefficients).to(k_test_train.dtype)
        return prediction.squeeze(-1) if self.scalar_targets else prediction


def kernel_ridge(k_train_train: Tensor, y_train: Tensor, ridge: float) -> KernelRidge:
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
        A function of ``k_test_train``; the fitted coefficients are its ``dual_coefficients`` (n, C) or (S, n, C), in
        float64.

    Raises
    ------
    TypeError, ValueError
        For wrong shapes or types, NaN, a kernel that is not symmetric, a negative ridge.
    torch.linalg.LinAlgError
        Where the matrix to be inverted is singular to rounding, or has a negative eigenvalue.

    Examples
    --------
    >>> fit = kernel_ridge(torch.eye(2), torch.tensor([1.0, 2.0]), ridge=1.0)
    >>> fit(torch.tensor([[1.0, 1.0]]))
    tensor([1.5000])
    """
    arguments, targets = check_problem(k_train_train, y_train)
    require_non_negative("ridge", ridge)
    factor, failed = torch.linalg.cholesky_ex(with_ridge(k_train_train, ridge))
    _require_positive_pivots(factor, failed, k_train_train, ridge)
    coefficients = torch.cholesky_solve(targets, factor)
    return KernelRidge(coefficients, arguments, axes_of_test(k_train_train), y_train.ndim == 1)


def _require_positive_pivots(factor, failed, kernel, ridge):
    needed = rounding(kernel, kernel.diagonal(dim1=-2, dim2=-1).abs().amax(-1) + ridge)
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


def described(functions: Tensor, kernel: Tensor, arguments: Arguments) -> str:
    """What a solved problem was, in a few words."""
    problems = max((len(t) for t in (functions, kernel) if t.ndim == 3), default=0)
    several = f"{problems} problems of " if problems else ""
    n, outputs = functions.shape[-2:]
    return f"{several}n={n}, C={outputs}, {arguments.first[1].dtype}"


def rounding(kernel: Tensor, largest: Tensor) -> Tensor:
    """The size below which an eigenvalue or a pivot of a computed kernel is rounding; `largest` is that of the largest.

    Rounding of the entries, as independent as it comes, is a matrix of norm sqrt(n) times its entries; to which comes
    that of the algebra, in float64.
    """
    n, of_entries = kernel.shape[-1], ENTRY * torch.finfo(kernel.dtype).eps * kernel.abs().amax((-2, -1)).double()
    return math.sqrt(n) * of_entries + max(n, 100) * torch.finfo(torch.float64).eps * largest.abs()


def with_ridge(kernel: Tensor, ridge: float) -> Tensor:
    """K + ridge * I, in float64."""
    return kernel.double() + ridge * torch.eye(kernel.shape[-1], dtype=torch.float64, device=kernel.device)


def check_problem(k_train_train: Tensor, y_train: Tensor, f0_train: Tensor | None = None) -> tuple[Arguments, Tensor]:
    """Check the arguments of one regression against each other; return them, and the targets (n, C) in float64."""
    arguments = Arguments()
    check_kernel(arguments, "k_train_train", k_train_train, "n")
    scalar = isinstance(y_train, Tensor) and y_train.ndim == 1
    arguments.tensor("y_train", y_train, "n" if scalar else "S? n C")
    if f0_train is not None:
        arguments.tensor("f0_train", f0_train, "S? n" if scalar else "S? n C")
    return arguments, columns(y_train, scalar)


def check_kernel(arguments: Arguments, name: str, kernel: Tensor, size: str) -> None:
    """Check that a kernel is a finite symmetric matrix, or several, in float32 or float64."""
    if isinstance(kernel, Tensor) and kernel.ndim > 3:
        raise ValueError(
            f"{name}: expected shape ({size}, {size}) or (S, {size}, {size}), got {tuple(kernel.shape)}; "
            "for the full kernel of several outputs see flatten_outputs"
        )
    arguments.tensor(name, kernel, f"S? {size} {size}")
    require_single_or_double(name, kernel)
    asymmetry, scale = (kernel - kernel.mT).abs().max().item(), kernel.abs().max().item()
    if asymmetry > math.sqrt(torch.finfo(kernel.dtype).eps) * scale:
        raise ValueError(
            f"{name}: expected a symmetric matrix, got entries that differ by {asymmetry:.3g} (largest {scale:.3g})"
        )


def axes_of_test(kernel: Tensor) -> str:
    """Pattern of the kernel between test and training points that goes with one on the training points."""
    return "S m n" if kernel.ndim == 3 else "m n"


def columns(values: Tensor, scalar: bool) -> Tensor:
    """Targets or functions in float64, with their output axis written out."""
    return (values.unsqueeze(-1) if scalar else values).double()
