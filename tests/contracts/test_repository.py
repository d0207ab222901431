"""What is true of every file: no machine's paths, links that lead somewhere, commands that are listed."""

import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
# Put together here so that this file does not hold them itself.
PLACES_OF_ONE_MACHINE = [
    re.compile(r"(?<![\w.])" + re.escape("/" + folder)) for folder in ("work/", "root/", "opt/wheels", "opt/pypi")
]
LINK = re.compile(r"\[[^\]]+\]\(([^)#\s]+)(?:#[^)]*)?\)")


def tracked_files() -> list[Path]:
    listed = subprocess.run(
        ["git", "-c", "safe.directory=*", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True, text=True
    ).stdout
    return [path for name in listed.split("\0") if name and (path := ROOT / name).is_file()]


def text_of(path: Path) -> str:
    return path.read_bytes().decode(errors="replace")


def test_no_file_names_a_place_of_one_machine() -> None:
    found = [
        f"{path.relative_to(ROOT)}: {match.group()}"
        for path in tracked_files()
        for pattern in PLACES_OF_ONE_MACHINE
        if (match := pattern.search(text_of(path)))
    ]

    assert found == []


def test_no_file_is_large() -> None:
    assert [str(path.relative_to(ROOT)) for path in tracked_files() if path.stat().st_size > 2_000_000] == []


def test_every_link_between_pages_leads_somewhere() -> None:
    broken = [
        f"{page.relative_to(ROOT)} -> {target}"
        for page in tracked_files()
        if page.suffix == ".md"
        for target in LINK.findall(text_of(page))
        if "://" not in target and not target.startswith("mailto:") and not (page.parent / target).exists()
    ]

    assert broken == []


def test_make_alone_lists_every_command() -> None:
    source = (ROOT / "Makefile").read_text()
    targets = re.findall(r"^\.PHONY: (.+)$", source, flags=re.MULTILINE)

    listed = subprocess.run(["make"], cwd=ROOT, capture_output=True, text=True, check=True).stdout

    assert re.findall(r"^  make (\S+)", listed, flags=re.MULTILINE) == " ".join(targets).split()


@pytest.mark.parametrize(
    "command", ["help", "setup", "demo", "serve", "test", "harness", "check", "catalog", "bench", "parity"]
)
def test_make_has_the_commands_that_the_docs_promise(command: str) -> None:
    assert re.search(rf"^{command}:", (ROOT / "Makefile").read_text(), flags=re.MULTILINE)


def test_ci_runs_the_tests_then_the_linters() -> None:
    lines = (ROOT / ".ci" / "run").read_text().splitlines()

    assert [line for line in lines if line.startswith("make ")] == ["make test", "make check"]
    assert "set -euo pipefail" in lines
