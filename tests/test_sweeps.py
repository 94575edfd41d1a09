import functools
import logging
import os
import signal
import subprocess
import sys
import textwrap
import time

import joblib
import pytest
import torch
from distributed import Client, LocalCluster

from ntk_helpers import MLP, sweep, sweeps, train

OFFSET = torch.tensor([1.0, 2.0])


def loss_after_training(width, seed):
    x = torch.linspace(-1, 1, 8, dtype=torch.float64).unsqueeze(1)
    return train(MLP(1, width, 1, seed=seed), x, torch.sin(3 * x), learning_rate=0.1, steps=20).loss[-1]


def counted(folder, a, b):
    """Leaves a file for each call."""
    (folder / f"{a}-{b}-{time.monotonic_ns()}").touch()
    return 10 * a + b


def summed(folder, a, b):
    (folder / str(time.monotonic_ns())).touch()
    return a.sum().item() + b


def failing(a):
    if a == 1:
        raise ValueError("a is one")
    return a


def test_every_cell_in_order():
    """What the processes return is what the function returns here."""
    found = sweep(loss_after_training, {"width": [4, 8], "seed": range(3)}, n_jobs=2)
    cells = [{"width": width, "seed": seed} for width in (4, 8) for seed in range(3)]
    assert [cell for cell, _ in found.results] == cells
    torch.testing.assert_close(found.values(), [loss_after_training(**cell) for cell in cells])
    assert found.values(width=8) == found.values()[3:]
    assert found.values(width=8, seed=1) == [found.values()[4]]
    assert found.failures == []


@pytest.mark.parametrize("n_jobs", [1, 2])
def test_results_on_disk_are_not_computed_again(tmp_path, n_jobs):
    (tmp_path / "calls").mkdir()
    function = functools.partial(counted, tmp_path / "calls")
    options = {"cache": tmp_path / "cache", "n_jobs": n_jobs}
    assert sweep(function, {"a": [1, 2], "b": [3]}, **options).values() == [13, 23]
    assert sweep(function, {"a": [1, 2, 5], "b": [3]}, **options).values() == [13, 23, 53]
    assert sorted(path.name[0] for path in (tmp_path / "calls").iterdir()) == ["1", "2", "5"]


def test_tensors_among_the_parameters(tmp_path):
    (tmp_path / "calls").mkdir()
    grid = {"a": [OFFSET, OFFSET + 1], "b": [1]}
    function = functools.partial(summed, tmp_path / "calls")
    for _ in range(2):
        assert sweep(function, grid, cache=tmp_path / "cache", n_jobs=1).values() == [4, 6]
        grid = {"a": [OFFSET.clone(), OFFSET + 1], "b": [1]}
    assert len(list((tmp_path / "calls").iterdir())) == 2


def test_failed_cells_are_reported_and_the_others_kept(tmp_path):
    with pytest.warns(RuntimeWarning, match=r"1 of 3 cells of the sweep failed:\n\{'a': 1\}: ValueError: a is one"):
        found = sweep(failing, {"a": [0, 1, 2]}, cache=tmp_path, n_jobs=2)
    assert found.values() == [0, 2]
    ((cell, error),) = found.failures
    assert cell == {"a": 1}
    assert "in failing" in error
    with pytest.warns(RuntimeWarning, match="1 of 2 cells"):  # a failure is no result to keep
        sweep(failing, {"a": [0, 1]}, cache=tmp_path, n_jobs=1)


def test_where_all_fail_it_raises():
    with pytest.raises(RuntimeError, match=r"(?s)1 of 1 cells.*ValueError: a is one.*Traceback"):
        sweep(failing, {"a": [1]}, n_jobs=1)


def dies_once(marker, a):
    """The process that comes first to the cell a = 3 is killed there."""
    if a == 3 and not marker.exists():
        marker.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return a


def dies_always(a):
    if a == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(0.1)
    return a


def test_cells_of_a_dead_process_run_again(tmp_path):
    function = functools.partial(dies_once, tmp_path / "marker")
    assert sweep(function, {"a": range(12)}, n_jobs=2).values() == list(range(12))
    assert (tmp_path / "marker").exists()


def test_a_cell_that_kills_every_process_fails():
    with pytest.warns(RuntimeWarning, match=r"1 of 12 cells of the sweep failed:\n\{'a': 3\}: .*TerminatedWorkerError"):
        found = sweep(dies_always, {"a": range(12)}, n_jobs=2)
    assert found.values() == [a for a in range(12) if a != 3]


