import inspect
import math
from types import SimpleNamespace

import mpmath
import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode

from ntk_helpers import MLP, empirical_ntk, kernels, nngp_kernel, ntk_kernel
from ntk_helpers.book.plotting import fit_power_law
from ntk_helpers.kernels.analytic import DUALS
from ntk_helpers.kernels.duals import PiecewiseLinear, _angles, cos, leaky_relu, sin
from ntk_helpers.kernels.quadrature import Quadrature

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
        kernels(x, depth=3, activation=Quadrature(function), b_std=b_std),
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


@pytest.mark.parametrize("variances", [(1e-6, 1e-6), (0.01, 0.5), (1.0, 2.0), (9.0, 4.0), (300.0, 20.0), (1e4, 1e4)])
@pytest.mark.parametrize("correlation", [-0.99999, -0.5, 0.0, 0.3, 0.999])
def test_elu(variances, correlation):
    """Against integrals over u alone, in 25 digits, of what is expected given u; the tails are negligible."""
    mp = mpmath.mp.clone()
    mp.dps = 25
    q1, q2 = map(mp.mpf, variances)
    c = correlation * mp.sqrt(q1 * q2)
    s, root = mp.sqrt(q2 - c**2 / q1), mp.sqrt(q1)

    def mean(function, given):
        breaks = [sign * size * root for size in (14, 6, 2, 0.3) for sign in (-1, 1)]
        return mp.quad(lambda u: function(u) * given(c / q1 * u) * mp.npdf(u, 0, root), sorted([0, *breaks]))

    def exponential(m):  # of v below zero, for v of the mean m and the variance s^2
        return mp.exp(m + s**2 / 2) * mp.ncdf(-m / s - s)

    def elu(m):
        return m * mp.ncdf(m / s) + s * mp.npdf(m / s) + exponential(m) - mp.ncdf(-m / s)

    dual = mean(lambda u: u if u > 0 else mp.expm1(u), elu)
    slope = mean(lambda u: 1 if u > 0 else mp.exp(u), lambda m: mp.ncdf(m / s) + exponential(m))
    found, slope_of = DUALS["elu"](*torch.tensor([[v] for v in (*variances, float(c))], dtype=torch.float64))
    size = float(mp.sqrt(q1 * q2))
    assert found.item() == pytest.approx(float(dual), rel=1e-12, abs=1e-12 * size)
    assert slope_of().item() == pytest.approx(float(slope), rel=1e-11)


def test_elu_of_a_wide_network(normal):
    x = normal(3, 4)
    net = MLP(4, 4000, 2, activation=functional.elu, seeds=range(20), dtype=torch.float64)
    apart = (empirical_ntk(net, x)[..., 0, 0] - ntk_kernel(x, depth=2, activation="elu")).mean(0)
    spread = empirical_ntk(net, x)[..., 0, 0].std(0)
    assert (apart.abs() <= 4 * spread / 20**0.5).all()


def test_relu_in_float32_on_near_duplicates(normal):
    x = normal(20, 5)
    x = torch.cat([x, x + 1e-4 * normal(20, 5), x + 1e-6 * normal(20, 5)]).float()
    options = {"depth": 30, "b_std": 0.0}
    for single, double in zip(kernels(x, **options), kernels(x.double(), **options), strict=True):
        assert single.dtype == torch.float32
        assert (single.double() - double).abs().max() <= 1e-6 * double.abs().max()


def near_and_far(normal, d):
    """Inputs at random, others near them, near their opposites, at both exactly, and in a narrow cluster."""
    x = normal(8, d)
    near = [x + size * normal(8, d) for size in (1e-1, 1e-2, 1e-4, 1e-6, 1e-8)]
    return torch.cat([x, *near, *[-y for y in near], x, -x, 3 * x, 5 + 1e-3 * normal(20, d)])


