"""Findings of the doctor, as tests compare them."""

from collections.abc import Iterator

from apps.console.doctor.findings import Finding


def told(findings: Iterator[Finding]) -> list[tuple[str, str, str]]:
    found = list(findings)
    assert all(bool(each.remedy) == (each.status != "ok") for each in found)
    return [(each.name, each.status, each.seen) for each in found]
