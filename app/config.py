"""Every setting, from AMALGAM_* variables and `.env`; units stand in the names. Only the doors import this."""

import difflib
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self
from urllib.parse import unquote, urlsplit

from pydantic import Field, ValidationError, field_validator, model_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict
from sqlalchemy import make_url
from sqlalchemy.exc import ArgumentError

from app.domain.jobs import ResourceClass

PREFIX = "AMALGAM_"
NOT_SETTINGS = ("AMALGAM_TEST_", "AMALGAM_URL", "AMALGAM_DEMO_")  # read by tests, by the client, by the demo
Seconds = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class SettingsInvalid(Exception):
    """A variable holds a value that cannot be used; the message names it, what it holds and what it may hold."""


class Settings(BaseSettings):
    """What is in force. Folders and URLs left out lie below `home`."""

    model_config = SettingsConfigDict(env_prefix=PREFIX, env_file=".env", extra="ignore", frozen=True)

    # where things lie
    home: Path = Field(default=Path(".amalgam"), description="Data folder of the embedded default.")
    database_url: str = Field(default="", description="sqlite:///path or postgresql://user:password@host/name.")
    broker_url: str = Field(default="", description="filesystem:///folder, redis://… or rediss://….")
    store_url: str = Field(default="", description="file:///folder or s3://bucket/prefix.")
    file_roots: Annotated[tuple[Path, ...], NoDecode] = Field(
        default=(), description="Folders, separated by colons, that file: URIs may lie in."
    )
    scratch: Path = Field(default=Path(), description="Working folder; on the file system of a local store.")
    cache: Path = Field(default=Path(), description="Folder of fetched inputs.")
    cache_bytes: int = Field(default=50 * 2**30, ge=0, description="Size that the cache is kept below.")

    # the API
    auth: Literal["on", "off"] = Field(default="on", description="off: a host other than loopback may be served.")
    cors_origins: Annotated[tuple[str, ...], NoDecode] = Field(
        default=(), description="Origins, separated by commas, whose pages may call the API."
    )
    allowed_hosts: Annotated[tuple[str, ...], NoDecode] = Field(
        default=(), description="Host names, separated by commas, that requests may address beside loopback; * for all."
    )
    body_limit_bytes: int = Field(default=2**20, ge=1024, description="Largest JSON body.")
    upload_expires_seconds: Seconds = Field(default=86400.0, description="How long an upload may stay open.")

    # logs
    log_format: Literal["console", "json"] = Field(default="console", description="Form of the log lines.")
    log_level: Literal["debug", "info", "warning", "error"] = Field(default="info", description="Least level logged.")

    # jobs
    max_attempts: int = Field(default=3, ge=1, le=100, description="Attempts of a job that does not say how many.")
    timeout_seconds: int = Field(default=7200, ge=1, le=7 * 86400, description="Time limit of a job that names none.")
    shard_bytes: int = Field(default=5 * 10**9, ge=2**20, description="Largest weights file that a job writes.")
    lease_seconds: Seconds = Field(default=60.0, description="How long a silent worker keeps its job.")
    heartbeat_seconds: Seconds = Field(default=1.0, description="How often a worker renews its lease.")
    reap_seconds: Seconds = Field(default=2.0, description="How often lost jobs and messages are looked for.")
    hint_seconds: Seconds = Field(
        default=60.0, description="How long a queued job waits before its message is repeated."
    )
    cancel_grace_seconds: Seconds = Field(default=30.0, description="How long a job may stay canceling.")
    sweep_seconds: Seconds = Field(default=600.0, description="How often unreferenced bytes are looked for.")
    sweep_grace_seconds: Seconds = Field(default=86400.0, description="Age below which unreferenced bytes are spared.")

    # the worker
    device: str = Field(
        default="auto",
        pattern=r"^(auto|cpu|cuda(:\d+)?)$",
        description="auto, cpu or cuda:N: where models are run and trained, and matrices decomposed; "
        "element-wise and threshold methods merge on the CPU, whatever stands here.",
    )
    queues: Annotated[tuple[ResourceClass, ...], NoDecode] = Field(
        default=(ResourceClass.IO, ResourceClass.CPU, ResourceClass.GPU),
        description="Resource classes, separated by commas, that this worker serves.",
    )
    concurrency: int = Field(default=0, ge=0, le=1024, description="Jobs at a time; 0: one per core, at most four.")
    threads: int = Field(
        default=0, ge=0, le=1024, description="Cores that a job keeps busy; 0: the cores shared among the jobs."
    )
    poll_seconds: Seconds = Field(default=5.0, description="How often an idle worker looks for work without a message.")
    grace_seconds: Annotated[float, Field(ge=0, allow_inf_nan=False)] = Field(
        default=30.0, description="How long running jobs may go on after SIGTERM."
    )
    job_memory_bytes: int | None = Field(default=None, ge=2**26, description="Memory limit of a job; none if not set.")
    worker_name: str | None = Field(default=None, pattern=r"^[A-Za-z0-9._-]{1,64}$", description="Stable worker name.")

    @field_validator("file_roots", mode="before")
    @classmethod
    def _split_paths(cls, value: object) -> object:
        return tuple(Path(part) for part in value.split(os.pathsep) if part) if isinstance(value, str) else value

    @field_validator("cors_origins", "allowed_hosts", "queues", mode="before")
    @classmethod
    def _split_names(cls, value: object) -> object:
        return tuple(part.strip() for part in value.split(",") if part.strip()) if isinstance(value, str) else value

    @field_validator("database_url")
    @classmethod
    def _check_database(cls, value: str) -> str:
        if not value:
            return value
        try:
            backend = make_url(value).get_backend_name()
        except ArgumentError:
            raise ValueError("expected sqlite:///path or postgresql://user:password@host/name") from None
        if backend not in ("sqlite", "postgresql"):
            raise ValueError("expected sqlite:///path or postgresql://user:password@host/name")
        return value

    @field_validator("broker_url")
    @classmethod
    def _check_broker(cls, value: str) -> str:
        if value and urlsplit(value).scheme not in ("filesystem", "redis", "rediss"):
            raise ValueError("expected filesystem:///folder, redis://… or rediss://…")
        return value

    @field_validator("store_url")
    @classmethod
    def _check_store(cls, value: str) -> str:
        if value and urlsplit(value).scheme not in ("file", "s3"):
            raise ValueError("expected file:///folder or s3://bucket/prefix")
        return value

    @field_validator("queues")
    @classmethod
    def _check_queues(cls, value: tuple[ResourceClass, ...]) -> tuple[ResourceClass, ...]:
        if not value:
            raise ValueError("expected at least one of io, cpu, gpu, separated by commas")
        return value

    @model_validator(mode="after")
    def _derive(self) -> Self:
        home = self.home.expanduser().resolve()
        local_store = Path(unquote(urlsplit(self.store_url).path)) if self.store_url.startswith("file:") else None
        derived: dict[str, Any] = {
            "home": home,
            "database_url": self.database_url or f"sqlite:///{home / 'amalgam.db'}",
            "broker_url": self.broker_url or f"filesystem://{home / 'broker'}",
            "store_url": self.store_url or (home / "store").as_uri(),
            "file_roots": tuple(root.expanduser().resolve() for root in self.file_roots) or (Path.cwd(), home),
            "scratch": (local_store.parent if local_store else home) / "scratch"
            if self.scratch == Path()
            else self.scratch.expanduser().resolve(),
            "cache": home / "cache" if self.cache == Path() else self.cache.expanduser().resolve(),
            "concurrency": self.concurrency or min(4, os.cpu_count() or 1),
        }
        for name, value in derived.items():
            object.__setattr__(self, name, value)  # the model is frozen; this is its construction
        return self

    @model_validator(mode="after")
    def _check_spans(self) -> Self:
        if self.lease_seconds < 3 * self.heartbeat_seconds:
            found = f"found {self.lease_seconds} with {PREFIX}HEARTBEAT_SECONDS = {self.heartbeat_seconds}"
            raise ValueError(f"{PREFIX}LEASE_SECONDS: expected at least three heartbeats, {found}")
        return self

    def describe(self) -> dict[str, str]:
        """Return every variable with what is in force, passwords masked."""
        return {f"{PREFIX}{name.upper()}": _masked(getattr(self, name)) for name in type(self).model_fields}


