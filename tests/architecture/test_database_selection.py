"""What ``--database-only`` takes, which is what runs again on PostgreSQL."""

import pytest

from tests.conftest import touches_database
from tests.processes import ROOT


@pytest.mark.parametrize(
    ("file", "touches"),
    [
        ("integration/tenants/test_services.py", True),  # a marker says so
        ("integration/console/test_admin_lists.py", True),  # a fixture of a fixture does
        ("integration/console/test_serve_refusals.py", False),
        ("integration/console/test_playground_chat.py", False),  # a mark says that any will do
        ("unit/core/test_files.py", False),
    ],
)
def test_whole_files(request: pytest.FixtureRequest, file: str, touches: bool) -> None:
    module = pytest.Module.from_parent(request.session, path=ROOT / "tests" / file)
    items = [item for item in module.collect() if isinstance(item, pytest.Item)]
    assert items
    assert {touches_database(item) for item in items} == {touches}