@pytest.mark.parametrize("d", [2, 10, 784])
@pytest.mark.parametrize("b_std", [0.0, 0.5])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_angles_are_those_by_differences(normal, d, b_std, dtype):
    """Kahan's formula for all pairs, from distances in float64, against the matrix product and its corrections."""
    x, tolerance = near_and_far(normal, d).to(dtype), 32 * torch.finfo(dtype).eps
    network = SimpleNamespace(w_var=2.0, b_var=b_std**2)
    everything = slice(0, len(x))
    angle = _angles(network, x, x)(everything, everything)
    v = torch.cat([math.sqrt(2 / d) * x.double(), torch.full((len(x), 1), b_std, dtype=torch.float64)], dim=1)
    unit = v / torch.linalg.vector_norm(v, dim=1, keepdim=True)
    apart, along = (torch.cdist(unit, s * unit, compute_mode="donot_use_mm_for_euclid_dist") for s in (1, -1))
    torch.testing.assert_close(angle.theta.double(), 2 * torch.atan2(apart, along), rtol=0, atol=tolerance)
    torch.testing.assert_close(angle.half.double(), apart.square() / 4, rtol=0, atol=tolerance)
    torch.testing.assert_close(angle.rest.double(), along.square() / 4, rtol=0, atol=tolerance)


@pytest.mark.parametrize("d", [2, 784])
@pytest.mark.parametrize("activation", ["relu", "abs", "leaky_relu"])
def test_deep_relu_in_float32(normal, d, activation):
    x = near_and_far(normal, d).float()
    for depth in (1, 30):
        for single, double in zip(
            kernels(x, depth=depth, activation=activation, b_std=0.3),
            kernels(x.double(), depth=depth, activation=activation, b_std=0.3),
            strict=True,
        ):
            assert (single.double() - double).abs().max() <= 3e-6 * double.abs().max()


def exactly(name, x, depth, w_var, b_var):
    """Both kernels, by the formulas written down plainly, in 60 digits."""
    mp = mpmath.mp.clone()
    mp.dps = 60
    rows = [[mp.mpf(v) for v in row] for row in x.tolist()]
    w_var, b_var = mp.mpf(w_var), mp.mpf(b_var)

    def erf(q1, q2, c):
        root = mp.sqrt((1 + 2 * q1) * (1 + 2 * q2) - 4 * c**2)
        return 2 / mp.pi * mp.atan2(2 * c, root), 4 / mp.pi / root

    def gelu(q1, q2, c):
        a, b = 1 + q1, 1 + q2
        determinant = a * b - c**2
        root, shrink = mp.sqrt(determinant), 1 / a + 1 / b - 1
        both, numerator = (mp.atan2(c, root) + mp.pi / 2) / (2 * mp.pi), q1 * q2 + shrink * c**2
        slope = both + (c * (1 + 2 * shrink) + c * numerator / determinant) / (2 * mp.pi * root)
        return c * both + numerator / (2 * mp.pi * root), slope

    def of_sin(q1, q2, c):
        plus, minus = mp.exp(-(q1 + q2) / 2 - c), mp.exp(-(q1 + q2) / 2 + c)
        return (minus - plus) / 2, (minus + plus) / 2

    def of_cos(q1, q2, c):
        sines, cosines = of_sin(q1, q2, c)
        return cosines, sines

    dual, n = {"erf": erf, "gelu": gelu, "sin": of_sin, "cos": of_cos}[name], range(len(x))
    k = [[w_var / x.shape[1] * mp.fdot(u, v) + b_var for v in rows] for u in rows]
    theta = k
    for _ in range(depth):
        layer = [[dual(k[i][i], k[j][j], k[i][j]) for j in n] for i in n]
        k = [[w_var * layer[i][j][0] + b_var for j in n] for i in n]
        theta = [[k[i][j] + w_var * layer[i][j][1] * theta[i][j] for j in n] for i in n]
    return [torch.tensor([[float(v) for v in row] for row in kernel], dtype=torch.float64) for kernel in (k, theta)]


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 3e-8), (torch.float32, 2e-7)])
@pytest.mark.parametrize("name", ["erf", "gelu", "sin", "cos"])
@pytest.mark.parametrize("scale", [1e-3, 1.0, 30.0, 1e3, 1e7])
@pytest.mark.parametrize(("w_std", "b_std"), [(2.0, 0.0), (1.5, 0.5), (100.0, 0.0)])
def test_variances_of_all_sizes(normal, name, dtype, tolerance, scale, w_std, b_std):
    """Relative to the kernel's diagonal, also of inputs that are nearly parallel or opposite, or of other norms."""
    x = normal(3, 6)
    x = torch.cat([x, x[:1], -x[:1], x[:1] * (1 + 1e-5), x[:1] + 1e-4 * normal(1, 6), 3 * x[:1], 0.01 * x[1:2]])
    x = (scale * x).to(dtype)
    for depth in (1, 4) if w_std < 100 or name in ("erf", "gelu") else (1,):  # deeper ones are chaotic
        found = kernels(x, depth=depth, activation=name, w_std=w_std, b_std=b_std)
        for kernel, expected in zip(found, exactly(name, x, depth, w_std**2, b_std**2), strict=True):
            size = expected.diagonal().sqrt()
            error = ((kernel.double() - expected) / (size.unsqueeze(1) * size)).abs().max()
            assert error <= tolerance, (depth, error)


