"""The engine of the live figures gives the numbers of the package."""

import math
import re

import pytest
import torch
from live import script

from ntk_helpers import MLP, empirical_ntk, ensemble_law, gradient_descent, gradient_flow, kernels, train

DRAWN = 200  # settings


@pytest.fixture(scope="module")
def engine(browser):
    """A function of JavaScript, given the engine and one argument."""
    page = browser.new_page()
    page.add_script_tag(content=script())
    yield lambda body, argument: page.evaluate(f"given => {{ const engine = kernelRegimes.engine; {body} }}", argument)
    page.close()


def settings():
    """Points in one to three dimensions, some of them twice or nearly, networks, targets and times."""
    g = torch.Generator().manual_seed(0)

    def integer(low, high):
        return int(torch.randint(low, high + 1, (), generator=g))

    def normal(*shape):
        return torch.randn(shape, generator=g, dtype=torch.float64)

    for _ in range(DRAWN):
        d, n, m = integer(1, 3), integer(1, 12), integer(1, 6)
        x, y = normal(n + m, d), normal(n)
        x[-1] = x[0] + [0.0, 1e-9, 1e-4, 1.0][integer(0, 3)] * normal(d)
        network = {"depth": integer(1, 4), "activation": ["relu", "erf"][integer(0, 1)]}
        network |= {"w_std": 0.7 + integer(0, 10) / 10, "b_std": [0.0, 0.1, 1.0][integer(0, 2)]}
        yield x, y, network, [0.0, 0.1, 3.0, 100.0, 1e4, math.inf][integer(0, 5)]


def in_script(network):
    return {"wStd": network["w_std"], "bStd": network["b_std"]} | {k: network[k] for k in ("depth", "activation")}


def largest_difference(found, expected):
    """Relative to the largest number expected."""
    found = torch.as_tensor(found, dtype=torch.float64)
    assert found.shape == expected.shape
    return (found - expected).abs().max().item() / max(
        expected.abs().max().item(), 1e-300
    )  # at the start, both are zero


def test_kernels_law_and_flow_agree_with_the_package(engine):
    body = """
        const [x, y, options, time, start] = given, n = y.length, t = time ?? Infinity
        const both = engine.kernel(x, x, options), {mean, variance} = engine.law(both, y, t)
        const corner = both.ntk.slice(0, n).map(row => row.slice(0, n)), {values, modes} = engine.eigen(corner)
        const flow = engine.flow(corner, y, start, t)
        return {...both, mean, variance, flow, values, modes: modes.map(mode => [...mode])}"""
    for x, y, network, t in settings():
        both, n, start = kernels(x, **network), len(y), y.roll(1) / 2
        law, flow = ensemble_law(y, both.nngp, both.ntk)(t), gradient_flow(both.ntk[:n, :n], y, f0_train=start)
        time = None if math.isinf(t) else t
        got = engine(body, [x.tolist(), y.tolist(), in_script(network), time, start.tolist()])
        values, modes = (torch.tensor(got.pop(name), dtype=torch.float64) for name in ("values", "modes"))
        got["spectral"], got["values"] = modes.T * values @ modes, values
        expected = both._asdict() | {"values": torch.linalg.eigvalsh(both.ntk[:n, :n]), "spectral": both.ntk[:n, :n]}
        expected |= {"mean": law.mean, "flow": flow(t)}
        # At the end of time, rounding of the kernel's entries grows by the condition number: both are as exact as it.
        positive = flow.eigenvalues[flow.eigenvalues > 0]
        rounding = 10 * torch.finfo(torch.float64).eps * (positive[-1] / positive[0]).item() if math.isinf(t) else 0
        for name, value in expected.items():
            assert largest_difference(got[name], value) <= max(1e-10, rounding), (name, network, t)
        variance = torch.tensor(got["variance"], dtype=torch.float64) - law.covariance.diagonal()
        assert variance.abs().max() <= 1e-10 * both.nngp.diagonal().max()  # the variance at the start


