"""The tests that every fusible model gets: its class gives configurations and inputs and says what the method is."""

from .equivalence import EquivalenceTests
from .storage import StorageTests
from .training import TrainingTests


class FusibleTesterMixin(EquivalenceTests, StorageTests, TrainingTests):
    """
    Equivalence, storage and training of one family of models.

    A subclass sets `model_classes` (the last one takes `labels`), `cases` (names of configurations to check for
    equivalence), `main_cases` (a few of them, for the slower tests), and defines `make_config(case)`,
    `make_inputs(config, batch_size)` with labels, and `take_method_out(model)`.
    """


__all__ = ["FusibleTesterMixin"]
