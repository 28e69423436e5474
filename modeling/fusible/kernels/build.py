"""
Build of a kernel project's variants, in kernel-builder's layout, with the compilers of this machine.

    python modeling/fusible/kernels/build.py [--variants cpu torch] [--out FOLDER] [--check]

Sources use torch's stable ABI: they are compiled with the headers of the installed torch, of any build, and run with
all versions from the one that build.toml names. The same sources and compilers give the same files.
"""

import argparse
import base64
import hashlib
import json
import os
import platform
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import tomllib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any


ROOT = Path(__file__).parent / "s4"
KINDS = ("cpu", "cuda", "torch", "triton")
CUDA = "13.0"  # and later, whose libraries have the same name
BACKENDS = {"torch": "cpu", "triton": "cuda"}  # of variants without a library
WARNINGS = ["-Wall", "-Wextra"]
# C++17 and no unique symbols, for the sake of older libstdc++; no errno or traps, which calculations never look at
FLAGS = ["-std=c++17", "-fPIC", "-fvisibility=hidden", "-fno-gnu-unique", "-fno-math-errno", "-fno-trapping-math"]
LINKS = ["-shared", "-Wl,--exclude-libs,ALL", "-Wl,--build-id=none", "-Wl,--no-as-needed", "-ltorch"]
PYTHON_ABI, MANYLINUX = "3.9", "manylinux_2_28"
SOURCES = {".cpp", ".cu", ".h", ".py", ".toml", ".md"}
OPS = '''"""The operations of this build, under a name of its own."""

import torch
{library}

ops = torch.ops.{id}


def add_op_namespace_prefix(op_name: str) -> str:
    return f"{id}::{{op_name}}"
{define}'''


class BuildError(Exception):
    """A variant cannot be built, or does not pass the checks."""


class NoCompilerError(BuildError):
    """This machine lacks the compiler for a variant."""


def read_project(root: Path) -> dict[str, Any]:
    """The validated build.toml."""
    from kernels._rust import Build

    Build.open(root)
    return tomllib.loads((root / "build.toml").read_text())


def source_hash(root: Path) -> str:
    """Ten digits that change with anything that a build is made of."""
    digest = hashlib.sha256(repr((FLAGS, LINKS)).encode())
    for file in sorted(root.rglob("*")):
        parts = file.relative_to(root).parts
        # zero bytes, which no source has, keep names and contents apart
        if file.suffix in SOURCES and parts[0] not in ("build", "tests"):
            digest.update("/".join(parts).encode() + b"\0" + file.read_bytes() + b"\0")
    return digest.hexdigest()[:10]


def variant_name(project: dict[str, Any], kind: str) -> str:
    if kind in BACKENDS:
        return f"torch-{BACKENDS[kind]}"
    abi = project["torch"]["stable-abi"][kind].replace(".", "")
    device = kind if kind == "cpu" else f"cu{CUDA.replace('.', '')}"
    return f"torch-stable-abi{abi}-{device}-{platform.machine()}-{platform.system().lower()}"


