"""An environment for subprocesses in which no tensor library is installed, as far as Python can tell."""

import os
from pathlib import Path

ROOT = Path(__file__).parents[1]
BLOCKED = ("torch", "numpy", "transformers", "tokenizers", "safetensors", "peft", "scipy", "sklearn", "matplotlib")

# Read by every Python process that has its folder in PYTHONPATH.
SITECUSTOMIZE = f"""
import sys

class Without:
    def __init__(self, finder):
        self.finder = finder

    def __getattr__(self, name):
        return getattr(self.finder, name)

    def find_spec(self, name, path=None, target=None):
        return None if name.split(".")[0] in {BLOCKED!r} else self.finder.find_spec(name, path, target)

sys.meta_path[:] = [Without(finder) for finder in sys.meta_path]
"""


def make_environment(folder: Path) -> dict[str, str]:
    """Return today's environment without a tensor library; `folder` must outlive the processes that use it."""
    (folder / "sitecustomize.py").write_text(SITECUSTOMIZE)
    return {**os.environ, "PYTHONPATH": f"{folder}{os.pathsep}{ROOT}"}
