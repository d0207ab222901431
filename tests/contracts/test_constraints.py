"""Every distribution that the extras bring is pinned, and what is installed is what is pinned."""

import re
import tomllib
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).parents[2]
MODULES = {
    "harness": "lm_eval",
    "parquet": "pyarrow",
}  # of extras that an environment may lack; `make harness` has both
NOT_INSTALLED = {extra for extra, module in MODULES.items() if find_spec(module) is None}


def read_constraints() -> dict[str, str]:
    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if line and not line.startswith("#")]
    return {canonicalize_name(name): version for name, version in (line.split("==") for line in lines)}


def read_project() -> dict[str, list[str]]:
    """Return the requirements of pyproject.toml by extra; "" are those of every installation."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    return {"": project["dependencies"], **project["optional-dependencies"]}


def requirements_of(name: str, extras: set[str]) -> list[Requirement]:
    requirements = [Requirement(line) for line in metadata.requires(name) or []]
    chosen = [{"extra": extra} for extra in sorted(extras | {""})]
    return [r for r in requirements if r.marker is None or any(r.marker.evaluate(choice) for choice in chosen)]


def closure(requirements: list[Requirement]) -> set[str]:
    """Return the canonical names of all installed distributions that these requirements bring."""
    seen: set[tuple[str, str]] = set()
    waiting = [(requirement.name, frozenset(requirement.extras)) for requirement in requirements]
    while waiting:
        name, extras = waiting.pop()
        key = (canonicalize_name(name), ",".join(sorted(extras)))
        if key not in seen:
            seen.add(key)
            waiting += [(needed.name, frozenset(needed.extras)) for needed in requirements_of(name, set(extras))]
    return {name for name, _ in seen}


@pytest.fixture(scope="module")
def installed() -> set[str]:
    extras = [lines for extra, lines in read_project().items() if extra not in NOT_INSTALLED]
    return closure([Requirement(line) for lines in extras for line in lines])


def test_everything_that_is_needed_is_pinned(installed: set[str]) -> None:
    assert sorted(installed - set(read_constraints())) == []


def test_nothing_is_pinned_twice_or_loosely() -> None:
    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if not line.startswith("#")]
    names = [canonicalize_name(line.split("==")[0]) for line in lines]

    assert [line for line in lines if not re.fullmatch(r"[A-Za-z0-9._-]+==[0-9][A-Za-z0-9.]*", line)] == []
    assert len(names) == len(set(names))


def test_what_is_installed_is_what_is_pinned(installed: set[str]) -> None:
    pinned = read_constraints()
    found = {name: Version(metadata.version(name)).public for name in sorted(installed)}

    assert found == {name: pinned[name] for name in found}


@pytest.mark.parametrize("extra", ["", "api"])
def test_the_api_installs_without_a_tensor_library(extra: str) -> None:
    names = closure([Requirement(line) for line in [*read_project()[""], *read_project()[extra]]])

    assert names.isdisjoint({"torch", "numpy", "transformers", "tokenizers", "safetensors"})


def test_torch_has_the_version_that_setup_installs_first() -> None:
    version = read_constraints()["torch"]

    for file in ("Makefile", "docker/worker.Dockerfile"):
        assert f"torch=={version}" in (ROOT / file).read_text()
