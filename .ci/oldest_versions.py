"""Prints the lower bounds of pyproject.toml as constraints for pip, and fails if a dependency has none."""

import re
import tomllib
from pathlib import Path


project = tomllib.loads(Path("pyproject.toml").read_text())["project"]
for requirement in project["dependencies"] + project["optional-dependencies"]["dev"]:
    name, bound = re.fullmatch(r"([\w.-]+)(?:>=([\d.]+))?[^>]*", requirement).groups()
    assert bound or requirement not in project["dependencies"], f"{requirement} has no lower bound"
    if bound:
        print(f"{name}=={bound}")
