"""Where S4's kernels are taken from, in which order, on whose word; and the builder that makes them."""

import dataclasses
import json
import shutil
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from transformers.utils import logging

from fusible.kernels import build, loading
from fusible.kernels.loading import (
    KernelError,
    KernelSource,
    digest_of,
    find_variant,
    import_variant,
    load_kernels,
    verify,
)
from support.paths import ROOT


pytest_plugins = ["support.kernel_fixture"]


@pytest.fixture(autouse=True)
def fresh(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LOCAL_KERNELS", raising=False)
    load_kernels.cache_clear()


@pytest.fixture
def repository(kernel_variant: Path, tmp_path: Path) -> Path:
    """A kernel repository with the compiled variant only."""
    shutil.copytree(kernel_variant, tmp_path / "repository" / "build" / kernel_variant.name)
    return tmp_path / "repository"


@pytest.fixture
def not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loading, "_installed", lambda: None)


@pytest.fixture
def warnings(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    caplog.set_level(logging.WARNING, logger=loading.logger.name)
    return caplog


def tamper(repository: Path, kind: str) -> None:
    variant = find_variant(repository)
    if kind == "changed":
        (variant / "__init__.py").write_text("raise SystemExit('was imported')")
    elif kind == "added":
        (variant / "more.py").write_text("")
    elif kind == "missing":
        (variant / "_impl.py").unlink()
    elif kind == "library":
        library = next(variant.glob("*.so"))
        library.write_bytes(library.read_bytes()[:-1] + b"\x01")
    elif kind == "metadata":
        (variant / "metadata.json").write_text("{")
    else:
        metadata = json.loads((variant / "metadata.json").read_text())
        del metadata["digest"]
        (variant / "metadata.json").write_text(json.dumps(metadata))


def test_threads_import_a_variant_once(repository, monkeypatch):
    """Servers load several models at once; a thread that came second found a module without its operations."""
    imports = []
    import_once = loading.kernels.get_local_kernel

    def slow_import(*args, **kwargs):
        imports.append(args)
        time.sleep(0.2)
        return import_once(*args, **kwargs)

    monkeypatch.setattr(loading.kernels, "get_local_kernel", slow_import)
    monkeypatch.setattr(loading, "_imported", {})
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(import_variant, [find_variant(repository)] * 4))
    assert len(imports) == 1 and len({kernels.ssm_scan for kernels in found}) == 1


TAMPERED = ["changed", "added", "missing", "library", "metadata", "no digests"]


@pytest.mark.parametrize("kind", TAMPERED)
def test_tampered_files_are_refused_before_they_are_imported(repository, kind, warnings):
    tamper(repository, kind)
    variant = find_variant(repository)
    with pytest.raises(KernelError):
        verify(variant)
    with pytest.raises(build.BuildError):
        build.check(variant)
    assert load_kernels(KernelSource(path=repository)) is None
    assert load_kernels(KernelSource(path=repository)) is None
    assert len(warnings.records) == 1 and "S4 runs without compiled kernels" in warnings.text


def test_bytecode_beside_sources_is_neither_read_nor_written(repository):
    variant = find_variant(repository)
    cache = variant / "__pycache__"
    script = f"import py_compile; py_compile.compile({str(variant / '__init__.py')!r})"
    subprocess.run([sys.executable, "-c", script], check=True)
    (bytecode,) = cache.iterdir()
    bytecode.write_bytes(b"nonsense")
    assert import_variant(variant).ssm_scan is not None
    assert bytecode.read_bytes() == b"nonsense" and len(list(cache.iterdir())) == 1


def test_path_comes_first(repository, monkeypatch):
    monkeypatch.setenv("LOCAL_KERNELS", f"me/s4={repository.parent / 'nowhere'}")
    source = KernelSource(path=repository, repo_id="me/s4")
    assert load_kernels(source).variant.is_relative_to(repository)
    assert load_kernels(KernelSource(path=find_variant(repository))).variant == find_variant(repository)


def test_local_kernels_stand_for_a_repository(repository, monkeypatch, warnings):
    source = KernelSource(repo_id="me/s4", revision="0" * 40, digests={})
    monkeypatch.setenv("LOCAL_KERNELS", f"me/other=/nowhere:me/s4={repository}")
    assert load_kernels(source) is not None
    load_kernels.cache_clear()
    monkeypatch.setenv("LOCAL_KERNELS", "me/s4=/nowhere")
    assert load_kernels(source) is None
    assert "/nowhere has no kernels for this system" in warnings.text


def test_installed_kernels_need_no_trust(kernel_variant, tmp_path, monkeypatch, warnings):
    package = tmp_path / "fusible"
    shutil.copytree(kernel_variant, package / "kernels" / "s4" / "build" / kernel_variant.name)
    (package / "__init__.py").write_text("")
    monkeypatch.setattr(loading.importlib.util, "find_spec", lambda name: Spec(package / "__init__.py"))
    assert load_kernels() is not None
    # also for a model that was saved with others
    assert load_kernels(KernelSource(digests={kernel_variant.name: "other"}, model="me/model", folder="x")) is not None
    assert not warnings.records


