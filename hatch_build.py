"""
Puts `hub_configs` into wheels, and gives those that hold compiled kernels the tag of their platform.

An editable installation has neither: it reads the checkout, and a second folder `fusible` would hide that.
"""

from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class WheelHook(BuildHookInterface):
    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        if version == "editable":
            return
        build_data["force_include"]["hub_configs"] = "fusible/hub_configs"
        libraries = Path(self.root, "modeling", "fusible", "kernels").glob("*/build/torch-stable-abi*/*.so")
        machines = {library.parent.name.split("-")[-2] for library in libraries}
        if machines:
            (machine,) = machines
            # the kernels' own check is that they need nothing newer; any Python loads them
            build_data.update(pure_python=False, tag=f"py3-none-manylinux_2_28_{machine}")
