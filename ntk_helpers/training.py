"""Full-batch gradient descent on half the mean square error, for one network or an ensemble of them at once."""

import copy
import math
import operator
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ntk_helpers._checks import (
    Arguments,
    require_finite,
    require_integer,
    require_momentum,
    require_positive,
    require_trainable,
)
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
    """Training diverged.

    Attributes
    ----------
    step : int
        The step after which the loss was out of bounds.
    loss : float
        The loss there, the largest over an ensemble.
    learning_rate : float
    max_learning_rate : float
        The stability bound of the network as it started, linearized: the smallest over an ensemble.
    record : TrainingRecord
        Everything recorded before that step.
    """

    def __init__(self, step, loss, learning_rate, max_learning_rate, record):
        super().__init__(step, loss, learning_rate, max_learning_rate, record)
        self.step, self.loss, self.learning_rate = step, loss, learning_rate
        self.max_learning_rate, self.record = max_learning_rate, record

    def __str__(self):
        return (
            f"training diverged at step {self.step}: the loss is {self.loss:.3g}, with learning_rate="
            f"{self.learning_rate:g}; the largest stable one for this network at its start is "
            f"{self.max_learning_rate:.3g}"
        )


def train(model, x, y, *, learning_rate, steps, momentum=0.0, record=None, record_at=None):
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
    momentum : float
        From 0 to below 1, as in `torch.optim.SGD`: :math:`v \leftarrow \mu v + \nabla L`, :math:`\theta \leftarrow
        \theta - \eta v`.
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
    require_momentum(momentum)
    record = record or {}
    record_at = _check_record_at(record_at, steps)
    params = _check_data(model, x, y)
    start = copy.deepcopy(model)

    velocities = [torch.zeros_like(p) for p in params] if momentum else None
    losses, values = [], {name: [] for name in record}
    for step in range(steps + 1):
        loss = _half_mean_square(model, x, y)
        if step == 0:
            require_finite("the loss at the start", loss)
            limit = DIVERGENCE_FACTOR * torch.maximum(loss.detach(), y.square().mean() / 2)
        if not (loss <= limit).all():
            so_far = _record(learning_rate, losses, [s for s in record_at if s < step], values)
            worst = loss.detach().nan_to_num(math.inf).max().item()
            bound = (1 + momentum) * _stability_bound(start, x, y)
            raise DivergenceError(step, worst, learning_rate, bound, so_far)
        losses.append(loss.detach())
        if step in record_at:
            with torch.no_grad():
                for name, function in record.items():
                    values[name].append(torch.as_tensor(function(model)).detach().clone())
        if step < steps:
            gradients = torch.autograd.grad(loss.sum(), params, allow_unused=True, materialize_grads=True)
            with torch.no_grad():
                if momentum:
                    gradients = [v.mul_(momentum).add_(g) for v, g in zip(velocities, gradients, strict=True)]
                for p, gradient in zip(params, gradients, strict=True):
                    p.sub_(gradient, alpha=learning_rate)
    return _record(learning_rate, losses, record_at, values)


def _half_mean_square(model, x, y):
    """Half the mean square error: a scalar, or (S,) for an ensemble."""
    prediction, size = model(x), getattr(model, "ensemble_size", None)
    expected = prediction.shape if size is None else prediction.shape[1:]
    if y.shape != expected:  # broadcasting (n,) against (n, 1) would go unnoticed
        raise ValueError(f"y: expected the shape of the predictions, {tuple(expected)}, got {tuple(y.shape)}")
    return (prediction - y).square().flatten(-y.ndim).mean(-1) / 2


def _record(learning_rate, losses, steps, values):
    stacked = {name: torch.stack(taken) for name, taken in values.items() if taken}
    return TrainingRecord(learning_rate, torch.stack(losses), steps, stacked)


def _stability_bound(model, x, y):
    """Largest stable learning rate of the model's linearization, 2 N / lambda_1, the smallest over an ensemble.

    The eigenvalue is that of J J^T: whatever could be trained can be differentiated this way.
    """
    params, prediction = [p for p in model.parameters() if p.requires_grad], model(x)
    cotangent = torch.zeros_like(prediction, requires_grad=True)
    options = {"retain_graph": True, "allow_unused": True, "materialize_grads": True}
    pulled_back = torch.autograd.grad(prediction, params, cotangent, create_graph=True, **options)

    def product(v):
        gradients = torch.autograd.grad(prediction, params, v, **options)
        return torch.autograd.grad(pulled_back, cotangent, gradients, **options)[0]

    # The members of an ensemble are one operator here: its largest eigenvalue is the largest of theirs.
    members = prediction.numel() // y.numel()
    return (max_learning_rate(product, like=prediction.detach()) / members).item()


def _check_record_at(record_at, steps):
    try:
        taken = sorted({operator.index(s) for s in ((0, steps) if record_at is None else record_at)})
    except TypeError:
        raise TypeError(f"record_at: expected a sequence of integers, got {record_at!r}") from None
    if outside := [s for s in taken if not 0 <= s <= steps]:
        raise ValueError(f"record_at: expected integers from 0 to {steps}, got {outside}")
    return taken


def _check_data(model, x, y):
    """Check the data against each other and against the model; return its trainable parameters."""
    params = list(require_trainable(model).values())
    arguments = Arguments(("the parameters", params[0]))
    arguments.inputs("x", x, model)
    arguments.tensor("y", y, "n" if isinstance(y, torch.Tensor) and y.ndim == 1 else "n C")
    if len(x) != len(y):
        raise ValueError(f"x: expected {len(y)} rows, as many as y, got shape {tuple(x.shape)}")
    return params