def test_other_versions_are_refused(repository, warnings):
    variant = find_variant(repository)
    metadata = json.loads((variant / "metadata.json").read_text()) | {"version": 99}
    (variant / "metadata.json").write_text(json.dumps(metadata))
    assert load_kernels(KernelSource(path=repository)) is None
    assert "has version 99 of the operations" in warnings.text


@pytest.mark.usefixtures("not_installed")
def test_required_kernels_are_missed(warnings):
    assert load_kernels(KernelSource(required=True)) is None
    assert load_kernels(KernelSource(required=True)) is None
    assert len(warnings.records) == 1 and "`make kernels` builds them" in warnings.text


class Spec:
    def __init__(self, origin: Path) -> None:
        self.origin = str(origin)


def beside(repository: Path) -> dict:
    """Of a model that was saved with these kernels."""
    variant = find_variant(repository)
    digests = {} if variant is None else {variant.name: digest_of(variant)}
    return {"model": str(repository.parent), "folder": repository.name, "digests": digests}


@pytest.mark.usefixtures("not_installed")
class TestCodeOfOthers:
    def test_needs_trust(self, repository, warnings):
        assert load_kernels(KernelSource(**beside(repository))) is None
        assert "trust_remote_code=True" in warnings.text
        assert load_kernels(KernelSource(**beside(repository), trust_remote_code=True)) is not None

    def test_must_be_what_was_recorded(self, repository, warnings):
        source = KernelSource(**beside(repository), trust_remote_code=True)
        assert load_kernels(source) is not None
        load_kernels.cache_clear()
        assert load_kernels(dataclasses.replace(source, digests=None)) is None, "nothing was recorded"
        load_kernels.cache_clear()
        variant = find_variant(repository)
        metadata = json.loads((variant / "metadata.json").read_text())
        (variant / "metadata.json").write_text(json.dumps(metadata))  # consistent in itself, and yet another one
        verify(variant)
        assert load_kernels(source) is None
        assert warnings.text.count("is not the variant that the model was saved with") == 2

    @pytest.mark.parametrize("name", ["_ops", "_impl"])
    def test_links_to_folders(self, name, repository, tmp_path, warnings):
        """An import would find a package before the file of its name."""
        (tmp_path / "evil").mkdir()
        (tmp_path / "evil" / "__init__.py").write_text("raise SystemExit('was imported')")
        (find_variant(repository) / name).symlink_to(tmp_path / "evil")
        assert load_kernels(KernelSource(**beside(repository), trust_remote_code=True)) is None
        assert f"was changed: {name}" in warnings.text

    def test_what_was_checked_is_imported(self, repository, monkeypatch):
        def change(*arguments, **keywords):
            for file in find_variant(repository).glob("*.py"):
                file.write_text("raise SystemExit('was imported')")
            return load(*arguments, **keywords)

        load = loading.kernels.get_local_kernel
        monkeypatch.setattr(loading, "_imported", {})
        monkeypatch.setattr(loading.kernels, "get_local_kernel", change)
        assert load_kernels(KernelSource(**beside(repository), trust_remote_code=True)) is not None

    @pytest.mark.parametrize("folder", ["../repository", "{}", "x/../../repository"])
    def test_must_be_in_the_models_folder(self, folder, repository, warnings):
        source = beside(repository) | {"model": str(repository), "folder": folder.format(repository)}
        assert load_kernels(KernelSource(**source, trust_remote_code=True)) is None
        assert "which is not in it" in warnings.text

    def test_on_the_hub_is_pinned(self, repository, monkeypatch, warnings):
        calls = []

        def install(repo_id, revision, trust_remote_code):
            calls.append((repo_id, revision, trust_remote_code))
            return find_variant(repository)

        monkeypatch.setattr(loading.kernels, "install_kernel", install)
        assert load_kernels(KernelSource(repo_id="me/s4", revision="abc")) is None
        assert load_kernels(KernelSource(repo_id="me/s4", trust_remote_code=True)) is None
        assert not calls and len(warnings.records) == 2
        digests = beside(repository)["digests"]
        source = KernelSource(repo_id="me/s4", revision="abc", digests=digests, trust_remote_code=True)
        assert load_kernels(source) is not None
        assert calls == [("me/s4", "abc", True)]

    def test_falls_back_from_hub_to_folder(self, repository, monkeypatch, warnings):
        def install(*args, **kwargs):
            raise ConnectionError("no network")

        monkeypatch.setattr(loading.kernels, "install_kernel", install)
        source = KernelSource(repo_id="me/s4", revision="abc", **beside(repository), trust_remote_code=True)
        assert load_kernels(source) is not None and not warnings.records

    def test_is_not_missed(self, tmp_path, warnings):
        assert load_kernels() is None
        assert load_kernels(KernelSource(**beside(tmp_path), trust_remote_code=True)) is None
        assert not warnings.records

    def test_that_cannot_be_loaded_is_a_warning(self, repository, warnings):
        variant = find_variant(repository)
        library = next(variant.glob("*.so"))
        library.write_bytes(b"not a library")
        (variant / "_ops.py").write_text("from . import " + library.name.split(".")[0] + "x as x\n")
        project = build.read_project(build.ROOT)
        metadata = json.loads((variant / "metadata.json").read_text())
        build.write_metadata(variant, project["general"], metadata["id"] + "y", "cpu")
        assert load_kernels(KernelSource(**beside(repository), trust_remote_code=True)) is None
        assert "S4 runs without compiled kernels" in warnings.text


