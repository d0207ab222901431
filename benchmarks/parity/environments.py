"""The other tools' virtual environments, below .oracles/: made once, by pip, never mixed with ours."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2] / ".oracles"
TORCH = "torch==2.13.0"  # ours, and first: without the pin pip may choose another one
REQUIREMENTS = {"mergekit": "mergekit==0.1.5", "fusion-bench": "fusion-bench==0.2.33", "peft": "peft==0.21.2"}


def prepare(tool: str) -> Path:
    """Return the interpreter of a tool's environment, installing it first if it is not there."""
    folder = ROOT / tool
    python = folder / "bin" / "python"
    done, wanted = folder / ".installed", f"{TORCH}\n{REQUIREMENTS[tool]}\n"
    if not done.exists() or done.read_text(encoding="utf-8") != wanted:
        print(f"installing {REQUIREMENTS[tool]} into {folder} (about 1.7 GB, a minute or two)", flush=True)
        subprocess.run([sys.executable, "-m", "venv", folder], check=True)
        for requirement in (TORCH, REQUIREMENTS[tool]):
            subprocess.run([python, "-m", "pip", "install", "-qq", requirement], check=True)
        done.write_text(wanted, encoding="utf-8")
    return python
