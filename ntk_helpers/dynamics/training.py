"""Full-batch training, above all gradient descent on half the mean square error, of one network or an ensemble."""

import math
import operator
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ntk_helpers._utils.checks import (
    Arguments,
    require_finite,
    require_integer,
    require_momentum,
    require_positive,
    require_tensor,
    require_trainable,
)
from ntk_helpers._utils.functional import ensemble_size, pull_and_push
from ntk_helpers._utils.interruption import interruption
from ntk_helpers._utils.progress import progress_bar
from ntk_helpers.dynamics._descent import Autograd, descent, half_mean_square
from ntk_helpers.dynamics.stability import max_learning_rate

# Beyond this factor over the starting loss a run counts as diverged. Large stable learning rates can raise the loss
# a few orders of magnitude for a while (Lewkowycz et al. 2020) and come back; growth without bound passes any factor.
DIVERGENCE_FACTOR = 1e6

# Steps are taken in stretches of about this time, between which come checks, the progress bar, and Ctrl-C.
SECONDS_OF_A_STRETCH = 0.1


@dataclass
class TrainingRecord:
    """What a training run recorded.

    Attributes
    ----------
    learning_rate : float or None
        None where an optimizer was given, which has its own.
    loss : Tensor (k + 1,) or (k + 1, S)
        The loss before the first step and after each of the k steps taken, for each member.
    steps : list of int
        The steps at which `values` were taken.
    values : dict of str to Tensor
        What was asked for, stacked over `steps`; ``record["name"]`` is short for ``record.values["name"]``.
    """

    learning_rate: float | None
    loss: Tensor
    steps: list[int] = field(default_factory=list)
    values: dict[str, Tensor] = field(default_factory=dict)

    @property
    def times(self) -> Tensor:
        """Training time, learning rate times step, at each of `steps`: float64 (len(steps),)."""
        if self.learning_rate is None:
            raise ValueError("times: expected a run at a learning rate, got one by an optimizer of its own")
        return self.learning_rate * torch.tensor(self.steps, dtype=torch.float64)

    def __getitem__(self, name: str) -> Tensor:
        return self.values[name]


class DivergenceError(RuntimeError):
    """Training diverged.

    Attributes
    ----------
    step : int
        The step after which the loss was out of bounds.
    loss : float
        The loss there, the largest over an ensemble.
    learning_rate : float or None
        None where an optimizer was given.
    max_learning_rate : float or None
        The stability bound of the network as it started, linearized, the smallest over an ensemble; None where the loss
        or the optimizer was the user's own, or where there is none, as the error's cause then says.
    record : TrainingRecord
        Everything recorded before that step.
    """

    def __init__(
        self,
        step: int,
        loss: float,
        learning_rate: float | None,
        max_learning_rate: float | None,
        record: TrainingRecord,
    ) -> None:
        super().__init__(step, loss, learning_rate, max_learning_rate, record)
        self.step, self.loss, self.learning_rate = step, loss, learning_rate
        self.max_learning_rate, self.record = max_learning_rate, record

    def __str__(self):
        text = f"training diverged at step {self.step}: the loss is {self.loss:.3g}"
        if self.learning_rate is not None:
            text += f", with learning_rate={self.learning_rate:g}"
        if self.max_learning_rate is not None:
            text += f"; the largest stable one for this network at its start is {self.max_learning_rate:.3g}"
        return text


