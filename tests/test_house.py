"""The house itself: import, settings, versions, the README, and who may import whom."""

from __future__ import annotations

import ast
import importlib.metadata
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import numpy as np
import pytest

import rnncore as rc

ROOT = Path(__file__).parents[1]
SETTINGS = ("RNNCORE_LEVEL", "RNNCORE_NUM_THREADS", "OMP_NUM_THREADS")


def python(program: str, **settings: str) -> subprocess.CompletedProcess[str]:
    """Run a program in a fresh interpreter that has these settings and no others."""
    clean = {name: value for name, value in os.environ.items() if name not in SETTINGS}
    return subprocess.run(
        [sys.executable, "-c", program],
        env=clean | settings,
        capture_output=True,
        text=True,
        check=False,
    )


def output(program: str, **settings: str) -> str:
    """Run a program that must succeed, and return what it printed."""
    done = python(program, **settings)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


# ---- The README ----------------------------------------------------------------------------------


def readme_blocks() -> list[str]:
    return re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)


def test_the_readme_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    blocks = readme_blocks()
    assert len(blocks) >= 3
    namespace: dict[str, object] = {}
    for block in blocks:
        exec(compile(block, "README.md", "exec"), namespace)


def test_the_readme_shows_the_two_commands_before_any_code() -> None:
    text = (ROOT / "README.md").read_text()
    assert text.index("make demo") < text.index("make test") < text.index("```python")


# ---- Import --------------------------------------------------------------------------------------


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="counts threads in /proc")
def test_import_starts_no_thread() -> None:
    program = (
        "import os, numpy; before = os.listdir('/proc/self/task'); import rnncore;"
        "print(len(os.listdir('/proc/self/task')) - len(before))"
    )
    assert output(program) == "0"


def test_import_loads_nothing_heavy() -> None:
    program = (
        "import sys, numpy; before = set(sys.modules); import rnncore;"
        "print(*sorted(set(sys.modules) - before))"
    )
    fresh = output(program).split()
    assert "rnncore._core" in fresh
    heavy = {"numpy.random", "matplotlib", "tqdm", "sklearn", "rnncore.reference"}
    assert not heavy.intersection(fresh)


def test_every_public_name_exists_and_is_documented() -> None:
    assert len(set(rc.__all__)) == len(rc.__all__)
    for name in rc.__all__:
        assert getattr(rc, name).__doc__, name


def test_one_version_everywhere() -> None:
    manifest = tomllib.loads((ROOT / "Cargo.toml").read_text())
    assert rc.__version__ == manifest["package"]["version"]
    assert rc.__version__ == importlib.metadata.version("rnncore")
    assert f"## [{rc.__version__}]" in (ROOT / "CHANGELOG.md").read_text()


def test_numpy_is_the_only_requirement() -> None:
    required = importlib.metadata.requires("rnncore") or []
    assert [name for name in required if "extra ==" not in name] == ["numpy>=1.26"]


# ---- The instruction level -----------------------------------------------------------------------


def test_the_default_level_is_the_best_one() -> None:
    program = "import rnncore as rc; print(rc.get_level(), *rc.levels())"
    level, *levels = output(program).split()
    assert levels[0] == "portable"
    assert level == levels[-1]


@pytest.mark.parametrize("level", rc.levels())
def test_every_level_can_be_forced(level: str) -> None:
    assert output("import rnncore as rc; print(rc.get_level())", RNNCORE_LEVEL=level) == level
    rc.set_level(level)
    assert rc.get_level() == level


def test_an_unknown_level_is_refused_at_import() -> None:
    done = python("import rnncore", RNNCORE_LEVEL="sse9")
    assert done.returncode == 1
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("ImportError: RNNCORE_LEVEL: ")
    assert f"expected one of {', '.join(rc.levels())}" in last
    assert '"sse9"' in last


def test_an_unknown_level_is_refused_and_changes_nothing() -> None:
    before = rc.get_level()
    with pytest.raises(ValueError, match=r'name: .*expected one of portable.* got "sse9"'):
        rc.set_level("sse9")
    with pytest.raises(TypeError):
        rc.set_level(2)  # type: ignore[arg-type]
    assert rc.get_level() == before


