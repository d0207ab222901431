"""Texts of mergekit documents for tests."""

from textwrap import dedent
from typing import Any

from app.domain.errors import AmalgamError
from app.domain.mergekit.reading import read_merge

Document = dict[str, Any]


def read(text: str) -> Document:
    """Return the request that a document makes."""
    return read_merge(dedent(text).encode()).request


def faults_of(text: str) -> dict[str, tuple[str, str | None]]:
    """Return what is wrong with a document: pointer -> (message, near match)."""
    try:
        read(text)
    except AmalgamError as error:
        return {fault.pointer: (fault.message, fault.did_you_mean) for fault in error.errors}
    return {}
