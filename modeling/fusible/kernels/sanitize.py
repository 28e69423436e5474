"""
Tests with a build of the CPU kernels that checks all of its accesses to memory (AddressSanitizer).

    python modeling/fusible/kernels/sanitize.py tests/kernels/s4/test_operations.py

Arguments are pytest's. Where the compiler is not g++, or comes without the sanitizer, it says so and fails.
"""

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import build


FLAGS = ["-fsanitize=address", "-fno-omit-frame-pointer", "-g1"]


def runtime() -> list[str]:
    """
    The sanitizer's library and that of C++, whose exceptions it watches: Python has to load them before all others.

    Raises:
        NoCompilerError: if there is none.
    """
    compiler = shutil.which(os.environ.get("CXX", "g++"))
    if compiler is None:
        raise build.NoCompilerError("There is no C++ compiler, g++ or that of $CXX.")
    names = ("libasan.so", "libstdc++.so.6")
    commands = [[compiler, f"-print-file-name={name}"] for name in names]
    found = [subprocess.run(command, capture_output=True, text=True).stdout.strip() for command in commands]
    if not all(Path(file).is_absolute() for file in found):
        raise build.NoCompilerError(f"{compiler} has no AddressSanitizer: it needs g++ with libasan.")
    return found


def main() -> int:
    try:
        libraries = runtime()
    except build.NoCompilerError as error:
        print(f"The kernels' accesses to memory were not checked. {error}", file=sys.stderr)
        return 1
    # the digest of the sources covers the options, so this build has an id of its own
    build.FLAGS += FLAGS
    build.LINKS += FLAGS[:1]
    sys.modules["kernel_abi_check"] = None  # type: ignore[assignment]  # it would find the sanitizer
    with tempfile.TemporaryDirectory() as folder:
        for kind in ("cpu", "torch"):
            build.build(build.ROOT, kind, Path(folder))
        environment = {
            "FUSIBLE_KERNEL_BUILD": folder,
            "LD_PRELOAD": " ".join(libraries),
            "ASAN_OPTIONS": "detect_leaks=0:halt_on_error=1",  # Python's own, at exit
        }
        # what the sanitizer writes must not be lost with a process that it ends
        command = [sys.executable, "-m", "pytest", "--capture=sys", *sys.argv[1:]]
        return subprocess.run(command, env=os.environ | environment).returncode


if __name__ == "__main__":
    sys.exit(main())