@pytest.mark.parametrize("activation", ["relu", "erf"])
@pytest.mark.parametrize("depth", [1, 2])
@pytest.mark.parametrize("b_std", [0.0, 0.1])
def test_paths_of_given_weights_agree_with_the_package(engine, normal, activation, depth, b_std):
    net = MLP(2, 32, depth, activation=activation, b_std=b_std, seed=0, dtype=torch.float64)
    x, y = normal(7, 2), normal(7)
    weights, biases = ([p.detach().tolist() for p in ps] for ps in (net.weights, net.biases))
    kernel = empirical_ntk(net, x)[..., 0, 0]
    record = train(net, x, y.unsqueeze(1), learning_rate=0.5, steps=100, record={"f": lambda net: net(x)[:, 0]})
    options = in_script({"depth": depth, "activation": activation, "w_std": 2**0.5, "b_std": b_std}) | {"width": 32}
    body = """
        const [x, y, options, weights, biases] = given, net = new engine.Network(2, options, () => 0)
        net.layers.forEach((layer, l) => { layer.weights.set(weights[l].flat()); layer.biases.set(biases[l]) })
        const kernel = net.kernel(x, x), start = [...net.values(x)]
        for (let step = 0; step < 100; step++) net.step(x, y, 0.5)
        return {kernel, f: [start, [...net.values(x)]]}"""
    got = engine(body, [x.tolist(), y.tolist(), options, weights, biases])
    assert largest_difference(got["kernel"], kernel.detach()) <= 1e-10
    assert largest_difference(got["f"], record["f"]) <= 1e-8


def test_frozen_networks_follow_descent_with_their_own_kernel(engine, normal):
    x, y, grid = normal(5, 1), normal(5), normal(4, 1)
    body = """
        const [x, y, grid] = given, options = {width: 64, members: 2, seed: 3, linearized: true}
        const ensemble = new engine.Ensemble(x, y, grid, options), net = ensemble.networks[1]
        const start = [x, grid].map(points => [...net.values(points)])
        const kernels = [x, grid].map(points => net.kernel(points, x))
        ensemble.advance(0.3, 50)
        return {start, kernels, train: [...ensemble.onTrain[1]], grid: [...ensemble.memberOnGrid(1)]}"""
    got = engine(body, [x.tolist(), y.tolist(), grid.tolist()])
    start, kernel = ([torch.tensor(part, dtype=torch.float64) for part in got[name]] for name in ("start", "kernels"))
    descent = gradient_descent((kernel[0] + kernel[0].T) / 2, y, learning_rate=0.3, f0_train=start[0])
    assert largest_difference(got["train"], descent(50)) <= 1e-10
    assert largest_difference(got["grid"], descent.predict(50, kernel[1], start[1])) <= 1e-10


def test_random_numbers_are_normal_and_of_their_seed(engine):
    body = "return given.map(seed => { const draw = engine.normals(seed); return Array.from({length: 40000}, draw) })"
    first, again, second = torch.tensor(engine(body, [1, 1, 2]), dtype=torch.float64)
    assert torch.equal(first, again)
    assert abs(torch.corrcoef(torch.stack([first, second]))[0, 1]) < 0.02
    for power, moment in ((1, 0), (2, 1), (3, 0), (4, 3)):
        assert abs(first.pow(power).mean() - moment) < 5 * first.pow(power).std() / 200


def test_erf(engine):
    z = torch.linspace(-7, 7, 2001, dtype=torch.float64)
    got = torch.tensor(engine("return given.map(engine.erf)", z.tolist()), dtype=torch.float64)
    assert (got - torch.erf(z)).abs().max() <= 1e-14  # a sum of up to a hundred terms


