"""The linearization of a finite network."""

import copy

from torch import nn
from torch.func import jvp

from ntk_helpers._utils.functional import call, ensemble_size, state_of
from ntk_helpers._utils.precision import full_precision
from ntk_helpers.kernels._probe import check_model


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
    TypeError, ValueError
        As `jacobian`, where the model alone is at fault.

    Notes
    -----
    The derivative is that of PyTorch's forward mode, which unlike training follows parameters under `no_grad`, and the
    padding index of an embedding.
    """
    check_model(model)
    return _Linearized(model)


class _Linearized(nn.Module):
    def __init__(self, model):
        super().__init__()
        self.model = copy.deepcopy(model)
        self.origin = nn.Module()
        for name, value in state_of(model)[0].items():
            self.origin.register_buffer(name.replace(".", "/"), value.clone())
        self.ensemble_size = ensemble_size(model)

    def forward(self, x):
        origin = {name.replace("/", "."): value for name, value in self.origin.named_buffers()}
        moved = dict(self.model.named_parameters())
        tangent = {name: moved[name] - value for name, value in origin.items()}
        with full_precision():  # the fused attention of the CPU has no forward mode
            value, change = jvp(lambda p: call(self.model, p, x), (origin,), (tangent,))
        return value + change
