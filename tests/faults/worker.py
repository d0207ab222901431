"""A real worker whose jobs behave as told (tests/faults/work.py). Run as `python -m tests.faults.worker`."""

import json
import os
import sys
import time
from pathlib import Path

from sqlalchemy.orm import Session

from app.config import load_settings
from app.domain.jobs import JobKind
from app.domain.work import ImportWork, Outcome, Work
from app.logging import set_up_logging
from app.services.running import Claim, JobResult, Keepers, kept_folder
from tests.faults.work import BEHAVIOR, PRELOADED
from workers import main
from workers.tasks import Kind

PIECE_BYTES = 1 << 16


class BehavingSteps:
    def prepare(self, keepers: Keepers, claim: Claim, scratch: Path) -> Work:
        (scratch / "output" / "half-written").write_text("something")
        folder = Path(str(claim.job.spec["folder"]))
        behavior = json.loads((folder / BEHAVIOR).read_text())
        if behavior.get("fill_disk_before"):
            Path("/dev/full").write_bytes(b"0" * 4096)
        if behavior.get("keep"):
            kept_folder(scratch).mkdir(exist_ok=True)
            with (kept_folder(scratch) / "fences").open("a") as file:
                file.write(f"{claim.fence}\n")
        n_pieces = behavior.get("n_slow_pieces", 0)
        keepers.watch.expect(n_pieces * PIECE_BYTES)
        with keepers.storage.new_temp(watch=keepers.watch) as temp:
            for _ in range(n_pieces):
                time.sleep(0.05)
                temp.write(bytes(PIECE_BYTES))
        return ImportWork(source=folder)

    def record(self, _session: Session, claim: Claim, _outcome: Outcome) -> JobResult:
        return JobResult({"checkpoint": None, "fence": claim.fence})


if __name__ == "__main__":
    settings = load_settings()
    set_up_logging(settings.log_format, settings.log_level)
    preloaded = tuple(os.environ.get(PRELOADED, "").split())
    trade = main.Trade({JobKind.IMPORT: Kind(BehavingSteps(), "merge")}, "tests.faults.work", {"merge": preloaded})
    sys.exit(main.run(settings, trade))
