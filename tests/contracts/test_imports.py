"""The house's layers hold, and what must run without a tensor library does."""

import pkgutil
import subprocess
import sys
from pathlib import Path

import pytest

import app

ROOT = Path(__file__).parents[2]

# A stand-in for an environment without the worker extra: importing any of its packages fails as if it were not there.
WITHOUT_TENSOR_LIBRARIES = """
import importlib, sys

class NotInstalled:
    blocked = {"torch", "numpy", "transformers", "tokenizers", "safetensors", "peft", "scipy", "sklearn"}

    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in self.blocked:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, NotInstalled())
for name in sys.argv[1:]:
    importlib.import_module(name)
loaded = NotInstalled.blocked & set(sys.modules)
sys.exit(f"loaded: {sorted(loaded)}" if loaded else 0)
"""


def import_without_tensor_libraries(*modules: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", WITHOUT_TENSOR_LIBRARIES, *modules]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


def modules_of_app() -> list[str]:
    found = [module.name for module in pkgutil.walk_packages(app.__path__, prefix="app.")]
    return [name for name in found if not name.endswith("__main__")]


def test_the_layers_hold() -> None:
    command = [str(Path(sys.executable).with_name("lint-imports")), "--no-logo", "--no-cache"]

    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)

    assert result.returncode == 0, result.stdout + result.stderr


def test_every_module_of_app_imports_without_a_tensor_library() -> None:
    result = import_without_tensor_libraries(*modules_of_app())

    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize("module", ["app.main", "app.cli.main", "workers.tasks", "workers.main"])
def test_every_door_and_the_supervisor_import_without_a_tensor_library(module: str) -> None:
    result = import_without_tensor_libraries(module)

    assert result.returncode == 0, result.stderr


def test_the_blocker_blocks() -> None:
    assert "No module named 'torch'" in import_without_tensor_libraries("workers.contract").stderr


def test_every_package_file_is_empty() -> None:
    packages = [path for folder in ("app", "workers", "migrations") for path in (ROOT / folder).rglob("__init__.py")]

    assert [str(path.relative_to(ROOT)) for path in packages if path.read_text().strip()] == []
