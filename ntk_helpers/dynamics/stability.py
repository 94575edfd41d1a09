"""When gradient descent is stable."""

from collections.abc import Callable

import torch
from scipy.sparse.linalg import LinearOperator, eigsh
from torch import Tensor

from ntk_helpers._utils.checks import Arguments
from ntk_helpers.dynamics.regression import check_kernel


def max_learning_rate(kernel: Tensor | Callable[[Tensor], Tensor], like: Tensor | None = None) -> Tensor:
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

    Examples
    --------
    >>> max_learning_rate(torch.diag(torch.tensor([1.0, 2.0, 4.0])))
    tensor(1.5000)
    >>> max_learning_rate(lambda v: 4 * v, like=torch.zeros(3))
    tensor(1.5000)
    """
    if callable(kernel) != (like is not None):
        raise ValueError(f"like: expected a tensor where kernel is a function, and only there, got {like!r}")
    if callable(kernel):
        assert like is not None  # as just checked
        return 2 * like.numel() / _largest_eigenvalue(kernel, like).clamp_min(0)
    check_kernel(Arguments(), "kernel", kernel, "N")
    largest = torch.linalg.eigvalsh(kernel.double())[..., -1].clamp_min(0)
    return (2 * kernel.shape[-1] / largest).to(kernel.dtype)


def _largest_eigenvalue(product, like):
    """Of a symmetric operator on tensors of the shape, dtype and device of `like`."""

    def on_array(v):
        return product(torch.from_numpy(v).to(like).reshape(like.shape)).detach().cpu().numpy().reshape(-1)

    size, generator = like.numel(), torch.Generator("cpu").manual_seed(0)
    start = torch.randn(size, generator=generator, dtype=torch.float64, device="cpu").to(like).cpu().numpy()
    image = on_array(start)
    if size == 1 or not image.any():  # of which eigsh can't start
        return like.new_tensor(image[0] / start[0])
    operator = LinearOperator((size, size), matvec=on_array, dtype=start.dtype)
    return like.new_tensor(eigsh(operator, k=1, which="LA", v0=start, return_eigenvectors=False).item())