# ---- Threads -------------------------------------------------------------------------------------

THREADS = "import rnncore as rc; print(rc.get_num_threads())"


@pytest.mark.parametrize(
    ("settings", "threads"),
    [
        ({"RNNCORE_NUM_THREADS": "3"}, 3),
        ({"OMP_NUM_THREADS": "5"}, 5),
        ({"OMP_NUM_THREADS": "6,2,1"}, 6),
        ({"RNNCORE_NUM_THREADS": " 4 "}, 4),
        ({"RNNCORE_NUM_THREADS": "3", "OMP_NUM_THREADS": "5"}, 3),
        ({"RNNCORE_NUM_THREADS": "", "OMP_NUM_THREADS": "5"}, 5),
    ],
)
def test_threads_from_the_environment(settings: dict[str, str], threads: int) -> None:
    assert output(THREADS, **settings) == str(threads)


@pytest.mark.parametrize("text", ["0", "-1", "many", "1.5", "1025", "99999999999999999999"])
def test_an_unusable_number_of_threads_is_passed_over_with_a_warning(text: str) -> None:
    done = python(THREADS, RNNCORE_NUM_THREADS=text, OMP_NUM_THREADS="7")
    assert done.stdout.strip() == "7"
    assert "RuntimeWarning: RNNCORE_NUM_THREADS: expected a number of threads" in done.stderr
    assert f'got "{text}"; ignored' in done.stderr


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="sets the affinity")
def test_threads_respect_the_affinity() -> None:
    core = min(os.sched_getaffinity(0))
    program = f"import os; os.sched_setaffinity(0, [{core}]); {THREADS}"
    assert output(program) == "1"


@pytest.mark.parametrize("n", [1, 2, 1024, np.int64(3), np.uint8(4)])
def test_threads_are_set(n: int) -> None:
    rc.set_num_threads(n)
    assert rc.get_num_threads() == n


@pytest.mark.parametrize("n", [0, -1, 1025, 2**40, 2**80, -(2**80)])
def test_numbers_of_threads_out_of_range_are_refused(n: int) -> None:
    before = rc.get_num_threads()
    with pytest.raises(ValueError, match=rf"n: expected an integer from 1 to 1024, got {n}"):
        rc.set_num_threads(n)
    assert rc.get_num_threads() == before


@pytest.mark.parametrize("n", [True, 2.0, "2", None, np.float64(2.0), np.ones(2)])
def test_what_is_no_integer_is_refused(n: object) -> None:
    with pytest.raises(TypeError, match=r"n: expected an integer from 1 to 1024, got "):
        rc.set_num_threads(n)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "name", [None, 1, b"portable", True, 10**5000], ids=lambda v: type(v).__name__
)
def test_what_is_no_name_of_a_level_is_refused(name: object) -> None:
    before = rc.get_level()
    with pytest.raises(TypeError, match=r"name: expected one of \['portable'.*\], got (?!.*limit)"):
        rc.set_level(name)  # type: ignore[arg-type]
    assert rc.get_level() == before


# ---- show_config ---------------------------------------------------------------------------------


def test_show_config_prints_what_it_returns(capsys: pytest.CaptureFixture[str]) -> None:
    rc.set_num_threads(3)
    rc.set_level("portable")
    config = rc.show_config(mode="dicts")
    assert config["version"] == rc.__version__
    assert config["numpy"] == np.__version__
    assert (config["level"], config["threads"]) == ("portable", 3)
    assert config["levels"] == rc.levels()
    assert config["cores"] >= 1
    rc.show_config()
    printed = capsys.readouterr().out
    assert [line.split()[0] for line in printed.splitlines()] == list(config)
    assert f"threads  {config['threads']}" in printed


def test_show_config_refuses_another_mode() -> None:
    with pytest.raises(ValueError, match="mode: expected 'stdout' or 'dicts', got 'json'"):
        rc.show_config(mode="json")  # type: ignore[call-overload]


