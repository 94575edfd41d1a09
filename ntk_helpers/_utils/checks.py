"""Checks at the boundary: one line a check, each naming the argument, what was expected and what came."""

import math
import operator
from numbers import Real
from typing import Literal

import numpy as np
import torch
from torch import nn
from torch.nn.parameter import is_lazy

from ntk_helpers._utils.functional import ensemble_size

Parameterization = Literal["ntk", "standard"]


class Arguments:
    """Tensor arguments of one call, checked against each other.

    All must be finite floating-point tensors of one dtype and device. Shapes are written as patterns, for example
    ``"S? n C"`` or ``"n 2"``: a name stands for one size of at least 1, the same wherever it occurs, a number for
    itself, and a first axis with a question mark may be missing.
    """

    def __init__(self, first=None):
        self.sizes = {}
        self.first = first  # (name, tensor) that sets the dtype and device; else the first argument checked does

    def copy(self):
        """For further arguments, which the next ones need not go with."""
        other = Arguments(self.first)
        other.sizes = self.sizes
        return other

    def tensor(self, name, value, pattern):
        """Check one argument against `pattern` and the arguments before it."""
        require_tensor(name, value)
        self._check_shape(name, tuple(value.shape), pattern.replace("?", "").split(), optional="?" in pattern)
        self.like_the_first(name, value)

    def inputs(self, name, x):
        """Check the inputs of a model: a tensor (n, ...), n > 0; whether it takes integers, the model says itself."""
        require_tensor(name, x)
        if x.ndim == 0 or len(x) == 0:
            raise ValueError(f"{name}: expected shape (n, ...) with n > 0, got {tuple(x.shape)}")
        self.like_the_first(name, x, integers=True)

    def like_the_first(self, name, value, integers=False):
        """Check only that the values are real, finite, and of the dtype and device of the arguments before."""
        if value.is_complex():
            remedy = (
                "hold the real and imaginary parts, torch.view_as_real, and put them together by torch.view_as_complex"
            )
            raise TypeError(f"{name}: expected a floating-point dtype, got {value.dtype}; {remedy} inside the model")
        if not (integers or value.is_floating_point()):
            raise TypeError(f"{name}: expected a floating-point dtype, got {value.dtype}")
        first_name, first = self.first = self.first or (name, value)
        if value.is_floating_point() and value.dtype != first.dtype:
            expected = f"{first.dtype}, the dtype of {first_name}"
            raise TypeError(f"{name}: expected {expected}, got {value.dtype}; convert one of them, .to(dtype)")
        if value.device != first.device:
            expected = f"device {first.device}, that of {first_name}"
            raise ValueError(f"{name}: expected {expected}, got {value.device}; move one of them, .to(device)")
        require_finite(name, value)

    def _check_shape(self, name, shape, axes, optional):
        present = axes[1:] if optional and len(shape) < len(axes) else axes
        sizes = self.sizes | {axis: int(axis) for axis in axes if axis.isdigit()}
        fits = len(shape) == len(present) and 0 not in shape
        if not fits or any(sizes.setdefault(a, s) != s for a, s in zip(present, shape, strict=True)):
            expected = [str(self.sizes.get(axis, axis)) for axis in axes]
            alternatives = [expected[1:], expected] if optional else [expected]
            texts = " or ".join(f"({', '.join(axes)})" for axes in alternatives)
            raise ValueError(f"{name}: expected shape {texts}, got {shape}")
        self.sizes = sizes


def require_trainable(model):
    """The trainable parameters of a model as a dict by name; raise unless there are some, finite and of one kind."""
    if not isinstance(model, nn.Module):
        raise TypeError(f"model: expected a torch.nn.Module, got {type(model).__name__}")
    for name, p in model.named_parameters():
        if is_lazy(p):
            raise ValueError(f"model: expected parameters with shapes, but {name} is lazy; call the model on x once")
    params = {name: p for name, p in model.named_parameters() if p.requires_grad}
    if not params:
        raise ValueError("model: expected trainable parameters, got none")
    arguments = Arguments()
    for name, p in params.items():
        arguments.like_the_first(f"parameter {name}", p.detach())
    size = ensemble_size(model)
    for name, value in [*model.named_parameters(), *model.named_buffers()]:
        if size is not None and value.shape[:1] != (size,):
            raise ValueError(f"{name}: expected a leading axis of {size}, the ensemble's, got {tuple(value.shape)}")
    return params


