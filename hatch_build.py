"""Gives wheels that hold compiled kernels the tag of their platform; without kernels, a wheel is for all platforms."""

from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class KernelTagHook(BuildHookInterface):
    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        libraries = Path(self.root, "modeling", "fusible", "kernels").glob("*/build/torch-stable-abi*/*.so")
        machines = {library.parent.name.split("-")[-2] for library in libraries}
        if machines and version != "editable":
            (machine,) = machines
            # the kernels' own check is that they need nothing newer; any Python loads them
            build_data.update(pure_python=False, tag=f"py3-none-manylinux_2_28_{machine}")
