"""What differs between the versions of other libraries that the tests run with; see docs/versions.md."""

from typing import Any

import peft
import pytest
import transformers
from packaging.version import Version


# outputs have no field `cache_params` any more, which the code in S4's earliest saved folders gives them
OUTPUTS_TAKE_CACHE_PARAMS = Version(transformers.__version__) < Version("5.24")


def allow_installed_peft(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets transformers add adapters with this PEFT: 5.24 asks for 0.22, which was not published when it was."""
    monkeypatch.setattr("transformers.integrations.peft.MIN_PEFT_VERSION", peft.__version__)


def cache_of(generated: dict[str, Any]) -> transformers.Cache:
    """What `generate(..., return_dict_in_generate=True)` returns as `cache` from 5.24 on."""
    return generated["cache" if "cache" in generated else "past_key_values"]
