"""Every test runs offline, on one thread, from the same seed, and without progress bars."""

import os


os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"
os.environ["CUDA_VISIBLE_DEVICES"] = ""

import pytest  # noqa: E402
import torch  # noqa: E402
from transformers.utils import logging  # noqa: E402


torch.set_num_threads(1)
logging.disable_progress_bar()


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Runs a model's tests for each of its classes and for the cases that the test names by its argument."""
    for argument, attribute in {"model_class": "model_classes", "case": "cases", "main_case": "main_cases"}.items():
        if metafunc.cls is not None and argument in metafunc.fixturenames:
            metafunc.parametrize(argument, getattr(metafunc.cls, attribute))
