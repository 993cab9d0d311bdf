"""What schemathesis makes of its tests, as it is collected: by names that differ, and not the long
form for those who did not ask for it."""

from collections.abc import Generator
from typing import Any

import pytest


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_pycollect_makeitem(
    collector: pytest.Collector, obj: object
) -> Generator[None, Any, Any]:
    """Its thousands of cases are made as tests are collected, which takes longer than the short
    form's take to be sent."""
    made = yield
    marks = {mark.name for mark in getattr(obj, "pytestmark", ())}
    is_short = collector.config.getoption("markexpr") == "not prove"
    return [] if is_short and "prove" in marks and hasattr(made, "schema") else made


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """All that it makes of one test have its name alone: each is to say which door it knocks at,
    since of several with one name pytest-xdist would run one."""
    for item in items:
        if label := getattr(item, "operation_label", None):
            item._id = item.id.with_params(label)