def train(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    steps: int,
    learning_rate: float | None = None,
    momentum: float = 0.0,
    loss: Callable[[Tensor, Tensor], Tensor] | None = None,
    optimizer: torch.optim.Optimizer | None = None,
    record: dict[str, Callable[[Any], Any]] | None = None,
    record_at: Sequence[int] | None = None,
) -> TrainingRecord:
    r"""Train a model in place on all data at once: by gradient descent on half the mean square error, unless told else.

    That loss is :math:`\frac{1}{2nC} \sum (f(x) - y)^2`, half of `torch.nn.MSELoss`; time is ``learning_rate * steps``.
    The members of an ensemble are trained side by side, each on its own loss. An `MLP` descends it without a graph, one
    with a single hidden layer of ReLUs and one output several times faster than by automatic differentiation.

    Parameters
    ----------
    model : torch.nn.Module
        Maps `x` to predictions of the shape of `y`, or (S, ...) for an ensemble.
    x : Tensor (n, ...)
    y : Tensor (n, ...)
        Of the dtype and device of the parameters; C in the loss is the number of its entries for each of the n points.
        With a `loss` of your own, whatever that takes, with n rows.
    steps : int
    learning_rate : float
        Left out exactly where an `optimizer` is given.
    momentum : float
        From 0 to below 1, as in `torch.optim.SGD`: :math:`v \leftarrow \mu v + \nabla L,\ \theta \leftarrow
        \theta - \eta v`.
    loss : callable, optional
        Another loss, ``loss(prediction, y)``, a scalar tensor. For an ensemble it is called under `torch.vmap` with
        the prediction of one member.
    optimizer : torch.optim.Optimizer, optional
        Of the parameters of `model`. It sees the sum of the members' losses: Adam, and all that act on each parameter
        by itself, train the members as if each were alone; those that do not, such as LBFGS, couple them.
    record : dict of str to callable, optional
        Functions of the model, each returning a tensor, of one shape, evaluated at the steps of `record_at`: for
        example ``lambda model: model(x_test)``, ``lambda model: empirical_ntk(model, x_probe)``, or
        ``distance_moved(model)``. They run under `torch.no_grad`, and where that raises a RuntimeError, as derivatives
        by the input do, again with gradients. What they freeze or unfreeze is so from the next step on.
    record_at : sequence of int, optional
        Steps from 0 to `steps`, such as ``log_spaced_steps(steps)``; by default the first and the last, ``(0, steps)``.

    Returns
    -------
    TrainingRecord
        Interrupted by Ctrl-C, the record so far, after a warning; a second Ctrl-C raises KeyboardInterrupt.

    Raises
    ------
    TypeError, ValueError
        For arguments of wrong shape, type or value, by name.
    DivergenceError
        Where a loss is not finite or, for the mean square error, a million times the largest of these: the one at the
        start, that of the zero function, and the rounding unit of the dtype, the loss of outputs of one that cancel to
        half their digits. It carries the record up to there; the parameters may be some steps further.

    Examples
    --------
    >>> net, x = MLP(1, 64, 1, seed=0), torch.linspace(-1, 1, 8, dtype=torch.float64).unsqueeze(1)
    >>> functions = {"prediction": lambda net: net(x)}
    >>> record = train(net, x, x**2, steps=100, learning_rate=1.0, record=functions, record_at=[0, 50, 100])
    >>> record["prediction"].shape
    torch.Size([3, 8, 1])
    >>> bool(record.loss[-1] < record.loss[0] / 10)
    True
    """
    if (optimizer is None) == (learning_rate is None):
        raise ValueError(f"learning_rate, optimizer: expected exactly one, got {learning_rate} and {optimizer}")
    steps = require_integer("steps", steps, at_least=1)
    require_momentum(momentum)
    momentum = float(momentum)
    record = _check_record(record)
    record_at = _check_record_at(record_at, steps)
    params = _check_data(model, x, y, loss)
    if learning_rate is not None:
        require_positive("learning_rate", learning_rate)
        learning_rate = float(learning_rate)
    else:
        _check_optimizer(optimizer, params, momentum)

    if loss is None and optimizer is None:
        method = descent(model, x, y, learning_rate, momentum)
        start = _tensors(model), [name for name, p in model.named_parameters() if p.requires_grad]
    else:
        losses = half_mean_square if loss is None else partial(_own_losses, loss)
        losses = partial(losses, y=y, ensemble_size=ensemble_size(model))
        method, start = Autograd(model, x, losses, learning_rate, momentum, optimizer), None
    last = method.loss()
    run = _Run(learning_rate, steps, _limit(last, y if loss is None else None), record)
    try:
        with interruption() as ctrl_c, progress_bar(steps, "step") as bar:
            for stop in sorted({*record_at, steps}):
                for losses in _stretches(method.advance, stop - run.step):
                    run.append(losses)
                    bar.update(len(losses))
                    if ctrl_c.is_set():
                        break
                if stop > 0:
                    last = method.loss()
                    run.check(last.unsqueeze(0))
                if run.step == stop and stop in record_at:
                    run.take(model)
                if ctrl_c.is_set() and run.step < steps:
                    warnings.warn(f"interrupted after {run.step} of {steps} steps", RuntimeWarning, stacklevel=2)
                    break
    except _Diverged as diverged:
        bound, reason = (None, None) if start is None else _stability_bound(model, *start, x, y, momentum)
        step, highest = diverged.args
        raise DivergenceError(step, highest, learning_rate, bound, run.so_far()) from reason
    return run.so_far(last)


def log_spaced_steps(steps: int, count: int = 50) -> list[int]:
    """The integers 0 and at most `count` from 1 to `steps`, as evenly spaced on a logarithmic axis as integers can be.

    Raises TypeError or ValueError unless these are integers, `steps` at least 1 and `count` at least 2.

    Examples
    --------
    >>> log_spaced_steps(1000, count=4)
    [0, 1, 10, 100, 1000]
    """
    steps = require_integer("steps", steps, at_least=1)
    count = require_integer("count", count, at_least=2)
    return sorted({0, *np.geomspace(1, steps, count).round().astype(int).tolist()})


