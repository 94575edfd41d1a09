import functools
import importlib
import json
import logging
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from unittest.mock import patch

import joblib
import pytest
import torch
from distributed import Client, LocalCluster

from ntk_helpers import MLP, models, sweep, train
from ntk_helpers.sweeps._fingerprint import sources

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


def summed_up(a, b):
    return a.sum().item() + b


def failing(a):
    if a == 1:
        raise ValueError("a is one")
    return a


KEPT = []


def growing(a):
    """Leaves its process 150 MB larger, and gives it time to notice."""
    KEPT.append(bytes(range(250)) * 600_000)
    time.sleep(0.6)
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


def test_processes_that_have_grown_are_replaced_silently(capfd):
    """The backend ends a process that has grown by 300 MB, after its cell: nothing is lost, and nothing is wrong."""
    found = sweep(growing, {"a": range(14)}, n_jobs=2)
    assert found.values() == list(range(14))
    assert found.failures == []
    assert "worker stopped" not in capfd.readouterr().err


def test_interrupted_sweep_resumes(tmp_path, ctrl_c):
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


def test_cache_tells_lambdas_of_one_line_apart(tmp_path):
    plus, minus = lambda a: a + 1, lambda a: a - 1
    assert sweep(plus, {"a": [10]}, cache=tmp_path, n_jobs=1).values() == [11]
    assert sweep(minus, {"a": [10]}, cache=tmp_path, n_jobs=1).values() == [9]


USES = {
    "data": "FACTOR = {0}\ndef cell(a): return FACTOR * a",
    "tensor": "import torch\nT = torch.tensor([{0}])\ndef cell(a): return [T.item() * a for _ in range(1)][0]",
    "code": "def cell(a): return {0} * a",
    "comment": "# {0}\ndef cell(a): return 2 * a",
    "attribute": "loss = {0}\nclass A: loss = 2\ndef cell(a): return A().loss * a",
    "helper": "def helper(a): return {0} * a\ndef cell(a): return (lambda b: helper(b))(a)",
    "closure": "def make(k):\n  def cell(a): return k * a\n  return cell\ncell = make({0})",
    "default of a keyword": "def h(a, *, k={0}): return k * a\ndef cell(a): return h(a)",
    "variable not yet set": "def make():\n  def cell(a): return {0} * a if a else k\n  return cell\n  k = 1\n"
    "cell = make()",
    "default": "def h(a): return {0} * a\ndef cell(a, f=h): return f(a)",
    "partial": "from functools import partial\ndef h(k, a): return k * a\ncell = partial(h, {0})",
    "partial of a helper": "from functools import partial\ndef h(a): return {0} * a\n"
    "def _cell(f, a): return f(a)\ncell = partial(_cell, h)",
    "container": "def h(a): return {0} * a\nF = dict(h=h)\ndef cell(a): return F['h'](a)",
    "cached": "from functools import lru_cache\n@lru_cache\ndef h(a): return {0} * a\ndef cell(a): return h(a)",
    "decorator": "from functools import wraps\ndef twice(f):\n  @wraps(f)\n  def g(a): return {0} * f(a)\n  return g\n"
    "@twice\ndef cell(a): return a",
    "class": "class Net:\n  def f(self, a): return {0} * a\ndef cell(a): return Net().f(a)",
    "global of a method": "K = {0}\nclass Net:\n  def f(self, a): return K * a\ndef cell(a): return Net().f(a)",
    "base class": "class B:\n  def f(self, a): return {0} * a\nclass Net(B): pass\ndef cell(a): return Net().f(a)",
    "static method": "class Net:\n  @staticmethod\n  def f(a): return {0} * a\ndef cell(a): return Net.f(a)",
    "property": "class Net:\n  @property\n  def k(self): return {0}\ndef cell(a): return Net().k * a",
    "instance": "class Net:\n  def f(self, a): return {0} * a\nnet = Net()\ndef cell(a): return net.f(a)",
    "bound method": "class Net:\n  def f(self, a): return {0} * a\nf = Net().f\ndef cell(a): return f(a)",
    "named tuple": "from typing import NamedTuple\nclass Net(NamedTuple):\n  k: int = {0}\n"
    "def cell(a): return Net().k * a",
    "cached property": "from functools import cached_property\nclass Net:\n  @cached_property\n"
    "  def k(self): return {0}\ndef cell(a): return Net().k * a",
    "order": "F = {{{0}: 1, 5 - {0}: 2}}\ndef cell(a): return next(iter(F)) * a",
    "set in the code": "def cell(a): return (2 if 'tanh' in {{'tanh', 'relu', 'erf'}} else 0) * a  # {0}",
    "column": "import torch\nT = torch.tensor([[{0}, 1], [1, 1]])[:, 0]\ndef cell(a): return T[0].item() * a",
    "frozen": "import torch\nT = torch.ones(1, requires_grad={0} == 3)\ndef cell(a): return (2 + T.requires_grad) * a",
    "attribute of a function": "def h(a): return h.k * a\nh.k = {0}\ndef cell(a): return h(a)",
    "try or else": "def f(): raise ValueError\ndef cell(a):\n  try:\n    f() if {0} == 2 else None\n"
    "  except ValueError: return 2\n  return 3",
    "recursion": "def cell(a): return {0} if a == 1 else cell(a - 1)",
    "dataclass": "from dataclasses import dataclass\n@dataclass\nclass Net:\n  k: int = {0}\n"
    "def cell(a): return Net().k * a",
    "state beside a wrapped function": "import functools\nclass Times:\n  def __init__(self, f):\n    self.k = {0}\n"
    "    functools.update_wrapper(self, f)\n  def __call__(self, a): return self.k * self.__wrapped__(a)\n"
    "@Times\ndef cell(a): return a",
    "wrapped function": "import functools\ndef g(a): return g.__wrapped__(a)\ndef h(a): return {0} * a\n"
    "functools.update_wrapper(g, h)\ndef cell(a): return g(a)",
    "method of another's": "import types\nclass Net: pass\nnet = Net()\n"
    "f = types.MethodType(lambda self, a: {0} * a, net)\ndef cell(a): return f(a)",
    "set of functions": "def h(a): return {0} * a\nF = {{h}}\ndef cell(a): return [f(a) for f in F][0]",
    "attribute of a tensor": "import torch\nT = torch.ones(1)\nT.k = {0}\ndef cell(a): return T.k * a",
    "attribute of a module": "import sys\nsettings = sys.modules['settings']\nsettings.K = {0}\n"
    "def cell(a): return settings.K * a",
    "attribute of a module's class": "import sys\nsettings = sys.modules['settings']\nsettings.Net.k = {0}\n"
    "def cell(a): return settings.Net().k * a",
    "attribute of a module imported inside": "import sys\nsys.modules['settings'].K = {0}\n"
    "def cell(a):\n  import settings\n  return settings.K * a",
    "default dtype": "import torch\ntorch.set_default_dtype({{2: torch.float32, 3: torch.float64}}[{0}])\n"
    "def cell(a): return {{torch.float32: 2, torch.float64: 3}}[torch.ones(1).dtype]",
    "module": "import torch\nfrom torch import nn\nclass Net(nn.Module):\n  def forward(self, a): return {0} * a\n"
    "net = Net()\ndef cell(a): return net(a)",
}


