import math

import numpy as np
import pytest
import torch
from torch.nn import functional

from ntk_helpers import MLP, empirical_ntk, kernels, nngp_kernel, ntk_kernel
from ntk_helpers.kernels.analytic import DUALS
from ntk_helpers.kernels.duals import PiecewiseLinear, leaky_relu
from ntk_helpers.kernels.quadrature import Quadrature
from ntk_helpers.book.plotting import fit_power_law

CLOSED_FORMS = {
    "Relu": "relu",
    "LeakyRelu(0.1)": leaky_relu(0.1),
    "LeakyRelu(0.3)": leaky_relu(0.3),
    "ABRelu(-0.5,1.2)": PiecewiseLinear(-0.5, 1.2),
    "Abs": "abs",
    "Erf": "erf",
    "Gelu": "gelu",
    "Sin": "sin",
    "Cos": "cos",
    "Identity": "identity",
}
BY_QUADRATURE = {
    "Sigmoid_like": lambda z: torch.erf(z / 2.4020563531719796) / 2 + 0.5,
    "Sin(1,2,pi/4)": lambda z: torch.sin(2 * z + math.pi / 4),
    "Rbf(1)": lambda z: 2**0.5 * torch.sin(2**0.5 * z + math.pi / 4),
    "Gaussian(1,-0.5)": lambda z: torch.exp(-z.square() / 2),
    "Gaussian(1,-1)": lambda z: torch.exp(-z.square()),
    "Gabor": lambda z: torch.exp(-z.square()) * torch.sin(z),
    "Exp": torch.exp,
    "Polynomial(0.1,1,0.3)": lambda z: 0.1 + z + 0.3 * z.square(),
    "Monomial(2)": torch.square,
}


def largest_error(reference, name, activation, max_depth, dtype):
    """Over all stored cases of an activation: error relative to the largest entry of the symmetric kernel."""
    errors = []
    for i in np.flatnonzero((reference["analytic_act"] == name) & (reference["analytic_depth"] <= max_depth)):
        inputs = reference["analytic_inputs"][i]
        x1, x2 = (torch.from_numpy(reference[f"{side}_{inputs}"]).to(dtype) for side in ("X1", "X2"))
        b_std, standard = float(reference["analytic_b_std"][i]), reference["analytic_param"][i] == "standard"
        options = {
            "depth": int(reference["analytic_depth"][i]),
            "activation": activation,
            "w_std": float(reference["analytic_W_std"][i]),
            "b_std": None if math.isnan(b_std) else b_std,
        }
        if standard:
            options |= {"parameterization": "standard", "width": int(reference["analytic_width"][i])}
        symmetric, cross = kernels(x1, **options), kernels(x1, x2, **options)
        for which in (0, 1):
            expected = torch.from_numpy(reference["analytic_k11"][i, which])
            expected_cross = torch.from_numpy(reference["analytic_k12"][i, which])
            error = torch.cat([(symmetric[which] - expected).flatten(), (cross[which] - expected_cross).flatten()])
            errors.append((error.abs().max() / expected.abs().max()).item())
    assert errors
    return max(errors)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
@pytest.mark.parametrize("name", CLOSED_FORMS)
def test_closed_forms_against_the_reference(reference, name, dtype, tolerance):
    """With identical, parallel, nearly parallel, antiparallel and zero inputs among the cases."""
    error = largest_error(reference, name, CLOSED_FORMS[name], max_depth=8, dtype=dtype)
    print(f"{name}: {error:.1e}")
    assert error <= tolerance


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-6), (torch.float32, 1e-5)])
@pytest.mark.parametrize("name", BY_QUADRATURE)
def test_quadrature_against_the_reference(reference, name, dtype, tolerance):
    error = largest_error(reference, name, BY_QUADRATURE[name], max_depth=2, dtype=dtype)
    print(f"{name}: {error:.1e}")
    assert error <= tolerance


