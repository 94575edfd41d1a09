import json
import math
from functools import partial

import pytest
import torch

from ntk_helpers import (
    MLP,
    empirical_ntk,
    ensemble_law,
    flatten_outputs,
    gradient_descent,
    gradient_flow,
    jacobian,
    kernel_ridge,
    kernels,
    linearize,
    max_learning_rate,
    ntk_kernel,
    ntk_vector_product,
    train,
)

NNGP, Y_LONG = torch.eye(5, dtype=torch.float64), torch.ones(3, dtype=torch.float64)


def arrays(reference, case, *names):
    return [torch.from_numpy(reference[f"pred{case}_{name}"]) for name in names]


@pytest.fixture
def problem(normal):
    """A random well-conditioned kernel on 12 training and 5 test points, targets and initial function of 2 outputs."""
    features = normal(17, 40)
    k = features @ features.T / 40
    return {"k": k[:12, :12], "k_test": k[12:, :12], "y": normal(12, 2), "f0": normal(12, 2), "f0_test": normal(5, 2)}


class TestKernelRidge:
    def test_solves_the_ridge_equations(self, problem):
        k, y = problem["k"], problem["y"]
        fit = kernel_ridge(k, y, 0.3)
        expected = problem["k_test"] @ torch.linalg.solve(k + 0.3 * torch.eye(12), y)
        torch.testing.assert_close(fit(problem["k_test"]), expected)

    def test_without_ridge_it_interpolates(self, problem):
        torch.testing.assert_close(kernel_ridge(problem["k"], problem["y"], 0.0)(problem["k"]), problem["y"])

    def test_batch_and_scalar_targets(self, problem):
        k, y, k_test = problem["k"], problem["y"][:, 0], problem["k_test"]
        single = kernel_ridge(k, y, 0.1)(k_test)
        assert single.shape == (5,)
        batch = kernel_ridge(torch.stack([k, 2 * k]), y, 0.1)(torch.stack([k_test, 2 * k_test]))
        torch.testing.assert_close(batch[0], single)
        torch.testing.assert_close(batch[1], kernel_ridge(2 * k, y, 0.1)(2 * k_test))

    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
    def test_singular_kernel_is_an_error_that_suggests_a_ridge(self, problem, dtype):
        rows = torch.arange(13).clamp_max(11)  # the last point twice
        k, y = problem["k"][rows][:, rows].to(dtype), problem["y"][rows].to(dtype)
        with pytest.raises(torch.linalg.LinAlgError, match=r"singular to rounding.*for example ridge=(\S+),") as error:
            kernel_ridge(k, y, 0.0)
        assert "float64" not in str(error.value)
        suggested = float(str(error.value).split("ridge=")[2].split(",")[0])
        assert kernel_ridge(k, y, suggested)(k).isfinite().all()

    @pytest.mark.parametrize("k", [[[-1.0, 0.0], [0.0, -1.0]], [[1.0, 2.0], [2.0, 1.0]]])
    def test_kernel_with_a_negative_eigenvalue_is_an_error(self, k):
        k, y = torch.tensor(k, dtype=torch.float64), torch.ones(2, dtype=torch.float64)
        with pytest.raises(torch.linalg.LinAlgError, match="singular to rounding or not positive"):
            kernel_ridge(k, y, 0.0)
        with pytest.raises(torch.linalg.LinAlgError, match="singular to rounding or not positive"):
            kernel_ridge(torch.stack([torch.eye(2, dtype=torch.float64), k]), y, 0.0)

    def test_one_kernel_with_an_ensemble_of_targets(self, problem):
        k, y, k_test = problem["k"], problem["y"], problem["k_test"]
        both = kernel_ridge(k, torch.stack([y, -y]), 0.1)(k_test)
        torch.testing.assert_close(both, torch.stack([f := kernel_ridge(k, y, 0.1)(k_test), -f]))


@pytest.mark.parametrize("n", [2, 4, 6])
def test_near_duplicates_of_a_real_kernel(n):
    """Rounding in a computed kernel does not shrink with the number of points."""
    x = torch.tensor([[0.3, -0.2]], dtype=torch.float64) + 1e-9 * torch.arange(n, dtype=torch.float64).unsqueeze(1)
    y = torch.linspace(-1, 1, n, dtype=torch.float64)
    k = empirical_ntk(MLP(2, 1024, 1, activation="tanh", seeds=range(20)), x, output="trace")
    assert gradient_flow(k, y)(math.inf).abs().max() <= 1 + 1e-6
    with pytest.raises(torch.linalg.LinAlgError):
        kernel_ridge(k, y, 0.0)


@pytest.fixture(scope="module")
def images():
    """Three blobs of light each, noise on every pixel; the label says whether most of it is on the left."""
    g, u = torch.Generator().manual_seed(0), torch.linspace(0, 1, 12, dtype=torch.float64)
    draws = torch.rand(650, 3, 3, generator=g, dtype=torch.float64)
    across, along = (torch.exp(-((u - draws[..., i, None]) ** 2) / 0.045) for i in (0, 1))
    pictures = torch.einsum("nb,nbi,nbj->nij", draws[..., 2], along, across).flatten(1)
    labels = torch.sign((draws[..., 2] * (draws[..., 0] - 0.5)).sum(1))
    x = pictures + 0.02 * torch.randn(650, 144, generator=g, dtype=torch.float64)
    kernel = partial(ntk_kernel, depth=2, b_std=0.1)
    return kernel(x[:500]), kernel(x[500:], x[:500]), labels[:500]