def test_interrupted_sweep_resumes(tmp_path):
    """Ctrl-C during training, in the process of the sweep: what was done is kept, and nothing partial is."""
    script = textwrap.dedent("""
        import signal, sys
        from pathlib import Path
        import torch
        from ntk_helpers import MLP, sweep, train

        def cell(seed):
            def observe(net):
                if seed == 2 and "interrupt" in sys.argv:
                    signal.raise_signal(signal.SIGINT)
                return net(x)

            x = torch.ones(4, 1, dtype=torch.float64)
            print("cell", seed, flush=True)
            record = train(MLP(1, 4, 1, seed=seed), x, x, learning_rate=0.1, steps=100, record={"f": observe})
            return len(record.loss)

        if __name__ == "__main__":
            print(sweep(cell, {"seed": range(4)}, cache=Path(sys.argv[1]), n_jobs=1).values())
    """)
    (tmp_path / "script.py").write_text(script)
    command = [sys.executable, tmp_path / "script.py", tmp_path / "cache"]
    first = subprocess.run([*command, "interrupt"], capture_output=True, text=True)
    assert "KeyboardInterrupt" in first.stderr
    assert first.stdout.split("\n")[:-1] == ["cell 0", "cell 1", "cell 2"]
    second = subprocess.run(command, capture_output=True, text=True, check=True)
    assert second.stdout.split("\n")[:-1] == ["cell 2", "cell 3", "[101, 101, 101, 101]"]


def test_killed_worker_of_a_cluster_loses_nothing(tmp_path, caplog, capsys):
    """Two workers of Dask over TCP on loopback; one is killed in the middle of a sweep, at work on a cell."""

    def cell(seed):
        victim, started = tmp_path / "victim", tmp_path / f"{seed}-{os.getpid()}"
        started.touch()
        if seed == 9 and not victim.exists():
            victim.write_text(str(os.getpid()))
            os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(0.05)
        return seed, os.getpid()

    where = {"host": "127.0.0.1", "protocol": "tcp", "dashboard_address": None}
    cluster = LocalCluster(n_workers=2, threads_per_worker=1, **where, silence_logs=logging.INFO)
    with cluster, Client(cluster) as client, joblib.parallel_config(backend="dask"):
        workers = set(client.run(os.getpid).values())
        found = sweep(cell, {"seed": range(20)})
    assert [seed for seed, _ in found.values()] == list(range(20))
    assert found.failures == []
    victim, finished = int((tmp_path / "victim").read_text()), dict(found.values())
    assert victim in workers
    assert (tmp_path / f"9-{victim}").exists()
    assert finished[9] != victim
    assert len(set(finished.values()) - {victim}) >= 1
    log = [record.getMessage() for record in caplog.records if "killed" in record.getMessage()]
    assert f"Worker process {victim} was killed by signal 9" in log
    with capsys.disabled():
        print("", f"workers {sorted(workers)}", *log, f"seed: process that finished it: {finished}", sep="\n")


def other_body(a):
    return a + 1


def fingerprint(function):
    return sweeps._hash(sweeps._parts(function, set()))


def test_fingerprint_follows_source_and_data():
    def using(value):
        def function(a):
            return [a + value for _ in range(1)]

        return function

    assert fingerprint(using(OFFSET)) == fingerprint(using(OFFSET.clone()))
    assert fingerprint(using(OFFSET)) != fingerprint(using(OFFSET + 1))
    assert fingerprint(using(1)) != fingerprint(using(other_body))
    assert fingerprint(failing) != fingerprint(other_body)
    assert fingerprint(functools.partial(failing, 1)) != fingerprint(functools.partial(failing, 2))


def test_fingerprint_is_the_same_in_another_process_and_sees_globals(tmp_path):
    script = textwrap.dedent("""
        import torch
        from ntk_helpers import MLP
        from ntk_helpers.sweeps import _hash, _parts

        x = torch.linspace(0, {end}, 5)
        net = MLP(1, 3, 1, seed=0)

        def helper(a):
            return [net(x) + a for _ in range(2)]

        def function(a):
            return (lambda b: helper(b))(a)

        print(_hash(_parts(function, set())))
    """)

    def run(end):
        (tmp_path / "script.py").write_text(script.format(end=end))
        return subprocess.run([sys.executable, tmp_path / "script.py"], capture_output=True, check=True).stdout

    assert run(1) == run(1)
    assert run(1) != run(2)


@pytest.mark.parametrize(
    ("function", "grid", "message"),
    [
        (failing, [1], r"grid: expected a dict of parameters, got \[1\]"),
        (failing, {}, r"grid: expected a dict of parameters, got \{\}"),
        (failing, {"a": 1}, "grid: expected a sequence of values for a, got 1"),
        (failing, {"a": "abc"}, "grid: expected a sequence of values for a, got 'abc'"),
        (failing, {"a": []}, "grid: expected at least one value for a, got none"),
        (max, {"a": [1]}, "function: expected a Python function to cache the results of, got <built-in"),
    ],
)
def test_refusals(tmp_path, function, grid, message):
    with pytest.raises((TypeError, ValueError), match=message):
        sweep(function, grid, cache=tmp_path)


def test_values_of_an_unknown_parameter():
    with pytest.raises(ValueError, match=r"b: expected one of the parameters of the grid, \['a'\]"):
        sweep(other_body, {"a": [1]}, n_jobs=1).values(b=2)
