"""Jacobians, neural tangent kernels and linearizations of finite networks: any `torch.nn.Module`.

A model maps ``(n, ...)`` to ``(n, C)`` or ``(n,)``, one sample independent of the others. An ensemble is a model with
an integer attribute ``ensemble_size``, all of whose parameters and buffers have a leading axis of that size, and which
computes member s when called with slice s of them; it maps ``(n, ...)`` to ``(S, n, C)``.
"""

import copy

import torch
from torch import nn
from torch.func import functional_call, jacrev, jvp, vmap
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd

from ntk_helpers._checks import Arguments, require_integer, require_trainable


def jacobian(model, x, *, chunk_size=None):
    """Jacobian of the outputs with respect to all trainable parameters, flattened in the order of `parameters()`.

    Parameters
    ----------
    model : torch.nn.Module
    x : Tensor (n, ...)
        Inputs, of the dtype and device of the parameters.
    chunk_size : int, optional
        Samples differentiated at once; None for all. Bounds the memory of the intermediate arrays.

    Returns
    -------
    Tensor (n, C, P)
        (n, P) for a model whose output has no output axis; with a leading axis S for an ensemble.

    Raises
    ------
    TypeError, ValueError
        For inputs that are not finite or do not match the parameters, a model without trainable parameters, one whose
        output has the wrong shape, and one whose kernel would be meaningless: Dropout or BatchNorm in training mode.
    """
    _check_model(model).inputs("x", x)
    _check_chunk_size(chunk_size)
    return _over_members(model, lambda *state: _jacobian(model, *state, x, chunk_size))


def empirical_ntk(model, x1, x2=None, *, output="full", chunk_size=None):
    r"""Neural tangent kernel of a finite network at its present parameters.

    :math:`\Theta_{ab}(x, x') = \langle \nabla_\theta f_a(x), \nabla_\theta f_b(x') \rangle`, the sum over all trainable
    parameters (Jacot et al. 2018, section 4).

    Parameters
    ----------
    model : torch.nn.Module
    x1 : Tensor (n1, ...)
    x2 : Tensor (n2, ...), optional
        None means `x1`: computed once, and exactly symmetric.
    output : {"full", "trace", "diagonal"}
        All pairs of outputs; their trace, the *sum* over a = b (the kernel itself where there is one output); or the
        pairs a = b, each by itself.
    chunk_size : int, optional
        Samples differentiated at once, as in `jacobian`.

    Returns
    -------
    Tensor
        (n1, n2, C, C) in full, (n1, n2) for the trace, (n1, n2, C) for the diagonal; always (n1, n2) for a model whose
        output has no output axis. With a leading axis S for an ensemble of S networks.

    Raises
    ------
    TypeError, ValueError
        As `jacobian`, naming the argument.
    """
    if output not in _CONTRACTIONS:
        raise ValueError(f"output: expected one of {sorted(_CONTRACTIONS)}, got {output!r}")
    arguments = _check_model(model)
    arguments.inputs("x1", x1)
    if x2 is not None:
        arguments.inputs("x2", x2)
        if x2.shape[1:] != x1.shape[1:]:
            expected = ", ".join(["n2", *map(str, x1.shape[1:])])
            raise ValueError(f"x2: expected shape ({expected}), got {tuple(x2.shape)}")
    _check_chunk_size(chunk_size)

    def kernel(params, buffers):
        j1 = _jacobian(model, params, buffers, x1, chunk_size)
        j2 = j1 if x2 is None else _jacobian(model, params, buffers, x2, chunk_size)
        theta = _CONTRACTIONS[output](j1, j2) if j1.ndim == 3 else j1 @ j2.mT
        return _symmetrized(theta) if x2 is None else theta

    return _over_members(model, kernel)


