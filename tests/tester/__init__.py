"""The tests that every fusible model gets: its class gives configurations and inputs and says what the method is."""

from .laws import LawTests
from .storage import StorageTests
from .training import TrainingTests


class FusibleTesterMixin(LawTests, StorageTests, TrainingTests):
    """
    Laws, storage and training of one family of models.

    A subclass sets `model_classes` (the last one takes `labels`), `cases` (names of configurations to check the laws
    on), `main_cases` (a few of them, for the slower tests), and defines `make_config(case)`,
    `make_inputs(config, batch_size)` with labels, and `take_method_out(model)`.
    """


__all__ = ["FusibleTesterMixin"]
