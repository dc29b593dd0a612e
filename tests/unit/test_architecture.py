"""The house rules of CONTRIBUTING.md that a parser can hold: import directions, file sizes,
empty `__init__.py` files, no side effects on import, nothing that runs code from data.

Each rule is a function from a file to complaints. It must find nothing in the project, and it
must find the offence in an example that breaks it.
"""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
CODE = ("gan_train", "pipelines", "infra", "sample_data", "tests")
MAX_LINES = 450

ROOMS: dict[str, tuple[str, ...]] = {
    "gan_train": (
        *("text", "errors", "settings", "rng", "files", "adversary", "nn", "images", "pretrained"),
        *("families", "sections", "config", "recipes", "data", "metrics", "inference", "runs"),
        *("diagnosis", "tasks", "training", "sampling", "published", "bench"),
        *("__main__", "__init__"),
    ),
    "pipelines": (
        *("compute", "registry", "stack", "serving", "flows", "comparison", "cli", "__init__"),
    ),
}
"""The rooms and files at the top of each package, in import order: each may import what stands
before it, and nothing that stands after it. CONTRIBUTING.md draws them."""
ENGINES = {"ray", "mlflow", "prefect", "pipelines"}
MLFLOW_FILES = {
    f"pipelines/registry/{name}.py"
    for name in (
        "versions",
        "tracking",
        "logged_model",
        "model_interface",
        "served_model",
        "served_picture_model",
        "aliases",
        "dossier",
        "reigns",
        "turns",
    )
}
RAY_TRAIN_FILES = {"pipelines/compute/controller.py", "pipelines/compute/training.py"}
UNPICKLERS = {"pickle", "cPickle", "cloudpickle", "dill", "joblib", "marshal", "shelve"}

Rule = Callable[[str, ast.Module], Iterator[str]]


