"""Jacobians, neural tangent kernels and linearizations of finite networks: any `torch.nn.Module`.

A model maps ``(n, ...)`` to ``(n, C)`` or ``(n,)``, one sample independent of the others; outputs ``(n, ...)`` of more
axes are taken as C outputs, in the order of ``out.flatten(1)``. An ensemble is a model with an integer attribute
``ntk_ensemble_size``, all of whose parameters and buffers have a leading axis of that size, and which computes member s
when called with slice s of them; it maps ``(n, ...)`` to ``(S, n, ...)``. Calls in several threads take turns.
"""

from typing import Literal, overload

import torch
from torch import Tensor, nn

from ntk_helpers._utils.checks import require_integer
from ntk_helpers._utils.functional import ensemble_size, leaves_the_model, over_members, states
from ntk_helpers._utils.precision import full_precision
from ntk_helpers.kernels._gram import arranged, mirrored
from ntk_helpers.kernels._methods import (
    blocks,
    check_products,
    chunks_of_outputs,
    jacobian_blocks,
    parts,
    pull_and_push,
)
from ntk_helpers.kernels._probe import check_model
from ntk_helpers.kernels._probe import probe as probed

Output = Literal["full", "trace", "diagonal"]
Method = Literal["auto", "layerwise", "jacobian", "vector_product"]

LOOKED_AT = 1000  # of the samples, for two that differ


@leaves_the_model
@full_precision()
def jacobian(model: nn.Module, x: Tensor, *, chunk_size: int | None = None) -> Tensor:
    """Jacobian of the outputs with respect to all trainable parameters, flattened in the order of `parameters()`.

    Parameters
    ----------
    model : torch.nn.Module
    x : Tensor (n, ...)
        Inputs, of the dtype and device of the parameters; integers for a model that takes them.
    chunk_size : int, optional
        Samples differentiated at once; None for all. Bounds the memory of the intermediate arrays.

    Returns
    -------
    Tensor (n, C, P)
        With C = 1 left out, (n, P), for a model whose output has no output axis; with a leading axis S for an ensemble.

    Raises
    ------
    TypeError, ValueError
        For inputs that are not finite or do not match the parameters; a model without trainable parameters, or with
        hooks on their gradients; one whose output has the wrong shape; one whose kernel would be meaningless, since it
        draws random numbers, changes from call to call, or lets samples of a batch see each other, as Dropout and
        BatchNorm in training mode do; and for a result that is not finite.

    Examples
    --------
    >>> x = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    >>> jacobian(torch.nn.Linear(2, 1), x).squeeze(1)  # by the weights, then by the bias
    tensor([[1., 2., 1.],
            [3., 4., 1.]])
    """
    check_model(model).inputs("x", x)
    chunk_size = _checked_chunk_size(chunk_size)
    probe, x = _probe(model, x), x.detach()

    def flat(params, rest, _):
        j = torch.cat(list(jacobian_blocks(probe, params, rest, x, chunk_size).values()), dim=-1)
        _require_finite(j.isfinite().flatten(1).all(1, keepdim=True), j.dtype, "x")
        return j if probe.has_output_axis else j.squeeze(1)

    return over_members(model, flat)


