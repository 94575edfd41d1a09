import math
import pickle

import numpy as np
import pytest
import torch

from ntk_helpers import MLP, empirical_ntk, train
from ntk_helpers.models import ACTIVATIONS


def test_ntk_parameterization_is_the_formula(normal):
    x = normal(5, 3)
    net = MLP(3, 7, 2, 2, w_std=1.3, b_std=0.4, activation="tanh", seed=1)
    h, fan_ins = x, [3, 7, 7]
    for layer, fan_in in enumerate(fan_ins):
        z = 1.3 / math.sqrt(fan_in) * h @ net.weights[layer].T + 0.4 * net.biases[layer]
        h = torch.tanh(z)
    torch.testing.assert_close(net(x), z)


def test_both_parameterizations_start_as_the_same_function(normal):
    x = normal(5, 3)
    ntk, standard = (MLP(3, 8, 2, seed=0, parameterization=p) for p in ("ntk", "standard"))
    torch.testing.assert_close(ntk(x), standard(x))


@pytest.mark.parametrize("depth", [0, 1, 3])
def test_member_of_an_ensemble_is_the_single_network(normal, depth):
    x, seeds = normal(5, 3), [4, 9, 2]
    ensemble = MLP(3, 16, depth, 2, seeds=seeds)
    assert ensemble(x).shape == (3, 5, 2)
    for member, seed in zip(ensemble(x), seeds, strict=True):
        torch.testing.assert_close(member, MLP(3, 16, depth, 2, seed=seed)(x))


@pytest.mark.parametrize("start", [{"seed": 0}, {"seeds": [0, 1]}])
@pytest.mark.parametrize("depth", [0, 1, 3])
def test_antisymmetric_start_is_zero_with_the_same_kernel(normal, depth, start):
    x = normal(5, 3)
    plain = MLP(3, 16, depth, 2, **start)
    net = MLP(3, 16, depth, 2, antisymmetric=True, **start)
    assert (net(x) == 0).all()
    assert len(list(net.parameters())) == 2 * len(list(plain.parameters()))
    torch.testing.assert_close(empirical_ntk(net, x), empirical_ntk(plain, x))
    with torch.no_grad():
        net.weights[0].mul_(2)
    assert (net(x) != 0).all()  # the two have parameters of their own


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_copies_and_pickles(normal, activation):
    x, net = normal(5, 3), MLP(3, 8, 2, seed=0, activation=activation, antisymmetric=True, output_scale=2.0)
    torch.testing.assert_close(pickle.loads(pickle.dumps(net)).twin(x), net.twin(x))
    torch.testing.assert_close(net.twin(x), MLP(3, 8, 2, seed=0, activation=activation)(x))


def test_weights_and_data_of_one_seed_are_independent():
    """Each is drawn from a stream of its own: over 400 seeds, the first numbers of both are uncorrelated."""
    weights = torch.stack([MLP(2, 2, 1, seed=seed).weights[0].detach().flatten() for seed in range(400)])
    uniform = torch.stack([torch.rand(4, generator=_generator(seed), dtype=torch.float64) for seed in range(400)])
    normals = torch.stack([torch.randn(4, generator=_generator(seed), dtype=torch.float64) for seed in range(400)])
    for draws in (uniform, torch.cos(2 * math.pi * uniform), normals):
        assert torch.corrcoef(torch.cat([weights, draws], 1).T)[:4, 4:].abs().max() < 5 / math.sqrt(400)


def _generator(seed):
    return torch.Generator().manual_seed(seed)


def test_output_scale_and_learning_rate(normal):
    """The scale alpha at the learning rate eta / alpha^2: the linear model takes the same steps."""
    x, y = normal(6, 3), normal(6, 1)
    plain = MLP(3, 16, 0, seed=0, antisymmetric=True)
    scaled = MLP(3, 16, 0, seed=0, antisymmetric=True, output_scale=3.0)
    train(plain, x, y, learning_rate=0.09, steps=30)
    train(scaled, x, y, learning_rate=0.01, steps=30)
    torch.testing.assert_close(plain(x), scaled(x))


def test_output_scale(normal):
    x = normal(5, 3)
    plain, scaled = MLP(3, 16, 1, 2, seed=0), MLP(3, 16, 1, 2, seed=0, output_scale=3.0)
    torch.testing.assert_close(scaled(x), 3 * plain(x))
    torch.testing.assert_close(empirical_ntk(scaled, x), 9 * empirical_ntk(plain, x))


