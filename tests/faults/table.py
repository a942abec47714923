"""The table of what was tried: `pytest -p tests.faults.table` writes it where FAULT_TABLE says; `make faults` does.

A test says which row it belongs to with `@pytest.mark.fault(family, outcome)`; each of its cases counts once, or as
often as it says with `record_property("tried", n)`.
"""

import collections
import os

import pytest

_rows = collections.defaultdict(collections.Counter)


@pytest.fixture(autouse=True)
def _row(request, record_property):
    if marker := request.node.get_closest_marker("fault"):
        record_property("fault", marker.args)


def pytest_runtest_logreport(report):
    properties = dict(report.user_properties)
    if report.when == "call" and "fault" in properties and report.outcome != "skipped":
        row = _rows[tuple(properties["fault"])]
        row["tried"] += int(properties.get("tried", 1))
        row["failed"] += report.failed


def pytest_sessionfinish(session):
    if hasattr(session.config, "workerinput"):  # the workers of xdist report to the one that writes
        return
    with open(os.environ["FAULT_TABLE"], "w", encoding="utf-8") as file:
        file.write("| Fault | Times tried | Outcome |\n|---|---|---|\n")
        for (family, outcome), count in sorted(_rows.items()):
            failed = f"; **{count['failed']} tests failed**" if count["failed"] else ""
            file.write(f"| {family} | {count['tried']} | {outcome}{failed} |\n")