class TestSinglePrecision:
    """Kernels in float32 are right to a few of its digits, and so is what is made of them."""

    @pytest.mark.parametrize("t", [1e4, 1e5, 1e6, 1e7, math.inf])
    def test_flow(self, images, t):
        k, k_test, y = images
        exact, single = gradient_flow(k, y), gradient_flow(k.float(), y.float())
        assert (single.eigenvalues > 0).all()
        assert single(t).dtype == torch.float32
        for right, found in [(exact(t), single(t)), (exact.predict(t, k_test), single.predict(t, k_test.float()))]:
            assert (found - right).norm() <= 2e-5 * right.norm()

    @pytest.mark.parametrize("steps", [10**4, 10**6])
    def test_descent(self, images, steps):
        k, k_test, y = images
        rate = 0.9 * max_learning_rate(k).item()
        right = gradient_descent(k, y, learning_rate=rate).predict(steps, k_test)
        found = gradient_descent(k.float(), y.float(), learning_rate=rate).predict(steps, k_test.float())
        assert (found - right).norm() <= 2e-5 * right.norm()

    def test_infinite_time_is_kernel_ridge(self, images):
        k, k_test, y = images
        for ridge in (0.0, 1e-3):
            right = kernel_ridge(k, y, ridge)(k_test)
            by_ridge = kernel_ridge(k.float(), y.float(), ridge)(k_test.float())
            by_flow = gradient_flow(k.float(), y.float(), ridge=ridge).predict(math.inf, k_test.float())
            assert (by_ridge - right).norm() <= 2e-5 * right.norm()
            torch.testing.assert_close(by_flow, by_ridge, rtol=1e-6, atol=1e-6)

    def test_law(self, images):
        k, _, y = images
        points = torch.arange(100)
        nngp, y = k[points][:, points], y[points[:80]]
        right, found = ensemble_law(y, nngp)(1e5), ensemble_law(y.float(), nngp.float())(1e5)
        assert (found.mean - right.mean).norm() <= 1e-5 * right.mean.norm()
        assert (found.covariance - right.covariance).norm() <= 1e-5 * right.covariance.norm()

    def test_duplicates_are_rounding(self, images):
        """Where points come twice, half of the eigenvalues are rounding, some of them negative: all are zero."""
        k, _, y = images
        twice = torch.arange(100).repeat(2)
        flow = gradient_flow(k.float()[twice][:, twice], y.float()[twice])
        assert (flow.eigenvalues > 0).sum() == 100
        torch.testing.assert_close(flow(math.inf), y.float()[twice], rtol=1e-5, atol=1e-5)

    def test_a_report_in_closed_form(self):
        """100 points of sin x + sin 2x, solved to 50 digits; in float32 the rounding of inputs moves it."""
        right = torch.tensor([0.5967274009, 0.0057663015, 0.0, -0.0057663015, -0.5967274009], dtype=torch.float64)
        network = {"depth": 2, "w_std": 1.5, "b_std": 0.05}
        x = torch.linspace(-10 * math.pi, 10 * math.pi, 100, dtype=torch.float64)[:, None]
        y, x_test = torch.sin(x) + torch.sin(2 * x), x.new_tensor([-10, -5, 0, 5, 10])[:, None] * math.pi
        for dtype, of_right, of_each_other in ((torch.float64, 1e-8, 1e-9), (torch.float32, 5e-3, 1e-6)):
            k, k_test = ntk_kernel(x.to(dtype), **network), ntk_kernel(x_test.to(dtype), x.to(dtype), **network)
            ridge = 1e-4 * k.diagonal().mean().item()
            by_flow = gradient_flow(k, y.to(dtype), ridge=ridge).predict(math.inf, k_test)[:, 0]
            by_ridge = kernel_ridge(k, y.to(dtype), ridge)(k_test)[:, 0]
            torch.testing.assert_close(by_flow, by_ridge, rtol=0, atol=of_each_other)
            torch.testing.assert_close(by_flow.double(), right, rtol=0, atol=of_right)


