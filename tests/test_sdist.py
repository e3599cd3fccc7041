"""The source distribution holds what `make test` needs: the tests with their data, and the gate."""

import re
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
from conftest import ROOT

FOLDERS = ("fnlm", "tests", "docs", "examples", "benchmarks")
FILES = (
    "CHANGELOG.md", "CITATION.cff", "CONTRIBUTING.md", "LICENSE", "MANIFEST.in", "Makefile",
    "NOTICE", "README.md", "constraints-lowest.txt", "constraints.txt", "mkdocs.yml",
    "pyproject.toml",
)  # fmt: skip
BUILD = "import sys; from setuptools import build_meta; print(build_meta.build_sdist(sys.argv[1]))"
LEFT_OUT = shutil.ignore_patterns("__pycache__", ".*", "*.pyc", "build", "dist", "*.egg-info")


def test_the_sdist_has_every_file(tmp_path: Path) -> None:
    pytest.importorskip(
        "setuptools", minversion="77", reason="needs setuptools 77, as the gate has it"
    )
    tree, out = tmp_path / "tree", tmp_path / "out"
    tree.mkdir()
    for name in FILES:
        shutil.copy(ROOT / name, tree)
    for name in FOLDERS:
        shutil.copytree(ROOT / name, tree / name, ignore=LEFT_OUT)
    wanted = {path.relative_to(tree).as_posix() for path in tree.rglob("*") if path.is_file()}
    command = [sys.executable, "-c", BUILD, str(out)]
    made = subprocess.run(command, cwd=tree, capture_output=True, text=True)
    assert made.returncode == 0, made.stderr
    with tarfile.open(next(out.glob("*.tar.gz"))) as archive:
        found = {name.partition("/")[2] for name in archive.getnames()}
    assert len(wanted) > 350 and not wanted - found


def test_the_citation_is_of_this_version() -> None:
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    citation = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    for field in ("version", "license"):
        stated = re.search(rf'^{field} = "(.+)"', project, re.MULTILINE)
        cited = re.search(rf"^{field}: (.+)", citation, re.MULTILINE)
        assert stated and cited and stated[1] == cited[1]