def load_settings(**overrides: object) -> Settings:
    """Return the settings in force; `overrides` (by field name) win over the environment.

    Raises: SettingsInvalid naming every variable with a bad value, and misspelt variables.
    """
    unknown = _unknown_variables(os.environ)
    if unknown:
        raise SettingsInvalid("\n".join(unknown))
    try:
        return Settings(**overrides)  # type: ignore[arg-type]  # checked by pydantic
    except ValidationError as error:
        raise SettingsInvalid("\n".join(_describe(fault) for fault in error.errors())) from None


def _unknown_variables(environment: Mapping[str, str]) -> list[str]:
    known = [f"{PREFIX}{name.upper()}" for name in Settings.model_fields]
    messages: list[str] = []
    for name in sorted(environment):
        if not name.startswith(PREFIX) or name.startswith(NOT_SETTINGS) or name in known:
            continue
        near = difflib.get_close_matches(name, known, n=1)
        hint = f"did you mean {near[0]}?" if near else "`amalgam config` lists the settings."
        messages.append(f"{name}: there is no such setting; {hint}")
    return messages


def _describe(fault: Any) -> str:  # Any: pydantic's ErrorDetails
    message = str(fault["msg"]).removeprefix("Value error, ")
    if not fault["loc"]:
        return message
    name = f"{PREFIX}{str(fault['loc'][0]).upper()}"
    return f"{name}: found {_masked(fault['input'])!r}; {message[:1].lower()}{message[1:]}"


_SECRET_IN_QUERY = re.compile(r"([?&][^=&]*(?:pass|secret|token|key)[^=&]*=)[^&]*", re.IGNORECASE)


def _masked(value: object) -> str:
    if isinstance(value, tuple):
        separator = os.pathsep if any(isinstance(part, Path) for part in value) else ","
        return separator.join(str(part) for part in value)
    text = "" if value is None else str(value)
    if "://" not in text:
        return text
    password = urlsplit(text).password
    hidden = text.replace(f":{password}@", ":***@") if password else text
    return _SECRET_IN_QUERY.sub(r"\1***", hidden)
