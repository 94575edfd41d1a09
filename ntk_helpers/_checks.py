"""Checks at the boundary: one line a check, each naming the argument, what was expected and what came."""

import math

import torch


class Arguments:
    """Tensor arguments of one call, checked against each other.

    All must be finite floating-point tensors of one dtype and device. Shapes are written as patterns, for example
    ``"... n C"``: a name stands for one size, the same wherever it occurs, and ``...`` for any leading axes.
    """

    def __init__(self):
        self.sizes = {}
        self.first = None

    def tensor(self, name, value, pattern):
        """Check one argument against `pattern` and the arguments before it."""
        if not isinstance(value, torch.Tensor):
            raise TypeError(f"{name}: expected a torch.Tensor, got {type(value).__name__}")
        if not value.is_floating_point():
            raise TypeError(f"{name}: expected a floating-point dtype, got {value.dtype}")
        self._check_shape(name, value, pattern.split())
        first_name, first = self.first = self.first or (name, value)
        if value.dtype != first.dtype:
            raise TypeError(f"{name}: expected {first.dtype}, the dtype of {first_name}, got {value.dtype}")
        if value.device != first.device:
            raise ValueError(f"{name}: expected device {first.device}, that of {first_name}, got {value.device}")
        require_finite(name, value)

    def _check_shape(self, name, value, pattern):
        axes = [axis for axis in pattern if axis != "..."]
        sizes, shape = dict(self.sizes), tuple(value.shape)
        fits = len(shape) == len(axes) or ("..." in pattern and len(shape) > len(axes))
        if fits:
            for axis, size in zip(reversed(axes), reversed(shape), strict=False):
                fits &= sizes.setdefault(axis, size) == size
        if not fits:
            expected = ", ".join(str(self.sizes.get(axis, axis)) for axis in pattern)
            raise ValueError(f"{name}: expected shape ({expected}), got {shape}")
        self.sizes = sizes


def require_finite(name, value):
    """Raise ValueError where a floating-point tensor holds NaN or infinity."""
    if value.is_floating_point() and not torch.isfinite(value).all():
        bad = int((~torch.isfinite(value)).sum())
        raise ValueError(f"{name}: expected finite values, got {bad} NaN or infinite of {value.numel()}")


def require_positive(name, value):
    """Raise ValueError unless `value` is a finite number above zero."""
    if not (math.isfinite(value) and value > 0):
        raise ValueError(f"{name}: expected a positive finite number, got {value}")


def require_non_negative(name, value):
    """Raise ValueError unless `value` is a finite number, zero or above."""
    if not (math.isfinite(value) and value >= 0):
        raise ValueError(f"{name}: expected a finite number, zero or above, got {value}")


def require_integer(name, value, at_least):
    """Raise unless `value` is an int, at least so large."""
    if not isinstance(value, int) or isinstance(value, bool):
        raise TypeError(f"{name}: expected an int, got {type(value).__name__}")
    if value < at_least:
        raise ValueError(f"{name}: expected at least {at_least}, got {value}")
