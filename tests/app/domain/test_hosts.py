"""Which hosts are this machine's own, and which Host headers are answered."""

import pytest

from app.domain.hosts import answered_hosts, host_of, is_answered, is_loopback


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.9.1", "::1", "[::1]", "localhost", "LOCALHOST"])
def test_loopback_hosts_are_told_from_others(host: str) -> None:
    assert is_loopback(host)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "10.0.0.1", "example.org", "127.0.0.1.evil.example", ""])
def test_other_hosts_are_not_loopback(host: str) -> None:
    assert not is_loopback(host)


@pytest.mark.parametrize(
    ("header", "host"),
    [
        ("Merge.Example", "merge.example"),
        ("merge.example:8000", "merge.example"),
        ("merge.example.", "merge.example"),
        ("[::1]", "::1"),
        ("[::1]:8000", "::1"),
        ("[FE80::1]:8000", "fe80::1"),
        ("", ""),
        ("[", ""),
        (":8000", ""),
    ],
)
def test_a_host_header_is_read_without_its_port(header: str, host: str) -> None:
    assert host_of(header) == host


@pytest.mark.parametrize(
    "header", ["localhost", "LOCALHOST:8000", "127.0.0.1:8000", "[::1]", "[::1]:8000", "127.0.0.7"]
)
def test_on_loopback_this_machine_is_answered(header: str) -> None:
    assert is_answered(host_of(header), answered_hosts((), "127.0.0.7"))


@pytest.mark.parametrize("header", ["evil.example", "localhost.evil.example", "127.0.0.1.evil.example", "", "*"])
def test_on_loopback_nobody_else_is_answered(header: str) -> None:
    assert not is_answered(host_of(header), answered_hosts((), "127.0.0.1"))


def test_a_service_that_was_opened_answers_to_all_unless_hosts_are_named() -> None:
    assert is_answered("any.example", answered_hosts((), "0.0.0.0"))
    assert not is_answered("any.example", answered_hosts(("merge.example",), "0.0.0.0"))


def test_all_are_answered_where_all_are_named() -> None:
    assert is_answered("any.example", answered_hosts(("*",), "127.0.0.1"))


def test_a_star_stands_for_what_is_below_a_name() -> None:
    hosts = answered_hosts(("*.Merge.example",), "127.0.0.1")

    assert is_answered("eu.merge.example", hosts)
    assert not any(is_answered(host, hosts) for host in ("merge.example", "xmerge.example", "merge.example.evil"))