class TestGradientsByTheKernel:
    """Of what is a function of a kernel; where eigenvalues coincide too, as on every regular grid."""

    @pytest.fixture(params=["distinct", "coinciding"])
    def kernel(self, request, normal):
        if request.param == "coinciding":
            return torch.diag(torch.tensor([3.0, 3.0, 2.0, 2.0, 2.0, 2.0], dtype=torch.float64))
        return (f := normal(6, 5)) @ f.T + torch.eye(6)

    @pytest.mark.parametrize("t", [0.0, 0.3, 5.0, 1e5, math.inf])
    def test_flow(self, kernel, normal, t):
        y, k_test = normal(6, 2), normal(3, 6).requires_grad_()
        kernel = kernel.requires_grad_()
        assert torch.autograd.gradcheck(
            lambda k, k_test: gradient_flow(k + k.T, y).predict(t, k_test), (kernel, k_test)
        )
        assert torch.autograd.gradcheck(lambda k: gradient_flow(k + k.T, y, ridge=0.1)(t), (kernel,))

    @pytest.mark.parametrize("momentum", [0.0, 0.9])
    def test_descent(self, kernel, normal, momentum):
        y, k_test, rule = normal(6, 2), normal(3, 6), {"learning_rate": 0.1, "momentum": momentum}
        for steps in (0, 1, [3, 50]):
            assert torch.autograd.gradcheck(
                lambda k, steps=steps: gradient_descent(k + k.T, y, **rule).predict(steps, k_test),
                (kernel.requires_grad_(),),
            )

    @pytest.mark.parametrize("t", [0.5, math.inf])
    def test_law(self, kernel, normal, t):
        y, nngp = normal(4), (normal(6, 6) + 8 * torch.eye(6)).requires_grad_()
        kernels = nngp, kernel.requires_grad_()
        assert torch.autograd.gradcheck(lambda a, b: ensemble_law(y, a + a.T, b + b.T)(t), kernels)
        assert torch.autograd.gradcheck(lambda a, b: ensemble_law(y, b + b.T, a + a.T)(t), kernels)

    def test_several_kernels_and_times(self, kernel, normal):
        y, both = normal(6, 2), torch.stack([kernel, 2 * kernel]).requires_grad_()
        assert torch.autograd.gradcheck(lambda k: gradient_flow(k + k.mT, y)(torch.tensor([0.5, 30.0])), (both,))
        assert torch.autograd.gradcheck(lambda k: gradient_descent(k + k.mT, y, learning_rate=0.1)([1, 4]), (both,))

    def test_second_derivatives_are_refused(self, kernel, normal):
        y, kernel = normal(6), kernel.requires_grad_()
        value = gradient_flow(kernel + kernel.T, y)(1.0).square().sum()
        (slope,) = torch.autograd.grad(value, kernel, create_graph=True)
        with pytest.raises(RuntimeError, match="once_differentiable"):
            slope.sum().backward()


def test_a_call_with_a_kernel_is_a_prediction_that_will_be_an_error(problem):
    k, y, k_test = problem["k"], problem["y"], problem["k_test"]
    for path, at in ((gradient_flow(k, y), 2.0), (gradient_descent(k, y, learning_rate=0.1), 3)):
        with pytest.warns(DeprecationWarning, match=r"expected predict"):
            assert torch.equal(path(at, k_test), path.predict(at, k_test))


