"""What was measured before, so that an interrupted run goes on: a file of JSON lines, one for each number."""

import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path

from pydantic import JsonValue


class Ledger:
    """Found values by what they were measured of; what is asked for again is not measured again."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._found: dict[str, JsonValue] = {}
        lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
        for line in lines:
            entry = json.loads(line)
            self._found[_digest(entry["of"])] = entry["found"]

    def find(self, of: Mapping[str, JsonValue]) -> JsonValue:
        """Return what was found of something; None if it was not measured. of: everything that decides it."""
        return self._found.get(_digest(of))

    def keep(self, of: Mapping[str, JsonValue], found: JsonValue) -> None:
        """Keep what was found, at once."""
        self._found[_digest(of)] = found
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"of": of, "found": found}, sort_keys=True) + "\n")

    def recall(self, of: Mapping[str, JsonValue], measure: Callable[[], JsonValue]) -> JsonValue:
        """Return what was found, or measure it and keep it."""
        if _digest(of) not in self._found:
            self.keep(of, measure())
        return self.find(of)


def _digest(of: Mapping[str, JsonValue]) -> str:
    return hashlib.sha256(json.dumps(of, sort_keys=True).encode()).hexdigest()
