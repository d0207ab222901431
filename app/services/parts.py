"""The parts of a merge: added when a worker takes the merge up, looked after until all are done, joined by the merge.

While its parts run, the merge is `running` and held by nobody: it takes no slot that a part could need. Every part that
ends has the merge settled: the next round is added, or the merge is queued once more, to be joined, or it fails as the
part did. Settling is repeated by the reaper, and changes nothing where there is nothing to change.
"""

from collections.abc import Sequence
from pathlib import Path

from pydantic import JsonValue
from sqlalchemy.orm import Session

from app.db import clock
from app.db import events as event_log
from app.db import jobs as rows
from app.db import parts as part_rows
from app.db.engine import Sessions
from app.db.tables import Job
from app.domain.checkpoints import FileEntry, Value
from app.domain.jobs import FINAL_STATES, JobKind, JobState, Progress, ResourceClass
from app.domain.parts import Share, add_progress, count_tallying, deal_out
from app.domain.views.jobs import JobView
from app.domain.work import Outcome, PartOutcome, PartWork
from app.queue import JobQueue
from app.services import jobs, merge_jobs
from app.services.actors import Actor
from app.services.jobs import Ending, conclude
from app.services.merge_drafts import MergeSpec
from app.services.running import Claim, ClaimLost, HandedOver, JobResult, Keepers


class PartSpec(Value):
    """A part's spec; all else is in that of its merge.

    merging: of a part that tallies only, the shares that are merged in its place, from round `merging_round` on, or as
    soon as nothing is left to tally.
    """

    share: Share
    round: int
    merging: tuple[Share, ...] = ()
    merging_round: int = 0

    def follow(self, *, is_left: bool) -> "list[PartSpec]":
        """Return the specs of the next round. is_left: this round found something to tally."""
        number = self.round + 1
        if self.merging and (number >= self.merging_round or not is_left):
            return [PartSpec(share=share, round=number) for share in self.merging]
        return [self.model_copy(update={"round": number})]


def first_round(shares: Sequence[Share], *, n_rounds: int, n_tallying: int) -> list[PartSpec]:
    """Return the specs of the first round: of n_tallying parts that tally, where some rounds do, or of the shares.

    Every part repeats what is small (samples, folds): fewer parts have less of it to do.
    """
    if n_rounds == 0 or not 0 < n_tallying < len(shares):
        return [PartSpec(share=share, round=0) for share in shares]
    return [
        PartSpec(
            share=Share(index=index, n_parts=n_tallying, files=tuple(file for one in group for file in one.files)),
            round=0,
            merging=group,
            merging_round=n_rounds,
        )
        for index, group in enumerate(deal_out(shares, n_tallying))
    ]


# ── the merge ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def hand_over(sessions: Sessions, claim: Claim, specs: Sequence[PartSpec], *, total_bytes: int) -> HandedOver:
    """Add the parts of a merge that was claimed, and give the claim up: the merge waits for them.

    total_bytes: of input, that all parts will read. Raises: ClaimLost.
    """
    with sessions.begin() as session:
        guard = rows.held_with(claim.fence)
        row = rows.move(session, claim.job.id, guard, values={})  # takes the row's lock
        if row is None:
            raise ClaimLost(claim.job.id)
        canceling = rows.in_state(JobState.CANCELING)
        if conclude(session, claim.job.id, guard, canceling, ending=Ending(JobState.CANCELED)) is not None:
            return HandedOver()
        rows.close_attempt(session, row, "handed_over", clock.now(session))
        progress = Progress(stage="in parts", total=total_bytes, unit="bytes")
        values = {
            "fence": Job.fence + 1,  # nobody's: who has split it writes no more
            "attempts": Job.attempts - 1,
            "lease_until": None,
            "worker_id": None,
            "progress": progress.model_dump(mode="json"),
        }
        rows.move(session, claim.job.id, guard, values=values)
        event_log.append(session, claim.job.id, "job.split", {"n_parts": sum(len(spec.merging) or 1 for spec in specs)})
        return HandedOver(tuple(_add_round(session, claim.job, specs)))


def count_tallying_places(sessions: Sessions) -> int:
    """Return how many parts that only tally the workers that are there could run at once."""
    with sessions.read() as session:
        return count_tallying(part_rows.list_rooms(session, ResourceClass.CPU))


def settle(sessions: Sessions, queue: JobQueue, merge_id: str) -> None:
    """Take a merge that waits for its parts as far as they allow."""
    with sessions.begin() as session:
        followers = _settle(session, merge_id)
    jobs.hint(queue, followers)


def settle_all(sessions: Sessions, queue: JobQueue) -> int:
    """Settle the merges some of whose parts have ended; return how many were looked at."""
    with sessions.read() as session:
        waiting = part_rows.list_waiting(session)
    for merge_id in waiting:
        settle(sessions, queue, merge_id)
    return len(waiting)