def compile_library(root: Path, project: dict[str, Any], name: str, kind: str, library: Path) -> None:
    """
    Compiles and links the kernels of a backend.

    Raises:
        BuildError: if there is no compiler, or it fails.
    """
    import torch
    from torch.utils.cpp_extension import include_paths

    compiler = shutil.which(os.environ.get("CXX", "g++"))
    if compiler is None:
        raise NoCompilerError(f"{variant_name(project, kind)}: there is no C++ compiler, g++ or that of $CXX")
    nvcc = find_nvcc() if kind == "cuda" else None
    if kind == "cuda" and nvcc is None:
        raise NoCompilerError(f"{variant_name(project, kind)}: there is no nvcc of CUDA {CUDA}, or that of $NVCC")
    major, minor = map(int, project["torch"]["stable-abi"][kind].split("."))
    defines = [
        f"-DTORCH_EXTENSION_NAME={name}",
        # as torch encodes versions: major in the first byte, minor in the second
        f"-DTORCH_TARGET_VERSION=0x{major << 56 | minor << 48:016x}",
        f"-DPy_LIMITED_API=0x{int(PYTHON_ABI.split('.')[0]):02x}{int(PYTHON_ABI.split('.')[1]):02x}0000",
        f"-D{kind.upper()}_KERNEL",
    ]
    system = [*include_paths(), sysconfig.get_paths()["include"]]
    # headers write their paths into messages
    places = [f"-ffile-prefix-map={path}=include" for path in system] + [f"-ffile-prefix-map={root}=."]
    common = [compiler, *FLAGS, *WARNINGS, *defines, *places, *(f"-isystem{path}" for path in system)]
    # the binding is compiled for each backend; build.toml has it without one
    kernels = [*project["kernel"].values(), project["torch"] | {"backend": kind}]
    units = [
        (root / source, [f"-I{root / path}" for path in [*kernel.get("include", []), "."]], kernel)
        for kernel in kernels
        if kernel["backend"] == kind
        for source in kernel["src"]
        if source.endswith((".cpp", ".cu"))
    ]
    for_device = [
        str(nvcc),
        "-O3",
        "-std=c++17",
        "--threads=0",
        "--compress-mode=size",
        "-DUSE_CUDA",
        # the standard is nvcc's own option, and the rest is for the host's compiler
        f"-Xcompiler={','.join(FLAGS[1:] + places)}",
    ]
    for_device += [f"-ccbin={compiler}", *defines, *(f"-isystem={path}" for path in system)]
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(os.cpu_count()) as pool:
        objects = [str(Path(folder, f"{source.stem}.o")) for source, _, _ in units]
        commands = [
            [*for_device, *architectures(kernel["cuda-capabilities"]), *includes, "-c", str(source), "-o", file]
            if source.suffix == ".cu"
            else [*common, *includes, *kernel.get("cxx-flags", []), "-c", str(source), "-o", file]
            for (source, includes, kernel), file in zip(units, objects, strict=True)
        ]
        # errors of the threads are raised when the results are read
        for _ in pool.map(run, commands):
            pass
        links = [*objects, "-o", str(library), f"-L{Path(torch.__file__).parent / 'lib'}"]
        if nvcc is None:
            run([compiler, *links, *LINKS])
        else:
            # CUDA's library is the one that torch brings
            options = [option.replace("-Wl,", "-Xlinker=") for option in LINKS]
            run([str(nvcc), f"-ccbin={compiler}", *links, "-cudart=shared", *options])


def find_nvcc() -> Path | None:
    """The compiler for GPUs, if it has the version that variants are named after."""
    found = shutil.which(os.environ.get("NVCC", "nvcc"))
    if found is None:
        return None
    told = subprocess.run([found, "--version"], capture_output=True, text=True).stdout
    return Path(found).resolve() if f"release {CUDA}," in told else None


def architectures(capabilities: list[str]) -> list[str]:
    """For nvcc: machine code for each of them, and code for later ones with those marked `+PTX`."""
    options = []
    for capability in capabilities:
        number = capability.removesuffix("+PTX").replace(".", "")
        kinds = ("sm", "compute") if capability.endswith("+PTX") else ("sm",)
        options += [f"-gencode=arch=compute_{number},code={kind}_{number}" for kind in kinds]
    return options


def run(command: list[str]) -> None:
    """
    Raises:
        BuildError: with what the command printed, if it fails.
    """
    result = subprocess.run(command, capture_output=True, text=True)
    if result.returncode:
        raise BuildError(" ".join(command) + "\n" + result.stderr)
    if result.stderr:
        print(result.stderr, file=sys.stderr)


def build_id(root: Path, project: dict[str, Any], kind: str) -> str:
    """Name of a build's library and operations."""
    return f"_{project['general']['name'].replace('-', '_')}_{kind}_{source_hash(root)}"


def is_current(root: Path, kind: str, out: Path) -> bool:
    """Whether a folder holds a sound variant of the present sources."""
    project = read_project(root)
    variant = out / variant_name(project, kind)
    try:
        check(variant)
    except BuildError:
        return False
    return json.loads((variant / "metadata.json").read_text())["id"] == build_id(root, project, kind)