def require_scales(w_std, b_std, parameterization):
    """Raise unless these describe the weights and biases of a network; ``b_std=None`` is none."""
    require_positive("w_std", w_std)
    if b_std is not None:
        require_non_negative("b_std", b_std)
    if parameterization not in ("ntk", "standard"):
        raise ValueError(f'parameterization: expected "ntk" or "standard", got {parameterization!r}')


def require_tensor(name, value):
    """Raise TypeError unless `value` is a dense tensor of numbers."""
    if not isinstance(value, torch.Tensor):
        remedies = {np.ndarray: "torch.as_tensor makes one", dict: "wrap the model in one that takes a single tensor"}
        remedy = next((text for kind, text in remedies.items() if isinstance(value, kind)), "torch.tensor makes one")
        raise TypeError(f"{name}: expected a torch.Tensor, got {type(value).__name__}; {remedy}")
    if value.is_nested:
        raise TypeError(f"{name}: expected a dense tensor, got a nested one; torch.nested.to_padded_tensor makes one")
    if value.layout is not torch.strided:
        raise TypeError(f"{name}: expected a dense tensor, got one of {value.layout}; {name}.to_dense() makes one")
    if value.is_quantized:
        raise TypeError(f"{name}: expected a tensor of numbers, got a quantized one; {name}.dequantize() makes one")


def require_single_or_double(name, value):
    """Raise TypeError unless a tensor is of one of the dtypes that hold a kernel."""
    if value.dtype not in (torch.float32, torch.float64):
        expected = "expected torch.float32 or torch.float64"
        raise TypeError(f"{name}: {expected}, got {value.dtype}; convert it, by {name}.double() or .float()")


def require_finite(name, value):
    """Raise ValueError where a tensor holds NaN or infinity."""
    if value.detach().sum().isfinite():  # much quicker than to look at each
        return
    if bad := int((~torch.isfinite(value)).sum()):
        raise ValueError(f"{name}: expected finite values, got {bad} NaN or infinite of {value.numel()}")


def require_number(name, value):
    """The value as a float; raise unless it is a real number or a tensor of one."""
    if not (isinstance(value, Real) or (isinstance(value, torch.Tensor) and value.numel() == 1)):
        raise TypeError(f"{name}: expected a number, got {value!r}")
    return float(value)


def require_positive(name, value):
    """Raise unless `value` is a finite number above zero."""
    number = require_number(name, value)
    if not (math.isfinite(number) and number > 0):
        raise ValueError(f"{name}: expected a positive finite number, got {value}")


def require_non_negative(name, value):
    """Raise unless `value` is a finite number, zero or above."""
    number = require_number(name, value)
    if not (math.isfinite(number) and number >= 0):
        raise ValueError(f"{name}: expected a finite number, zero or above, got {value}")


def require_momentum(momentum):
    """Raise unless this is a number from 0 to below 1."""
    require_non_negative("momentum", momentum)
    if momentum >= 1:
        raise ValueError(f"momentum: expected a number below 1, got {momentum}")


def require_integer(name, value, at_least):
    """The value as an int; raise unless it is an integer of Python, NumPy or a tensor of one, at least so large."""
    try:
        if getattr(value, "dtype", type(value)) in (bool, torch.bool):
            raise TypeError
        number = operator.index(value)
    except TypeError:
        raise TypeError(f"{name}: expected an int, got {type(value).__name__}") from None
    if number < at_least:
        raise ValueError(f"{name}: expected at least {at_least}, got {number}")
    return number