class TestGradientFlow:
    @pytest.mark.parametrize("case", range(5))
    def test_against_the_reference(self, reference, case):
        config = json.loads(str(reference[f"pred{case}_config"]))
        k, k_test, y, f0, f0_test, train, test = arrays(
            reference, case, "k_dd_ntk", "k_td_ntk", "y_train", "f0_train", "f0_test", "gd_train", "gd_test"
        )
        ridge = config["diag_reg"]
        if not config["diag_reg_absolute_scale"]:
            ridge *= k.diagonal().mean().item()
        flow, t = gradient_flow(k, y, f0_train=f0, ridge=ridge), torch.from_numpy(reference["pred_t"])
        for where, computed, expected in [("train", flow(t), train), ("test", flow.predict(t, k_test, f0_test), test)]:
            error = (computed - expected).abs().max() / expected.abs().max()
            print(f"flow {case} {where}: {error:.1e}")
            assert error <= 1e-9

    def test_time_zero_is_the_initial_function_exactly(self, problem):
        flow = gradient_flow(problem["k"], problem["y"], f0_train=problem["f0"])
        assert torch.equal(flow(0), problem["f0"])
        assert torch.equal(flow.predict(0.0, problem["k_test"], problem["f0_test"]), problem["f0_test"])

    def test_infinite_time_is_kernel_regression(self, problem):
        k, y, f0, k_test, f0_test = (problem[key] for key in ("k", "y", "f0", "k_test", "f0_test"))
        for ridge in (0.0, 0.1):
            flow = gradient_flow(k, y, f0_train=f0, ridge=ridge)
            torch.testing.assert_close(flow(math.inf), y)
            expected = f0_test + kernel_ridge(k, y - f0, ridge)(k_test)
            torch.testing.assert_close(flow.predict(math.inf, k_test, f0_test), expected)

    def test_continued_flow(self, problem):
        k, y, f0, k_test, f0_test = (problem[key] for key in ("k", "y", "f0", "k_test", "f0_test"))
        flow = gradient_flow(k, y, f0_train=f0)
        later = gradient_flow(k, y, f0_train=flow(3.0))
        torch.testing.assert_close(later(4.0), flow(7.0))
        torch.testing.assert_close(
            later.predict(4.0, k_test, flow.predict(3.0, k_test, f0_test)), flow.predict(7.0, k_test, f0_test)
        )

    def test_against_an_ordinary_differential_equation(self, problem):
        """The classical Runge-Kutta method on f' = -K (f - y) / (n C), on training and test points."""
        k, y, f, k_test, f_test = (problem[key] for key in ("k", "y", "f0", "k_test", "f0_test"))
        flow, (n, outputs), step = gradient_flow(k, y, f0_train=f), y.shape, 0.01
        both, state = torch.cat([k, k_test]), torch.cat([f, f_test])

        def slope(state):
            return -both @ (state[:n] - y) / (n * outputs)

        for _ in range(500):
            a = slope(state)
            b = slope(state + step / 2 * a)
            c = slope(state + step / 2 * b)
            state = state + step / 6 * (a + 2 * b + 2 * c + slope(state + step * c))
        torch.testing.assert_close(
            torch.cat([flow(5.0), flow.predict(5.0, k_test, f_test)]), state, rtol=1e-9, atol=1e-10
        )

    def test_vector_of_times_gets_a_leading_axis(self, problem):
        k, y, f0, k_test, f0_test = (problem[key] for key in ("k", "y", "f0", "k_test", "f0_test"))
        t = torch.tensor([0.0, 1.0, 50.0, math.inf])
        flow = gradient_flow(k, y, f0_train=f0)
        assert flow(t).shape == (4, 12, 2)
        torch.testing.assert_close(
            flow.predict(t, k_test, f0_test), torch.stack([flow.predict(s, k_test, f0_test) for s in t])
        )

    @pytest.mark.parametrize("times", [2.0, torch.tensor([1.0, 3.0])])
    def test_ensembles_of_kernels_and_of_initial_functions(self, problem, times):
        k, y, f0, k_test, f0_test = (problem[key] for key in ("k", "y", "f0", "k_test", "f0_test"))
        kernels, tests = torch.stack([k, 3 * k]), torch.stack([k_test, 3 * k_test])
        starts, starts_test = torch.stack([f0, -f0]), torch.stack([f0_test, -f0_test])
        batch = gradient_flow(kernels, y, f0_train=starts).predict(times, tests, starts_test)
        shared = gradient_flow(k, y, f0_train=starts).predict(times, k_test, starts_test)
        for s, (one, start, start_test, one_test) in enumerate(zip(kernels, starts, starts_test, tests, strict=True)):
            single = gradient_flow(one, y, f0_train=start).predict(times, one_test, start_test)
            torch.testing.assert_close(batch[..., s, :, :], single)
            single = gradient_flow(k, y, f0_train=start).predict(times, k_test, start_test)
            torch.testing.assert_close(shared[..., s, :, :], single)

    def test_scalar_targets(self, problem):
        k, y, k_test = problem["k"], problem["y"][:, :1], problem["k_test"]
        vector, column = gradient_flow(k, y[:, 0]), gradient_flow(k, y)
        torch.testing.assert_close(vector(2.0), column(2.0)[:, 0])
        torch.testing.assert_close(vector.predict(2.0, k_test), column.predict(2.0, k_test)[:, 0])
        start = gradient_flow(k, y[:, 0], f0_train=problem["f0"][:, 0])
        assert start.predict(2.0, k_test, problem["f0_test"][:, 0]).shape == (5,)

    @pytest.mark.parametrize("t", [0.0, 10.0, 1e8, math.inf])
    def test_duplicate_points_and_a_zero_kernel_stay_finite(self, problem, t):
        rows = torch.arange(24) % 12
        k, y, k_test = problem["k"][rows][:, rows], problem["y"][rows], problem["k_test"][:, rows]
        doubled, once = gradient_flow(k, y), gradient_flow(problem["k"], problem["y"])
        # Twice the points, twice the kernel's eigenvalues, twice the n that divides them: the same flow.
        torch.testing.assert_close(doubled(t), once(t)[rows], rtol=1e-7, atol=1e-9)
        torch.testing.assert_close(doubled.predict(t, k_test), once.predict(t, problem["k_test"]), rtol=1e-7, atol=1e-9)
        still = gradient_flow(torch.zeros_like(k), y, f0_train=y + 1)
        assert torch.equal(still(t), y + 1)

    def test_conflicting_duplicates_go_to_their_mean(self, problem):
        rows = torch.tensor([0, 0])
        flow = gradient_flow(problem["k"][rows][:, rows], torch.tensor([1.0, 3.0], dtype=torch.float64))
        torch.testing.assert_close(flow(math.inf), torch.full((2,), 2.0, dtype=torch.float64))