@pytest.fixture
def playground(tab, site):
    """The playground, opened from disk."""
    problems = []
    tab.on("pageerror", lambda error: problems.append(str(error)))
    tab.on("request", lambda request: problems.append(request.url) if request.url.startswith("http") else None)
    page = (site / "book" / "playground.html").as_uri()

    def at(scene=""):
        tab.goto("about:blank")
        tab.goto(f"{page}#play:{scene}")
        return tab

    yield at
    assert problems == []


def settled(tab, beginning="Trained to time"):
    tab.locator(f".live-status:text-matches('^{beginning}')").wait_for(timeout=60_000)
    return tab.locator(".live-status").inner_text()


def curve(tab, name):
    return tab.locator(f".live-{name}").first.get_attribute("d")


def test_a_dragged_point_moves_the_law_and_the_networks(playground):
    tab = playground("width=16&members=2&time=0.5")
    settled(tab)
    assert not tab.locator(".tag_still").is_visible()
    before = curve(tab, "mean"), curve(tab, "band"), curve(tab, "member")
    box = tab.locator(".live-dot").nth(4).bounding_box()
    tab.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    tab.mouse.down()
    tab.mouse.move(box["x"] + 60, box["y"] - 80, steps=4)
    tab.mouse.up()
    moved = tab.locator(".live-dot").nth(4).bounding_box()
    assert abs(moved["x"] + moved["width"] / 2 - box["x"] - 60) < 2
    settled(tab)
    after = curve(tab, "mean"), curve(tab, "band"), curve(tab, "member")
    assert all(a != b for a, b in zip(before, after, strict=True))
    tab.wait_for_function("location.hash.includes('points=')")


def test_points_by_the_keyboard(playground):
    tab = playground("width=4&members=1&time=0")
    point = tab.locator(".live-dot").first
    point.focus()
    value = float(point.get_attribute("aria-valuenow"))
    tab.keyboard.press("ArrowUp")
    assert float(point.get_attribute("aria-valuenow")) == pytest.approx(value + 0.04, abs=0.011)
    tab.keyboard.press("Delete")
    assert tab.locator(".live-dot").count() == 9
    tab.get_by_role("button", name="Add a point").click()
    assert tab.locator(".live-dot").count() == 10


def test_what_is_linked_is_what_is_seen(playground):
    scene = "stage=circle&bStd=0.1&width=64&members=3&time=1&end=true&data=sine"
    tab = playground(scene)
    settled(tab)
    assert tab.locator(".live-dot").count() == 9
    assert curve(tab, "end")
    tab.get_by_role("button", name="New networks").click()
    tab.wait_for_function("location.hash.includes('seed=1')")
    settings = set(tab.evaluate("location.hash").removeprefix("#play:").split("&"))
    assert settings == {*scene.split("&"), "seed=1"}


@pytest.mark.parametrize("frozen", [True, False])
def test_beyond_the_stability_bound(playground, frozen):
    """Frozen, it diverges and says so; with a kernel that moves, width 64 finds its way."""
    tab = playground(f"data=sine&rate=1.1&time=3&width=64&frozen={str(frozen).lower()}")
    text = settled(tab, "Diverged" if frozen else "Trained")
    assert not frozen or "beyond the stability bound" in text


def test_no_points_coinciding_points_and_settings_that_are_not_ours(playground):
    tab = playground("points=")
    assert "No data yet" in tab.locator(".live-status").inner_text()
    tab = playground("points=0,1;0,-1;1,9&time=1&width=16")
    assert "Two points coincide" in settled(tab)
    assert [d.get_attribute("aria-valuenow") for d in tab.locator(".live-dot").all()] == ["1.00", "-1.00", "2.00"]
    assert "NaN" not in curve(tab, "mean") + curve(tab, "band")
    tab = playground("depth=7&colour=red&time=0")
    assert "depth, colour" in tab.locator(".live-status").inner_text()


