"""Jacobians, neural tangent kernels and linearizations of finite networks: any `torch.nn.Module`.

A model maps ``(n, ...)`` to ``(n, C)`` or ``(n,)``, one sample independent of the others. An ensemble is a model with
an integer attribute ``ensemble_size``, all of whose parameters and buffers have a leading axis of that size, and which
computes member s when called with slice s of them; it maps ``(n, ...)`` to ``(S, n, C)``.
"""

import torch

from ntk_helpers._utils.checks import require_integer
from ntk_helpers._utils.functional import ensemble_size, leaves_the_model, over_members, states
from ntk_helpers._utils.precision import full_precision
from ntk_helpers.kernels._gram import arranged, mirrored
from ntk_helpers.kernels._methods import blocks, check_products, jacobian_blocks, parts, pull_and_push
from ntk_helpers.kernels._probe import check_model
from ntk_helpers.kernels._probe import probe as probed


@leaves_the_model
@full_precision()
def jacobian(model, x, *, chunk_size=None):
    """Jacobian of the outputs with respect to all trainable parameters, flattened in the order of `parameters()`.

    Parameters
    ----------
    model : torch.nn.Module
    x : Tensor (n, ...)
        Inputs, of the dtype and device of the parameters; integers for a model with a `torch.nn.Embedding`.
    chunk_size : int, optional
        Samples differentiated at once; None for all. Bounds the memory of the intermediate arrays.

    Returns
    -------
    Tensor (n, C, P)
        (n, P) for a model whose output has no output axis; with a leading axis S for an ensemble.

    Raises
    ------
    TypeError, ValueError
        For inputs that are not finite or do not match the parameters; a model without trainable parameters, or with
        hooks on their gradients; one whose output has the wrong shape; and one whose kernel would be meaningless, since
        it draws random numbers, changes from call to call, or has Dropout or BatchNorm in training mode.
    """
    check_model(model).inputs("x", x, model)
    _check_chunk_size(chunk_size)
    x = x.detach()
    probe = _probe(model, x)

    def flat(params, rest, _):
        j = torch.cat(list(jacobian_blocks(probe, params, rest, x, chunk_size).values()), dim=-1)
        return j if probe.has_output_axis else j.squeeze(1)

    return over_members(model, flat)


@leaves_the_model
@full_precision()
def empirical_ntk(model, x1, x2=None, *, output="full", method="auto", chunk_size=None, per_layer=False):
    r"""Neural tangent kernel of a finite network at its present parameters.

    :math:`\Theta_{ab}(x, x') = \langle \nabla_\theta f_a(x), \nabla_\theta f_b(x') \rangle`, the sum over all trainable
    parameters (Jacot et al. 2018, section 4). All methods give the same kernel, to rounding.

    Parameters
    ----------
    model : torch.nn.Module
    x1 : Tensor (n1, ...)
        Inputs, of the dtype and device of the parameters; integers for a model with a `torch.nn.Embedding`.
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
        it tells the logger "ntk_helpers.kernels.empirical" at level INFO.
    chunk_size : int, optional
        Samples of `x1` and of `x2` treated at once; None for all. Bounds the memory, at the price of one more pass
        through the network for every pair of chunks.
    per_layer : bool
        Return the share of each trainable parameter under its name; the shares sum to the kernel.

    Returns
    -------
    Tensor, or dict of str to Tensor
        (n1, n2, C, C) in full, (n1, n2) for the trace, (n1, n2, C) for the diagonal; always (n1, n2) for a model whose
        output has no output axis. With a leading axis S for an ensemble of S networks.

    Raises
    ------
    TypeError, ValueError
        As `jacobian`, naming the argument; also for method "layerwise" where a parameter has no Gram product, and for
        "vector_product" where the model hooks into gradients or PyTorch mistakes a second derivative.
    RuntimeError
        From PyTorch, for method "vector_product", where it lacks a second derivative.
    """
    _require_one_of("output", output, ["diagonal", "full", "trace"])
    _require_one_of("method", method, ["auto", "jacobian", "layerwise", "vector_product"])
    arguments = check_model(model)
    arguments.inputs("x1", x1, model)
    if x2 is not None:
        arguments.inputs("x2", x2, model)
        if x2.shape[1:] != x1.shape[1:]:
            expected = ", ".join(["n2", *map(str, x1.shape[1:])])
            raise ValueError(f"x2: expected shape ({expected}), got {tuple(x2.shape)}")
    _check_chunk_size(chunk_size)

    x1, x2 = x1.detach(), None if x2 is None else x2.detach()
    probe, size, others = _probe(model, x1), ensemble_size(model), x1 if x2 is None else x2
    n1, n2 = len(x1), len(others)
    pairs = {"full": 2, "diagonal": 1, "trace": 0}[output] * (probe.outputs,)
    names = probe.sizes if per_layer else ["sum"]
    theta = {name: torch.zeros(size or 1, n1, n2, *pairs, dtype=probe.dtype, device=x1.device) for name in names}
    for part in parts(probe, method, output, per_layer, x1, others):
        for s, name, rows, columns, block in blocks(model, part, x1, x2, chunk_size or max(n1, n2)):
            theta[name if per_layer else "sum"][s, rows, columns] += arranged(block, output)
    for name, value in theta.items():
        value = mirrored(value, output) if x2 is None else value
        value = value if probe.has_output_axis else value.reshape(value.shape[:3])
        theta[name] = value.squeeze(0) if size is None else value
    return theta if per_layer else theta["sum"]


@leaves_the_model
@full_precision()
def ntk_vector_product(model, x, v):
    r"""The neural tangent kernel on `x`, times a vector, without the kernel.

    :math:`\Theta v = J (J^\top v)`, and :math:`J^\top v` is no larger than the parameters: a forward pass, a backward
    pass, and a backward pass through that.

    Parameters
    ----------
    model : torch.nn.Module
    x : Tensor (n, ...)
    v : Tensor (n, C), or (n,) for a model whose output has no output axis
        With a leading axis S for an ensemble of S networks.

    Returns
    -------
    Tensor
        Of the shape of `v`.

    Raises
    ------
    TypeError, ValueError, RuntimeError
        As `empirical_ntk` with method "vector_product".
    """
    arguments = check_model(model)
    arguments.inputs("x", x, model)
    x = x.detach()
    probe, size = _probe(model, x), ensemble_size(model)
    arguments.tensor("v", v, " ".join(map(str, [*([size] if size else []), len(x), *probe.output_shape[1:]])))

    def product(params, rest, s):
        v_s = v if size is None else v[s]
        flat = v_s.reshape(len(x), -1)
        pulled, push_forward = pull_and_push(probe, params, rest, x, flat)
        pushed = push_forward(pulled)
        check_products(flat, pulled, pulled, pushed)
        return pushed.reshape(v_s.shape)

    return over_members(model, product)


def _probe(model, x):
    """What the first sample shows about the model."""
    return probed(model, *states(model)[0], x[:1])


def _check_chunk_size(chunk_size):
    if chunk_size is not None:
        require_integer("chunk_size", chunk_size, at_least=1)


def _require_one_of(name, value, choices):
    if value not in choices:
        raise ValueError(f"{name}: expected one of {choices}, got {value!r}")