def linearize(model):
    r"""First-order Taylor expansion of a model in its parameters, around their present values.

    :math:`f^\mathrm{lin}_\theta(x) = f_{\theta_0}(x) + \nabla_\theta f_{\theta_0}(x) \cdot (\theta - \theta_0)`
    (Lee et al. 2019, section 2.2).

    Returns
    -------
    torch.nn.Module
        With parameters of its own, copies of the model's that start at the same values and can be trained; it is
        linear in them, and its NTK is that of `model` for ever.

    Raises
    ------
    ValueError
        For a model without trainable parameters, or with Dropout or BatchNorm in training mode.
    """
    _check_model(model)
    return _Linearized(model)


class _Linearized(nn.Module):
    def __init__(self, model):
        super().__init__()
        self.model = copy.deepcopy(model)
        self.origin = nn.Module()
        for name, value in _state(model)[0].items():
            self.origin.register_buffer(name.replace(".", "/"), value.clone())
        self.ensemble_size = getattr(model, "ensemble_size", None)

    def forward(self, x):
        origin = {name.replace("/", "."): value for name, value in self.origin.named_buffers()}
        moved = dict(self.model.named_parameters())
        tangent = {name: moved[name] - value for name, value in origin.items()}
        value, change = jvp(lambda p: functional_call(self.model, p, x), (origin,), (tangent,))
        return value + change


def _jacobian(model, params, buffers, x, chunk_size):
    def outputs(params, sample):
        return functional_call(model, (params, buffers), sample.unsqueeze(0)).squeeze(0)

    blocks = vmap(jacrev(outputs), in_dims=(None, 0), chunk_size=chunk_size)(params, x)
    output_axes = {block.ndim - params[name].ndim - 1 for name, block in blocks.items()}
    if not output_axes <= {0, 1}:
        raise ValueError(f"model: expected output (n, C) or (n,), got {output_axes.pop() + 1} axes")
    return torch.cat([b.reshape(*b.shape[: b.ndim - params[k].ndim], -1) for k, b in blocks.items()], dim=-1)


_CONTRACTIONS = {
    "full": lambda j1, j2: torch.einsum("iap,jbp->ijab", j1, j2),
    "trace": lambda j1, j2: j1.flatten(1) @ j2.flatten(1).mT,
    "diagonal": lambda j1, j2: torch.einsum("iap,jap->ija", j1, j2),
}


def _symmetrized(theta):
    """Make the rounding symmetric too: entry (i, j, a, b) equals (j, i, b, a) to the last bit."""
    transposed = theta.permute(1, 0, 3, 2) if theta.ndim == 4 else theta.transpose(0, 1)
    return (theta + transposed) / 2


def _state(model):
    params = {name: p.detach() for name, p in model.named_parameters() if p.requires_grad}
    frozen = {name: p.detach() for name, p in model.named_parameters() if not p.requires_grad}
    return params, frozen | dict(model.named_buffers())


def _over_members(model, function):
    """The function of (parameters, the rest of the state) for the model, or stacked over an ensemble's members."""
    state = _state(model)
    size = getattr(model, "ensemble_size", None)
    if size is None:
        return function(*state)
    members = ([{name: value[s] for name, value in part.items()} for part in state] for s in range(size))
    return torch.stack([function(*member) for member in members])


def _check_model(model):
    """Check a model; return the checks of its inputs, which must be of the dtype and device of its parameters."""
    params = require_trainable(model)
    for name, module in model.named_modules():
        batchwise = isinstance(module, _BatchNorm) and (module.training or module.running_mean is None)
        if batchwise or (isinstance(module, _DropoutNd) and module.training):
            raise ValueError(
                f"model: {name or 'the module'} is a {type(module).__name__} in training mode or without running "
                "statistics, for which the kernel of a pair of points is not defined (it depends on the batch or on "
                "chance); call model.eval(), and keep track_running_stats=True"
            )
    return Arguments(("the parameters", next(iter(params.values()))))


def _check_chunk_size(chunk_size):
    if chunk_size is not None:
        require_integer("chunk_size", chunk_size, at_least=1)
