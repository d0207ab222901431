"""A real worker whose jobs behave as told (tests/faults/work.py). Run as `python -m tests.faults.worker`."""

import sys
from pathlib import Path

from sqlalchemy.orm import Session

from app.config import load_settings
from app.domain.jobs import JobKind
from app.domain.work import ImportWork, Outcome, Work
from app.logging import set_up_logging
from app.services.running import Claim, JobResult, Keepers
from workers import main
from workers.tasks import Kind


class BehavingSteps:
    def prepare(self, _keepers: Keepers, claim: Claim, scratch: Path) -> Work:
        (scratch / "output" / "half-written").write_text("something")
        return ImportWork(source=Path(str(claim.job.spec["folder"])))

    def record(self, _session: Session, claim: Claim, _outcome: Outcome) -> JobResult:
        return JobResult({"checkpoint": None, "fence": claim.fence})


if __name__ == "__main__":
    settings = load_settings()
    set_up_logging(settings.log_format, settings.log_level)
    trade = main.Trade({JobKind.IMPORT: Kind(BehavingSteps(), "merge")}, "tests.faults.work", {"merge": ()})
    sys.exit(main.run(settings, trade))
