"""Neural tangent kernels in PyTorch: analytic and empirical kernels, kernel regression, training of ensembles."""

from ntk_helpers.dynamics.flow import ensemble_law, gradient_descent, gradient_flow
from ntk_helpers.dynamics.regression import flatten_outputs, kernel_ridge
from ntk_helpers.dynamics.stability import max_learning_rate
from ntk_helpers.dynamics.training import DivergenceError, TrainingRecord, distance_moved, log_spaced_steps, train
from ntk_helpers.kernels.analytic import Kernels, kernels, nngp_kernel, ntk_kernel
from ntk_helpers.kernels.empirical import empirical_ntk, jacobian, ntk_vector_product
from ntk_helpers.kernels.linearize import linearize
from ntk_helpers.models import MLP
from ntk_helpers.sweeps.sweep import Sweep, sweep

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
