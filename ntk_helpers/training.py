"""Full-batch gradient descent on half the mean square error, for one network or an ensemble of them at once."""

import copy
import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ntk_helpers._checks import (
    Arguments,
    require_finite,
    require_integer,
    require_positive,
)
from ntk_helpers.empirical import empirical_ntk
from ntk_helpers.regression import max_learning_rate

# Beyond this factor over the starting loss a run counts as diverged. Large stable learning rates can raise the loss
# a few orders of magnitude for a while (Lewkowycz et al. 2020) and come back; growth without bound passes any factor.
DIVERGENCE_FACTOR = 1e6


@dataclass
class TrainingRecord:
    """What a training run recorded.

    Attributes
    ----------
    learning_rate : float
    loss : Tensor (k + 1,) or (k + 1, S)
        Half the mean square error before the first step and after each of the k steps taken, for each member.
    steps : list of int
        The steps at which `values` were taken.
    values : dict of str to Tensor
        What was asked for, stacked over `steps`; ``record["name"]`` is short for ``record.values["name"]``.
    """

    learning_rate: float
    loss: Tensor
    steps: list[int] = field(default_factory=list)
    values: dict[str, Tensor] = field(default_factory=dict)

    @property
    def times(self):
        """Training time, learning rate times step, at each of `steps`: float64 (len(steps),)."""
        return self.learning_rate * torch.tensor(self.steps, dtype=torch.float64)

    def __getitem__(self, name):
        return self.values[name]


class DivergenceError(RuntimeError):
    """Training diverged. Attributes: `step`, `loss` (the largest), `max_learning_rate` (of the network as it started,
    linearized), `record` (up to the step before)."""

    def __init__(self, step, loss, learning_rate, max_learning_rate, record):
        super().__init__(
            f"training diverged at step {step}: the loss is {loss:.3g}, with learning_rate={learning_rate:g}; "
            f"the largest stable one for this network at its start is {max_learning_rate:.3g}"
        )
        self.step, self.loss, self.record = step, loss, record
        self.max_learning_rate = max_learning_rate


def train(model, x, y, *, learning_rate, steps, record=None, record_at=None):
    r"""Train all parameters by full-batch gradient descent on half the mean square error, in place.

    The loss is :math:`\frac{1}{2nC} \sum (f(x) - y)^2`, half of `torch.nn.MSELoss`; time is ``learning_rate * steps``.
    The members of an ensemble are trained side by side, each on its own loss.

    Parameters
    ----------
    model : torch.nn.Module
        Maps `x` to predictions of the shape of `y`, or (S, ...) for an ensemble.
    x : Tensor (n, ...)
    y : Tensor (n,) or (n, C)
        Of the dtype and device of the parameters.
    learning_rate : float
    steps : int
    record : dict of str to callable, optional
        Functions of the model, each returning a tensor, evaluated without gradients at the steps of `record_at`.
    record_at : sequence of int, optional
        Steps from 0 to `steps`; by default the first and the last, ``(0, steps)``.

    Returns
    -------
    TrainingRecord

    Raises
    ------
    TypeError, ValueError
        For arguments of wrong shape, type or value, by name.
    DivergenceError
        As soon as a loss is not finite or a million times the one at the start. It carries the record so far.
    """
    require_positive("learning_rate", learning_rate)
    require_integer("steps", steps, at_least=1)
    record = record or {}
    record_at = _check_record_at(record_at, steps)
    params = _check_data(model, x, y)
    start = copy.deepcopy(model)

    losses, values = [], {name: [] for name in record}
    for step in range(steps + 1):
        loss = _half_mean_square(model, x, y)
        if step == 0:
            require_finite("the loss at the start", loss)
            limit = DIVERGENCE_FACTOR * torch.maximum(loss.detach(), y.square().mean() / 2)
        if not (loss <= limit).all():
            so_far = _record(learning_rate, losses, [s for s in record_at if s < step], values)
            worst = loss.detach().nan_to_num(math.inf).max().item()
            raise DivergenceError(step, worst, learning_rate, _stability_bound(start, x, y), so_far)
        losses.append(loss.detach())
        if step in record_at:
            with torch.no_grad():
                for name, function in record.items():
                    values[name].append(function(model).clone())
        if step < steps:
            gradients = torch.autograd.grad(loss.sum(), params, allow_unused=True, materialize_grads=True)
            with torch.no_grad():
                for p, gradient in zip(params, gradients, strict=True):
                    p.sub_(gradient, alpha=learning_rate)
    return _record(learning_rate, losses, record_at, values)


def _half_mean_square(model, x, y):
    """Half the mean square error: a scalar, or (S,) for an ensemble."""
    prediction, size = model(x), getattr(model, "ensemble_size", None)
    expected = y.shape if size is None else (size, *y.shape)
    if prediction.shape != expected:  # broadcasting (n,) against (n, 1) would go unnoticed
        raise ValueError(f"y: expected the shape of the predictions, {tuple(prediction.shape)}, got {tuple(expected)}")
    return (prediction - y).square().flatten(-y.ndim).mean(-1) / 2


def _record(learning_rate, losses, steps, values):
    stacked = {name: torch.stack(taken) for name, taken in values.items() if taken}
    return TrainingRecord(learning_rate, torch.stack(losses), steps, stacked)


def _stability_bound(model, x, y):
    """Largest stable learning rate of the linearized model, the smallest over an ensemble."""
    theta = empirical_ntk(model, x)
    if y.ndim == 2:  # (..., i, j, a, b) to pairs (point, output)
        theta = theta.movedim(-2, -3).flatten(-2, -1).flatten(-3, -2)
    return max_learning_rate(theta).min().item()


def _check_record_at(record_at, steps):
    if record_at is None:
        return [0, steps]
    outside = [s for s in record_at if not (isinstance(s, int) and 0 <= s <= steps)]
    if outside:
        raise ValueError(f"record_at: expected integers from 0 to {steps}, got {outside}")
    return sorted(set(record_at))


def _check_data(model, x, y):
    """Check the data against each other and against the model; return its trainable parameters."""
    if not isinstance(model, torch.nn.Module):
        raise TypeError(f"model: expected a torch.nn.Module, got {type(model).__name__}")
    params = [p for p in model.parameters() if p.requires_grad]
    if not params:
        raise ValueError("model: expected trainable parameters, got none")
    arguments = Arguments()
    arguments.tensor("the parameters", params[0].detach(), "...")
    if isinstance(x, torch.Tensor) and x.is_floating_point():
        arguments.tensor("x", x, "...")
    arguments.tensor("y", y, "n" if isinstance(y, torch.Tensor) and y.ndim == 1 else "n C")
    if not isinstance(x, torch.Tensor) or x.ndim == 0 or len(x) != len(y):
        raise ValueError(f"x: expected a tensor of {len(y)} rows, as many as y, got {_describe(x)}")
    return params


def _describe(x):
    return f"shape {tuple(x.shape)}" if isinstance(x, torch.Tensor) else type(x).__name__
