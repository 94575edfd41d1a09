import math

import pytest
import torch

from ntk_helpers import MLP, empirical_ntk, train
from ntk_helpers.book import alignment, kernel_now, median, over_widths, relative_error, rms, rmse, seconds, sphere


def test_errors_are_over_points_and_outputs():
    f = torch.tensor([[[3.0], [4.0]], [[0.0], [2.0]]])
    assert rms(f).tolist() == pytest.approx([math.sqrt(12.5), math.sqrt(2)])
    assert rmse(f, f - 1).tolist() == [1, 1]
    assert relative_error(f, f[0]).tolist() == pytest.approx([0, math.sqrt(13) / 5])
    assert relative_error(f[..., 0], 2 * f[..., 0], dim=-1).tolist() == [0.5, 0.5]


def test_the_median_of_an_even_number_of_seeds_lies_between():
    assert median(torch.tensor([1.0, 2.0, 3.0, 10.0])) == 2.5
    assert median(torch.tensor([[1.0, 3.0], [5.0, 5.0]]), dim=-1).tolist() == [2, 5]


def test_one_column_a_width():
    assert over_widths({2: torch.tensor([1.0, 2.0]), 4: torch.tensor([3.0, 4.0])}).tolist() == [[1, 3], [2, 4]]


def test_the_kernel_at_a_moment_of_training(normal):
    net, x = MLP(2, 8, depth=1, seeds=range(3)), normal(4, 2)
    record = train(net, x, normal(4, 1), learning_rate=0.1, steps=2, record={"kernel": kernel_now(x)})
    torch.testing.assert_close(record["kernel"][-1], empirical_ntk(net, x, output="trace"))
    assert kernel_now(x[:1], x)(net).shape == (3, 1, 4)


def test_alignment_is_a_cosine(normal):
    y = normal(5, 1)
    assert alignment(7 * y @ y.mT, y) == pytest.approx(1)
    u = normal(5, 1)
    u -= (u * y).sum() / (y * y).sum() * y
    assert alignment(torch.stack([y @ y.mT, u @ u.mT]), y).tolist() == pytest.approx([1, 0], abs=1e-12)


def test_points_on_a_sphere(generator):
    x = sphere(1000, 3, generator, radius=2.0)
    torch.testing.assert_close(x.norm(dim=1), torch.full((1000,), 2.0, dtype=torch.float64))
    assert x.mean(0).norm() < 5 * 2 / math.sqrt(1000)


def test_seconds_are_those_of_the_middle_call(monkeypatch):
    clock = iter([0, 5, 10, 11, 20, 22])
    monkeypatch.setattr("ntk_helpers.book.measures.perf_counter", lambda: next(clock))
    calls = []
    assert seconds(calls.append, "x") == 2
    assert calls == ["x"] * 3