@pytest.mark.parametrize("w", [0.5, 3.0])
def test_frequencies(normal, w):
    """sin(w z) of inputs x is sin(z) of w x."""
    x, options = normal(5, 3), {"depth": 1, "w_std": 1.0, "b_std": 0.0}
    for dual, name, function in ((sin, "sin", torch.sin), (cos, "cos", torch.cos)):
        found = kernels(x, activation=dual(w), **options)
        torch.testing.assert_close(found.nngp, nngp_kernel(w * x, activation=name, **options), rtol=1e-13, atol=1e-15)
        by_quadrature = kernels(x, activation=lambda z, function=function: function(w * z), **options)
        for kernel, other in zip(found, by_quadrature, strict=True):
            torch.testing.assert_close(kernel, other, rtol=1e-9, atol=1e-11)


def pair(q1, q2, c):
    return (torch.tensor([[value]], dtype=torch.float64) for value in (q1, q2, c))


@pytest.mark.parametrize("w", [0.5, 1.0, 3.0])
@pytest.mark.parametrize(
    ("q1", "q2", "c"), [(1.0, 1.0, 1.0), (4.0, 4.0, -3.8), (0.3, 0.3, 0.1), (1.0, 4.0, -1.9), (0.01, 9.0, 0.2)]
)
def test_quadrature_ends_where_the_rest_is_rounding(w, q1, q2, c):
    """E[sin(w u) sin(w v)] = exp(-w^2 (q1 + q2) / 2) sinh(w^2 c), and cosh for the derivatives, times w^2."""
    dual, slope = Quadrature(lambda z: torch.sin(w * z))(*pair(q1, q2, c))
    size = math.exp(-(w**2) * (q1 + q2) / 2)
    assert dual.item() == pytest.approx(size * math.sinh(w**2 * c), rel=0, abs=1e-13)
    assert slope().item() == pytest.approx(w**2 * size * math.cosh(w**2 * c), rel=0, abs=1e-13 * w**2)


def test_tolerance_of_the_quadrature():
    """The function sqrt(z^2 + s^2), of the mean square q + s^2, is the nearer to a kink the smaller s is."""

    def mean_square(s, **options):
        return Quadrature(lambda z: (z.square() + s**2).sqrt(), **options)(*pair(1.0, 1.0, 1.0))[0].item()

    assert mean_square(0.2) == pytest.approx(1.04, rel=1e-6)
    assert mean_square(0.1, tolerance=1e-4) == pytest.approx(1.01, rel=1e-4)
    for options in ({"s": 0.1}, {"s": 0.2, "tolerance": 1e-8}):
        with pytest.raises(ValueError, match="activation: expected a function smooth enough for quadrature"):
            mean_square(**options)


@pytest.mark.parametrize("frequency", [30.0, 53.0, 100.0, 1000.0])
def test_quadrature_refuses_what_its_nodes_do_not_see(normal, frequency):
    for x in (normal(1, 3), normal(20, 3)):
        with pytest.raises(ValueError, match=r"activation: expected a function smooth enough .*sin\(frequency\)"):
            kernels(x, depth=1, activation=lambda z: torch.sin(frequency * z), w_std=2.0)