@pytest.fixture(scope="module")
def values_and_entries(tmp_path_factory):
    """Of each use with the constants 2, 2 and 3: values of the sweeps, entries in the cache. No source can be read."""
    script = """
        import json, sys, types
        from pathlib import Path
        import torch
        from ntk_helpers import sweep

        settings = sys.modules["settings"] = types.ModuleType("settings")
        exec("class Net: pass", settings.__dict__)

        found = {}
        for use, text in json.loads(sys.argv[2]).items():
            torch.set_default_dtype(torch.float32)
            names, cache = {"__name__": "__main__"}, Path(sys.argv[1], use)
            exec(text.format(sys.argv[3]), names)
            values = sweep(names["cell"], {"a": [1]}, cache=cache, n_jobs=1).values()
            found[use] = values[0], len(list(cache.glob("*/*/*.pkl")))
        print(json.dumps(found))
    """
    arguments = [tmp_path_factory.mktemp("cache"), json.dumps(USES)]
    runs = [[sys.executable, "-c", textwrap.dedent(script), *arguments, constant] for constant in "223"]
    return [json.loads(subprocess.run(run, capture_output=True, check=True).stdout) for run in runs]


@pytest.mark.parametrize("use", USES)
def test_cache_follows_whatever_a_cell_uses(values_and_entries, use):
    values, entries = zip(*(run[use] for run in values_and_entries), strict=True)
    unchanged = use in ("comment", "attribute", "set in the code")
    assert values == ((2, 2, 2) if unchanged else (2, 2, 3))
    assert entries == ((1, 1, 1) if unchanged else (1, 1, 2))


def test_cache_follows_code_of_the_user_in_other_modules(tmp_path, monkeypatch):
    """A function of one file that calls what another gives it."""
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "runs.py").write_text("def run(a, build): return build(a)")
    script = """
        import sys
        from functools import partial
        sys.path.insert(0, sys.argv[1])
        import runs
        from ntk_helpers import sweep

        def build(a):
            return {} * a

        cache = sys.argv[1] + "/cache"
        print(sweep(runs.run, {{"a": [1], "build": [build]}}, cache=cache, n_jobs=1).values())
        print(sweep(partial(runs.run, build=build), {{"a": [1]}}, cache=cache, n_jobs=1).values())
    """
    for constant in (2, 3):
        run = [sys.executable, "-c", textwrap.dedent(script).format(constant), tmp_path]
        assert subprocess.run(run, capture_output=True, text=True, check=True).stdout == f"[{constant}]\n" * 2