def build(root: Path, kind: str, out: Path) -> Path:
    """
    Makes one variant, unless there is one of the same sources, and returns its folder.

    Raises:
        BuildError: if it cannot be built, or does not pass the checks.
    """
    project = read_project(root)
    target = out / variant_name(project, kind)
    if is_current(root, kind, out):
        return target
    package, name = project["general"]["name"].replace("-", "_"), build_id(root, project, kind)
    out.mkdir(parents=True, exist_ok=True)
    # inside `out`, so that the finished variant can be renamed into its place
    with tempfile.TemporaryDirectory(dir=out) as folder:
        variant = Path(folder, "variant")
        ignore = shutil.ignore_patterns("__pycache__", "_ops.py")
        shutil.copytree(root / "torch-ext" / package, variant, ignore=ignore)
        library = define = ""
        if kind in BACKENDS:
            shutil.copytree(root / "noarch" / BACKENDS[kind], variant, ignore=ignore, dirs_exist_ok=True)
            define = "\n\nfrom . import _define  # noqa: E402, F401\n" if kind == "triton" else ""
        else:
            compile_library(root, project, name, kind, variant / f"{name}.abi3.so")
            library = f"from . import {name}  # noqa: F401\n"
        # operations are registered under the build's id, so that one process can load two builds
        (variant / "_ops.py").write_text(OPS.format(library=library, define=define, id=name))
        write_metadata(variant, project["general"], name, BACKENDS.get(kind, kind))
        check(variant)
        shutil.rmtree(target, ignore_errors=True)
        variant.rename(target)
    return target


def write_metadata(variant: Path, general: dict[str, Any], name: str, backend: str) -> None:
    """Writes metadata.json with the digests of all files."""
    from kernels._rust import Digest, DigestAlgorithm

    digest = Digest.hash_variant(DigestAlgorithm.SHA256, variant)
    metadata = {key: general[key] for key in ("name", "version", "license")} | {
        "id": name,
        "python-depends": [],
        "kernel-depends": [],
        "backend": {"type": backend},
        "digest": {"algorithm": "sha256", "files": dict(sorted(digest.files.items()))},
    }
    (variant / "metadata.json").write_text(json.dumps(metadata, indent=2) + "\n")


def check(variant: Path) -> None:
    """
    Checks a variant's layout, metadata, digests and, if kernel-abi-check is installed, its binary interface.

    Raises:
        BuildError: if any is not as it should be.
    """
    from kernels._rust import Metadata

    try:
        Metadata.read_from_file(variant / "metadata.json")
        metadata = json.loads((variant / "metadata.json").read_text())
        files = metadata["digest"]["files"]
    except (OSError, ValueError, KeyError) as error:
        raise BuildError(f"{variant}: {error!r}") from error
    present = {
        file.relative_to(variant).as_posix(): base64.b64encode(hashlib.sha256(file.read_bytes()).digest()).decode()
        for file in variant.rglob("*")
        if file.is_file() and file.name != "metadata.json" and "__pycache__" not in file.parts
    }
    wrong = sorted(name for name in files.keys() | present.keys() if files.get(name) != present.get(name))
    if wrong or "__init__.py" not in present:
        raise BuildError(f"{variant}: {', '.join(wrong) or '__init__.py'} differ from metadata.json or are missing")
    try:
        from kernel_abi_check import ObjectFile
    except ImportError:
        return
    for library in variant.glob("*.so"):
        binary = ObjectFile(str(library))
        violations = [*binary.check_manylinux(MANYLINUX), *binary.check_python_abi(PYTHON_ABI)]
        if violations:
            raise BuildError(f"{library}: {violations}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--project", type=Path, default=ROOT)
    parser.add_argument("--variants", nargs="+", choices=KINDS, help="default: all that there are compilers for")
    parser.add_argument("--out", type=Path, help="default: build/ in the project")
    parser.add_argument("--check", action="store_true", help="build nothing, check what there is")
    options = parser.parse_args()
    root = options.project.resolve()
    out = options.out or root / "build"
    for kind in options.variants or KINDS:
        try:
            variant = out / variant_name(read_project(root), kind)
            if options.check:
                check(variant)
            else:
                build(root, kind, out)
            print(variant)
        except NoCompilerError as error:
            # a missing compiler is an error only for what was asked for by name
            if options.variants:
                sys.exit(str(error))
            print(error, file=sys.stderr)
        except BuildError as error:
            sys.exit(str(error))


if __name__ == "__main__":
    main()
