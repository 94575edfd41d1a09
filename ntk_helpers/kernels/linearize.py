"""The linearization of a finite network."""

import copy
from numbers import Number

import torch
from torch import nn
from torch._C._functorch import maybe_current_level
from torch.func import jvp
from torch.utils._pytree import tree_flatten, tree_leaves, tree_unflatten

from ntk_helpers._utils.functional import (
    borrowed,
    call,
    ensemble_size,
    leaves_the_model,
    pull_and_push,
    state_of,
)
from ntk_helpers._utils.precision import full_precision
from ntk_helpers.kernels._probe import check_model, check_modes


@leaves_the_model
def linearize(model: nn.Module) -> nn.Module:
    r"""First-order Taylor expansion of a model in its parameters, around their present values.

    :math:`f^\mathrm{lin}_\theta(x) = f_{\theta_0}(x) + \nabla_\theta f_{\theta_0}(x) \cdot (\theta - \theta_0)`
    (Lee et al. 2019, section 2.2).

    Returns
    -------
    torch.nn.Module
        With parameters of its own, copies of the model's that start at the same values and can be trained; it is
        linear in them, and its NTK is that of `model` for ever. It takes and returns what the model does: a tensor of
        any shape, or tuples, lists and dicts of tensors, each linearized. Its modules stay in the mode they are in,
        whatever `train` and `eval` say, and what the model writes to its buffers is lost.

    Raises
    ------
    TypeError, ValueError
        As `jacobian`, where the model alone is at fault; for Dropout or BatchNorm in training mode, used or not; and at
        a call, where a derivative is not finite.

    Notes
    -----
    The derivative is that of PyTorch's forward mode, which unlike training follows parameters under `no_grad`, and the
    padding index of an embedding. Where the forward mode fails, as with weight norm or `torch.autograd.grad` inside the
    model, two reverse passes take its place.

    Examples
    --------
    >>> net, x = MLP(2, 64, 1, seed=0), torch.eye(2, dtype=torch.float64)
    >>> linear = linearize(net)
    >>> record = train(linear, x, torch.ones(2, 1, dtype=torch.float64), steps=100, learning_rate=1.0)
    >>> torch.allclose(empirical_ntk(linear, x), empirical_ntk(net, x))  # trained, and of the same kernel
    True
    """
    check_model(model)
    check_modes(model)
    return _Linearized(model)


class _Linearized(nn.Module):
    def __init__(self, model):
        super().__init__()
        self.model = _copy(model)
        self.training = model.training
        self.forward_mode = True  # until it fails
        self.names, origin = list(state_of(model)[0]), state_of(model)[0].values()
        self.origin = nn.Module()
        for i, value in enumerate(origin):
            self.origin.register_buffer(str(i), value.clone())
        self.ntk_ensemble_size = ensemble_size(model)

    def train(self, mode=True):
        """The function is fixed; in another mode the model would be another."""
        self.training = mode
        return self

    def forward(self, x):
        origin = dict(zip(self.names, self.origin.buffers(), strict=True))
        moved = dict(self.model.named_parameters())
        tangent = {name: moved[name] - value for name, value in origin.items()}
        buffers = dict(self.model.named_buffers())
        around: list = []

        def outputs(params):
            """The tensors in the output; what is around them is put by."""
            leaves, spec = tree_flatten(call(self.model, params | buffers, x))
            around[:] = [[leaf for leaf in leaves if _is_plain(leaf)], spec, list(map(_is_plain, leaves))]
            return tuple(leaf for leaf in leaves if not _is_plain(leaf))

        with borrowed(self.model), full_precision():  # the fused attention of the CPU has no forward mode
            values, changes = self._expansion(outputs, origin, tangent)
            plain, spec, kinds = around
        results = [_sum(*pair) for pair in zip(values, changes, strict=True)]
        _require_finite(results, values, tangent)
        others, tensors = iter(plain), iter(results)
        return tree_unflatten([next(others if kind else tensors) for kind in kinds], spec)

    def _expansion(self, outputs, origin, tangent):
        """The tensors in the output at the origin, and their derivatives along the tangent."""
        if self.forward_mode:
            try:
                return jvp(outputs, (origin,), (tangent,))
            except RuntimeError:  # the model's own, which comes again, or that of an operation without forward mode
                pass
        values, changes = _by_two_reverse_passes(outputs, origin, tangent)
        self.forward_mode = False
        return values, changes


def _is_plain(leaf):
    """Whether a part of an output is no tensor but a number, say; raise where it may hide one."""
    if not isinstance(leaf, torch.Tensor | Number | str | None):
        raise TypeError(
            f"model: expected tensors, or tuples, lists and dicts of them as output, got {type(leaf).__name__}; wrap "
            "the model in one that returns those meant"
        )
    return not isinstance(leaf, torch.Tensor)


def _sum(value, change):
    """Of what is not real, as indices, the value alone."""
    return value + change if value.is_floating_point() or value.is_complex() else value


def _require_finite(results, values, tangent):
    """Raise where derivatives are not finite; where parameters are not, training has diverged, and says so itself."""
    if maybe_current_level() is not None:  # in a transform of torch.func there is nothing to look at
        return
    for result, value in zip(results, values, strict=True):
        bad = ~result.isfinite() & value.isfinite()
        if bad.any() and all(t.isfinite().all() for t in tangent.values()):
            raise ValueError(
                f"model: expected finite derivatives, got {int(bad.sum())} NaN or infinite of {bad.numel()} along the "
                "parameters; a root or norm at zero, for one, needs a small number under the root"
            )


def _by_two_reverse_passes(outputs, origin, tangent):
    at = {name: value.detach().requires_grad_() for name, value in origin.items()}
    with torch.enable_grad():
        values = outputs(at)
        _, push_forward = pull_and_push(values, list(at.values()), [torch.zeros_like(value) for value in values])
        changes = push_forward(list(tangent.values()))
    if not torch.is_grad_enabled():
        return [value.detach() for value in values], [change.detach() for change in changes]
    return values, changes


def _copy(model):
    """A deep copy; what modules keep of their results, as the old weight norm does, is cut from its graph."""
    kept = [leaf for module in model.modules() for leaf in tree_leaves(vars(module)) if isinstance(leaf, torch.Tensor)]
    return copy.deepcopy(model, {id(tensor): tensor.detach().clone() for tensor in kept if not tensor.is_leaf})
