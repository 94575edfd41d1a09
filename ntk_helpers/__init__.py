"""Neural tangent kernels in PyTorch: analytic and empirical kernels, kernel regression, training of ensembles."""

from ntk_helpers.analytic import Kernels, kernels, nngp_kernel, ntk_kernel
from ntk_helpers.empirical import empirical_ntk, jacobian, linearize, ntk_vector_product
from ntk_helpers.models import MLP
from ntk_helpers.regression import (
    ensemble_law,
    flatten_outputs,
    gradient_descent,
    gradient_flow,
    kernel_ridge,
    max_learning_rate,
)
from ntk_helpers.sweeps import Sweep, sweep
from ntk_helpers.training import DivergenceError, TrainingRecord, distance_moved, log_spaced_steps, train

__all__ = [
    "MLP",
    "DivergenceError",
    "Kernels",
    "Sweep",
    "TrainingRecord",
    "distance_moved",
    "empirical_ntk",
    "ensemble_law",
    "flatten_outputs",
    "gradient_descent",
    "gradient_flow",
    "jacobian",
    "kernel_ridge",
    "kernels",
    "linearize",
    "log_spaced_steps",
    "max_learning_rate",
    "nngp_kernel",
    "ntk_kernel",
    "ntk_vector_product",
    "sweep",
    "train",
]