def imports(path: str, tree: ast.AST) -> Iterator[str]:
    """Absolute dotted names of what is imported; `from a import b` yields `a.b`."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            package = path.removesuffix(".py").split("/")[: -node.level] if node.level else []
            module = [*package, *([node.module] if node.module else [])]
            yield from (".".join([*module, alias.name]) for alias in node.names)


def library_imports_no_engine(path: str, tree: ast.Module) -> Iterator[str]:
    if path.startswith("gan_train/"):
        for name in imports(path, tree):
            if name.split(".")[0] in ENGINES:
                yield f"gan_train must run without {name}"


def families_stand_alone(path: str, tree: ast.Module) -> Iterator[str]:
    """What two families share lives in `nn`: a family imports no other family."""
    if path.startswith("gan_train/families/") and not path.endswith("/catalogue.py"):
        # a family that is a folder may import its own files
        own = ".".join(path.split("/")[:3]) + "." if path.count("/") > 2 else "/"
        for name in imports(path, tree):
            if name.startswith("gan_train.families.") and not name.startswith(own):
                yield f"a family must not import {name}"


def imports_point_one_way(path: str, tree: ast.Module) -> Iterator[str]:
    """Room by room, in the order of `ROOMS`; late imports inside functions count, too."""
    package, _, rest = path.partition("/")
    if package not in ROOMS:
        return
    order = ROOMS[package]
    here = rest.partition("/")[0].removesuffix(".py")
    if here not in order:
        yield f"{here} is no room of {package}; allowed: {', '.join(order)}"
        return
    for name in imports(path, tree):
        parts = name.split(".")
        if parts[0] != package or len(parts) < 2 or parts[1] not in order:
            continue
        if order.index(parts[1]) > order.index(here):
            yield f"{name} lies above {here}"
        if here == "metrics" and parts[1] in ("config", "recipes"):
            yield f"{name}: a measure takes the values that it needs, not the configuration"


def engines_are_imported_in_one_place(path: str, tree: ast.Module) -> Iterator[str]:
    if not path.startswith("pipelines/"):
        return
    for name in imports(path, tree):
        if name.split(".")[0] == "mlflow" and path not in MLFLOW_FILES:
            yield f"{name}: mlflow is imported by {sorted(MLFLOW_FILES)} alone"
        if (name + ".").startswith("ray.train.") and path not in RAY_TRAIN_FILES:
            yield f"{name}: ray.train is imported by {sorted(RAY_TRAIN_FILES)} alone"


def classes(tree: ast.Module) -> Iterator[ast.ClassDef]:
    return (node for node in tree.body if isinstance(node, ast.ClassDef))


def called(node: ast.Call) -> str:
    return ast.unparse(node.func)


def nothing_runs_code_from_data(path: str, tree: ast.Module) -> Iterator[str]:
    if path.startswith("tests/"):  # tests may build what the code must refuse
        return
    for name in imports(path, tree):
        if name.split(".")[0] in UNPICKLERS:
            yield f"import of {name}"
    safe_loaders = {c.name for c in classes(tree) if "yaml.SafeLoader" in map(ast.unparse, c.bases)}
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        keywords = {k.arg: ast.unparse(k.value) for k in node.keywords}
        name = called(node)
        if name in {"eval", "exec", "os.system", "os.popen", "yaml.unsafe_load"}:
            yield f"call of {name}"
        if name == "yaml.load" and keywords.get("Loader") not in safe_loaders:
            yield "yaml.load without a loader of this file's own that extends SafeLoader"
        if keywords.get("shell") == "True":
            yield f"{name} with shell=True"
        if keywords.get("allow_pickle") == "True":
            yield f"{name} with allow_pickle=True"
        if name == "torch.load" and keywords.get("weights_only") != "True":
            yield "torch.load without weights_only=True"


def files_stay_short(path: str, tree: ast.Module) -> Iterator[str]:
    lines = max((getattr(node, "end_lineno", None) or 0 for node in ast.walk(tree)), default=0)
    if lines > MAX_LINES:
        yield f"{lines} lines, at most {MAX_LINES}"


def init_files_hold_no_logic(path: str, tree: ast.Module) -> Iterator[str]:
    if path.endswith("__init__.py"):
        for node in tree.body:
            docstring = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
            plain = isinstance(node, ast.Import | ast.ImportFrom | ast.Assign)
            if not (docstring or plain) or any(isinstance(n, ast.Call) for n in ast.walk(node)):
                yield f"line {node.lineno}: logic in an __init__.py"


def importing_does_nothing(path: str, tree: ast.Module) -> Iterator[str]:
    # The file that MLflow runs to build the served model must say so at its top level.
    if path.startswith("pipelines/registry/served_") or not path.startswith(
        ("gan_train/", "pipelines/")
    ):
        return
    own = {node.name for node in classes(tree)}  # a file may finish the classes that it defines
    for node in tree.body:
        call = node.value if isinstance(node, ast.Expr) else None
        if isinstance(call, ast.Call) and called(call).split(".")[0] not in own:
            yield f"line {node.lineno}: {called(call)}() runs on import"
        if isinstance(node, ast.For | ast.While | ast.With):
            yield f"line {node.lineno}: a statement runs on import"


RULES: tuple[Rule, ...] = (
    library_imports_no_engine,
    families_stand_alone,
    imports_point_one_way,
    engines_are_imported_in_one_place,
    nothing_runs_code_from_data,
    files_stay_short,
    init_files_hold_no_logic,
    importing_does_nothing,
)


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_the_project_keeps(rule: Rule) -> None:
    files = [file for folder in CODE for file in sorted((ROOT / folder).rglob("*.py"))]
    assert len(files) > 20
    complaints = []
    for file in files:
        path = file.relative_to(ROOT).as_posix()
        tree = ast.parse(file.read_text(encoding="utf-8"), path)
        complaints += [f"{path}: {complaint}" for complaint in rule(path, tree)]
    assert not complaints, "\n".join(complaints)


@pytest.mark.parametrize(
    ("rule", "path", "source"),
    [
        (library_imports_no_engine, "gan_train/x/y.py", "import ray"),
        (
            library_imports_no_engine,
            "gan_train/training/trainer.py",
            "def f():\n    import mlflow.pytorch",
        ),
        (library_imports_no_engine, "gan_train/data/x.py", "from prefect import flow"),
        (library_imports_no_engine, "gan_train/data/x.py", "from pipelines.cli.main import main"),
        (families_stand_alone, "gan_train/families/b.py", "from gan_train.families.a import G"),
        (families_stand_alone, "gan_train/families/b.py", "from .a import G"),
        (
            imports_point_one_way,
            "gan_train/families/b.py",
            "from gan_train.training import trainer",
        ),
        (imports_point_one_way, "gan_train/families/b.py", "def f():\n    import gan_train.config"),
        (imports_point_one_way, "gan_train/nn/losses.py", "from gan_train.images import resize"),
        (imports_point_one_way, "gan_train/attic/x.py", "import torch"),
        (imports_point_one_way, "gan_train/metrics/kid.py", "from gan_train.config import Config"),
        (imports_point_one_way, "pipelines/compute/jobs.py", "from pipelines.flows import driver"),
        (engines_are_imported_in_one_place, "pipelines/flows/x.py", "import mlflow"),
        (
            engines_are_imported_in_one_place,
            "pipelines/flows/x.py",
            "from ray.train import report",
        ),
        (engines_are_imported_in_one_place, "pipelines/flows/x.py", "from ray import train"),
        (nothing_runs_code_from_data, "gan_train/x.py", "from pickle import loads"),
        (nothing_runs_code_from_data, "gan_train/x.py", "eval('1')"),
        (nothing_runs_code_from_data, "gan_train/x.py", "yaml.load(t, Loader=yaml.Loader)"),
        (nothing_runs_code_from_data, "gan_train/x.py", "torch.load(path)"),
        (nothing_runs_code_from_data, "gan_train/x.py", "np.load(path, allow_pickle=True)"),
        (nothing_runs_code_from_data, "pipelines/x.py", "run(command, shell=True)"),
        (files_stay_short, "gan_train/x.py", "\n" * MAX_LINES + "x = 1"),
        (init_files_hold_no_logic, "gan_train/__init__.py", "def f():\n    pass"),
        (init_files_hold_no_logic, "gan_train/__init__.py", "VERSION = read()"),
        (importing_does_nothing, "pipelines/x.py", "os.environ.update(A='1')"),
    ],
)
def test_the_rule_notices(rule: Rule, path: str, source: str) -> None:
    assert list(rule(path, ast.parse(source)))


def arrows(files: dict[str, str]) -> dict[str, set[str]]:
    """What each module, by dotted name, imports of the others, given their sources by path. Late
    imports inside functions count; those for type checkers alone do not."""
    modules = {path.removesuffix(".py").replace("/", "."): source for path, source in files.items()}
    found: dict[str, set[str]] = {}
    for module, source in modules.items():
        tree = ast.parse(source)
        for node in ast.walk(tree):
            if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
                node.body = []
        names = list(imports(f"{module.replace('.', '/')}.py", tree))
        parents = [name.rpartition(".")[0] for name in names]
        found[module] = {n for n in (*names, *parents) if n in modules} - {module}
    return found


def circles(arrows: dict[str, set[str]]) -> list[str]:
    """Ways on which a module imports itself, one for each module that closes a circle."""
    found, done = [], set[str]()

    def visit(module: str, way: tuple[str, ...]) -> None:
        if module in way:
            found.append(" -> ".join((*way[way.index(module) :], module)))
        elif module not in done:
            for other in sorted(arrows[module]):
                visit(other, (*way, module))
            done.add(module)

    for module in sorted(arrows):
        visit(module, ())
    return found


def test_no_file_imports_itself_by_way_of_others() -> None:
    files = {
        file.relative_to(ROOT).as_posix(): file.read_text(encoding="utf-8")
        for package in ROOMS
        for file in (ROOT / package).rglob("*.py")
    }
    assert not circles(arrows(files))


def test_a_circle_is_noticed() -> None:
    files = {
        "p/a.py": "from p import b",
        "p/b.py": "def f():\n    from p.c import x",
        "p/c.py": "import p.a",
        "p/d.py": "if TYPE_CHECKING:\n    from p import e",
        "p/e.py": "from p import d",
    }
    assert circles(arrows(files)) == ["p.a -> p.b -> p.c -> p.a"]


@pytest.mark.slow
def test_the_library_imports_without_engines_and_without_side_effects() -> None:
    """All of gan_train loads in a process in which Ray, MLflow and Prefect cannot be imported,
    prints nothing, and leaves torch's threads and generator as they were."""
    modules = sorted(
        ".".join(file.relative_to(ROOT).with_suffix("").parts)
        for file in (ROOT / "gan_train").rglob("*.py")
        if file.name != "__init__.py"
    )
    program = (
        "import sys, importlib, torch\n"
        "for name in ('ray', 'mlflow', 'prefect'):\n"
        "    sys.modules[name] = None\n"
        "before = torch.get_num_threads(), torch.random.get_rng_state()\n"
        "for name in sys.argv[1:]:\n"
        "    importlib.import_module(name)\n"
        "assert torch.get_num_threads() == before[0]\n"
        "assert torch.equal(torch.random.get_rng_state(), before[1])\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", program, *modules], cwd=ROOT, capture_output=True, text=True
    )
    assert (result.returncode, result.stdout, result.stderr) == (0, "", ""), result.stderr
