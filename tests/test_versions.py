"""The versions that pyproject.toml allows are those that the gate and `make test-lowest` try."""

import tomllib
from collections.abc import Iterator

import pytest
from conftest import ROOT
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name
from packaging.version import Version

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
EXTRAS = PROJECT["optional-dependencies"]
TRIED = [*PROJECT["dependencies"], *EXTRAS["test"], *EXTRAS["docs"]]  # by `make test-lowest`


def lowest(requirement: Requirement) -> Version | None:
    bounds = [s.version for s in requirement.specifier if s.operator in (">=", "==")]
    return Version(bounds[0]) if len(bounds) == 1 else None


BOUNDS: dict[str, Version | None] = {
    canonicalize_name(r.name): lowest(r) for r in map(Requirement, TRIED)
}


def pins(file: str) -> Iterator[tuple[str, Version, bool]]:
    """Yield name and version of each line, and whether it has a remark."""
    for line in (ROOT / file).read_text(encoding="utf-8").splitlines():
        pin, remark, _ = line.partition("#")
        if pin.strip():
            name, _, version = pin.strip().partition("==")
            yield canonicalize_name(name), Version(version), bool(remark)


def complaints(
    bounds: dict[str, Version | None], lines: list[tuple[str, Version, bool]]
) -> list[str]:
    """What is wrong with the lowest versions."""
    told = [f"{name} has no lower bound" for name, bound in bounds.items() if bound is None]
    pinned = {name: version for name, version, _ in lines}
    told += [f"{name} is not pinned" for name in bounds.keys() - pinned.keys()]
    for name, version, remark in lines:
        bound = bounds.get(name)
        if not remark and bound != version:
            told.append(f"{name} is pinned to {version}, its bound is {bound}")
        elif remark and bound is not None and version <= bound:
            told.append(f"the remark on {name} is of no use")
    return told


def test_the_lowest_versions_are_the_bounds() -> None:
    assert not complaints(BOUNDS, list(pins("constraints-lowest.txt")))


@pytest.mark.parametrize(
    ("bound", "line", "message"),
    [
        (None, ("a", "1", False), "a has no lower bound"),
        ("1", ("b", "1", False), "a is not pinned"),
        ("1.2", ("a", "1.3", False), "a is pinned to 1.3, its bound is 1.2"),
        ("1.2", ("a", "1.1", False), "a is pinned to 1.1, its bound is 1.2"),
        ("1.2", ("a", "1.1", True), "the remark on a is of no use"),
        ("1.2", ("a", "1.2.0", False), ""),
        ("1.2", ("a", "1.4", True), ""),
    ],
)
def test_bounds_that_disagree_are_found(bound: str | None, line: tuple[str, str, bool], message: str) -> None:
    name, version, remark = line
    told = complaints({"a": Version(bound) if bound else None}, [(name, Version(version), remark)])
    assert (message in told) if message else not told


def test_the_gate_runs_with_versions_that_are_allowed() -> None:
    pinned = {name: version for name, version, _ in pins("constraints.txt")}
    groups = [PROJECT["dependencies"], *EXTRAS.values()]
    for requirement in (Requirement(text) for group in groups for text in group):
        version = pinned[canonicalize_name(requirement.name)]
        assert requirement.specifier.contains(version), f"{requirement}: {version} is pinned"


def test_the_pythons_that_are_named_are_allowed() -> None:
    prefix = "Programming Language :: Python :: "
    named = [c.removeprefix(prefix) for c in PROJECT["classifiers"] if c.startswith(prefix)]
    allowed = SpecifierSet(PROJECT["requires-python"])
    assert named and all(version in allowed for version in named)
    assert PROJECT["requires-python"] == f">={named[0]}"