class TestGradientDescent:
    @pytest.mark.parametrize("momentum", [0.0, 0.5, 0.9])
    def test_step_by_step(self, problem, momentum):
        """Heavy ball as in torch.optim.SGD, on training and test points, over rates below and above monotone ones."""
        k, y, f0, k_test, f0_test = (problem[key] for key in ("k", "y", "f0", "k_test", "f0_test"))
        both, size = torch.cat([k, k_test]), y.numel()
        for fraction in (0.01, 0.4, 0.99):
            rate = fraction * (1 + momentum) * 2 * size / torch.linalg.eigvalsh(k)[-1].item()
            descent = gradient_descent(k, y, learning_rate=rate, momentum=momentum, f0_train=f0)
            f, velocity, path = torch.cat([f0, f0_test]), 0.0, []
            for _ in range(501):
                path.append(f)
                velocity = momentum * velocity + both @ (f[:12] - y) / size
                f = f - rate * velocity
            for steps in (0, 1, 2, 50, 500):
                torch.testing.assert_close(descent(steps), path[steps][:12], rtol=1e-10, atol=1e-11)
                torch.testing.assert_close(
                    descent.predict(steps, k_test, f0_test), path[steps][12:], rtol=1e-10, atol=1e-11
                )

    @pytest.mark.parametrize("momentum", [0.0, 0.8])
    def test_a_trained_linear_model(self, normal, momentum):
        """Of several outputs, all pairs of which have a kernel: `linearize`, trained for 300 steps."""
        net, x, y = MLP(3, 8, 1, 2, seed=0), normal(6, 3), normal(6, 2)
        k, model = flatten_outputs(empirical_ntk(net, x)), linearize(net)
        options = {"learning_rate": 0.9 * (1 + momentum) * max_learning_rate(k).item(), "momentum": momentum}
        descent = gradient_descent(k, y.flatten(), **options, f0_train=net(x).detach().flatten())
        train(model, x, y, **options, steps=300)
        torch.testing.assert_close(descent(300), model(x).detach().flatten(), rtol=1e-10, atol=1e-10)

    def test_small_steps_follow_the_flow(self, problem):
        k, y, k_test = problem["k"], problem["y"], problem["k_test"]
        flow = gradient_flow(k, y).predict(3.0, k_test)
        errors = [
            (gradient_descent(k, y, learning_rate=3.0 / steps).predict(steps, k_test) - flow).abs().max().item()
            for steps in (100, 1000)
        ]
        assert 9 < errors[0] / errors[1] < 11  # the method is of first order

    def test_many_steps_interpolate(self, problem):
        k, y, k_test = problem["k"], problem["y"], problem["k_test"]
        descent = gradient_descent(k, y, learning_rate=0.5 * 24 / torch.linalg.eigvalsh(k)[-1].item(), momentum=0.9)
        torch.testing.assert_close(descent(10**6), y, rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(
            descent.predict(10**6, k_test), kernel_ridge(k, y, 0.0)(k_test), rtol=1e-7, atol=1e-7
        )

    def test_several_numbers_of_steps_and_ensembles(self, problem):
        k, y, k_test = problem["k"], problem["y"], problem["k_test"]
        kernels, tests = torch.stack([k, 2 * k]), torch.stack([k_test, 2 * k_test])
        batch = gradient_descent(kernels, y, learning_rate=1.0).predict([0, 3, 20], tests)
        assert batch.shape == (3, 2, 5, 2)
        for s in range(2):
            single = gradient_descent(kernels[s], y, learning_rate=1.0)
            torch.testing.assert_close(batch[2, s], single.predict(20, tests[s]))
        assert torch.equal(batch[0], torch.zeros(2, 5, 2, dtype=torch.float64))

    def test_singular_and_zero_kernels_stay_finite(self, problem):
        rows = torch.arange(24) % 12
        k, y, k_test = problem["k"][rows][:, rows], problem["y"][rows], problem["k_test"][:, rows]
        once = gradient_descent(problem["k"], problem["y"], learning_rate=1.0)
        doubled = gradient_descent(k, y, learning_rate=1.0)
        torch.testing.assert_close(
            doubled.predict(10**5, k_test), once.predict(10**5, problem["k_test"]), rtol=1e-7, atol=1e-8
        )
        still = gradient_descent(torch.zeros_like(k), y, learning_rate=1e9)
        assert torch.equal(still(100), torch.zeros_like(y))

    @pytest.mark.parametrize(
        ("options", "steps", "message"),
        [
            ({"learning_rate": 6.0}, 1, "learning_rate: expected below 6, where descent diverges, got 6.0"),
            ({"learning_rate": 9.0, "momentum": 0.5}, 1, "learning_rate: expected below 9, where descent diverges"),
            ({"learning_rate": 0.0}, 1, "learning_rate: expected a positive finite number, got 0.0"),
            ({"learning_rate": 1.0, "momentum": 1.0}, 1, "momentum: expected a number below 1, got 1.0"),
            ({"learning_rate": 1.0, "momentum": -0.1}, 1, "momentum: expected a finite number, zero or above"),
            ({"learning_rate": 1.0}, 1.5, "steps: expected an integer or a sequence of integers, got 1.5"),
            ({"learning_rate": 1.0}, "a", "steps: expected an integer or a sequence of integers, got 'a'"),
            ({"learning_rate": 1.0}, [1, -1], "steps: expected .* zero or above"),
        ],
    )
    def test_refusals(self, options, steps, message):
        with pytest.raises((TypeError, ValueError), match=message):
            gradient_descent(EYE, Y, **options)(steps)


class TestEnsembleLaw:
    @pytest.mark.parametrize("kind", ["nngp", "ntk"])
    @pytest.mark.parametrize("case", range(5))
    def test_against_the_reference(self, reference, case, kind):
        config = json.loads(str(reference[f"pred{case}_config"]))
        y, mean, covariance = arrays(reference, case, "y_train", f"ens_{kind}_mean", f"ens_{kind}_cov")
        joint = {}
        for name in ("nngp", "ntk"):
            dd, td, tt = arrays(reference, case, f"k_dd_{name}", f"k_td_{name}", f"k_tt_{name}")
            joint[name] = torch.cat([torch.cat([dd, td.T], 1), torch.cat([td, tt], 1)])
        ridge, n = config["diag_reg"], len(y)
        if not config["diag_reg_absolute_scale"]:
            ridge *= joint[kind][:n, :n].diagonal().mean().item()
        law = ensemble_law(y, joint["nngp"], joint["ntk"] if kind == "ntk" else None, ridge=ridge)
        times = torch.from_numpy(reference["ens_t"])
        computed = law(times)
        of_mean = (computed.mean - mean).abs().max() / mean.abs().max()
        of_covariance = (computed.covariance - covariance).abs().max() / joint["nngp"].abs().max()
        print(f"law {case} {kind}: mean {of_mean:.1e}, covariance {of_covariance:.1e}")
        assert of_mean <= 1e-9
        assert of_covariance <= 1e-9
        for single, t in zip(computed.covariance, times, strict=True):
            torch.testing.assert_close(law(t).covariance, single)
            assert torch.equal(single, single.mT)
            assert torch.linalg.eigvalsh(single)[0] > -1e-12 * joint["nngp"].abs().max()

    def test_between_the_prior_and_the_posterior(self, normal):
        x, y = normal(9, 3), normal(6)
        k = kernels(x, depth=2, b_std=0.1)
        for ntk in (None, k.ntk):
            start = ensemble_law(y, k.nngp, ntk)(0.0)
            assert torch.equal(start.mean, torch.zeros(3, dtype=torch.float64))
            torch.testing.assert_close(start.covariance, k.nngp[6:, 6:])
        end = ensemble_law(y, k.nngp)(math.inf)
        posterior = k.nngp[6:, 6:] - kernel_ridge(k.nngp[:6, :6], k.nngp[:6, 6:], 0.0)(k.nngp[6:, :6])
        torch.testing.assert_close(end.covariance, posterior)
        torch.testing.assert_close(end.mean, kernel_ridge(k.nngp[:6, :6], y, 0.0)(k.nngp[6:, :6]))

    def test_against_trained_networks(self, normal):
        """1,000 networks of width 256, their mean and spread: to three standard errors, and what width leaves."""
        x, y, t, members = normal(5, 2), normal(3), 6.0, 1000
        k = kernels(x, depth=1, b_std=0.1, activation="erf")
        law = ensemble_law(y, k.nngp, k.ntk)(t)
        net = MLP(2, 256, 1, b_std=0.1, activation="erf", seeds=range(members))
        train(net, x[:3], y.unsqueeze(1), learning_rate=0.1, steps=60)
        f = net(x[3:]).detach().squeeze(-1)
        error = law.covariance.diagonal().sqrt() / members**0.5
        assert ((f.mean(0) - law.mean).abs() < 3 * error + 0.01).all()
        torch.testing.assert_close(f.T.cov(), law.covariance, rtol=0.15, atol=0.02)

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ((Y_LONG, NNGP[:3, :3]), r"nngp: expected shape \(N, N\), N > 3, got \(3, 3\)"),
            ((Y_LONG, NNGP, NNGP[:4, :4]), r"ntk: expected shape"),
            ((Y_LONG.float(), NNGP), "nngp: expected torch.float32, the dtype of y_train"),
            ((Y_LONG, -NNGP), "k_train_train: expected a positive semi-definite matrix"),
        ],
    )
    def test_refusals(self, arguments, message):
        with pytest.raises((TypeError, ValueError), match=message):
            ensemble_law(*arguments)


