"""What is generated and committed is what the code says today."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


GENERATORS = {
    "app/domain/catalog.json": "workers.catalog",
    "docs/errors.md": "app.api.error_pages",
    "docs/operations.md": "app.cli.settings_page",
}


@pytest.mark.parametrize("generator", GENERATORS.values(), ids=GENERATORS.keys())
def test_what_is_committed_is_what_the_code_says(generator: str) -> None:
    command = [sys.executable, "-m", generator, "--check"]

    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)

    assert result.returncode == 0, result.stdout + result.stderr


def test_every_generator_runs_in_make_catalog_and_in_make_check() -> None:
    lines = (ROOT / "Makefile").read_text().splitlines()

    for generator in GENERATORS.values():
        assert f"\t$(BIN)/python -m {generator}" in lines
        assert f"\t$(BIN)/python -m {generator} --check" in lines
