"""The shape of the code: who imports whom, how large things are, that importing does nothing."""

import ast
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from conftest import ROOT

from fnlm.families import FAMILIES

PACKAGE = ROOT / "fnlm"

# What each part of the package may import from the package besides itself. A model family may
# not import another, training works on trees and functions, tokenizers know no tensors and so
# only files.
_BASE = {"random", "tree", "files", "params", "layers"}
_SHARED = {"_causal", "_adaptive_vocabulary"}  # by families: beside them, and not public
_FAMILY = _BASE | {"heads", "transforms.recompute"} | _SHARED
_TASKS = {"tokenize"}
MAY_IMPORT: dict[str, set[str]] = {
    "__init__": {"families"},
    "weights": set(),
    "random": set(),
    "_nodes": set(),
    "_former": set(),
    "tree": {"_nodes"},
    "files": {"tree"},
    "params": {"random", "tree", "files", "leaves"},
    "layers": {"random", "tree"},
    "leaves": {"random", "tree", "layers"},
    "heads": _BASE,
    "_causal": {"layers", "tree", "transforms.recompute"},
    "_adaptive_vocabulary": {"random", "layers", "params", "tree"},
    **dict.fromkeys(FAMILIES, _FAMILY),
    "families": set(),
    "generate": {"random", "tree", "layers"},
    "transforms": {"random", "tree", "layers._levels", "layers._tap", "layers.linear"},
    "train": {"random", "tree", "files", "transforms", "layers.mask", "layers.precision"}
    | {"layers._levels"},
    "distributed": {"tree", "layers._values", "leaves", "train._means", "train._processes"},
    "finetune": {"random", "tree", "files", "train", "distributed"},
    "tokenize": {"files"},
    "tasks": _TASKS,
    "taps": {"tree", "params", "layers", "protocols"},
    "protocols": {"tree", "files", "layers", "params"},
    "checkpoints": {"random", "tree", "files", "params", "families"},
    "pipeline": {"tree", "files", "params", "families", "checkpoints"},
    "bridges": {"random", "generate", "pipeline"},
    "programs": {"random", "tree", "files", "params", "layers", "heads", "train", "finetune"}
    | {"distributed", "tokenize", "tasks", "checkpoints", *FAMILIES},
    "cli": {"random", "generate", "families", "checkpoints", "pipeline", "programs"},
    "__main__": {"cli", "programs"},
}

FILE_LINES = 400
EXAMPLE_LINES = 150
FUNCTION_LINES = 45
POSITIONAL_ARGUMENTS = 6

# Exceptions to the budgets: "path" or "path::function" and the reason.
EXCEPTIONS: dict[str, str] = {}

# Calls that change something shared by the whole process. A library leaves these to its caller.
GLOBAL_SWITCHES = {
    "logging.basicConfig",
    "os.chdir",
    "os.putenv",
    "random.seed",
    "numpy.random.seed",
    "sys.path.append",
    "sys.path.insert",
    "torch.manual_seed",
    "torch.seed",
    "torch.set_default_device",
    "torch.set_default_dtype",
    "torch.set_float32_matmul_precision",
    "torch.set_grad_enabled",
    "torch.set_num_threads",
    "torch.use_deterministic_algorithms",
    "warnings.filterwarnings",
    "warnings.simplefilter",
}


def sources(*folders: str) -> list[Path]:
    return [path for folder in folders for path in sorted((ROOT / folder).rglob("*.py"))]


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


over_package = pytest.mark.parametrize("path", sources("fnlm"), ids=name_of)
over_programs = pytest.mark.parametrize(
    "path", sources("fnlm", "examples", "benchmarks"), ids=name_of
)


def part_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def absolute(module: str | None, level: int, path: Path) -> str:
    """The full name of an imported module, relative imports resolved."""
    if level == 0:
        return module or ""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join([*parts[: len(parts) - level], *([module] if module else [])])