class TestMaxLearningRate:
    def test_is_where_gradient_descent_turns(self, problem):
        k, y = problem["k"], problem["y"][:, 0]
        bound = max_learning_rate(k)
        growth = []
        for factor in (0.99, 1.01):
            f = torch.zeros_like(y)
            for _ in range(3000):
                f = f - factor * bound * k @ (f - y) / len(y)
            growth.append((f - y).norm())
        assert growth[0] < y.norm() < growth[1]

    def test_of_an_ensemble(self, problem):
        k = problem["k"]
        bounds = max_learning_rate(torch.stack([k, 2 * k]))
        torch.testing.assert_close(bounds[0], 2 * bounds[1])

    def test_of_several_outputs(self, normal):
        net, x = MLP(3, 8, 1, 2, seed=0), normal(5, 3)
        gram = flatten_outputs(empirical_ntk(net, x))
        j = jacobian(net, x).reshape(10, -1)
        torch.testing.assert_close(gram, j @ j.T)
        torch.testing.assert_close(max_learning_rate(gram), 20 / torch.linalg.matrix_norm(j, 2) ** 2)

    @pytest.mark.parametrize("shape", [(1, 1), (2, 1), (7, 1), (7, 3)])
    def test_without_the_kernel(self, normal, shape):
        net, x = MLP(3, 16, 2, shape[1], seed=0), normal(shape[0], 3)
        bound = max_learning_rate(lambda v: ntk_vector_product(net, x, v), like=normal(*shape))
        dense = max_learning_rate(flatten_outputs(empirical_ntk(net, x)))
        torch.testing.assert_close(bound, dense, rtol=1e-10, atol=0)

    def test_zero_kernel(self, normal):
        assert max_learning_rate(torch.zeros(3, 3)) == math.inf
        for n in (1, 2, 5):
            assert max_learning_rate(torch.zeros_like, like=normal(n)) == math.inf


