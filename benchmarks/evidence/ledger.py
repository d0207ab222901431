"""What was measured before, so that an interrupted run goes on: a file of JSON lines, one for each number."""

import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path

from pydantic import JsonValue


class Ledger:
    """Found values by what they were measured of; what is asked for again is not measured again.

    Processes that run at once share the file: a line is written in one piece, and what others wrote is read when it is
    asked for.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._found: dict[str, JsonValue] = {}
        self._n_read = 0  # bytes of the file

    def find(self, of: Mapping[str, JsonValue]) -> JsonValue:
        """Return what was found of something; None if it was not measured. of: everything that decides it."""
        digest = _digest(of)
        if digest not in self._found:
            self._read_on()
        return self._found.get(digest)

    def keep(self, of: Mapping[str, JsonValue], found: JsonValue) -> None:
        """Keep what was found, at once."""
        self._found[_digest(of)] = found
        self._path.parent.mkdir(parents=True, exist_ok=True)
        line = json.dumps({"of": of, "found": found}, sort_keys=True) + "\n"
        with self._path.open("ab", buffering=0) as file:
            file.write(line.encode())

    def recall(self, of: Mapping[str, JsonValue], measure: Callable[[], JsonValue]) -> JsonValue:
        """Return what was found, or measure it and keep it."""
        found = self.find(of)
        if found is None:
            found = measure()
            self.keep(of, found)
        return found

    def _read_on(self) -> None:
        """Take in the lines that are new in the file."""
        if not self._path.exists() or self._path.stat().st_size == self._n_read:
            return
        with self._path.open("rb") as file:
            file.seek(self._n_read)
            for line in file:
                if line.endswith(b"\n"):
                    entry = json.loads(line)
                    self._found[_digest(entry["of"])] = entry["found"]
                    self._n_read += len(line)


def _digest(of: Mapping[str, JsonValue]) -> str:
    return hashlib.sha256(json.dumps(of, sort_keys=True).encode()).hexdigest()
