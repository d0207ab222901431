"""Host names: which ones only this machine reaches, and which a service answers to.

A page of a stranger can make its own name point at this machine (DNS rebinding); its requests then carry that name in
their Host header. So a service on loopback answers to this machine's names only.
"""

import ipaddress
from collections.abc import Sequence

LOOPBACK_HOSTS = ("localhost", "127.0.0.1", "[::1]")
ANY_HOST = "*"


def is_loopback(host: str) -> bool:
    """Tell whether only this machine can reach the host."""
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host.lower() == "localhost"


def answered_hosts(named: Sequence[str], listens_on: str) -> tuple[str, ...]:
    """Return the hosts to answer to: those named, and always this machine's own.

    Where none is named, a service that other machines reach answers to all: whoever opened it vouches for its network.
    """
    if not named and not is_loopback(listens_on):
        return (ANY_HOST,)
    return (*named, *LOOPBACK_HOSTS, listens_on)


def host_of(header: str) -> str:
    """Return the host of a Host header, without its port, in lower case; an IPv6 address without its brackets."""
    text = header.strip().lower()
    if text.startswith("["):
        return text[1:].partition("]")[0]
    return text.partition(":")[0].removesuffix(".")


def is_answered(host: str, hosts: Sequence[str]) -> bool:
    """Tell whether one of the hosts admits this one, as `host_of` returns it; `*.name` admits all below a name."""
    return any(_admits(pattern.lower().strip("[]"), host) for pattern in hosts)


def _admits(pattern: str, host: str) -> bool:
    return pattern in (ANY_HOST, host) or (pattern.startswith("*.") and host.endswith(pattern[1:]))