EYE = torch.eye(3, dtype=torch.float64)
Y = torch.ones(3, 1, dtype=torch.float64)
BAD_PROBLEMS = [
    ({"k_train_train": EYE[:2]}, r"k_train_train: expected shape \(n, n\) or \(S, n, n\), got \(2, 3\)"),
    ({"k_train_train": EYE.tolist()}, "k_train_train: expected a torch.Tensor, got list"),
    ({"k_train_train": EYE.long()}, "k_train_train: expected a floating-point dtype, got torch.int64"),
    ({"k_train_train": EYE.triu() + EYE.roll(1, 0).triu()}, "k_train_train: expected a symmetric matrix, got entries"),
    ({"k_train_train": EYE * torch.nan}, "k_train_train: expected finite values, got 9 NaN or infinite of 9"),
    ({"y_train": Y[:2]}, r"y_train: expected shape \(3, C\) or \(S, 3, C\), got \(2, 1\)"),
    ({"y_train": Y[:2, 0]}, r"y_train: expected shape \(3\), got \(2,\)"),
    ({"y_train": Y.float()}, "y_train: expected torch.float64, the dtype of k_train_train, got torch.float32"),
    ({"y_train": Y.to("meta")}, "y_train: expected device cpu, that of k_train_train, got meta"),
    ({"y_train": Y / 0}, "y_train: expected finite values, got 3 NaN or infinite of 3"),
    ({"ridge": -1e-9}, "ridge: expected a finite number, zero or above, got -1e-09"),
    ({"ridge": None}, "ridge: expected a number, got None"),
    ({"k_train_train": EYE[:0, :0], "y_train": Y[:0]}, r"k_train_train: expected shape .*got \(0, 0\)"),
    ({"k_train_train": torch.zeros(3, 3, 2, 2)}, "k_train_train: expected shape .*see flatten_outputs"),
    ({"k_train_train": EYE.expand(2, 3, 3), "y_train": Y.expand(4, 3, 1)}, r"y_train: expected .*\(2, 3, C\)"),
    ({"ridge": math.nan}, "ridge: expected a finite number, zero or above, got nan"),
]


@pytest.mark.parametrize("function", [kernel_ridge, gradient_flow])
@pytest.mark.parametrize(("changes", "message"), BAD_PROBLEMS)
def test_refused_problems(function, changes, message):
    arguments = {"k_train_train": EYE, "y_train": Y, "ridge": 0.0} | changes
    with pytest.raises((TypeError, ValueError), match=message):
        function(**arguments)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: gradient_flow(EYE, Y, f0_train=Y[:, 0]),
            r"f0_train: expected shape \(3, 1\) or \(S, 3, 1\)",
        ),
        (
            lambda: gradient_flow(EYE, Y[:, 0], f0_train=Y[:1, 0]),
            r"f0_train: expected shape \(3\) or \(S, 3\), got \(1",
        ),
        (
            lambda: gradient_flow(-EYE, Y),
            "k_train_train: expected a positive semi-definite matrix, got an eigenvalue of",
        ),
        (
            lambda: ensemble_law(Y[:2], -EYE, EYE),
            "nngp: expected a positive semi-definite matrix, got an eigenvalue of -1",
        ),
        (lambda: gradient_flow(EYE, Y)(-1.0), "t: expected a number or 1-d tensor, zero or above, got -1.0"),
        (lambda: gradient_flow(EYE, Y)(math.nan), "t: expected a number or 1-d tensor, zero or above, got nan"),
        (lambda: gradient_flow(EYE, Y)(EYE), "t: expected a number or 1-d tensor"),
        (lambda: gradient_flow(EYE, Y)("a"), "t: expected a number or 1-d tensor, got 'a'"),
        # A kernel for each of two times, or members of an ensemble without their axis, would broadcast in silence.
        (
            lambda: gradient_flow(EYE, Y).predict(torch.ones(2), EYE.expand(2, 3, 3)),
            r"k_test_train: expected shape \(m, 3\)",
        ),
        (
            lambda: gradient_flow(EYE.expand(2, 3, 3), Y).predict(1.0, EYE),
            r"k_test_train: expected shape \(2, m, 3\), got",
        ),
        (lambda: kernel_ridge(EYE.expand(2, 3, 3), Y, 0.0)(EYE), r"k_test_train: expected shape \(2, m, 3\), got"),
        (
            lambda: gradient_flow(EYE, Y, f0_train=Y.expand(2, 3, 1)).predict(1.0, EYE, Y),
            r"f0_test: expected shape \(2, 3",
        ),
        (lambda: max_learning_rate(torch.zeros(3, 3, 1, 1)), "kernel: expected shape .*see flatten_outputs"),
        (lambda: max_learning_rate(torch.zeros_like), "like: expected a tensor where kernel is a function"),
        (lambda: max_learning_rate(EYE, like=Y), "like: expected a tensor where kernel is a function, and only there"),
        (lambda: flatten_outputs(EYE), r"kernel: expected shape \(n1, n2, C, C\)"),
        (
            lambda: gradient_flow(EYE, Y).predict(1.0, EYE[:, :2]),
            r"k_test_train: expected shape \(m, 3\), got \(3, 2\)",
        ),
        (lambda: gradient_flow(EYE, Y, f0_train=Y).predict(1.0, EYE), "f0_test: expected the initial function"),
        (lambda: gradient_flow(EYE, Y).predict(1.0, EYE, Y), "f0_test: expected None"),
        (
            lambda: gradient_flow(EYE, Y, f0_train=Y).predict(1.0, EYE, Y[:2]),
            r"f0_test: expected shape \(3, 1\), got \(2, 1\)",
        ),
        (lambda: gradient_flow(EYE, Y).predict(1.0, None), "k_test_train: expected a torch.Tensor, got NoneType"),
        (
            lambda: gradient_flow(EYE.half(), Y.half()),
            "k_train_train: expected torch.float32 or torch.float64, got torch.float16",
        ),
        (lambda: kernel_ridge(EYE, Y, 0.0)(EYE.float()), "k_test_train: expected torch.float64"),
        (lambda: kernel_ridge(EYE, Y, 0.0)(EYE[:, 1:]), r"k_test_train: expected shape \(m, 3\), got \(3, 2\)"),
        (lambda: max_learning_rate(EYE[:2]), r"kernel: expected shape \(N, N\) or \(S, N, N\), got \(2, 3\)"),
    ],
)
def test_refused_calls(call, message):
    with pytest.raises((TypeError, ValueError), match=message):
        call()