def imports(path: Path, tree: ast.AST) -> Iterator[str]:
    """Every dotted name that a file imports, wherever in the file; `from a import b` gives a.b."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            module = absolute(node.module, node.level, path)
            yield from (f"{module}.{alias.name}" for alias in node.names)


def parse(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), filename=str(path))


@over_package
def test_imports_go_one_way(path: Path) -> None:
    part = part_of(path)
    assert part in MAY_IMPORT, f"{part!r} is new: give it a row in MAY_IMPORT"
    everyones = ("__version__", "_former")  # the latter answers for names that nobody has
    allowed = tuple(f"fnlm.{name}." for name in (*MAY_IMPORT[part], part, *everyones))
    names = [name for name in imports(path, parse(path)) if name.startswith("fnlm.")]
    strange = [name for name in names if not f"{name}.".startswith(allowed)]
    assert not strange, f"{part} may import only {sorted(MAY_IMPORT[part])}"


@over_package
def test_tokenizers_and_tasks_know_no_torch(path: Path) -> None:
    if part_of(path) in {"tokenize", "tasks"}:
        assert not [name for name in imports(path, parse(path)) if name.split(".")[0] == "torch"]


@over_package
def test_two_modules_know_torchs_pytrees(path: Path) -> None:
    if name_of(path) not in ("fnlm/tree.py", "fnlm/_nodes.py"):
        known = [name for name in imports(path, parse(path)) if "pytree" in name]
        assert not known, "only fnlm/tree.py and fnlm/_nodes.py import torch.utils._pytree"


@over_programs
def test_files_are_short(path: Path) -> None:
    limit = EXAMPLE_LINES if path.parent.name == "examples" else FILE_LINES
    lines = len(path.read_text(encoding="utf-8").splitlines())
    assert lines <= limit or name_of(path) in EXCEPTIONS, f"{lines} lines, at most {limit}"


def functions(tree: ast.AST) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node


def length(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """The lines of a function; from after its docstring where it has one."""
    first = function.lineno
    if ast.get_docstring(function) is not None and len(function.body) > 1:
        first = function.body[1].lineno
    return (function.end_lineno or first) - first + 1


@over_programs
def test_functions_are_short(path: Path) -> None:
    for function in functions(parse(path)):
        name, lines = f"{name_of(path)}::{function.name}", length(function)
        assert lines <= FUNCTION_LINES or name in EXCEPTIONS, f"{name}: {lines} lines"


@over_programs
def test_functions_take_few_positional_arguments(path: Path) -> None:
    for function in functions(parse(path)):
        given = [a.arg for a in (*function.args.posonlyargs, *function.args.args)]
        count = len([name for name in given if name not in {"self", "cls"}])
        name = f"{name_of(path)}::{function.name}"
        assert count <= POSITIONAL_ARGUMENTS or name in EXCEPTIONS, f"{name}: {count} arguments"


def test_exceptions_are_of_use() -> None:
    """An exception that nothing needs any more is removed."""
    for name, reason in EXCEPTIONS.items():
        path, _, function = name.partition("::")
        assert len(reason.split()) >= 4, f"{name}: give the reason"
        assert (ROOT / path).exists(), f"{name}: no such file"
        if function:
            found = [f for f in functions(parse(ROOT / path)) if f.name == function]
            assert any(
                length(f) > FUNCTION_LINES
                or len(f.args.args) + len(f.args.posonlyargs) > POSITIONAL_ARGUMENTS
                for f in found
            ), f"{name} keeps to the budgets"
        else:
            lines = len((ROOT / path).read_text(encoding="utf-8").splitlines())
            assert lines > (EXAMPLE_LINES if path.startswith("examples/") else FILE_LINES)


def dotted(node: ast.expr) -> str:
    if isinstance(node, ast.Attribute):
        return f"{dotted(node.value)}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else ""


@over_package
def test_the_library_prints_nothing_and_turns_no_global_switch(path: Path) -> None:
    forbidden = GLOBAL_SWITCHES | (
        set() if part_of(path) in {"cli", "programs"} else {"print", "input"}
    )
    calls = {dotted(n.func) for n in ast.walk(parse(path)) if isinstance(n, ast.Call)}
    assert not calls & forbidden


STATEMENTS = (
    ast.Import,
    ast.ImportFrom,
    ast.FunctionDef,
    ast.AsyncFunctionDef,
    ast.ClassDef,
    ast.Assign,
    ast.AnnAssign,
)


def is_inert(node: ast.stmt) -> bool:
    """Whether a statement at the top of a module only names things."""
    if isinstance(node, ast.Expr):
        # A docstring; telling of a new kind of node of trees, or that old names are answered; a
        # look at which copy this is, which only warns.
        call = dotted(node.value.func) if isinstance(node.value, ast.Call) else ""
        allowed = ("register", "_former", "_warn_of_other_copy")
        return isinstance(node.value, ast.Constant) or any(name in call for name in allowed)
    if isinstance(node, ast.If):
        test = ast.unparse(node.test)
        return test in {"TYPE_CHECKING", "__name__ == '__main__'"}
    return isinstance(node, STATEMENTS)


@over_programs
def test_modules_only_name_things(path: Path) -> None:
    for node in parse(path).body:
        assert is_inert(node), f"line {node.lineno} runs at import: {ast.unparse(node)[:60]}"


# Runs in a fresh interpreter: imports every module of the package after its dependencies, and
# reports what that opened, wrote, started and changed.
PROBE = """
import importlib, json, logging, os, pkgutil, random, sys, warnings
import huggingface_hub, jsonargparse, numpy, regex, safetensors.torch, torch, tqdm
seen = []

