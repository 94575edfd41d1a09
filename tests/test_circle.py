import math

import numpy as np
import pytest
import torch

from ntk_helpers import kernels
from ntk_helpers.circle import (
    SEVEN_MODES,
    FourierMixture,
    circle_eigenvalues,
    circle_points,
    coordinate_product,
    grid_angles,
    harmonics,
    random_angles,
)

PI = math.pi


def test_grid():
    torch.testing.assert_close(grid_angles(4), torch.tensor([-PI, -PI / 2, 0, PI / 2], dtype=torch.float64))
    x = circle_points(grid_angles(360))
    torch.testing.assert_close(x.norm(dim=1), torch.ones(360, dtype=torch.float64))
    torch.testing.assert_close(torch.atan2(x[1:, 1], x[1:, 0]), grid_angles(360)[1:])


def test_random_angles():
    angles = random_angles(2000, seed=0)
    assert angles.min() >= -PI
    assert angles.max() < PI
    assert torch.equal(angles, random_angles(2000, seed=0))
    assert not torch.equal(angles, random_angles(2000, seed=1))
    x = circle_points(angles)
    assert x.mean(0).norm() < 4 / math.sqrt(2000)  # of standard deviation 1 / sqrt(2000)
    chosen = random_angles(64, seed=3, grid=360)
    assert len(set(chosen.tolist())) == 64
    assert set(chosen.tolist()) <= set(grid_angles(360).tolist())
    assert torch.equal(chosen, random_angles(64, seed=3, grid=360))
    assert not torch.equal(chosen, random_angles(64, seed=4, grid=360))
    assert (chosen.diff() > 0).all()
    assert chosen.min() < -2
    assert chosen.max() > 2
    assert torch.equal(random_angles(360, seed=0, grid=360), grid_angles(360))


def test_dtype_is_that_of_the_angles():
    angles = grid_angles(8).float()
    assert circle_points(angles).dtype == SEVEN_MODES(angles).dtype == torch.float32
    assert harmonics(angles).amplitude.dtype == harmonics(angles).phase.dtype == torch.float32


@pytest.mark.parametrize("n", [3, 4, 5, 8, 360])
def test_phases_lie_above_minus_pi(n):
    phase = harmonics(-torch.sin(grid_angles(n))).phase
    assert phase[1].item() == pytest.approx(PI)
    assert (phase > -PI).all()


def test_coordinate_product_is_half_the_second_harmonic():
    angles = random_angles(20, seed=0)
    torch.testing.assert_close(coordinate_product(circle_points(angles)), torch.sin(2 * angles) / 2)


def test_mixture_is_the_formula():
    angles = random_angles(20, seed=0)
    mixture = FourierMixture((0, 3), (0.5, 2.0), (PI / 2, -0.7))
    torch.testing.assert_close(mixture(angles), 0.5 + 2 * torch.sin(3 * angles - 0.7))
    phases = [0.0, PI / 2, 1.2, 2.0, 0.3 * PI, 4.5, 5.8]
    terms = (torch.sin(k * angles + p) / math.sqrt(k) for k, p in zip((2, 4, 7, 11, 16, 23, 32), phases, strict=True))
    torch.testing.assert_close(SEVEN_MODES(angles), sum(terms))


