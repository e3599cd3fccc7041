"""Importing from a clone: without the dependencies, and beside an installed copy."""

import os
import subprocess
import sys
from pathlib import Path

from conftest import ROOT


def python(*words: str, path: str = "") -> subprocess.CompletedProcess[str]:
    """Run Python in the folder of the clone."""
    env = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    return subprocess.run(
        [sys.executable, *words],
        cwd=ROOT,
        env=env | ({"PYTHONPATH": path} if path else {}),
        capture_output=True,
        text=True,
    )


def test_a_clone_without_its_dependencies_says_how_to_get_them() -> None:
    for code in ("import fnlm; fnlm.gpt2", "from fnlm import gpt2"):
        done = python("-S", "-c", code)  # -S: nothing that is installed
        error = done.stderr.splitlines()[-1]
        assert error.startswith("ModuleNotFoundError: fnlm needs ")
        assert f"pip install -e {ROOT}" in error and sys.executable in error
    assert python("-S", "-m", "fnlm", "--help").returncode == 0
    done = python("-S", "-m", "fnlm", "generate", "tiny")
    assert done.returncode == 2 and done.stderr.startswith("fnlm generate: fnlm needs torch")


def test_a_clone_that_hides_the_installed_copy_says_so(tmp_path: Path) -> None:
    installed = tmp_path / "site-packages" / "fnlm"
    installed.mkdir(parents=True)
    (installed / "__init__.py").write_text("__version__ = 'installed'\n")
    show, path = "import fnlm; print(fnlm.__version__)", str(installed.parent)
    done = python("-c", show, path=path)
    assert done.stdout != "installed\n"
    assert f"RuntimeWarning: fnlm is that of the clone, {ROOT / 'fnlm'}" in done.stderr
    assert str(installed) in done.stderr and "python -P" in done.stderr
    done = python("-P", "-c", show, path=path)
    assert (done.stdout, done.stderr) == ("installed\n", "")


def test_a_clone_alone_says_nothing() -> None:
    assert python("-S", "-W", "error", "-c", "import fnlm").stderr == ""