def distance_moved(model: nn.Module) -> Callable[[nn.Module], Tensor]:
    r"""For the `record` of `train`: how far each trainable parameter is from where it is now.

    Returns
    -------
    callable
        A function of the model: the Frobenius norms :math:`\|\theta_l(t) - \theta_l(0)\|` of its trainable parameters,
        in the order of ``model.named_parameters()``, as a Tensor (L,), or (L, S) for an ensemble.

    Examples
    --------
    >>> layer = torch.nn.LayerNorm(4)
    >>> moved = distance_moved(layer)
    >>> with torch.no_grad():
    ...     layer.bias += 3
    >>> moved(layer)  # weight and bias
    tensor([0., 6.])
    """
    start = {name: p.detach().clone() for name, p in require_trainable(model).items()}
    size = ensemble_size(model)
    rows = () if size is None else (size,)

    def distances(model):
        params = dict(model.named_parameters())
        moved = ((params[name].detach() - before).reshape(*rows, -1) for name, before in start.items())
        return torch.stack([torch.linalg.vector_norm(difference, dim=-1) for difference in moved])

    return distances


class _Diverged(Exception):
    """Carries the step, and the loss there."""


class _Run:
    """The losses and values of a run so far, and the bounds that its losses must keep."""

    def __init__(self, learning_rate, steps, limit, record):
        self.learning_rate, self.limit, self.record = learning_rate, limit, record
        self.step, self.steps = 0, []
        self.values: dict[str, list[Tensor]] = {name: [] for name in record}
        # In one piece: many small tensors that stay, each put where a large one was just freed, would keep the memory
        # of all of these from being used again.
        self.losses = limit.new_empty(steps + 1, *limit.shape)

    def check(self, losses):
        """Stop at losses of the next steps that are out of bounds; keep those before."""
        beyond = ~(losses.isfinite() & (losses <= self.limit)).reshape(len(losses), -1).all(1)
        if beyond.any():
            first = beyond.int().argmax().item()
            self._keep(losses[:first])
            raise _Diverged(self.step, losses[first].nan_to_num(math.inf, posinf=math.inf).max().item())

    def append(self, losses):
        self.check(losses)
        self._keep(losses)

    def take(self, model):
        taken = {name: _value(name, _evaluated(function, model)) for name, function in self.record.items()}
        for name, value in taken.items():
            first = self.values[name][0] if self.steps else value
            if (value.shape, value.dtype) != (first.shape, first.dtype):
                raise ValueError(
                    f"record[{name!r}]: expected {first.dtype} of shape {tuple(first.shape)}, as at step "
                    f"{self.steps[0]}, got {value.dtype} of shape {tuple(value.shape)} at step {self.step}; keep what "
                    "changes its shape in a list of your own"
                )
            self.values[name].append(value)
        self.steps.append(self.step)

    def so_far(self, last=None):
        if last is not None:
            self.losses[self.step] = last
        stacked = {name: torch.stack(taken) for name, taken in self.values.items() if taken}
        losses = self.losses[: self.step + (last is not None)]
        return TrainingRecord(self.learning_rate, losses.clone(), self.steps, stacked)

    def _keep(self, losses):
        self.losses[self.step : self.step + len(losses)] = losses
        self.step += len(losses)


def _evaluated(function, model):
    try:
        with torch.no_grad():
            return function(model)
    except RuntimeError:  # as of torch.autograd.grad by the input, there
        with torch.enable_grad():
            return function(model)


def _value(name, value):
    """What a record function returned, as a tensor of its own; Python's floats keep their precision."""
    if isinstance(value, float):
        return torch.tensor(value, dtype=torch.float64)
    if not isinstance(value, Tensor | np.ndarray | np.generic | int):
        raise TypeError(f"record[{name!r}]: expected a function that returns a tensor, got {value!r}")
    return torch.as_tensor(value).detach().clone()


def _limit(loss, y):
    """The largest loss of a run that has not diverged; where only its start is known, any finite one."""
    require_finite("the loss at the start", loss)
    if y is None:
        return torch.full_like(loss, math.inf)
    # Outputs that start at zero exactly, for targets of zero, move by rounding.
    return DIVERGENCE_FACTOR * torch.maximum(loss, y.square().mean() / 2).clamp_min(torch.finfo(loss.dtype).eps)


