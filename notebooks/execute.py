"""
Executes the notebooks in place, on the CPU with one thread, each in an empty folder.

    python notebooks/execute.py [notebooks/quickstart.ipynb ...]

A notebook that fails stays as it was, with its name and the error on the terminal.
"""

import argparse
import os
import re
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import nbformat
from jupyter_client import AsyncKernelManager
from jupyter_client.kernelspec import KernelSpecManager
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError
from nbformat import NotebookNode


FOLDER = Path(__file__).parent
TIMEOUT = 180  # seconds for one cell
METADATA = {
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
}
ENVIRONMENT = {
    "CUDA_VISIBLE_DEVICES": "",
    "OMP_NUM_THREADS": "1",
    "PYDEVD_DISABLE_FILE_VALIDATION": "1",  # it warns that a debugger would miss things
    "PYTHONWARNINGS": "ignore:IProgress not found",  # there are no widgets, and no need for them
    "TQDM_DISABLE": "1",  # progress bars would stay in the outputs
}
# transformers imports torchao where it is installed, which logs what it lacks here: libraries for GPUs, another torch
NOISE = re.compile(r"^.*(torchao/_C_|torch/utils/_pytree\.py:).*\n", re.MULTILINE)


def execute(notebook: NotebookNode) -> NotebookNode:
    """
    A notebook with the outputs of this interpreter's kernel, and without metadata that change from run to run.

    Raises:
        CellExecutionError: if a cell raises.
        CellTimeoutError: if a cell takes longer than `TIMEOUT`.
    """
    notebook = nbformat.from_dict(notebook)  # a copy
    # not the kernels that are installed elsewhere under the same name, for other interpreters
    specs = KernelSpecManager(kernel_dirs=[])
    manager = AsyncKernelManager(kernel_name="python3", kernel_spec_manager=specs)
    with TemporaryDirectory() as scratch:
        folder = Path(scratch, "work")
        folder.mkdir()
        manager.transport = "ipc"  # processes that run at once cannot take each other's ports
        manager.connection_file = str(Path(scratch, "kernel.json"))
        client = NotebookClient(
            notebook,
            km=manager,
            timeout=TIMEOUT,
            record_timing=False,
            coalesce_streams=True,
            resources={"metadata": {"path": str(folder)}},
        )
        # commands of this interpreter's environment come first, as if it were activated
        path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])
        settings = ENVIRONMENT | {"PATH": path, "IPYTHONDIR": str(Path(scratch, "ipython"))}
        client.execute(cleanup_kc=True, env=os.environ | settings)
    notebook.metadata = nbformat.from_dict(METADATA)
    for cell in notebook.cells:
        cell.metadata = NotebookNode()
        for output in cell.get("outputs", ()):
            if "text" in output:
                output.text = NOISE.sub("", output.text)
        if "outputs" in cell:
            cell.outputs = [output for output in cell.outputs if output.get("text") != ""]
    return notebook


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("notebooks", nargs="*", type=Path, default=sorted(FOLDER.glob("*.ipynb")))
    for file in parser.parse_args().notebooks:
        print(f"{file.name} ... ", end="", flush=True)
        start = time.perf_counter()
        try:
            notebook = execute(nbformat.read(file, as_version=4))
        except CellExecutionError as error:
            raise SystemExit(f"failed\n{file.name}: {error}") from None
        staged = file.with_suffix(".part")
        nbformat.write(notebook, staged)
        staged.replace(file)
        print(f"{time.perf_counter() - start:.0f} s, {file.stat().st_size / 1024:.0f} KiB")


if __name__ == "__main__":
    main()
