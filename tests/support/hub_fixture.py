"""
The hub of this test process, and the fixtures of tests that use it.

Libraries read the address of the hub, the login and the folders of their caches when they are imported. So this module
starts the hub and sets the environment when it is imported itself, and `conftest.py` must import it before anything
that imports huggingface_hub, in place of setting `HF_HUB_OFFLINE`:

```python
from support.hub_fixture import hub, naps  # noqa: F401
```

From then on all requests of all tests go to this hub, which knows no repository that a test has not made, and nothing
comes from the developer's caches or login. Each process of pytest-xdist has a hub of its own. Large files travel by
LFS; a test of xet makes a second `Hub(tmp_path, xet=True)` and runs its clients as processes with
`os.environ | that_hub.environment(home)`.
"""

import atexit
import os
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace

import pytest

from .hub import Hub


if "huggingface_hub" in sys.modules:
    raise ImportError("import this module before anything that imports huggingface_hub: it reads the environment once")

CLOSING = ExitStack()
atexit.register(CLOSING.close)
FOLDER = Path(CLOSING.enter_context(tempfile.TemporaryDirectory(prefix="hub-")))
HUB = CLOSING.enter_context(Hub(FOLDER / "hub"))
os.environ.update(HUB.environment(FOLDER / "home"))


@pytest.fixture
def naps(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """How long the client would have slept before it tried again; it does not."""
    import huggingface_hub.file_download
    import huggingface_hub.utils._http

    naps: list[float] = []
    clock = SimpleNamespace(**{**vars(time), "sleep": naps.append})
    monkeypatch.setattr(huggingface_hub.utils._http, "time", clock)
    monkeypatch.setattr(huggingface_hub.file_download, "time", clock)
    return naps


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, naps: list[float]) -> Iterator[Hub]:
    """An empty hub, to which alice is logged in, with an empty cache of downloads."""
    import huggingface_hub

    HUB.clear()
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub-cache"))
    with warnings.catch_warnings():
        # The client's own way of sending large files.
        warnings.filterwarnings("ignore", "Use 'content=", DeprecationWarning)
        yield HUB
    assert not HUB.errors, "the test hub itself failed"
