"""What a merge moves when its inputs and its store lie in a bucket: as a whole, and in parts on machines of their own.

Bytes and requests are counted by a proxy before moto's server; nothing is said of speed. Each part has a machine of its
own, the same one in every round: a cache that begins empty. Run: `python -m benchmarks.service.traffic
[--megabytes 96] [--methods ties]`; see README.md.
"""

import argparse
import contextlib
import os
import tempfile
from collections import Counter
from dataclasses import replace
from pathlib import Path
from unittest import mock

import numpy as np

from app.domain.jobs import JobKind
from app.logging import set_up_logging
from app.services import parts
from app.services.parts import PartSpec
from app.storage.factory import open_storage
from app.storage.sources import Sources
from tests import servers
from tests.app.api.house import Document, House, draw, open_house
from tests.s3_proxy import S3Proxy, Traffic, run_proxy

N_LAYERS = 8
N_PARTS = (1, 2, 4)
NAMES = ("base", "one", "two")
MEGABYTE = 1 << 20
HEAD = (
    "| method, parts | attempts | down, MB | of the largest attempt | up, MB | GET | HEAD | UploadPart | copies |\n"
    "|---|---:|---:|---:|---:|---:|---:|---:|---:|"
)


def main() -> None:
    """Count, and print a row for each method and number of parts."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--megabytes", type=int, default=96, help="of each of the three models, float32")
    parser.add_argument("--methods", nargs="+", default=["task_arithmetic", "ties"])
    given = parser.parse_args()
    with contextlib.ExitStack() as stack:
        bucket = stack.enter_context(servers.fresh_bucket(stack.enter_context(servers.run_s3())))
        proxy = stack.enter_context(run_proxy(bucket.endpoint_url))
        environment = {**bucket.environment, "AWS_ENDPOINT_URL": proxy.url, "AMALGAM_LOG_LEVEL": "error"}
        stack.enter_context(mock.patch.dict(os.environ, environment))
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="amalgam-traffic-")))
        house = stack.enter_context(open_house(folder / "house", store_url=f"{bucket.url}/store"))
        _register(house, bucket, given.megabytes * MEGABYTE // (4 * N_LAYERS))
        set_up_logging("console", "error")
        print(HEAD, flush=True)
        for method in given.methods:
            digests = {_run(house, proxy, method, n, given.megabytes * MEGABYTE // N_LAYERS) for n in N_PARTS}
            if len(digests) != 1:
                raise RuntimeError(f"{method}: the bytes differ: {digests}")


def _register(house: House, bucket: servers.S3Bucket, n_elements: int) -> None:
    client = bucket.client()
    for seed, name in enumerate(NAMES):
        house.write(name, draw(seed, {f"layers.{index}.weight": (n_elements,) for index in range(N_LAYERS)}))
        client.upload_file(str(house.data / name / "model.safetensors"), bucket.name, f"{name}/model.safetensors")
        house.made("/v1/checkpoints", {"uri": f"{bucket.url}/{name}", "name": name})
    house.work()


def _run(house: House, proxy: S3Proxy, method: str, n_parts: int, shard_bytes: int) -> str:
    """Run a merge, print its row, and return the digest of what it made."""
    job = house.made(
        "/v1/merges",
        {
            "method": method,
            "base_model": NAMES[0],
            "models": [{"checkpoint": name} for name in NAMES[1:]],
            "output": {"shard_bytes": shard_bytes + MEGABYTE // 2},
            "parallelism": n_parts,
            "force": True,
        },
    )
    moved: list[Traffic] = []
    while (claim := house.claim()) is not None:
        share = PartSpec.model_validate(claim.job.spec).share.index if claim.job.kind is JobKind.PART else 0
        cache = house.folder / f"cache-{job['id']}-{share}"
        storage = open_storage(house.settings.store_url, cache, house.folder / "scratch")
        house.keepers = replace(house.keepers, storage=storage, sources=Sources([], cache))
        proxy.traffic = Traffic()
        house.run(claim)
        moved.append(proxy.traffic)
        if claim.job.parent is not None:
            parts.settle(house.wiring.sessions, house.wiring.queue, claim.job.parent)
    ended: Document = house.read(f"/v1/jobs/{job['id']}")
    if ended["problem"] is not None:
        raise RuntimeError(ended["problem"])
    digest = _forget(house, ended)
    kinds = sum((traffic.requests for traffic in moved), Counter[str]())
    down = np.array([traffic.n_down for traffic in moved]) / MEGABYTE
    up = sum(traffic.n_up for traffic in moved) / MEGABYTE
    name = f"{method}, whole" if n_parts == 1 else f"{method}, {n_parts} parts"
    counts = " | ".join(str(kinds[kind]) for kind in ("GET", "HEAD", "UploadPart", "Copy"))
    print(f"| {name} | {len(moved)} | {down.sum():.0f} | {down.max():.0f} | {up:.0f} | {counts} |", flush=True)
    return digest


def _forget(house: House, ended: Document) -> str:
    """Delete what was merged, so that the next merge has to send it again; return its digest."""
    digest = str(house.read(f"/v1/checkpoints/{ended['result']['checkpoint']}")["content_digest"])
    artifact = ended["result"]["artifacts"][0]
    files = house.read(f"/v1/artifacts/{artifact}")["files"]
    response = house.client.delete(f"/v1/artifacts/{artifact}")
    if response.status_code != 204:
        raise RuntimeError(response.text)
    house.wiring.storage.delete([file["sha256"] for file in files], min_age_seconds=0.0)
    return digest


if __name__ == "__main__":
    main()