@pytest.mark.parametrize(
    ("function", "dual"),
    [
        *[(function, "relu") for function in (torch.relu, functional.relu, nn.ReLU(), nn.ReLU(inplace=True))],
        *[(nn.LeakyReLU(0.2), leaky_relu(0.2)), (nn.LeakyReLU(), "leaky_relu"), (functional.leaky_relu, "leaky_relu")],
        *[(torch.abs, "abs"), (torch.erf, "erf"), (functional.gelu, "gelu"), (nn.GELU(), "gelu")],
        *[(torch.sin, "sin"), (torch.cos, "cos"), (nn.Identity(), "identity")],
        *[(torch.tanh, "tanh"), (nn.Tanh(), "tanh"), (torch.sigmoid, "sigmoid"), (nn.Sigmoid(), "sigmoid")],
        *[(functional.silu, "silu"), (nn.SiLU(), "silu")],
        *[(functional.elu, "elu"), (nn.ELU(), "elu")],
        *[(functional.softplus, "softplus"), (nn.Softplus(), "softplus")],
    ],
)
def test_functions_and_modules_have_the_duals_of_their_names(normal, function, dual):
    x = normal(4, 3)
    for found, expected in zip(
        kernels(x, depth=2, activation=function), kernels(x, depth=2, activation=dual), strict=True
    ):
        assert torch.equal(found, expected)


def test_modules_with_other_options_are_no_namesakes(normal):
    x = normal(4, 3)
    for module, name in ((nn.GELU("tanh"), "gelu"), (nn.Softplus(beta=2.0), "softplus")):
        difference = (nngp_kernel(x, depth=1, activation=module) - nngp_kernel(x, depth=1, activation=name)).abs().max()
        assert 1e-6 < difference < 1


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


@pytest.mark.parametrize("activation", ["relu", "gelu", "tanh"])
@pytest.mark.parametrize("parameterization", [{}, {"parameterization": "standard", "width": np.int64(8)}])
def test_one_kernel_by_name(normal, activation, parameterization):
    x, options = normal(4, 3), {"depth": np.int64(2), "activation": activation, "b_std": 0.3, **parameterization}
    both = kernels(x, **options, chunk_size=np.int64(3))
    assert torch.equal(nngp_kernel(x, **options, chunk_size=3), both.nngp)
    assert torch.equal(ntk_kernel(x, **options, chunk_size=3), both.ntk)
    signatures = [inspect.signature(function).parameters.values() for function in (kernels, nngp_kernel, ntk_kernel)]
    assert len({tuple((p.name, p.kind, p.default) for p in signature) for signature in signatures}) == 1


class Sizes(TorchDispatchMode):
    """The sizes of all tensors that are made."""

    def __init__(self):
        super().__init__()
        self.found = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        if isinstance(result, torch.Tensor) and not function.is_view:
            self.found.append(result.numel())
        return result


@pytest.mark.parametrize("kernel", [nngp_kernel, ntk_kernel])
def test_one_kernel_alone_is_allocated(normal, kernel):
    x = normal(300, 3)
    with Sizes() as sizes:
        kernel(x, depth=2, chunk_size=64)
    assert sizes.found.count(300 * 300) == 1
    assert sorted(sizes.found)[-2] == 64 * 64


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"w_std": 10.0, "depth": 30}, "layer 23: the kernel is not finite in torch.float32, .*w_std=10, depth=30"),
        ({"w_std": 0.1, "depth": 40}, "layer 17: the kernel vanishes in torch.float32, .*w_std=0.1, depth=40"),
        ({"w_std": 10.0, "depth": 300, "dtype": torch.float64}, "layer 182: .* not finite in torch.float64"),
        ({"w_std": 10.0, "depth": 30, "activation": "gelu"}, "layer 23: the kernel is not finite in torch.float32"),
        ({"w_std": 0.1, "depth": 40, "activation": "tanh"}, "layer 19: the kernel vanishes in torch.float32"),
        ({"w_std": 10.0, "depth": 30, "activation": "sin"}, "layer 23: the ntk kernel is not finite in torch.float32"),
        ({"scale": 1e25, "depth": 1}, "layer 1: the kernel is not finite in torch.float32"),
        ({"scale": 1e-25, "depth": 1}, "layer 1: the kernel vanishes in torch.float32"),
        ({"scale": 1e160, "depth": 1, "dtype": torch.float64, "activation": "erf"}, "layer 1: .* not finite"),
    ],
)
def test_kernels_out_of_range_name_the_layer(changes, message):
    """neural-tangents issue 197: w_std=10 with depth=30 was inf in float32."""
    dtype, scale = (changes.pop(key, default) for key, default in (("dtype", torch.float32), ("scale", 1.0)))
    x = torch.linspace(0.3, 1, 300, dtype=torch.float64).reshape(3, 100).to(dtype) * scale
    for function in (kernels, ntk_kernel):
        with pytest.raises(ValueError, match=message):
            function(x, b_std=0.0, **changes)
    assert kernels(0 * x, depth=2, b_std=0.0).ntk.eq(0).all()  # nothing vanishes that was not zero


