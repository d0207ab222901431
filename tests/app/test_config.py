"""Settings: what is in force, and how a bad value is refused."""

import os
from pathlib import Path

import pytest

from app.config import Settings, SettingsInvalid, load_settings
from app.domain.jobs import ResourceClass


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # no .env of the developer's


def test_everything_left_out_lies_below_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AMALGAM_HOME", str(tmp_path / "data"))
    settings = load_settings()
    home = tmp_path / "data"
    assert settings.database_url == f"sqlite:///{home}/amalgam.db"
    assert settings.broker_url == f"filesystem://{home}/broker"
    assert settings.store_url == f"file://{home}/store"
    assert (settings.scratch, settings.cache) == (home / "scratch", home / "cache")
    assert settings.file_roots == (tmp_path, home)


def test_scratch_lies_beside_a_local_store(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AMALGAM_STORE_URL", "file:///srv/models/store")
    assert load_settings().scratch == Path("/srv/models/scratch")


def test_lists_are_split(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AMALGAM_FILE_ROOTS", f"/a{os.pathsep}/b")
    monkeypatch.setenv("AMALGAM_QUEUES", "io, gpu")
    monkeypatch.setenv("AMALGAM_CORS_ORIGINS", "https://a.example,https://b.example")
    settings = load_settings()
    assert settings.file_roots == (Path("/a"), Path("/b"))
    assert settings.queues == (ResourceClass.IO, ResourceClass.GPU)
    assert settings.cors_origins == ("https://a.example", "https://b.example")


def test_a_file_named_env_is_read_and_the_environment_wins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / ".env").write_text("AMALGAM_MAX_ATTEMPTS=7\nAMALGAM_LOG_LEVEL=debug\nOTHER=1\n")
    monkeypatch.setenv("AMALGAM_MAX_ATTEMPTS", "8")
    settings = load_settings()
    assert (settings.max_attempts, settings.log_level) == (8, "debug")


def test_overrides_win_over_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AMALGAM_CONCURRENCY", "3")
    assert load_settings(concurrency=5).concurrency == 5


def test_concurrency_follows_the_cores_when_left_out() -> None:
    assert 1 <= load_settings().concurrency <= 4


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("AMALGAM_LEASE_SECONDS", "soon", "valid number"),
        ("AMALGAM_LEASE_SECONDS", "-1", "greater than 0"),
        ("AMALGAM_LEASE_SECONDS", "nan", "finite"),
        ("AMALGAM_LEASE_SECONDS", "inf", "finite"),
        ("AMALGAM_MAX_ATTEMPTS", "0", "greater than or equal to 1"),
        ("AMALGAM_DATABASE_URL", "mysql://x", "sqlite:///path or postgresql://"),
        ("AMALGAM_DATABASE_URL", "nonsense", "sqlite:///path or postgresql://"),
        ("AMALGAM_BROKER_URL", "amqp://x", "filesystem:///folder, redis://"),
        ("AMALGAM_STORE_URL", "gs://bucket", "file:///folder or s3://"),
        ("AMALGAM_QUEUES", "disk", "'io', 'cpu' or 'gpu'"),
        ("AMALGAM_QUEUES", ",", "at least one of io, cpu, gpu"),
        ("AMALGAM_DEVICE", "tpu", "pattern"),
        ("AMALGAM_AUTH", "maybe", "'on' or 'off'"),
    ],
)
def test_a_bad_value_is_refused_with_the_variable_and_what_it_may_be(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str, expected: str
) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(SettingsInvalid) as refused:
        load_settings()
    message = str(refused.value)
    assert message.startswith(f"{name}: found {value!r}") or value == ","
    assert expected in message


def test_every_bad_value_is_named_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AMALGAM_AUTH", "x")
    monkeypatch.setenv("AMALGAM_LOG_FORMAT", "x")
    with pytest.raises(SettingsInvalid, match=r"(?s)AMALGAM_AUTH.*AMALGAM_LOG_FORMAT"):
        load_settings()


def test_a_misspelt_variable_is_refused_with_the_nearest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AMALGAM_LEASE_SECOND", "5")
    with pytest.raises(SettingsInvalid, match=r"AMALGAM_LEASE_SECOND: .* did you mean AMALGAM_LEASE_SECONDS"):
        load_settings()


def test_variables_of_tests_and_of_the_client_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AMALGAM_TEST_REDIS_URL", "redis://x")
    monkeypatch.setenv("AMALGAM_URL", "http://x")
    load_settings()


def test_a_lease_shorter_than_three_heartbeats_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AMALGAM_LEASE_SECONDS", "2")
    with pytest.raises(SettingsInvalid, match="AMALGAM_LEASE_SECONDS: expected at least three heartbeats"):
        load_settings()


def test_what_is_in_force_is_described_without_passwords(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AMALGAM_DATABASE_URL", "postgresql://amalgam:s3cret@db/amalgam")
    monkeypatch.setenv("AMALGAM_BROKER_URL", "redis://:s3cret@queue/0")
    described = load_settings().describe()
    assert described["AMALGAM_DATABASE_URL"] == "postgresql://amalgam:***@db/amalgam"
    assert described["AMALGAM_BROKER_URL"] == "redis://:***@queue/0"
    assert "s3cret" not in str(described)
    assert set(described) == {f"AMALGAM_{name.upper()}" for name in Settings.model_fields}


def test_a_password_in_the_query_of_a_url_is_masked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AMALGAM_DATABASE_URL", "postgresql://db/amalgam?user=me&password=hunter2&sslmode=require")
    described = load_settings().describe()
    assert described["AMALGAM_DATABASE_URL"] == "postgresql://db/amalgam?user=me&password=***&sslmode=require"


def test_every_setting_says_what_it_is() -> None:
    assert all(field.description for field in Settings.model_fields.values())
