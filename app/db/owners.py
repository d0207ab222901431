"""Whose a row is: what the queries need to know of an actor."""

from typing import Protocol


class Owner(Protocol):
    """The project and the name that a caller's rows carry; services' Actor is one."""

    @property
    def project_id(self) -> str:
        """Id of the project."""

    @property
    def name(self) -> str:
        """Name of the caller."""
