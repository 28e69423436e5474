"""
Makes errors of what transformers says about deprecated names, in its warnings and in its log.

Python imports a file of this name first in every process whose PYTHONPATH has its folder: `conftest.py` puts it there,
so that it holds for programs of the tests too, in which code files of saved models run.
"""

import logging
import warnings


class DeprecationHandler(logging.Handler):
    """Turns records about something deprecated into warnings."""

    def emit(self, record: logging.LogRecord) -> None:
        message = record.getMessage()
        if "deprecated" in message or "will be removed" in message:
            warnings.warn(message, FutureWarning, stacklevel=2)


logging.getLogger("transformers").addHandler(DeprecationHandler(logging.WARNING))
warnings.simplefilter("error", FutureWarning)  # in the tests themselves, pytest's filters come after it