def test_what_is_solved_says_what_it_is(problem):
    k, y = problem["k"], problem["y"]
    both = torch.stack([k, k])
    assert repr(gradient_flow(k, y)) == "GradientFlow(n=12, C=2, torch.float64)"
    assert repr(kernel_ridge(k.float(), y[:, 0].float(), 1.0)) == "KernelRidge(n=12, C=1, torch.float32)"
    assert (
        repr(gradient_descent(both, y, learning_rate=0.1)) == "GradientDescent(2 problems of n=12, C=2, torch.float64)"
    )
    assert repr(ensemble_law(Y_LONG, NNGP)) == "EnsembleLaw(2 points, GradientFlow(n=3, C=1, torch.float64))"
    assert gradient_flow(k, y) != gradient_flow(k, y)  # of tensors, no truth value


@pytest.mark.parametrize("t", [0.0, 3.0])
def test_where_the_kernel_is_zero_predictions_grow_with_time(t):
    """(1 - exp(-lambda t)) / lambda is t at lambda = 0: with K = 0 on the training points, f(x) = t k(x, X) y / n."""
    k_test = torch.tensor([[1.0, 2.0, 3.0]], dtype=torch.float64)
    flow = gradient_flow(torch.zeros(3, 3, dtype=torch.float64), Y_LONG)
    assert flow.predict(t, k_test).item() == pytest.approx(t * 6 / 3)
    assert flow.predict(math.inf, k_test).item() == 0  # the pseudo-inverse
    assert torch.equal(flow(t), torch.zeros(3, dtype=torch.float64))


def test_rounding_below_zero_is_no_learning_rate():
    """A kernel that is zero to rounding has no largest stable learning rate, whatever the sign of the rounding."""
    assert max_learning_rate(-1e-30 * torch.eye(2, dtype=torch.float64)) == math.inf
    like = torch.ones(3, dtype=torch.float64)
    assert max_learning_rate(lambda v: -1e-30 * v, like=like) == math.inf


@pytest.mark.parametrize(("dtype", "fine", "wrong"), [(torch.float64, 1e-9, 1e-7), (torch.float32, 1e-4, 1e-3)])
def test_kernels_are_symmetric_to_half_the_digits(dtype, fine, wrong):
    y, skew = torch.ones(2, dtype=dtype), torch.tensor([[0.0, 1.0], [0.0, 0.0]], dtype=dtype)
    kernel_ridge(torch.eye(2, dtype=dtype) + fine * skew, y, 0.1)
    with pytest.raises(ValueError, match="k_train_train: expected a symmetric matrix, got entries that differ by"):
        kernel_ridge(torch.eye(2, dtype=dtype) + wrong * skew, y, 0.1)


def test_pivots_are_judged_beside_the_ridge():
    """Where a ridge is all there is beside a much larger matrix of ones, the pivots tell whether it was lost."""
    ones, y = torch.ones(3, 3, dtype=torch.float64), torch.ones(3, dtype=torch.float64)
    torch.testing.assert_close(kernel_ridge(ones, y, 1e-9)(ones), y, rtol=1e-6, atol=0)
    with pytest.raises(torch.linalg.LinAlgError, match="singular to rounding"):
        kernel_ridge(ones, y, 1e-15)
    with pytest.raises(torch.linalg.LinAlgError, match=r"ridge=1e\+20"):
        kernel_ridge(-1e20 * torch.eye(3, dtype=torch.float64), y, 1e20)


def test_several_starts_for_targets_without_an_output_axis():
    k, y = torch.diag(torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64)), Y_LONG
    starts, starts_test = torch.stack([y, -y]), torch.tensor([[1.0, 2.0], [3.0, 4.0]], dtype=torch.float64)
    predicted = gradient_flow(k, y, f0_train=starts).predict(3.0, k[:2], starts_test)
    torch.testing.assert_close(predicted[0], starts_test[0])  # where it fits from the start, it stays
    moved = 2 * y[:2] * (1 - torch.exp(-k.diagonal()[:2]))  # t / n = 1
    torch.testing.assert_close(predicted[1], starts_test[1] + moved)