IMPORTS = {
    "outside": "import of_the_user\ndef cell(a): return of_the_user.K * a",
    "in the cell": "def cell(a):\n  import of_the_user\n  return of_the_user.K * a",
    "by name": "import importlib\ndef cell(a): return importlib.import_module('of_the_user').K * a",
}


@pytest.mark.parametrize("how", IMPORTS)
def test_cache_follows_source_files(tmp_path, how):
    """After a change in what a module imports, results are new; after its end, those from before are there again."""
    script = """
        import sys
        from pathlib import Path
        folder = Path(sys.argv[1])
        sys.path.insert(0, str(folder))
        from ntk_helpers import sweep
        exec(sys.argv[2])
        value, = sweep(cell, {"a": [1]}, cache=folder / "cache", n_jobs=1).values()
        print(value, len(list(folder.glob("cache/*/*/*.pkl"))))
    """
    (tmp_path / "of_the_user.py").write_text("from further import K")
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "other").touch()
    found = []
    for constant in "232":
        (tmp_path / "further.py").write_text(f"K = {constant}")
        run = [sys.executable, "-B", "-c", textwrap.dedent(script), tmp_path, IMPORTS[how]]
        found.append(subprocess.run(run, capture_output=True, text=True, check=True).stdout)
    assert found == ["2 1\n", "3 2\n", "2 2\n"]
    assert (tmp_path / "cache" / "other").exists()


def imports(folder, name, a):
    sys.path.insert(0, str(folder))
    sys.dont_write_bytecode = True
    try:
        importlib.invalidate_caches()
        return importlib.import_module(name).value(a)
    finally:
        sys.path.remove(str(folder))
        sys.dont_write_bytecode = False


@pytest.mark.parametrize("cached", [False, True])
def test_workers_load_what_has_changed(tmp_path, cached):
    """After a mistake, after it is mended, and after a change; the processes of joblib would outlive all three."""
    name, cache = f"loaded_by_workers_{cached}", tmp_path / "cache" if cached else None
    for text, expected in {"1 / 0": None, "2 * a": [2, 4], "3 * a": [3, 6]}.items():
        (tmp_path / f"{name}.py").write_text(f"def value(a): return {text}")
        function = functools.partial(imports, tmp_path, name)
        if expected is None:
            with pytest.raises(RuntimeError, match="ZeroDivisionError"):
                sweep(function, {"a": [1, 2]}, cache=cache, n_jobs=2)
        else:
            assert sweep(function, {"a": [1, 2]}, cache=cache, n_jobs=2).values() == expected
    assert name not in sys.modules


def test_what_changed_after_it_was_loaded(tmp_path):
    """Results of the code in memory are not those of the file, until it is loaded anew."""
    file, function = tmp_path / "changes.py", functools.partial(imports, tmp_path, "changes")
    options = {"grid": {"a": [1]}, "cache": tmp_path / "cache", "n_jobs": 1}
    file.write_text("def value(a): return 2 * a")
    assert sweep(function, **options).values() == [2]
    file.write_text("def value(a): return 3 * a  # changed")
    for _ in range(2):
        assert sweep(function, **options).values() == [2]
    del sys.modules["changes"]
    assert sweep(function, **options).values() == [3]
    file.write_text("def value(a): return 2 * a")
    del sys.modules["changes"]
    assert sweep(function, **options).values() == [2]
    assert "changes" not in sys.modules  # it was there
    assert len(list(tmp_path.glob("cache/*/*/*.pkl"))) == 2


def test_which_files_count():
    """This package's, so that its upgrade makes results new, and the user's; not those of installed packages."""
    found = sources()
    assert {models.__file__, __file__} <= found.keys()
    assert not {torch.__file__, joblib.__file__, functools.__file__} & found.keys()
    assert None not in found.values()


def dtype_of_ones(a):
    return torch.ones(a).dtype


def test_default_dtype_holds_in_the_processes(tmp_path):
    try:
        for dtype in (torch.float32, torch.float64):
            torch.set_default_dtype(dtype)
            for options in ({}, {"cache": tmp_path}, {"cache": tmp_path}):
                assert sweep(dtype_of_ones, {"a": [1]}, n_jobs=2, **options).values() == [dtype]
    finally:
        torch.set_default_dtype(torch.float32)


def makes_a_function(a):
    return lambda: a


