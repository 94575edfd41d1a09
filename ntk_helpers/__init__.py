"""Neural tangent kernels in PyTorch: empirical kernels, kernel regression and its dynamics, training of ensembles."""

from ntk_helpers.empirical import empirical_ntk, jacobian, linearize
from ntk_helpers.models import MLP
from ntk_helpers.regression import flatten_outputs, gradient_flow, kernel_ridge, max_learning_rate
from ntk_helpers.training import DivergenceError, TrainingRecord, train

__all__ = [
    "MLP",
    "DivergenceError",
    "TrainingRecord",
    "empirical_ntk",
    "flatten_outputs",
    "gradient_flow",
    "jacobian",
    "kernel_ridge",
    "linearize",
    "max_learning_rate",
    "train",
]
