"""One attempt of a job in this process: what a worker's supervisor does (workers/attempt.py), without a job process."""

import shutil
from pathlib import Path

from app.domain.errors import AmalgamError
from app.domain.work import files_of
from app.services import running
from app.services.running import Claim, HandedOver, Keepers
from workers.main import TRADE
from workers.runner import WorkOrder, perform, to_problem


def run_attempt(keepers: Keepers, claim: Claim, scratch: Path) -> None:
    """Prepare, work, publish and record, or record what went wrong; `scratch` is removed in the end."""
    (scratch / "output").mkdir(parents=True)
    try:
        steps = TRADE.kinds[claim.job.kind].steps
        work = steps.prepare(keepers, claim, scratch)
        if isinstance(work, HandedOver):
            return
        with keepers.storage.follow(scratch / "output") as growing:
            outcome = perform(WorkOrder(work=work), lambda _progress: None, on_written=growing.grew)
            running.check(keepers.sessions, claim)
            growing.publish(files_of(outcome))
        running.finish(keepers.sessions, claim, lambda session: steps.record(session, claim, outcome))
    except AmalgamError as problem:
        running.fail(keepers.sessions, claim, problem)
    except OSError as error:
        running.fail(keepers.sessions, claim, to_problem(error))
    finally:
        shutil.rmtree(scratch)