def test_results_that_cannot_be_kept_or_read(tmp_path):
    with pytest.warns(RuntimeWarning, match=r"a result could not be kept, so that its cell will run again: .*lambda"):
        assert sweep(makes_a_function, {"a": [3]}, cache=tmp_path / "a", n_jobs=1).values()[0]() == 3
    assert {path.suffix for path in (tmp_path / "a").rglob("*") if path.is_file()} == {".json"}
    assert sweep(other_body, {"a": [3]}, cache=tmp_path / "b", n_jobs=1).values() == [4]
    (path,) = (tmp_path / "b").glob("*/*/*.pkl")
    kept = path.read_bytes()
    path.write_bytes(kept[:-1])
    with pytest.warns(RuntimeWarning, match=rf"{path}: could not be read, so that its cell runs again"):
        assert sweep(other_body, {"a": [3]}, cache=tmp_path / "b", n_jobs=1).values() == [4]
    assert path.read_bytes() == kept


def blocks(flag):
    """Two functions of the same instructions, that differ in what the try covers."""

    def check(v):
        if v < 0:
            raise ValueError("negative")

    def inside(a):
        try:
            v = a
            check(v)
        except ValueError:
            return "refused"
        return v

    def outside(a):
        try:
            v = a
        except ValueError:
            return "refused"
        else:
            check(v)
        return v

    return inside if flag else outside


def test_cache_sees_what_a_try_covers(tmp_path):
    assert sweep(blocks(True), {"a": [-3]}, cache=tmp_path, n_jobs=1).values() == ["refused"]
    with pytest.raises(RuntimeError, match="ValueError: negative"):
        sweep(blocks(False), {"a": [-3]}, cache=tmp_path, n_jobs=1)


def test_functions_that_cannot_be_sent_are_told_at_once():
    """None of the cells is tried again by itself, as those of a dead process are."""
    lock = threading.Lock()
    with patch("joblib.Parallel", wraps=joblib.Parallel) as parallel:
        with pytest.raises(RuntimeError, match=r"(?s)300 of 300 cells.*cannot pickle"):
            sweep(lambda a: lock and a, {"a": range(300)}, n_jobs=2)
        assert parallel.call_count == 1


class Unloadable(Exception):
    def __init__(self, a, b):
        super().__init__(a)


def unloadable(a):
    return Unloadable(1, 2) if a == 1 else a


def test_what_cannot_be_known_again_is_refused(tmp_path):
    lock = threading.Lock()

    def locked(a):
        with lock:
            return a

    with pytest.raises(TypeError, match=r"function: expected what can be pickled, .*lock"):
        sweep(locked, {"a": [1]}, cache=tmp_path)
    with pytest.raises(TypeError, match=r"a: expected what can be pickled, .*lock"):
        sweep(other_body, {"a": [lock]}, cache=tmp_path)
    assert sweep(locked, {"a": [1]}, n_jobs=1).values() == [1]


def unpicklable(a):
    return threading.Lock() if a == 1 else a


def exits(a):
    return sys.exit(3) if a == 1 else a


@pytest.mark.parametrize(
    ("function", "error"),
    [
        (unpicklable, "TypeError: cannot pickle"),
        (exits, "SystemExit: 3"),
        (unloadable, "TypeError: .*missing 1 required"),
    ],
)
@pytest.mark.parametrize("n_jobs", [1, 2])
def test_cells_that_fail_in_other_ways(function, error, n_jobs):
    with pytest.warns(RuntimeWarning, match=rf"1 of 4 cells of the sweep failed:\n\{{'a': 1\}}: {error}"):
        assert sweep(function, {"a": range(4)}, n_jobs=n_jobs).values() == [0, 2, 3]


@pytest.mark.parametrize(
    ("function", "grid", "message"),
    [
        (failing, [1], r"grid: expected a dict of parameters, got \[1\]"),
        (failing, {}, r"grid: expected a dict of parameters, got \{\}"),
        (failing, {"a": 1}, "grid: expected a sequence of values for a, got 1"),
        (failing, {"a": "abc"}, "grid: expected a sequence of values for a, got 'abc'"),
        (failing, {"a": []}, "grid: expected at least one value for a, got none"),
    ],
)
def test_refusals(tmp_path, function, grid, message):
    with pytest.raises((TypeError, ValueError), match=message):
        sweep(function, grid, cache=tmp_path)


def test_number_of_jobs():
    with pytest.raises(ValueError, match="n_jobs == 0"):
        sweep(other_body, {"a": [1]}, n_jobs=0)


def test_choosing_values():
    found = sweep(summed_up, {"a": [OFFSET, OFFSET + 1], "b": [1, 2]}, n_jobs=1)
    assert found.values(a=OFFSET.clone()) == [4, 5]
    assert found.values(a=OFFSET + 1, b=2) == [7]
    with pytest.raises(ValueError, match=r"c: expected one of the parameters of the grid, \['a', 'b'\]"):
        found.values(c=2)
    with pytest.raises(ValueError, match=r"b: expected one of the values in the grid, got 3"):
        found.values(b=3)
