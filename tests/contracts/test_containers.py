"""The containers' files hold to their specifications. No engine is at hand: nothing is built or started here."""

import os
import re
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from app.config import Settings
from app.db.engine import Sessions, make_engine
from app.domain.identifiers import new_id
from app.domain.jobs import ResourceClass
from app.services import presence
from app.services.presence import WorkerFacts

ROOT = Path(__file__).parents[2]
DOCKERFILES = sorted((ROOT / "docker").glob("*.Dockerfile"))
OURS = ["api", "worker", "migrate"]


def run_tool(name: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [str(Path(sys.executable).with_name(name)), *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def compose() -> dict[str, Any]:  # Any: YAML as it stands
    parsed: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
    return parsed


def seconds(text: str) -> int:
    assert text.endswith("s")
    return int(text.removesuffix("s"))


def test_compose_file_follows_the_specification() -> None:
    result = run_tool("check-jsonschema", "--builtin-schema", "vendor.compose-spec", "docker-compose.yml")

    assert result.returncode == 0, result.stdout + result.stderr


def test_a_fault_in_the_compose_file_would_be_seen(tmp_path: Path) -> None:
    faulty = tmp_path / "docker-compose.yml"
    faulty.write_text("services: {api: {image: amalgam-api, healthcheck: {intervall: 5s}}}")

    assert run_tool("check-jsonschema", "--builtin-schema", "vendor.compose-spec", str(faulty)).returncode != 0


@pytest.mark.parametrize("dockerfile", DOCKERFILES, ids=lambda path: str(path.name))
def test_dockerfile_passes_the_linter(dockerfile: Path) -> None:
    result = run_tool("hadolint", str(dockerfile))

    assert result.returncode == 0, result.stdout + result.stderr


@pytest.mark.parametrize("dockerfile", DOCKERFILES, ids=lambda path: str(path.name))
def test_image_runs_the_command_as_an_ordinary_user(dockerfile: Path) -> None:
    lines = dockerfile.read_text().splitlines()

    assert [line for line in lines if line.startswith("USER ")] == ["USER 10001:10001"]
    assert 'ENTRYPOINT ["amalgam"]' in lines


def test_the_api_image_holds_no_tensor_library() -> None:
    source = (ROOT / "docker" / "api.Dockerfile").read_text()

    assert 'pip install --constraint constraints.txt ".[api]"' in source
    assert "torch" not in source.replace("tensor library", "")


def test_every_copied_path_reaches_the_build() -> None:
    allowed = re.findall(r"^!(\S+)$", (ROOT / ".dockerignore").read_text(), flags=re.MULTILINE)

    assert {"app", "workers", "migrations", "docker/worker_health.py", "pyproject.toml", "constraints.txt"} <= set(
        allowed
    )
    assert [path for path in allowed if path != "README.md" and not (ROOT / path).exists()] == []


def test_every_lasting_service_has_a_health_check_a_grace_and_a_restart_policy(compose: dict[str, Any]) -> None:
    lasting = {name: service for name, service in compose["services"].items() if service["restart"] != "no"}

    assert sorted(lasting) == ["api", "postgresql", "store", "valkey", "worker"]
    for name, service in lasting.items():
        assert service["restart"] == "unless-stopped", name
        assert seconds(service["stop_grace_period"]) >= 45, name
        assert "healthcheck" in service or name in OURS, name  # ours have them in their images
        assert service["volumes"], name


@pytest.mark.parametrize("dockerfile", DOCKERFILES, ids=lambda path: str(path.name))
def test_our_images_have_a_health_check(dockerfile: Path) -> None:
    assert "HEALTHCHECK --interval=" in dockerfile.read_text()


def test_a_worker_is_healthy_once_it_has_its_row(migrated_sqlite_url: str) -> None:
    command = [sys.executable, str(ROOT / "docker" / "worker_health.py")]
    environment = {**os.environ, "AMALGAM_DATABASE_URL": migrated_sqlite_url, "PYTHONPATH": str(ROOT)}

    before = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    register_worker(migrated_sqlite_url, name=f"{socket.gethostname()}-0a1b2c-1")
    after = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)

    assert (before.returncode, before.stdout) == (1, "workers of this host: none\n"), before.stderr
    assert after.returncode == 0, after.stderr
    assert "active" in after.stdout


def register_worker(database_url: str, *, name: str) -> None:
    facts = WorkerFacts(
        id=new_id("wrk"), name=name, queues=(ResourceClass.CPU,), device="cpu", concurrency=1, version="0.1.0",
        machine="here", cores=1, threads=0,
    )  # fmt: skip
    engine = make_engine(database_url)
    presence.register(Sessions(engine), facts)
    engine.dispose()


def test_every_named_volume_is_declared_and_used(compose: dict[str, Any]) -> None:
    mounts = [mount for service in compose["services"].values() for mount in service.get("volumes", [])]
    used = {source for mount in mounts if re.fullmatch(r"[a-z]+", source := mount.split(":")[0])}

    assert used == set(compose["volumes"])


def test_services_wait_for_what_they_need(compose: dict[str, Any]) -> None:
    for name in ("api", "worker"):
        conditions = {needed: wait["condition"] for needed, wait in compose["services"][name]["depends_on"].items()}
        assert conditions == {
            "migrate": "service_completed_successfully",
            "bucket": "service_completed_successfully",
            "valkey": "service_healthy",
        }


def test_nothing_is_reachable_from_outside_this_machine(compose: dict[str, Any]) -> None:
    published = [port for service in compose["services"].values() for port in service.get("ports", [])]

    assert published
    assert all(port.startswith("127.0.0.1:") for port in published)


def test_every_foreign_image_has_a_version(compose: dict[str, Any]) -> None:
    foreign = [service["image"] for name, service in compose["services"].items() if name not in OURS]

    assert all(re.search(r":\d+(\.\d+)*$", image) for image in foreign), foreign


def test_every_setting_in_the_compose_file_exists(compose: dict[str, Any]) -> None:
    known = {f"AMALGAM_{name.upper()}" for name in Settings.model_fields}
    used = {name for service in OURS for name in compose["services"][service]["environment"]}

    assert {name for name in used if name.startswith("AMALGAM_")} <= known


def test_every_setting_in_the_images_exists() -> None:
    known = {f"AMALGAM_{name.upper()}" for name in Settings.model_fields}
    used = {name for path in DOCKERFILES for name in re.findall(r"(AMALGAM_[A-Z_]+)=", path.read_text())}

    assert used
    assert used <= known
