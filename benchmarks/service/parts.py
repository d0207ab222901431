"""One merge by one worker and by two, each of one thread: seconds from the request to the published result.

Each worker, with its children, is held to a core of its own: a worker of "one thread" otherwise hashes on another one.
Real worker processes, SQLite, messages on files, a store on the same disk. The runs take turns, and the results are
compared by their digests. Run: `python -m benchmarks.service.parts --data FOLDER`, a folder with `base` and `model-1`,
`model-2`, …; see README.md.
"""

import argparse
import os
import statistics
import tempfile
from pathlib import Path
from typing import Any

from app.db.tables import Checkpoint
from app.domain.checkpoints import FileEntry, Value
from app.domain.jobs import JobKind
from app.domain.registrations import CheckpointRequest
from app.domain.requests import MergeRequest
from app.domain.views.jobs import JobView
from app.domain.views.pages import PageRequest
from app.services import checkpoints, jobs, merges
from app.services.jobs import JobFilters
from benchmarks.engine.floor import measure_floor, read_once, weight_files
from benchmarks.service.site import ACTOR, Site, open_site
from tests.waiting import wait_until

METHODS: dict[str, dict[str, Any]] = {  # any method's parameters
    "task_arithmetic": {"scaling_coefficient": 0.4},
    "ties": {},
}
ONE_EACH = {"AMALGAM_CONCURRENCY": "1", "AMALGAM_THREADS": "1"}


class PartResult(Value):
    """What the row of a part says it has left."""

    is_merged: bool
    files: tuple[FileEntry, ...]


def main() -> None:
    """Measure, and print a line for each run and each method."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="folder of the checkpoints")
    parser.add_argument("--home", type=Path, help="where the service lives; default: a temporary folder")
    parser.add_argument("--n", type=int, default=3, help="runs of each kind")
    parser.add_argument("--parts", type=int, default=4)
    parser.add_argument("--shard-bytes", type=int, default=300_000_000)
    parser.add_argument("--unpinned", action="store_true", help="let every worker run on all cores")
    parser.add_argument("--show-parts", action="store_true", help="when each part began and ended, and its stages")
    parser.add_argument("--methods", nargs="+", choices=sorted(METHODS), default=sorted(METHODS))
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.home) as home:
        roots = {"AMALGAM_FILE_ROOTS": str(options.data.resolve())}
        with open_site(Path(home) / "home", {**ONE_EACH, **roots}) as site:
            _measure(site, options)


def _measure(site: Site, options: argparse.Namespace) -> None:
    _have_workers(site, 1, options)
    names = _register(site, options.data)
    read_once(options.data)
    for method in options.methods:
        seconds: dict[int, list[float]] = {1: [], 2: []}
        digests: set[str] = set()
        for _ in range(options.n):
            for n_workers in (1, 2):
                _have_workers(site, n_workers, options)
                n_parts = 1 if n_workers == 1 else options.parts
                job = _merge(site, method, names, n_parts, options.shard_bytes)
                seconds[n_workers].append(_seconds(job))
                digests.add(_digest(site, job))
                n_passes = _n_passes(job)
                print(f"{method}: {n_workers} workers, {n_parts} parts: {seconds[n_workers][-1]:.2f} s", flush=True)
                if options.show_parts:
                    _show_parts(site, job)
        one, two = (statistics.median(seconds[n]) for n in (1, 2))
        same = "the same bytes" if len(digests) == 1 else "BYTES DIFFER"
        print(f"{method}: median {one:.2f} s by one, {two:.2f} s by two: {one / two:.2f} x, {same}", flush=True)
        sizes = [path.stat().st_size for path in weight_files(options.data / names[0])]
        floor = measure_floor([options.data / name for name in names], sizes, site.home, read_once).total(n_passes)
        print(f"{method}: floor {floor:.2f} s, {one / floor:.1f} x by one, {two / floor:.1f} x by two", flush=True)


def _register(site: Site, data: Path) -> list[str]:
    names = ["base", *sorted(folder.name for folder in data.glob("model-*"))]
    for name in names:
        request = CheckpointRequest(uri=(data / name).resolve().as_uri(), name=name)
        site.wait([checkpoints.register(site.wiring, ACTOR, request).job.id])
    return names


def _have_workers(site: Site, n: int, options: argparse.Namespace) -> None:
    """Start or stop workers until there are n, and wait until the new ones are warm."""
    cores = sorted(os.sched_getaffinity(0))
    log = site.home / "worker.log"
    log.touch()
    while len(site.workers) > n:
        process = site.workers.pop()
        process.terminate()
        process.wait(60)
    while len(site.workers) < n:
        before = log.read_bytes().count(b"worker_started")
        site.start_worker(core=None if options.unpinned else cores[len(site.workers) % len(cores)])
        wait_until(lambda: log.read_bytes().count(b"worker_started") > before, deadline_seconds=120)  # noqa: B023


def _merge(site: Site, method: str, names: list[str], n_parts: int, shard_bytes: int) -> JobView:
    body = {
        "method": method,
        "base_model": names[0],
        "models": [{"checkpoint": name} for name in names[1:]],
        "parameters": METHODS[method],
        "output": {"name": "merged", "shard_bytes": shard_bytes},
        "parallelism": n_parts,
        "force": True,
    }
    (job,) = site.wait([merges.submit(site.wiring, ACTOR, MergeRequest.model_validate(body)).id])
    if job.problem is not None:
        raise RuntimeError(job.problem)
    return job


def _show_parts(site: Site, job: JobView) -> None:
    """Print, of each part and of the join, its worker, when it began and ended, and what it did meanwhile."""
    filters, page = JobFilters(kind=JobKind.PART, parent=job.id), PageRequest(limit=200, order="created_at")
    for one in (*jobs.list_(site.wiring.sessions, ACTOR, filters, page).items, job):
        at = one.timings
        begun, ended = (
            (moment - job.timings.queued_at).total_seconds() for moment in (at.started_at, at.finished_at) if moment
        )
        stages = ", ".join(f"{stage.name} {stage.seconds:.2f}" for stage in at.stages or ())
        left = "" if one is job else f"; {_tallied_bytes(one)} bytes of tallies"
        print(f"    {one.kind} {str(one.worker)[-4:]} {begun:6.2f} to {ended:6.2f}: {stages}{left}", flush=True)


def _tallied_bytes(part: JobView) -> int:
    result = PartResult.model_validate(part.result)
    return 0 if result.is_merged else sum(file.size_bytes for file in result.files)


def _n_passes(job: JobView) -> int:
    match job.result:
        case {"data": {"n_passes": int(n_passes)}}:
            return n_passes
    raise RuntimeError(f"{job.id} does not say how often it read its inputs: {job.result}")


def _seconds(job: JobView) -> float:
    if job.timings.finished_at is None:
        raise RuntimeError(f"{job.id} has not ended")
    return (job.timings.finished_at - job.timings.queued_at).total_seconds()


def _digest(site: Site, job: JobView) -> str:
    with site.wiring.sessions.read() as session:
        return str(session.get_one(Checkpoint, str((job.result or {})["checkpoint"])).content_digest)


if __name__ == "__main__":
    main()