@overload
def empirical_ntk(
    model: nn.Module,
    x1: Tensor,
    x2: Tensor | None = None,
    *,
    output: Output = ...,
    method: Method = ...,
    chunk_size: int | None = ...,
    per_layer: Literal[False] = ...,
) -> Tensor: ...
@overload
def empirical_ntk(
    model: nn.Module,
    x1: Tensor,
    x2: Tensor | None = None,
    *,
    output: Output = ...,
    method: Method = ...,
    chunk_size: int | None = ...,
    per_layer: Literal[True],
) -> dict[str, Tensor]: ...
@leaves_the_model
@full_precision()
def empirical_ntk(
    model: nn.Module,
    x1: Tensor,
    x2: Tensor | None = None,
    *,
    output: Output = "full",
    method: Method = "auto",
    chunk_size: int | None = None,
    per_layer: bool = False,
) -> Tensor | dict[str, Tensor]:
    r"""Neural tangent kernel of a finite network at its present parameters.

    :math:`\Theta_{ab}(x, x') = \langle \nabla_\theta f_a(x), \nabla_\theta f_b(x') \rangle`, the sum over all trainable
    parameters (Jacot et al. 2018, section 4). All methods give the same kernel, to rounding.

    Parameters
    ----------
    model : torch.nn.Module
    x1 : Tensor (n1, ...)
        Inputs, of the dtype and device of the parameters; integers for a model that takes them.
    x2 : Tensor (n2, ...), optional
        None means `x1`: computed once, and exactly symmetric.
    output : {"full", "trace", "diagonal"}
        All pairs of outputs; their trace, the *sum* over a = b (the kernel itself where there is one output); or the
        pairs a = b, each by itself.
    method : {"auto", "layerwise", "jacobian", "vector_product"}
        "layerwise" multiplies Gram matrices of layers' inputs and sensitivities ("structured derivatives" in Novak et
        al. 2022), for parameters used once: by a linear layer, a convolution in one or two dimensions, an embedding, or
        as scale or shift of a layer, group or batch norm. "jacobian" contracts Jacobians; "vector_product" pushes
        forward the gradients at the points of the smaller side one by one, in the memory of a few copies of the model.
        "auto" is layerwise, and one of the others for just those parameters that have no Gram product: which, and why,
        it tells the logger "ntk_helpers.empirical" at level INFO.
    chunk_size : int, optional
        Samples of `x1` and of `x2` treated at once; None for all. Bounds the memory, at the price of one more pass
        through the network for every pair of chunks. Of many outputs, as many are treated at once as then fit in some
        hundred megabytes; of the full kernel, with its pairs of outputs, in about a gigabyte.
    per_layer : bool
        Return the share of each trainable parameter under its name; the shares sum to the kernel.

    Returns
    -------
    Tensor, or dict of str to Tensor
        (n1, n2, C, C) in full, (n1, n2) for the trace, (n1, n2, C) for the diagonal, outputs of more axes flattened;
        always (n1, n2) for a model whose output has no output axis. With a leading axis S for an ensemble of S.

    Raises
    ------
    TypeError, ValueError
        As `jacobian`, naming the argument; also for method "layerwise" where a parameter has no Gram product, and for
        "vector_product" where the model hooks into gradients or PyTorch mistakes a second derivative.
    RuntimeError
        From PyTorch, for method "vector_product", where it lacks a second derivative.

    Examples
    --------
    >>> model, x = torch.nn.Linear(2, 1), torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    >>> empirical_ntk(model, x, output="trace")  # x @ x.mT + 1
    tensor([[ 6., 12.],
            [12., 26.]])
    >>> empirical_ntk(model, x, output="trace", per_layer=True)["bias"]
    tensor([[1., 1.],
            [1., 1.]])
    """
    _require_one_of("output", output, ["diagonal", "full", "trace"])
    _require_one_of("method", method, ["auto", "jacobian", "layerwise", "vector_product"])
    arguments = check_model(model)
    arguments.inputs("x1", x1)
    if x2 is not None:
        arguments.inputs("x2", x2)
        if x2.shape[1:] != x1.shape[1:]:
            expected = ", ".join(["n2", *map(str, x1.shape[1:])])
            raise ValueError(f"x2: expected shape ({expected}), got {tuple(x2.shape)}")
    chunk_size = _checked_chunk_size(chunk_size)

    probe, size, others = _probe(model, x1, x2), ensemble_size(model), x1 if x2 is None else x2
    x1, x2, others = x1.detach(), None if x2 is None else x2.detach(), others.detach()
    n1, n2 = len(x1), len(others)
    pairs = {"full": 2, "diagonal": 1, "trace": 0}[output] * (probe.outputs,)
    names = probe.sizes if per_layer else ["sum"]
    theta = {name: torch.zeros(size or 1, n1, n2, *pairs, dtype=probe.dtype, device=x1.device) for name in names}
    chunk_size = min(chunk_size or max(n1, n2), max(n1, n2))
    for part in parts(probe, method, output, per_layer, x1, others):
        for pair in chunks_of_outputs(part, probe, output, chunk_size * (size or 1)):
            of_outputs = {"full": pair, "diagonal": pair[:1], "trace": ()}[output]
            side = part(probe.only(pair[0]))
            sides = side, side if pair[0] is pair[1] else part(probe.only(pair[1]))
            for s, name, rows, columns, block in blocks(model, sides, x1, x2, chunk_size):
                theta[name if per_layer else "sum"][s, rows, columns, *of_outputs] += arranged(block, output)
    for name, value in theta.items():
        if x2 is None:
            mirrored(value, output)
        fine = value.isfinite().flatten(3).all(3).all(0) if pairs else value.isfinite().all(0)
        _require_finite(fine, value.dtype, "x1", "x1" if x2 is None else "x2")
        value = value if probe.has_output_axis else value.reshape(value.shape[:3])
        theta[name] = value.squeeze(0) if size is None else value
    return theta if per_layer else theta["sum"]


