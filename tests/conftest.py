"""Every test runs on one thread, from the same seed, without progress bars, and with the test hub for a Hub."""

import os

import pytest


pytest.register_assert_rewrite("support")  # so that its assertions say what they compared

# before the others: libraries read the hub's address when they are imported
from support.hub_fixture import hub, naps  # noqa: E402, F401
from support.paths import STARTUP  # noqa: E402
from support.startup import sitecustomize  # noqa: E402, F401


os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")  # for tests marked gpu, name one
os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(STARTUP), os.environ.get("PYTHONPATH")]))

import torch  # noqa: E402
from transformers.utils import logging  # noqa: E402


torch.set_num_threads(1)
logging.disable_progress_bar()


@pytest.fixture(autouse=True)
def seed(request: pytest.FixtureRequest) -> None:
    torch.manual_seed(0)
    if "compile" in request.node.name:  # torch counts how often a process compiles a function, and gives up
        torch._dynamo.reset()


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Runs a model's tests for each of its classes and for the cases that the test names by its argument."""
    for argument, attribute in {"model_class": "model_classes", "case": "cases", "main_case": "main_cases"}.items():
        if metafunc.cls is not None and argument in metafunc.fixturenames:
            metafunc.parametrize(argument, getattr(metafunc.cls, attribute))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Prints what pushes did when they failed, one row for each kind of failure."""
    rows = [
        value
        for report in terminalreporter.getreports("passed")
        for name, value in report.user_properties
        if name == "failure_matrix"
    ]
    if rows:
        terminalreporter.section("failed pushes")
        widths = {key: max(len(key), *(len(str(row[key])) for row in rows)) for key in rows[0]}
        for row in [{key: key for key in widths}, *sorted(rows, key=lambda row: (row["step"], row["fault"]))]:
            terminalreporter.line("  ".join(str(row[key]).ljust(width) for key, width in widths.items()))