# ---- Who may import whom -------------------------------------------------------------------------

ONLY_IN = {
    r"\bpyo3::|\bnumpy::": ("src/python/",),
    r"\b(?:std|core)::arch\b": ("src/simd/",),
    r"\bthread::(?:spawn|scope|Builder)\b": ("src/parallel/",),
    r"\bcrate::(?:gemm|layer|parallel)\b": (
        "src/gemm/",
        "src/layer/",
        "src/peak.rs",
        "src/python/",
        "src/lib.rs",
    ),
}


@pytest.mark.parametrize("pattern", ONLY_IN)
def test_rust_imports_run_downwards(pattern: str) -> None:
    for file in sorted((ROOT / "src").rglob("*.rs")):
        path = file.relative_to(ROOT).as_posix()
        found = re.search(pattern, file.read_text())
        assert not found or path.startswith(ONLY_IN[pattern]), f"{path}: {found}"


#: What a Python module may import of the package; DESIGN.md says why.
MAY_IMPORT = {
    "parameters": set[str](),
    "initializers": {"parameters"},
    "protocol": set[str](),
    "tape": {"parameters"},
    "ragged": {"parameters"},
    "layers": {"_core", "parameters", "initializers", "protocol"},
    "linear": {"parameters", "initializers", "protocol", "ragged", "tape"},
    "embedding": {"parameters", "protocol", "ragged", "tape"},
    "conv1d": {"parameters", "protocol", "ragged", "tape"},
    "dropout": {"parameters", "protocol", "ragged", "tape", "reference"},
    "pooling": {"parameters", "protocol", "ragged", "tape"},
    "losses": {"parameters"},
    "optimizers": {"_core", "parameters"},
    "augmentation": {"parameters", "ragged"},
    "schedules": {"optimizers", "parameters"},
    "serialization": {"_core", "parameters"},
    "sequential": {"parameters", "protocol", "serialization", "tape"},
    "decoding": {"parameters"},
    "encoder_decoder": {
        "decoding",
        "parameters",
        "protocol",
        "sequential",
        "serialization",
        "tape",
    },
    "batches": {"parameters"},
    "progress": set[str](),
    "evaluation": {"batches", "losses", "parameters", "protocol"},
    "training": {
        "batches",
        "evaluation",
        "optimizers",
        "parameters",
        "progress",
        "schedules",
        "serialization",
    },
    "cases": {"batches", "parameters"},
    "sklearn": {
        "cases",
        "dropout",
        "evaluation",
        "layers",
        "linear",
        "losses",
        "optimizers",
        "parameters",
        "pooling",
        "schedules",
        "sequential",
        "training",
    },
    "diagnosis": {"batches", "evaluation", "layers", "losses", "parameters", "training"},
    "plot": {
        "diagnosis",
        "layers",
        "parameters",
        "sequential",
        "training",
    },  # training for its types
}


@pytest.mark.parametrize("module", MAY_IMPORT)
def test_python_imports_run_downwards(module: str) -> None:
    tree = ast.parse((ROOT / f"python/rnncore/{module}.py").read_text())
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            source = "." * node.level + (node.module or "")
            if source in (".", "rnncore"):
                found.update(alias.name for alias in node.names)
            elif source.startswith((".", "rnncore.")):
                found.add(source.removeprefix("rnncore").removeprefix("."))
        elif isinstance(node, ast.Import):
            assert not any(alias.name.startswith("rnncore") for alias in node.names)
    assert found <= MAY_IMPORT[module]


def test_the_reference_imports_numpy_alone() -> None:
    tree = ast.parse((ROOT / "python/rnncore/reference.py").read_text())
    modules = {
        name.split(".")[0]
        for node in ast.walk(tree)
        for name in (
            [alias.name for alias in node.names]
            if isinstance(node, ast.Import)
            else [node.module or "rnncore"]
            if isinstance(node, ast.ImportFrom)
            else []
        )
    }
    assert "numpy" in modules
    assert modules - {"numpy"} <= set(sys.stdlib_module_names)