def test_shapes_and_number_of_parameters():
    net = MLP(3, 16, 2, 5, seed=0)
    assert [tuple(w.shape) for w in net.weights] == [(16, 3), (16, 16), (5, 16)]
    assert [tuple(b.shape) for b in net.biases] == [(16,), (16,), (5,)]
    assert len(list(MLP(3, 16, 2, 5, b_std=None, seed=0).parameters())) == 3


def test_zero_b_std():
    standard = MLP(3, 16, 1, b_std=0.0, parameterization="standard", seed=0)
    assert all((bias == 0).all() and bias.requires_grad for bias in standard.biases)


def test_parameters_are_standard_normal():
    net = MLP(10, 1000, 2, seed=0)
    weights = net.weights[1].detach()
    assert abs(weights.mean()) < 5e-3
    assert abs(weights.std() - 1) < 5e-3


def test_draws_do_not_depend_on_dtype_and_leave_the_global_generator_alone():
    state = torch.random.get_rng_state()
    double, single = (MLP(3, 8, 1, seed=0, dtype=dtype) for dtype in (torch.float64, torch.float32))
    assert torch.equal(torch.random.get_rng_state(), state)
    for p, q in zip(double.parameters(), single.parameters(), strict=True):
        assert torch.equal(p.float(), q)


def test_draws_are_in_double_precision_whatever_the_default():
    found = []
    for dtype in (torch.float32, torch.float64):
        before = torch.get_default_dtype()
        torch.set_default_dtype(dtype)
        try:
            found.append(MLP(3, 8, 1, seed=0).weights[0])
        finally:
            torch.set_default_dtype(before)
    assert torch.equal(*found)
    assert not torch.equal(found[0], found[0].float().double())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"width": 0}, "width: expected at least 1, got 0"),
        ({"d_in": 2.5}, "d_in: expected an int, got float"),
        ({"depth": -1}, "depth: expected at least 0, got -1"),
        ({"w_std": 0.0}, "w_std: expected a positive finite number, got 0.0"),
        ({"b_std": -0.1}, "b_std: expected a finite number, zero or above, got -0.1"),
        ({"activation": "rely"}, "activation: expected a callable or one of .*got 'rely'"),
        ({"output_scale": 0.0}, "output_scale: expected a positive finite number, got 0.0"),
        ({"parameterization": "mean-field"}, "parameterization: expected .*got 'mean-field'"),
        ({"seeds": [1, 2]}, "seed, seeds: expected exactly one"),
        ({"seed": None}, "seed, seeds: expected exactly one"),
        ({"seed": 1.5}, "seed: expected an int, got float"),
        ({"seed": None, "seeds": [0, -1]}, "seeds: expected at least 0, got -1"),
        ({"seed": None, "seeds": []}, "seeds: expected at least one seed, got none"),
    ],
)
def test_refusals(changes, message):
    arguments = {"d_in": 2, "width": 8, "depth": 1, "seed": 0} | changes
    with pytest.raises((TypeError, ValueError), match=message):
        MLP(**arguments)


@pytest.mark.parametrize("seeds", [np.arange(2), torch.arange(2), range(2), [np.int32(0), torch.tensor(1)]])
def test_integers_of_numpy_and_torch(normal, seeds):
    x = normal(5, 3)
    net = MLP(np.int64(3), np.geomspace(16, 64, 3).astype(int)[0], torch.tensor(1), np.uint8(2), seeds=seeds)
    assert torch.equal(net(x), MLP(3, 16, 1, 2, seeds=[0, 1])(x))
    assert (type(net.d_in), net.d_in, net.ensemble_size) == (int, 3, 2)


def test_default_device():
    """Draws are made on the CPU; the parameters go where PyTorch puts them, or where told."""
    expected = MLP(2, 3, 1, seed=0)
    with torch.device("meta"):
        assert {p.device.type for p in MLP(2, 3, 1, seeds=[0, 1]).parameters()} == {"meta"}
        told = MLP(2, 3, 1, seed=0, device="cpu")
    torch.testing.assert_close(list(told.parameters()), list(expected.parameters()), rtol=0, atol=0)


@pytest.mark.parametrize("shape", [(3,), (5, 2), (2, 5, 3)])
def test_inputs_of_wrong_shape(shape):
    with pytest.raises(ValueError, match=r"x: expected shape \(n, 3\), got"):
        MLP(3, 8, 1, seed=0)(torch.zeros(shape, dtype=torch.float64))
