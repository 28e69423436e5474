"""Folders of the repository."""

from pathlib import Path


ROOT = Path(__file__).parents[2]
HUB_CONFIGS = ROOT / "hub_configs"
TESTS = ROOT / "tests"
GOLDEN = TESTS / "golden"  # outputs of the authors' own code
SCRIPTS = TESTS / "support" / "scripts"
STARTUP = TESTS / "support" / "startup"  # first in every program that the tests run
