"""The house's layers hold, and what must run without a tensor library does."""

import pkgutil
import subprocess
import sys
from pathlib import Path

import pytest

import app
from tests.without_tensors import make_environment

ROOT = Path(__file__).parents[2]

IMPORT = "import importlib, sys\nfor name in sys.argv[1:]: importlib.import_module(name)"


def import_without_tensor_libraries(folder: Path, *modules: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", IMPORT, *modules]
    environment = make_environment(folder)
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)


def modules_of_app() -> list[str]:
    found = [module.name for module in pkgutil.walk_packages(app.__path__, prefix="app.")]
    return [name for name in found if not name.endswith("__main__")]


def test_the_layers_hold() -> None:
    command = [str(Path(sys.executable).with_name("lint-imports")), "--no-logo", "--no-cache"]

    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)

    assert result.returncode == 0, result.stdout + result.stderr


def test_every_module_of_app_imports_without_a_tensor_library(tmp_path: Path) -> None:
    result = import_without_tensor_libraries(tmp_path, *modules_of_app())

    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize("module", ["app.main", "app.cli.main", "workers.tasks", "workers.main"])
def test_every_door_and_the_supervisor_import_without_a_tensor_library(module: str, tmp_path: Path) -> None:
    result = import_without_tensor_libraries(tmp_path, module)

    assert result.returncode == 0, result.stderr


def test_the_methods_would_not_import(tmp_path: Path) -> None:
    assert "No module named 'numpy'" in import_without_tensor_libraries(tmp_path, "workers.contract").stderr


def test_every_package_file_is_empty() -> None:
    packages = [path for folder in ("app", "workers", "migrations") for path in (ROOT / folder).rglob("__init__.py")]

    assert [str(path.relative_to(ROOT)) for path in packages if path.read_text().strip()] == []