def test_builds_are_kept_until_sources_change(kernel_build, kernel_variant, tmp_path):
    before = kernel_variant.stat().st_mtime_ns
    assert build.build(build.ROOT, "cpu", kernel_build) == kernel_variant
    assert kernel_variant.stat().st_mtime_ns == before
    assert build.is_current(build.ROOT, "cpu", kernel_build)
    project = tmp_path / "s4"
    shutil.copytree(build.ROOT, project, ignore=shutil.ignore_patterns("build", "__pycache__"))
    assert build.source_hash(project) == build.source_hash(build.ROOT)
    with open(project / "csrc" / "simd.h", "a") as file:
        file.write("\n")
    assert not build.is_current(project, "cpu", kernel_build)


def test_builds_are_the_same_elsewhere(kernel_variant, tmp_path):
    """Of some sources, for the sake of time: their place does not show in the library."""
    project = tmp_path / "s4"
    shutil.copytree(build.ROOT, project, ignore=shutil.ignore_patterns("build", "__pycache__"))
    config = build.read_project(project)
    host, baseline = config["kernel"]["host"], config["kernel"]["baseline"]
    config["kernel"] = {"host": host | {"src": ["csrc/host.cpp", "csrc/step_cpu.cpp"]}, "baseline": baseline}
    config["torch"]["src"] = []
    libraries = []
    for root, folder in ((build.ROOT, "one"), (project, "other")):
        (tmp_path / folder).mkdir()
        build.compile_library(root, config, "_test", "cpu", tmp_path / folder / "_test.abi3.so")
        libraries.append((tmp_path / folder / "_test.abi3.so").read_bytes())
    assert libraries[0] == libraries[1]
    assert str(ROOT).encode() not in libraries[0] and str(Path(torch.__file__).parent).encode() not in libraries[0]


def test_missing_compiler(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(build.NoCompilerError, match="no C\\+\\+ compiler"):
        build.build(build.ROOT, "cpu", tmp_path)
    assert not list(tmp_path.iterdir())
    monkeypatch.setattr(sys, "argv", ["build.py", "--out", str(tmp_path)])
    build.main()
    assert "no C++ compiler" in capsys.readouterr().err
    assert {path.name for path in tmp_path.iterdir()} == {"torch-cpu", "torch-cuda"}
    monkeypatch.setattr(sys, "argv", ["build.py", "--out", str(tmp_path), "--variants", "cpu"])
    with pytest.raises(SystemExit, match="no C\\+\\+ compiler"):
        build.main()


def test_failing_compiler(tmp_path):
    project = tmp_path / "s4"
    shutil.copytree(build.ROOT, project, ignore=shutil.ignore_patterns("build", "__pycache__"))
    for file in (project / "csrc").glob("*.cpp"):
        file.write_text("#error this is no program\n")
    with pytest.raises(build.BuildError, match="this is no program"):
        build.build(project, "cpu", tmp_path / "out")
    assert not list((tmp_path / "out").iterdir())


def test_build_toml_lists_every_source():
    project = build.read_project(build.ROOT)
    listed = {source for kernel in [project["torch"], *project["kernel"].values()] for source in kernel["src"]}
    present = {
        file.relative_to(build.ROOT).as_posix()
        for folder in ("csrc", "torch-ext")
        for file in (build.ROOT / folder).iterdir()
        if file.is_file()
    }
    assert listed == present


def test_binary_interface(kernel_variant):
    """The library needs nothing that old systems, old Pythons and old versions of torch lack."""
    checker = pytest.importorskip("kernel_abi_check")
    (library,) = kernel_variant.glob("*.so")
    binary = checker.ObjectFile(str(library))
    assert not binary.check_manylinux(build.MANYLINUX) and not binary.check_python_abi(build.PYTHON_ABI)


def test_wheels_have_the_kernels():
    """Files that are not under version control are left out of wheels unless they are named."""
    import tomllib

    config = tomllib.loads((ROOT / "pyproject.toml").read_text())
    (pattern,) = config["tool"]["hatch"]["build"]["targets"]["wheel"]["artifacts"]
    assert Path("modeling/fusible/kernels/s4/build/torch-cpu/_ops.py").match(pattern)
    assert not any("torch" in requirement for requirement in config["build-system"]["requires"])