@pytest.mark.parametrize("name", ["erf", "gelu", "sin", "cos", "identity"])
@pytest.mark.parametrize("b_std", [0.0, 0.5])
def test_quadrature_against_the_closed_forms(normal, name, b_std):
    x = normal(6, 3)
    function = {"erf": torch.erf, "gelu": functional.gelu, "sin": torch.sin, "cos": torch.cos}.get(
        name, lambda z: z * 1.0
    )
    for quadrature, closed in zip(
        kernels(x, depth=3, activation=function, b_std=b_std),
        kernels(x, depth=3, activation=name, b_std=b_std),
        strict=True,
    ):
        torch.testing.assert_close(quadrature, closed, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("activation", [torch.tanh, torch.sigmoid, functional.silu, functional.softplus])
def test_usual_activations_by_quadrature(normal, activation):
    """Against a Monte Carlo mean over a million Gaussian pairs."""
    x = normal(2, 3)
    dual, _ = Quadrature(activation)(*(x.square().sum(1, keepdim=True), x.square().sum(1), x @ x.T))
    samples = activation(normal(1_000_000, 3) @ x.T)
    products = samples.unsqueeze(1) * samples.unsqueeze(2)
    assert ((dual - products.mean(0)).abs() <= 5 * products.std(0) / 1000).all()


def test_relu_in_float32_on_near_duplicates(normal):
    x = normal(20, 5)
    x = torch.cat([x, x + 1e-4 * normal(20, 5), x + 1e-6 * normal(20, 5)]).float()
    for single, double in zip(kernels(x, depth=30), kernels(x.double(), depth=30), strict=True):
        assert single.dtype == torch.float32
        assert (single.double() - double).abs().max() <= 1e-6 * double.abs().max()


@pytest.mark.parametrize("activation", DUALS)
@pytest.mark.parametrize("b_std", [0.0, 0.3])
def test_symmetric_positive_and_differentiable(normal, activation, b_std):
    """Also where inputs coincide, are opposite, or zero."""
    x = normal(6, 3)
    x = torch.cat([x, x[:2], -x[:1], torch.zeros(1, 3, dtype=torch.float64)]).requires_grad_()
    both = kernels(x, depth=3, activation=activation, b_std=b_std, chunk_size=4)
    for kernel in both:
        assert torch.equal(kernel, kernel.mT)
        assert torch.linalg.eigvalsh(kernel.detach())[0] >= -1e-14 * kernel.abs().max()
    (gradient,) = torch.autograd.grad(sum(kernel.sum() for kernel in both), x)
    assert gradient.isfinite().all()


@pytest.mark.parametrize("activation", ["relu", "gelu", torch.tanh])
def test_gradients_against_finite_differences(normal, activation):
    x1, x2 = normal(2, 3).requires_grad_(), normal(3, 3).requires_grad_()

    def both(x1, x2):
        return tuple(kernels(x1, x2, depth=2, activation=activation, b_std=0.2))

    assert torch.autograd.gradcheck(both, (x1, x2), rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("chunk_size", [1, 3, 7, 100])
def test_chunks_change_nothing(normal, chunk_size):
    x1, x2 = normal(7, 3), normal(5, 3)
    for options in ({"x2": None}, {"x2": x2}):
        for chunked, whole in zip(
            kernels(x1, depth=2, b_std=0.1, chunk_size=chunk_size, **options),
            kernels(x1, depth=2, b_std=0.1, **options),
            strict=True,
        ):
            torch.testing.assert_close(chunked, whole, rtol=1e-13, atol=1e-13)


def test_one_kernel_by_name(normal):
    x = normal(4, 3)
    both = kernels(x, depth=2)
    assert torch.equal(nngp_kernel(x, depth=2), both.nngp)
    assert torch.equal(ntk_kernel(x, depth=2), both.ntk)


def test_biases_that_start_at_zero(normal):
    """In the standard parameterization they are trained and count; in the NTK one they are multiplied by zero."""
    x, options = normal(4, 3), {"depth": 0, "parameterization": "standard", "width": 8}
    with_bias, without = (ntk_kernel(x, b_std=b_std, **options) for b_std in (0.0, None))
    torch.testing.assert_close(with_bias, without + 1)
    assert torch.equal(ntk_kernel(x, depth=2, b_std=0.0), ntk_kernel(x, depth=2, b_std=None))


@pytest.mark.parametrize("options", [{"activation": "relu"}, {"activation": "tanh", "w_std": 1.5}])
def test_empirical_kernels_approach_it_as_one_over_the_root_of_the_width(normal, options):
    x, widths = normal(5, 3), [64, 256, 1024, 4096]
    limit = ntk_kernel(x, depth=1, b_std=0.3, **options)
    errors = []
    for width in widths:
        theta = empirical_ntk(MLP(3, width, 1, b_std=0.3, seeds=range(40), **options), x, output="trace")
        errors.append(torch.linalg.matrix_norm(theta - limit) / torch.linalg.matrix_norm(limit))
    law = fit_power_law(widths, torch.stack(errors, dim=1))
    assert law.low <= -0.5 <= law.high
    mean_error = torch.linalg.matrix_norm(theta.mean(0) - limit) / torch.linalg.matrix_norm(limit)
    assert mean_error < errors[-1].mean() / 2


def test_empirical_kernels_of_the_standard_parameterization(normal):
    x = normal(5, 3)
    options = {"b_std": 0.3, "parameterization": "standard", "activation": "relu"}
    theta = empirical_ntk(MLP(3, 2048, 2, seeds=range(10), **options), x, output="trace").mean(0)
    limit = ntk_kernel(x, depth=2, width=2048, **options)
    assert torch.linalg.matrix_norm(theta - limit) < 0.05 * torch.linalg.matrix_norm(limit)


X = torch.ones(2, 3, dtype=torch.float64)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"x1": [[1.0]]}, "x1: expected a torch.Tensor, got list"),
        ({"x1": X.long()}, "x1: expected a floating-point dtype, got torch.int64"),
        ({"x1": X[0]}, r"x1: expected shape \(n1, d\), got \(3,\)"),
        ({"x1": X * torch.nan}, "x1: expected finite values, got 6 NaN or infinite of 6"),
        ({"x2": X[:, :2]}, r"x2: expected shape \(n2, 3\), got \(2, 2\)"),
        ({"x2": X.float()}, "x2: expected torch.float64, the dtype of x1, got torch.float32"),
        ({"depth": -1}, "depth: expected at least 0, got -1"),
        ({"depth": 1.0}, "depth: expected an int, got float"),
        ({"w_std": 0.0}, "w_std: expected a positive finite number, got 0.0"),
        ({"b_std": -1.0}, "b_std: expected a finite number, zero or above, got -1.0"),
        ({"chunk_size": 0}, "chunk_size: expected at least 1, got 0"),
        ({"activation": "rely"}, "activation: expected a callable, a dual or one of .*got 'rely'"),
        ({"activation": torch.sum}, "activation: expected an elementwise function"),
        ({"activation": torch.relu}, "activation: expected a function smooth enough .*kinks need a closed form"),
        ({"parameterization": "mean"}, "parameterization: expected .*got 'mean'"),
        ({"parameterization": "standard"}, "width: expected an int, got NoneType"),
        ({"width": 8}, "width: expected None"),
    ],
)
def test_refusals(changes, message):
    arguments = {"x1": X, "depth": 2} | changes
    with pytest.raises((TypeError, ValueError), match=message):
        kernels(**arguments)
