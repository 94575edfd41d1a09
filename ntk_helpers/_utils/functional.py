"""A model in another state, and left as it was."""

import threading
from collections.abc import Callable
from contextlib import contextmanager
from functools import wraps
from typing import ParamSpec, TypeVar

import torch
from torch import Tensor, nn

P = ParamSpec("P")
R = TypeVar("R")

# Called with other parameters, a model holds them while it runs, for all threads to see; and models share modules.
_ALONE = threading.RLock()


def ensemble_size(model: nn.Module) -> int | None:
    """How many members the ensemble has, its attribute `ntk_ensemble_size`; None for a single network."""
    return getattr(model, "ntk_ensemble_size", None)


def call(model, state, x):
    """The output of the model with other parameters and buffers, by name; what it writes to the buffers is lost.

    To `torch.func.functional_call`, a module registered under two names is two modules with tied weights; it then puts
    back the wrong ones.
    """
    named = [*model.named_parameters(), *model.named_buffers()]
    values = {id(tensor): state[name] for name, tensor in named if name in state}
    slots = {}
    for prefix, module in model.named_modules():
        for name, tensor in [*module._parameters.items(), *module._buffers.items()]:
            if id(tensor) in values:
                value = values[id(tensor)]
                slots[f"{prefix}.{name}" if prefix else name] = value.clone() if name in module._buffers else value
    return torch.func.functional_call(model, slots, x, tie_weights=False)


@contextmanager
def borrowed(model):
    """A model for one thread at a time; in the end its modules have back all their attributes: some cache results.

    Meanwhile those that `Module.compile` has compiled run as they are written, for `torch.func` to follow.
    """
    with _ALONE:
        modules = list(model.modules()) if isinstance(model, nn.Module) else []
        before = [dict(vars(module)) for module in modules]
        for module in modules:
            vars(module).pop("_compiled_call_impl", None)
        try:
            yield
        finally:
            for module, attributes in zip(modules, before, strict=True):
                vars(module).clear()
                vars(module).update(attributes)


def leaves_the_model(function: Callable[P, R]) -> Callable[P, R]:
    """Let a function of a model have it `borrowed`."""

    @wraps(function)
    def wrapper(model, *args, **options):
        with borrowed(model):
            return function(model, *args, **options)

    return wrapper  # type: ignore[return-value] # called by name or not


def split(params, rest, names):
    """The same state, with only the parameters `names` to differentiate by."""
    others = {name: value for name, value in params.items() if name not in names}
    return {name: params[name] for name in names}, rest | others


def state_of(model):
    """The trainable parameters, and the rest: frozen ones and buffers."""
    params = {name: p.detach() for name, p in model.named_parameters() if p.requires_grad}
    frozen = {name: p.detach() for name, p in model.named_parameters() if not p.requires_grad}
    return params, frozen | dict(model.named_buffers())


def states(model: nn.Module) -> list[tuple[dict[str, Tensor], dict[str, Tensor]]]:
    """The states of an ensemble's members; the model's own alone, unless it is one."""
    state, size = state_of(model), ensemble_size(model)
    if size is None:
        return [state]
    return [tuple({name: value[s] for name, value in part.items()} for part in state) for s in range(size)]  # type: ignore[misc] # two of them


def over_members(model, function):
    """The function of (params, rest, s) for the model, or stacked over an ensemble's members s."""
    results = [function(*state, s) for s, state in enumerate(states(model))]
    return results[0] if ensemble_size(model) is None else torch.stack(results)


def pull_and_push(outputs, inputs, v):
    """J^T v, and the function u -> J u, for the derivatives J of tensors by others: lists like `inputs` and `outputs`.

    J u is the derivative by v of <u, J^T v>: two reverse passes. What depends on nothing is zero.
    """
    moving = [i for i, value in enumerate(outputs) if value.requires_grad]
    v = [v[i].detach().requires_grad_() for i in moving]
    options = {"retain_graph": True, "allow_unused": True, "materialize_grads": True}
    pulled = [torch.zeros_like(value) for value in inputs]
    if moving:
        pulled = torch.autograd.grad([outputs[i] for i in moving], inputs, v, create_graph=True, **options)
    depending = [i for i, g in enumerate(pulled) if g.requires_grad]

    def push_forward(u):
        pushed = [torch.zeros_like(value) for value in outputs]
        if depending:
            along = [u[i] for i in depending]
            options["create_graph"] = any(t.requires_grad for t in along)
            changes = torch.autograd.grad([pulled[i] for i in depending], v, along, **options)
            for i, change in zip(moving, changes, strict=True):
                pushed[i] = change
        return pushed

    return [g.detach() for g in pulled], push_forward