def watch(event, arguments):
    if event == "open":
        path, mode = str(arguments[0]), str(arguments[1])
        code = path.endswith((".py", ".pyc", ".so", ".pyd"))
        if not code or "w" in mode or "a" in mode:
            seen.append([event, path])
    elif event.startswith(("socket.", "subprocess.", "os.system", "os.mkdir", "os.remove",
                           "os.rename", "os.putenv", "os.chdir", "shutil.", "tempfile.")):
        seen.append([event, str(arguments)])

def state():
    return [sys.path, dict(os.environ), len(warnings.filters), len(logging.root.handlers),
            logging.root.level, str(torch.get_default_dtype()), torch.get_num_threads(),
            torch.is_grad_enabled(), torch.initial_seed(), torch.get_rng_state().tolist(),
            str(random.getstate()), str(numpy.random.get_state())]

import fnlm
before = state()
sys.addaudithook(watch)
for module in NAMES:
    importlib.import_module(module)
print(json.dumps({"seen": seen, "changed": [i for i, (a, b) in
                                            enumerate(zip(before, state())) if a != b]}))
"""


def modules() -> list[str]:
    names = [".".join(p.relative_to(ROOT).with_suffix("").parts) for p in sources("fnlm")]
    return [name.removesuffix(".__init__") for name in names if not name.endswith("__main__")]


@pytest.fixture(scope="module")
def run_python() -> Callable[[str], str]:
    def run(code: str) -> str:
        command = [sys.executable, "-B", "-W", "error", "-c", code]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout

    return run


def test_importing_reads_writes_and_changes_nothing(run_python: Callable[[str], str]) -> None:
    """No file but code is opened, no global state is changed."""
    result = json.loads(run_python(PROBE.replace("NAMES", repr(modules()))).splitlines()[-1])
    ours = [s for s in result["seen"] if not s[1].startswith(("/proc/", "/sys/"))]
    assert not ours
    assert not result["changed"]


def test_tokenizers_load_no_torch(run_python: Callable[[str], str]) -> None:
    names = [name for name in modules() if name.startswith(("fnlm.tokenize", "fnlm.tasks"))]
    code = f"import importlib, sys\nfor name in {names}: importlib.import_module(name)\n"
    assert run_python(code + "print('torch' in sys.modules)").strip() == "False"