def second_derivatives(kernel, x, weights):
    """Of the weighted sum of a kernel by its inputs, by autograd, and by differences of the gradients."""

    def gradient(x, **options):
        return torch.autograd.grad((weights * kernel(x)).sum(), x, **options)[0].flatten()

    x = x.clone().requires_grad_()
    found = torch.stack(
        [torch.autograd.grad(g, x, retain_graph=True)[0].flatten() for g in gradient(x, create_graph=True)]
    )
    columns, step = [], 1e-5
    for i in range(x.numel()):
        there = [x.detach().clone() for _ in range(2)]
        for y, sign in zip(there, (1, -1), strict=True):
            y.view(-1)[i] += sign * step
        plus, minus = (gradient(y.requires_grad_()) for y in there)
        columns.append((plus - minus) / (2 * step))
    return found, torch.stack(columns)


@pytest.mark.parametrize("activation", ["relu", "abs", "leaky_relu", "erf", "gelu", "sin", "tanh"])
@pytest.mark.parametrize("b_std", [0.0, 0.3])
def test_second_derivatives(normal, activation, b_std):
    x, weights = normal(3, 3), normal(4, 4)
    kinked = isinstance(DUALS[activation], PiecewiseLinear)
    apart, twice = torch.cat([x, normal(1, 3)]), torch.cat([x, x[:1]])
    by_quadrature = isinstance(DUALS[activation], Quadrature)
    options = {"depth": 1 if by_quadrature else 2, "activation": activation, "b_std": b_std}
    for inputs in (twice,) if by_quadrature else (apart, twice, 30 * twice):
        for function in (nngp_kernel, ntk_kernel):
            if kinked and function is ntk_kernel and inputs is not apart:
                with pytest.raises(ValueError, match="x1, x2: expected no two inputs that are parallel"):
                    second_derivatives(lambda x: ntk_kernel(x, **options), inputs, weights)
                continue
            found, expected = second_derivatives(lambda x, f=function: f(x, **options), inputs, weights)
            torch.testing.assert_close(found, expected, rtol=0, atol=1e-6 * expected.abs().max().item())


def test_second_derivatives_at_zero_are_refused(normal):
    x = torch.cat([normal(2, 3), torch.zeros(1, 3, dtype=torch.float64)])
    for function in (nngp_kernel, ntk_kernel):
        with pytest.raises(ValueError, match=r"x1, x2: expected no two inputs .*none that is zero, for second"):
            second_derivatives(lambda x, f=function: f(x, depth=1, b_std=0.0), x, normal(3, 3))


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
        ({"activation": 3}, "activation: expected a callable, a dual or one of .*got 3"),
        ({"activation": nn.ReLU6()}, 'activation: expected a function smooth enough .*kinks need .*"relu", "leaky_re'),
        ({"activation": nn.ELU(0.5)}, "activation: expected a function smooth enough .*kinks need a closed form"),
        ({"activation": "tanh", "w_std": 100.0}, "activation: expected .*at variances of up to 1e.04.*large variances"),
        (
            {"x1": X.half()},
            r"x1: expected torch.float32 or torch.float64, got torch.float16; convert it, by x1.double\(\)",
        ),
        ({"x1": X.bfloat16()}, "x1: expected torch.float32 or torch.float64, got torch.bfloat16"),
        ({"parameterization": "mean"}, "parameterization: expected .*got 'mean'"),
        ({"parameterization": "standard"}, "width: expected an int, got NoneType"),
        ({"width": 8}, "width: expected None"),
    ],
)
def test_refusals(changes, message):
    arguments = {"x1": X, "depth": 2} | changes
    with pytest.raises((TypeError, ValueError), match=message):
        kernels(**arguments)


def test_the_default_kernel_is_that_of_the_default_network():
    defaults = [inspect.signature(function).parameters for function in (MLP, kernels, ntk_kernel, nngp_kernel)]
    for name in ("activation", "w_std", "b_std", "parameterization"):
        assert len({parameters[name].default for parameters in defaults}) == 1, name