def find_merged(sessions: Sessions, merge_id: str) -> tuple[FileEntry, ...]:
    """Return what tells of the files that the parts have merged, in the order of the parts; nothing before."""
    with sessions.read() as session:
        parts = [row for row in part_rows.of_merge(session, merge_id) if (row.result or {}).get("is_merged")]
        parts.sort(key=lambda row: PartSpec.model_validate(row.spec).share.index)
        return tuple(part_rows.files_of(row)[-1] for row in parts)


def _settle(session: Session, merge_id: str) -> list[JobView]:
    merge = rows.move(session, merge_id, rows.awaits_parts(), values={})  # takes the row's lock
    if merge is None:
        return []
    parts = part_rows.of_merge(session, merge_id)
    for row in parts:
        if row.state in (JobState.FAILED, JobState.CANCELED):
            ending = Ending(JobState(row.state), problem=row.problem)
            conclude(session, merge_id, rows.awaits_parts(), ending=ending)
            return []
    specs = [PartSpec.model_validate(row.spec) for row in parts]
    last = max(spec.round for spec in specs)
    current = [(row, spec) for row, spec in zip(parts, specs, strict=True) if spec.round == last]
    n_left = sum(row.state not in FINAL_STATES for row, _ in current)
    if n_left == merge.n_remaining_children:
        return []
    _tell(session, merge, parts)
    if n_left:
        rows.move(session, merge_id, values={"n_remaining_children": n_left})
        return []
    if not all((row.result or {})["is_merged"] for row, _ in current):
        is_left = any(part_rows.files_of(row) for row, _ in current)
        following = [one for _, spec in current for one in spec.follow(is_left=is_left)]
        return _add_round(session, rows.view(session, merge), following)
    values = {"state": str(JobState.QUEUED), "n_remaining_children": 0, "hinted_at": clock.now(session)}
    queued = rows.move(session, merge_id, values=values)
    event_log.append(session, merge_id, "job.queued", {"reason": "its parts are merged"})
    return [rows.view(session, queued)] if queued is not None else []


def _tell(session: Session, merge: Job, parts: Sequence[Job]) -> None:
    known = [(JobState(row.state), Progress.model_validate(row.progress)) for row in parts if row.progress is not None]
    progress = add_progress((merge.progress or {}).get("total", 0), known).model_dump(mode="json")
    rows.move(session, merge.id, values={"progress": progress})
    event_log.append(session, merge.id, "job.progress", progress)


def _add_round(session: Session, merge: JobView, specs: Sequence[PartSpec]) -> list[JobView]:
    rows.move(session, merge.id, values={"n_remaining_children": len(specs)})
    actor = Actor(merge.project_id, merge.actor, merge.request_id, merge.traceparent)
    return [
        jobs.add(
            session,
            actor,
            kind=JobKind.PART,
            spec=spec.model_dump(mode="json"),
            inputs=(),  # its merge keeps them
            resource_class=ResourceClass(merge.resource_class),
            priority=merge.priority,
            max_attempts=merge.max_attempts,
            timeout_seconds=merge.timeout_seconds,
            parent_id=merge.id,
        )
        for spec in specs
    ]


# ── a part ────────────────────────────────────────────────────────────────────────────────────────────────────────────


class PartSteps:
    """What a part does around its work."""

    def prepare(self, keepers: Keepers, claim: Claim, scratch: Path) -> PartWork:
        """Bring here what the part reads of the inputs, and what all parts have tallied in earlier rounds."""
        spec = PartSpec.model_validate(claim.job.spec)
        merge_id = str(claim.job.parent)
        with keepers.sessions.read() as session:
            merge = MergeSpec.model_validate(session.get_one(Job, merge_id).spec)
            parts = part_rows.of_merge(session, merge_id)
            earlier = [row for row in parts if PartSpec.model_validate(row.spec).round < spec.round]
            tallies = [file for row in earlier for file in part_rows.files_of(row)]
        folder = keepers.storage.fetch(tallies, watch=keepers.watch) if tallies else scratch
        work, is_whole = merge_jobs.fetch_part(keepers, merge, scratch / "output", spec.share)
        return PartWork(
            merge=work,
            share=spec.share,
            tallies=tuple(folder / file.path for file in tallies),
            round=spec.round,
            merges=not spec.merging,
            is_whole=is_whole,
        )

    def record(self, session: Session, claim: Claim, outcome: Outcome) -> JobResult:
        """Keep the names of the files; whoever settles the merge goes on from there."""
        if not isinstance(outcome, PartOutcome):
            raise TypeError(f"a part gave {type(outcome).__name__}, expected PartOutcome")
        n_bytes = outcome.bytes_read  # a part that was done before its first heartbeat counts as well
        progress = Progress(stage="done", fraction=1.0, done=n_bytes, total=n_bytes, unit="bytes")
        rows.move(session, claim.job.id, values={"progress": progress.model_dump(mode="json")})
        files: list[JsonValue] = [file.model_dump(mode="json") for file in outcome.files]
        return JobResult({"is_merged": outcome.is_merged, "files": files})


steps = PartSteps()