@leaves_the_model
@full_precision()
def ntk_vector_product(model: nn.Module, x: Tensor, v: Tensor) -> Tensor:
    r"""The neural tangent kernel on `x`, times a vector, without the kernel.

    :math:`\Theta v = J (J^\top v)`, and :math:`J^\top v` is no larger than the parameters: a forward pass, a backward
    pass, and a backward pass through that.

    Parameters
    ----------
    model : torch.nn.Module
    x : Tensor (n, ...)
    v : Tensor (n, ...)
        Of the shape of the model's output on `x`: with a leading axis S for an ensemble of S networks.

    Returns
    -------
    Tensor
        Of the shape of `v`.

    Raises
    ------
    TypeError, ValueError, RuntimeError
        As `empirical_ntk` with method "vector_product".

    Examples
    --------
    >>> x = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    >>> ntk_vector_product(torch.nn.Linear(2, 1), x, torch.ones(2, 1))  # the kernel is [[6, 12], [12, 26]]
    tensor([[18.],
            [38.]])
    """
    arguments = check_model(model)
    arguments.inputs("x", x)
    probe, size = _probe(model, x), ensemble_size(model)
    x = x.detach()
    arguments.tensor("v", v, " ".join(map(str, [*([size] if size else []), len(x), *probe.output_shape])))

    def product(params, rest, s):
        v_s = v if size is None else v[s]
        flat = v_s.reshape(len(x), -1)
        pulled, push_forward = pull_and_push(probe, params, rest, x, flat)
        pushed = push_forward(pulled)
        _require_finite(pushed.isfinite().all(1, keepdim=True), pushed.dtype, "x")
        check_products(flat, pulled, pulled, pushed)
        return pushed.reshape(v_s.shape)

    return over_members(model, product)


def _probe(model, x, others=None):
    """What the first sample shows about the model, and the one farthest from it: it would change the first the most."""
    samples = (x if len(x) > 1 or others is None else torch.cat([x, others[:LOOKED_AT]]))[:LOOKED_AT].detach()
    distances = torch.linalg.vector_norm((samples.double() - samples[0].double()).reshape(len(samples), -1), dim=1)
    other = samples[distances.argmax()] if distances.any() else None
    return probed(model, *states(model)[0], samples[0], other, x.requires_grad)


def _checked_chunk_size(chunk_size):
    return None if chunk_size is None else require_integer("chunk_size", chunk_size, at_least=1)


def _require_finite(fine, dtype, *names):
    """Raise unless all pairs of samples, (n1, n2), or samples, (n, 1), are `fine`; name the first that never is."""
    if fine.all():
        return
    where = f"{int((~fine).sum())} of {fine.numel()} pairs of samples"
    for axis, name in enumerate(names):
        never = ~fine.any(1 - axis)
        if never.any():
            where = f"sample {int(never.int().argmax())} of {name}"
            break
    wider = "" if dtype == torch.float64 else f"where {dtype} overflows, call .double() on model and inputs; "
    raise ValueError(
        f"model: expected finite derivatives and products of them, got NaN or infinity for {where}; {wider}where a "
        "derivative is infinite, as that of a root or norm at zero, add a small number under the root"
    )


def _require_one_of(name, value, choices):
    if value not in choices:
        raise ValueError(f"{name}: expected one of {choices}, got {value!r}")
