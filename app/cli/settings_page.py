"""Writes the table of settings into docs/operations.md: `python -m app.cli.settings_page [--check]`."""

import sys
from pathlib import Path

from pydantic.fields import FieldInfo

from app.config import PREFIX, Settings

PAGE = Path(__file__).resolve().parents[2] / "docs" / "operations.md"
BEGIN, END = "<!-- settings: made by `python -m app.cli.settings_page` -->", "<!-- end of settings -->"
# Defaults that are worked out from other settings or from the machine.
_DERIVED = {
    "home": "`./.amalgam`",
    "database_url": "a SQLite file in the home",
    "broker_url": "a folder in the home",
    "store_url": "a folder in the home",
    "file_roots": "the current folder and the home",
    "scratch": "beside a local store, else in the home",
    "cache": "a folder in the home",
    "allowed_hosts": "this machine's own; all where another host is served",
    "worker_name": "a new one at each start",
}


def settings_table() -> str:
    """Return the table of every setting: variable, default, meaning."""
    lines = ["| variable | default | meaning |", "|---|---|---|"]
    for name, field in Settings.model_fields.items():
        meaning = (field.description or "").replace("|", "\\|")
        lines.append(f"| `{PREFIX}{name.upper()}` | {_DERIVED.get(name) or _default(field)} | {meaning} |")
    return "\n".join(lines)


def page_with_table(page: str) -> str:
    """Return the page with the table between its markers renewed."""
    before, _, rest = page.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n\n{settings_table()}\n\n{END}{after}"


def main() -> int:
    """Write the page; with --check, only say whether it is up to date."""
    page = PAGE.read_text(encoding="utf-8")
    renewed = page_with_table(page)
    if "--check" in sys.argv[1:]:
        return int(page != renewed)
    PAGE.write_text(renewed, encoding="utf-8")
    return 0


def _default(field: FieldInfo) -> str:
    value = field.default
    if isinstance(value, tuple):
        return f"`{','.join(map(str, value))}`" if value else "none"
    if value is None:
        return "none"
    if isinstance(value, float):
        return f"`{value:g}`"
    return f"`{value}`"


if __name__ == "__main__":
    sys.exit(main())