@pytest.mark.parametrize("n", [65, 360])
def test_harmonics_of_a_mixture(n):
    found = harmonics(torch.stack([SEVEN_MODES(grid_angles(n)), 0 * grid_angles(n) - 3]))
    assert found.amplitude.shape == found.phase.shape == (2, n // 2 + 1)
    amplitude = torch.zeros(n // 2 + 1, dtype=torch.float64)
    amplitude[list(SEVEN_MODES.modes)] = torch.tensor(SEVEN_MODES.amplitudes, dtype=torch.float64)
    torch.testing.assert_close(found.amplitude[0], amplitude, atol=1e-13, rtol=0)
    phase = torch.tensor([math.remainder(p, 2 * PI) for p in SEVEN_MODES.phases], dtype=torch.float64)
    torch.testing.assert_close(found.phase[0][list(SEVEN_MODES.modes)], phase)
    assert found.amplitude[1, 0] == pytest.approx(3)
    assert found.phase[1, 0] == pytest.approx(-PI / 2)


@pytest.mark.parametrize("n", [1, 2, 7, 8])
def test_harmonics_give_back_the_function(n):
    values = torch.randn(3, n, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    amplitude, phase = harmonics(values)
    waves = torch.sin(grid_angles(n).unsqueeze(1) * torch.arange(n // 2 + 1) + phase.unsqueeze(1))
    torch.testing.assert_close((waves * amplitude.unsqueeze(1)).sum(-1), values)


# Eigenvalues of one hidden layer of ReLUs in closed form. For the first layer trained alone, without bias and with one
# that starts at zero: Basri et al. 2019. For both layers: the same integrals, of the kernel of the package.
EVEN = torch.arange(2, 200, 2, dtype=torch.float64)
ODD = torch.arange(3, 200, 2, dtype=torch.float64)


def profile(x, b_std):
    return kernels(x[:1], x, depth=1, w_std=1.0, b_std=b_std)


def without_bias(x):
    k = profile(x, 0.0)
    return 2 * (k.ntk - k.nngp)[0]  # they write x . x' where ours is over the two dimensions


def with_bias(x):
    distance = grid_angles(len(x)) + PI
    distance = torch.minimum(distance, 2 * PI - distance)
    return (torch.cos(distance) + 1) * (PI - distance) / (4 * PI)


def both_layers(x):
    return profile(x, 0.0).ntk[0]


@pytest.mark.parametrize(
    ("kernel", "first", "even", "odd"),
    [
        (without_bias, [1 / PI**2, 1 / 8], (EVEN**2 + 1) / (PI**2 * (EVEN**2 - 1) ** 2), 0 * ODD),
        (
            with_bias,
            [1 / (2 * PI**2) + 1 / 8, 1 / 16 + 1 / (2 * PI**2)],
            (EVEN**2 + 1) / (2 * PI**2 * (EVEN**2 - 1) ** 2),
            1 / (2 * PI**2 * ODD**2),
        ),
        (both_layers, [3 / (2 * PI**2), 1 / 8], (EVEN**2 + 3) / (2 * PI**2 * (EVEN**2 - 1) ** 2), 0 * ODD),
    ],
)
def test_eigenvalues_in_closed_form(kernel, first, even, odd):
    found = circle_eigenvalues(kernel(circle_points(grid_angles(2**20))))
    assert len(found) == 2**19 + 1
    torch.testing.assert_close(found[:2], torch.tensor(first, dtype=torch.float64), atol=1e-12, rtol=0)
    torch.testing.assert_close(found[2:200:2], even, atol=1e-12, rtol=0)
    torch.testing.assert_close(found[3:200:2], odd, atol=1e-12, rtol=0)


@pytest.mark.parametrize(
    ("b_std", "expected"),  # computed by independent scripts
    [
        (0.1, {0: 1.66e-1, 1: 1.29e-1, 2: 3.75e-2, 3: 1.15e-3, 7: 3.97e-4, 16: 1.05e-4, 32: 2.51e-5}),
        (1.0, {0: 1.95e0, 1: 2.31e-1, 2: 2.34e-2, 3: 6.05e-3, 7: 9.30e-4, 16: 1.73e-4, 32: 4.29e-5}),
    ],
)
def test_eigenvalues_with_random_biases(b_std, expected):
    found = circle_eigenvalues(profile(circle_points(grid_angles(2**16)), b_std).ntk[0])
    for k, value in expected.items():
        assert found[k].item() == pytest.approx(value, rel=5e-3)


def test_eigenvalues_of_a_grid_are_those_of_its_gram_matrix():
    x = circle_points(grid_angles(40))
    gram = kernels(x, depth=2, b_std=0.3).ntk
    found = circle_eigenvalues(gram[0])
    doubled = torch.cat([found, found[1:-1]]).sort().values
    torch.testing.assert_close(40 * doubled, torch.linalg.eigvalsh(gram))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"modes": (1, 2)}, "amplitudes: expected 2 of them, one for each mode, got 1"),
        ({"phases": (1.0, 2.0)}, "phases: expected 1 of them, one for each mode, got 2"),
        ({"modes": (1.0,)}, "modes: expected an int, got float"),
        ({"modes": (-1,)}, "modes: expected at least 0, got -1"),
        ({"amplitudes": (math.nan,)}, "amplitudes: expected finite values, got 1 NaN"),
        ({"phases": ("0",)}, "phases: expected a number, got '0'"),
    ],
)
def test_refused_mixtures(changes, message):
    with pytest.raises((TypeError, ValueError), match=message):
        FourierMixture(**({"modes": (1,), "amplitudes": (1.0,), "phases": (0.0,)} | changes))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: grid_angles(0), "n: expected at least 1, got 0"),
        (lambda: random_angles(5, seed=None), "seed: expected an int, got NoneType"),
        (lambda: random_angles(5, seed=0, grid=4), "grid: expected at least 5, got 4"),
        (lambda: circle_points([0.0]), "angles: expected a torch.Tensor, got list"),
        (lambda: circle_points(torch.zeros(3, 1)), r"angles: expected shape \(n\), got \(3, 1\)"),
        (lambda: coordinate_product(torch.zeros(3, 3)), r"x: expected shape \(n, 2\), got \(3, 3\)"),
        (lambda: SEVEN_MODES(torch.zeros(3, dtype=torch.int64)), "angles: expected a floating-point dtype"),
        (lambda: circle_eigenvalues(torch.tensor([0.5, 1.0, 1.0])), r"positive semi-definite .* eigenvalue of -0.167"),
        (lambda: circle_eigenvalues(torch.tensor([0.5, -1.0, -1.0])), r"positive semi-definite .* eigenvalue of -0.5"),
        (lambda: circle_eigenvalues(torch.tensor([1.0, 0.5, 0.499])), r"equal values at j and N - j, .* by 0.001"),
        (lambda: circle_eigenvalues(torch.tensor([1.0, 0.5, 0.2])), r"equal values at j and N - j, .* differ by 0.3"),
        (lambda: harmonics([1.0, 2.0]), "values: expected a torch.Tensor, got list"),
        (lambda: harmonics(torch.zeros(2, 0)), r"values: expected shape \(..., N\) with N > 0, got \(2, 0\)"),
        (lambda: harmonics(torch.tensor([math.nan])), "values: expected finite values, got 1 NaN"),
    ],
)
def test_refusals(call, message):
    with pytest.raises((TypeError, ValueError), match=message):
        call()


def test_integers_of_numpy_and_torch():
    for integer in (np.int64, torch.tensor):
        assert torch.equal(grid_angles(integer(5)), grid_angles(5))
        for options in ({}, {"grid": 8}):
            found = random_angles(integer(4), seed=integer(3), **{k: integer(v) for k, v in options.items()})
            assert torch.equal(found, random_angles(4, seed=3, **options))
        assert FourierMixture((integer(2), integer(3)), (1.0, 1.0), (0.0, 0.0)).modes == (2, 3)


def test_default_device():
    """Draws are made on the CPU, and go where PyTorch puts what is made without a device."""
    with torch.device("meta"):
        assert [a.device.type for a in (random_angles(4, seed=0), random_angles(4, seed=0, grid=8))] == ["meta"] * 2
        assert FourierMixture((2,), (1.0,), (0.0,)).modes == (2,)