def _stretches(advance, steps):
    """Take so many steps; yield their losses stretch by stretch."""
    count = 1
    while steps:
        started = time.perf_counter()
        losses = advance(min(count, steps))
        yield losses
        elapsed = time.perf_counter() - started  # who takes the losses waits for a GPU to have them
        steps -= len(losses)
        count = max(1, count // 2) if elapsed > SECONDS_OF_A_STRETCH else 2 * count


def _own_losses(loss, prediction, y, ensemble_size):
    """A loss of the user's, for each member of an ensemble."""
    losses = loss(prediction, y) if ensemble_size is None else torch.vmap(loss, (0, None))(prediction, y)
    expected = () if ensemble_size is None else (ensemble_size,)
    if not (isinstance(losses, Tensor) and losses.is_floating_point() and losses.shape == expected):
        what = f"shape {tuple(losses.shape)}, {losses.dtype}" if isinstance(losses, Tensor) else repr(losses)
        raise ValueError(
            f"loss: expected a floating-point scalar tensor for each member, got {what}; return the mean or the sum"
        )
    return losses


def _stability_bound(model, start, trainable, x, y, momentum):
    """Largest stable learning rate of the model linearized at `start`, and None; or None and why there is none.

    It is 2 (1 + momentum) N / lambda_1, the smallest over an ensemble. The eigenvalue is that of J J^T, whose products
    are two reverse passes: the kernel itself refuses more models. What can't be differentiated twice was trained all
    the same, and has diverged: of that the user must hear then.
    """
    params, now = dict(model.named_parameters()), _tensors(model)
    frozen = [p for name, p in params.items() if name in trainable and not p.requires_grad]
    try:
        # In the model itself: activation checkpointing computes it again in the backward pass.
        _load(model, start)
        with torch.inference_mode(False), torch.enable_grad():
            for p in frozen:
                p.requires_grad_(True)
            prediction = model(x)
            # The members of an ensemble are one operator here: its largest eigenvalue is the largest of theirs.
            members = prediction.numel() // y.numel()
            moving = [params[name] for name in trainable if name in params]
            bound = max_learning_rate(_kernel_product(prediction, moving), like=prediction.detach()) / members
    except (RuntimeError, TypeError) as error:
        return None, error
    finally:
        _load(model, now)
        for p in frozen:
            p.requires_grad_(False)
    return ((1 + momentum) * bound.item(), None) if bound.isfinite() else (None, None)


def _kernel_product(prediction, params):
    def product(v):
        pulled, push_forward = pull_and_push([prediction], params, [v])
        return push_forward(pulled)[0]

    return product


def _tensors(model):
    """Copies of the parameters and buffers by name."""
    return {name: value.detach().clone() for name, value in (*model.named_parameters(), *model.named_buffers())}


@torch.no_grad()
def _load(model, tensors):
    for name, value in (*model.named_parameters(), *model.named_buffers()):
        if name in tensors:  # not one that the user has added since
            value.copy_(tensors[name])


def _check_record(record):
    if record is not None and not isinstance(record, dict):
        raise TypeError(f"record: expected a dict of functions, got {record!r}")
    for name, function in (record or {}).items():
        if not callable(function):
            raise TypeError(f"record[{name!r}]: expected a function of the model, got {function!r}")
    return record or {}


def _check_record_at(record_at, steps):
    try:
        taken = sorted({operator.index(s) for s in ((0, steps) if record_at is None else record_at)})
    except TypeError:
        raise TypeError(f"record_at: expected a sequence of integers, got {record_at!r}") from None
    if outside := [s for s in taken if not 0 <= s <= steps]:
        raise ValueError(f"record_at: expected integers from 0 to {steps}, got {outside}")
    return taken


def _check_data(model, x, y, loss):
    """Check the data against each other and against the model; return its trainable parameters."""
    params = list(require_trainable(model).values())
    arguments = Arguments(("the parameters", params[0]))
    arguments.inputs("x", x)
    if loss is None:
        require_tensor("y", y)
        if y.numel() == 0 or y.ndim == 0:
            raise ValueError(f"y: expected shape (n, ...), that of the predictions, got {tuple(y.shape)}")
        if not y.is_floating_point():
            raise TypeError(
                f"y: expected a floating-point dtype, got {y.dtype}; labels need a loss, such as "
                "torch.nn.functional.cross_entropy"
            )
        arguments.like_the_first("y", y)
    elif not callable(loss):
        raise TypeError(f"loss: expected a function of the prediction and y, got {loss!r}")
    elif not isinstance(y, Tensor) or y.ndim == 0:
        raise TypeError(
            f"y: expected a torch.Tensor of {len(x)} rows, got {y!r}; where the loss needs none, torch.zeros({len(x)})"
        )
    if len(x) != len(y):
        raise ValueError(f"x: expected {len(y)} rows, as many as y, got shape {tuple(x.shape)}")
    return params


def _check_optimizer(optimizer, params, momentum):
    if not isinstance(optimizer, torch.optim.Optimizer):
        raise TypeError(f"optimizer: expected a torch.optim.Optimizer, got {type(optimizer).__name__}")
    if not {id(p) for group in optimizer.param_groups for p in group["params"]} & {id(p) for p in params}:
        raise ValueError(
            "optimizer: expected one of the parameters of model, got one of others; make it of model.parameters()"
        )
    if momentum:
        raise ValueError(f"momentum: expected 0 where an optimizer is given, to which it belongs, got {momentum}")