def test_play_waits_for_the_networks_and_pauses(playground):
    tab = playground("stage=circle&data=waves&width=256&members=2&time=-1")
    settled(tab)
    tab.get_by_role("button", name="Play").click()
    status = tab.locator(".live-status")
    tab.wait_for_function("document.querySelector('.live-clock output').textContent > 1")
    blue, orange = re.search(r"at time ([\d.]+), orange is at ([\d.]+)|$", status.inner_text()).groups(default="1")
    assert float(orange) <= 1.3 * float(blue)  # a step of the clock
    tab.get_by_role("button", name="Pause").click()
    paused = settled(tab)
    tab.wait_for_timeout(300)
    assert status.inner_text() == paused
    assert "at this time" in tab.locator(".live-numbers").inner_text()


def test_distances_belong_to_what_is_drawn(playground):
    """Back in time, the number is that of a run to there."""
    tab = playground("width=64&members=3&time=1")
    settled(tab)
    there = tab.locator(".live-numbers").inner_text()
    tab = playground("width=64&members=3&time=2")
    settled(tab, "Trained to time 100")
    assert tab.locator(".live-numbers").inner_text() != there
    tab.get_by_label("Training time").fill("1")
    text = settled(tab, "Trained to time 10|Training")
    assert tab.locator(".live-numbers").inner_text() == (
        there if text.startswith("Trained") else "Distance: still training."
    )


def test_links_set_the_scene_and_show_it(playground):
    tab = playground("time=0&width=4")
    for link in tab.locator("a[href^='#play:']").all():
        for _ in range(2):  # the second time, the address is the same
            link.scroll_into_view_if_needed()
            link.click()
            tab.wait_for_function("document.querySelector('.live').getBoundingClientRect().top > -50")
        assert "not known" not in tab.locator(".live-status").inner_text()


def test_a_finger_moves_a_point_up_and_the_page_stays(browser, site):
    with browser.new_context(viewport={"width": 390, "height": 844}, has_touch=True) as context:
        tab = context.new_page()
        tab.goto((site / "book" / "playground.html").as_uri() + "#play:width=4&members=1&time=0")
        box = tab.locator(".live-dot").nth(2).bounding_box()
        x, y = box["x"] + box["width"] / 2 + 9, box["y"] + box["height"] / 2  # a finger is not exact
        touch = context.new_cdp_session(tab)

        def send(kind, *points):
            touch.send(
                "Input.dispatchTouchEvent",
                {"type": kind, "touchPoints": [dict(zip("xy", p, strict=True)) for p in points]},
            )

        send("touchStart", (x, y))
        for step in range(1, 7):
            send("touchMove", (x, y - 10 * step))
        send("touchEnd")
        moved = tab.locator(".live-dot").nth(2).bounding_box()
        assert moved["y"] == pytest.approx(box["y"] - 60, abs=2)
        assert tab.evaluate("scrollY") == 0


def test_a_picture_stands_where_scripts_do_not_run(browser, site):
    with browser.new_context(java_script_enabled=False) as context:
        tab = context.new_page()
        tab.goto((site / "book" / "playground.html").as_uri())
        assert tab.locator(".tag_still img").is_visible()


def test_it_works_in_slices_and_stops_where_nobody_looks(playground):
    tab = playground("width=1024&members=10&time=5&data=waves")
    tab.evaluate(
        """window.longest = 0
        new PerformanceObserver(list => list.getEntries().forEach(e => longest = Math.max(longest, e.duration)))
            .observe({type: 'longtask'})"""
    )
    status = tab.locator(".live-status")
    tab.wait_for_timeout(2000)
    first = status.inner_text()
    assert first.startswith("Training")
    tab.wait_for_timeout(500)
    assert status.inner_text() != first
    tab.evaluate("scrollTo(0, document.body.scrollHeight)")
    tab.wait_for_timeout(500)
    hidden = status.inner_text()
    tab.wait_for_timeout(500)
    assert status.inner_text() == hidden
    print("longest task while training:", tab.evaluate("longest"), "ms")
