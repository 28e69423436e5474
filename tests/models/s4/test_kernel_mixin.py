"""S4 models that run by compiled kernels: when they do, and that they take them along, over the Hub as well."""

import copy
import json
import os
import pickle
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from huggingface_hub import HfApi
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.utils import logging

import fusible
from fusible import S4Config, S4ForCausalLM
from fusible.kernels import loading
from fusible.kernels.loading import VERSION, KernelSource, digest_of, load_kernels, verify
from fusible.models.s4.scan import ssm_scan, ssm_step
from fusible.models.s4.state_space import S4StateSpace
from support.model_tests.base import perturb_, relative_error
from support.model_tests.storage import assert_same_tensors
from support.paths import STARTUP


pytest_plugins = ["support.kernel_fixture"]

PACKAGE = Path(fusible.__file__).parent
REPO, KERNELS = "alice/s4", "alice/s4-kernels"


@pytest.fixture
def installed(kernel_build, kernel_variant, monkeypatch) -> Path:
    """A package with the kernels that were built for the tests."""
    repository = kernel_build.parent / "no-card"
    monkeypatch.setattr(loading, "_installed", lambda: kernel_variant)
    monkeypatch.setattr("fusible.models.s4.kernel_mixin.installed_repository", lambda: repository)
    monkeypatch.setattr("fusible.models.s4.kernel_mixin.variants_in", lambda folder: loading.variants_in(kernel_build))
    load_kernels.cache_clear()
    yield kernel_build
    load_kernels.cache_clear()


@pytest.fixture
def not_installed(monkeypatch):
    monkeypatch.setattr(loading, "_installed", lambda: None)
    load_kernels.cache_clear()
    yield
    load_kernels.cache_clear()


@pytest.fixture
def warnings(caplog) -> pytest.LogCaptureFixture:
    caplog.set_level(logging.WARNING, logger=loading.logger.name)
    return caplog


def make_model(**options) -> S4ForCausalLM:
    config = S4Config(vocab_size=7, hidden_size=8, num_hidden_layers=2, state_size=4, **options)
    model = S4ForCausalLM(config).eval()
    perturb_(model)
    return model


def run(model) -> torch.Tensor:
    with torch.no_grad():
        return model(torch.arange(40).reshape(2, 20) % 7).logits


class Watched:
    """Kernels that count their calls."""

    def __init__(self, kernels) -> None:
        self.kernels, self.calls = kernels, []

    def __deepcopy__(self, memo):
        return self

    def __getattr__(self, name):
        self.calls.append(name)
        return getattr(self.kernels, name)


def watch(model) -> Watched:
    watched = Watched(load_kernels(KernelSource()))
    model._use(watched)
    return watched


@pytest.mark.usefixtures("installed")
class TestWhenKernelsRun:
    @pytest.mark.parametrize(("mode", "operation"), [("diag", "vandermonde"), ("dplr", "cauchy")])
    def test_both_forms_and_generation(self, mode, operation):
        model = make_model(mode=mode)
        watched = watch(model)
        expected = run(model)
        assert set(watched.calls) == {"devices", operation}
        watched.calls.clear()
        fused = model.fuse()
        assert relative_error(run(fused), expected) < 1e-4
        assert set(watched.calls) == {"devices", "ssm_scan"}
        watched.calls.clear()
        tokens = fused.generate(torch.tensor([[1, 2, 3]]), max_new_tokens=8, do_sample=False)
        assert set(watched.calls) == {"devices", "ssm_scan", "ssm_step_"}
        fused.use_kernels = False
        assert torch.equal(fused.generate(torch.tensor([[1, 2, 3]]), max_new_tokens=8, do_sample=False), tokens)

    def test_activation_is_part_of_the_scan(self):
        """Where neither dropout nor a gradient comes between them."""
        model = make_model(mode="diag").double()
        fused, seen = model.fuse(), []
        for layer in fused.layers:
            layer.mixer.ssm.activation.register_forward_hook(lambda *_: seen.append("activation"))
        expected = run(model)
        for use_kernels in (True, False):
            fused.use_kernels = use_kernels
            assert relative_error(run(fused), expected) < 1e-9
            assert not seen
        fused.train()(torch.tensor([[1, 2, 3]]))
        assert len(seen) == len(fused.layers)
        gradients = []
        for form in (fused.eval(), fused.train()):
            form.zero_grad()
            form(torch.tensor([[1, 2, 3]])).logits.square().sum().backward()
            gradients.append([parameter.grad.clone() for parameter in form.parameters()])
        torch.testing.assert_close(*gradients)

    def test_steps_with_a_gradient_run_in_torch(self):
        fused = make_model(mode="diag").fuse()
        watched = watch(fused)
        outputs = fused(torch.tensor([[1]]), use_cache=True)
        outputs.logits.sum().backward()
        assert not {"ssm_step", "ssm_step_"} & {*watched.calls}
        assert fused.layers[0].mixer.ssm.input_map.grad.abs().max() > 0

    def test_meta_tensors_and_exports_do_not(self):
        model = make_model(mode="diag")
        watched = watch(model)
        program = torch.export.export(model, (), {"input_ids": torch.tensor([[1, 2, 3]])})
        assert not any("s4_kernels" in str(node.target) for node in program.graph.nodes)
        assert "vandermonde" not in watched.calls
        watched.calls.clear()
        model.to("meta")(torch.zeros(1, 3, dtype=torch.int64, device="meta"))
        assert set(watched.calls) == {"devices"}

    @pytest.mark.parametrize("fused", [False, True])
    def test_whole_models_compile(self, fused):
        model = make_model(mode="diag")
        model = model.fuse() if fused else model
        assert model.use_kernels
        compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
        torch.testing.assert_close(run(compiled), run(model))

    def test_copies_and_pickles(self):
        model = make_model()
        kernels = load_kernels(KernelSource())
        for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model)), model.fuse()):
            assert other.use_kernels
            layer = next(module for module in other.modules() if hasattr(module, "kernels"))
            assert layer.kernels.variant == kernels.variant
        model.set_use_kernels(False)
        assert not model.fuse().use_kernels and not copy.deepcopy(model).use_kernels

    def test_switch(self, warnings):
        model = make_model()
        assert model.use_kernels and model.train().eval().use_kernels
        model.use_kernels = False
        assert not model.use_kernels and not model.train().eval().use_kernels
        model.set_use_kernels(True)
        assert model.use_kernels and not warnings.records

    def test_configuration_and_argument(self, tmp_path):
        assert not make_model(use_kernels=False).use_kernels
        make_model().save_pretrained(tmp_path)
        for load in (S4ForCausalLM.from_pretrained, AutoModelForCausalLM.from_pretrained):
            assert load(tmp_path).use_kernels
            for choice in (True, False):
                model = load(tmp_path, use_kernels=choice)
                assert model.use_kernels == model.config.use_kernels == choice
            assert (
                load(tmp_path, fused=True).use_kernels
                and not load(tmp_path, fused=True, use_kernels=False).use_kernels
            )
        assert S4ForCausalLM.from_pretrained(tmp_path, output_loading_info=True)[0].use_kernels


def test_without_kernels(not_installed, monkeypatch, tmp_path, warnings):
    monkeypatch.setattr("fusible.models.s4.kernel_mixin.installed_repository", lambda: None)
    model = make_model()
    model.save_pretrained(tmp_path, fused=True)
    assert not (tmp_path / "s4-kernels").exists() and AutoConfig.from_pretrained(tmp_path).kernels is None
    assert not S4ForCausalLM.from_pretrained(tmp_path, trust_remote_code=False, use_kernels=False).use_kernels
    assert [record.name for record in warnings.records] == ["fusible.hub.processors"]  # there is no tokenizer
    warnings.clear()
    assert not make_model(use_kernels=True).use_kernels
    model.use_kernels = True
    assert len(warnings.records) == 1 and "`make kernels` builds them" in warnings.text


@pytest.mark.usefixtures("kernel_path")
def test_empty_batches():
    layer = S4StateSpace(S4Config(hidden_size=4, state_size=4, mode="diag"))
    for form in (layer, layer.fuse()):
        for length in (1, 70):
            with torch.no_grad():
                outputs, state = form(torch.zeros(0, length, 4), None, True)
            assert outputs.shape == (0, length, 4) and state.shape == (0, 4, 2, 2)
    maps = torch.randn(3, 2, 2, 2), torch.randn(3, 2, 2), torch.randn(3, 1, 2, 2), torch.randn(0, 3, 2, 2)
    assert ssm_scan(torch.randn(0, 3, 130), *maps)[0].shape == (0, 1, 3, 130)
    assert ssm_step(torch.randn(0, 3), maps[1], None, *maps[1:])[0].shape == (0, 1, 3)


# taking them along


def test_saved_beside_the_inference_form(installed, tmp_path):
    model = make_model(mode="diag")
    model.save_pretrained(tmp_path, fused=True)
    record = AutoConfig.from_pretrained(tmp_path).kernels
    variants = {path.name: path for path in installed.glob("torch*")}
    assert record["folder"] == "s4-kernels"
    assert record["digests"] == {name: digest_of(path) for name, path in variants.items()}
    for name in variants:
        verify(tmp_path / "s4-kernels" / "build" / name, record["digests"])
    assert model.config.kernels is None
    # the folder of a later save has what that needs, and no more
    (tmp_path / "s4-kernels" / "old").touch()
    model.save_pretrained(tmp_path, fused=True)
    assert not (tmp_path / "s4-kernels" / "old").exists()
    model.save_pretrained(tmp_path)
    assert not (tmp_path / "s4-kernels").exists() and AutoConfig.from_pretrained(tmp_path).kernels is None
    model.config.use_kernels = False
    model.save_pretrained(tmp_path, fused=True)
    assert not (tmp_path / "s4-kernels").exists()


def test_replaced_in_the_working_directory(installed, tmp_path, monkeypatch):
    """Where files are replaced one by one."""
    monkeypatch.chdir(tmp_path)
    model = make_model(mode="diag")
    for _ in range(2):
        model.save_pretrained(".", fused=True)
        record = AutoConfig.from_pretrained(".").kernels
        for name in record["digests"]:
            verify(tmp_path / "s4-kernels" / "build" / name, record["digests"])
    model.save_pretrained(".")
    assert not (tmp_path / "s4-kernels").exists()
    assert_same_tensors(S4ForCausalLM.from_pretrained("."), model)


def load_elsewhere(hub, home: Path, trust: bool, with_package: bool, repo: str = REPO) -> tuple[dict, str]:
    """Loads the model in a process that has the package without its kernels, or not at all."""
    package = home / "packages"
    if with_package and not package.exists():
        ignore = shutil.ignore_patterns("build", "__pycache__")
        shutil.copytree(PACKAGE, package / "fusible", ignore=ignore)
    code = [
        "import json, sys",
        "" if with_package else "sys.modules['fusible'] = None",
        "import torch",
        "fusible = __import__('fusible')" if with_package else "",
        "from transformers import AutoModelForCausalLM",
        f"model = AutoModelForCausalLM.from_pretrained({repo!r}, trust_remote_code={trust})",
        "with torch.no_grad(): logits = model(torch.arange(40).reshape(2, 20) % 7).logits",
        "layer = model.layers[0].mixer.ssm",
        "imported = [name for name in sys.modules if '_s4_kernels_cpu' in name]",
        "print(json.dumps({'logits': logits.tolist(), 'kernels': model.use_kernels, 'imported': imported}))",
    ]
    environment = hub.environment(home) | {"OMP_NUM_THREADS": "1", "PATH": "/usr/bin:/bin"}
    environment["PYTHONPATH"] = os.pathsep.join([str(STARTUP)] + [str(package)] * with_package)
    result = subprocess.run(
        [sys.executable, "-c", "\n".join(code)], env=environment, cwd=home, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr[-3000:]
    return json.loads(result.stdout.splitlines()[-1]), result.stderr


def test_pushed_and_loaded_elsewhere(hub, installed, tmp_path):
    model = make_model(mode="diag")
    model.save_pretrained(tmp_path / "mine", fused=True, push_to_hub=True, repo_id=REPO)
    assert hub.commits(REPO) == ["Upload model", "initial commit"]
    (variant,) = installed.glob("torch-stable-abi*-cpu-*")
    there = {name for name in hub.files(REPO) if name.startswith("s4-kernels/")}
    assert {f"s4-kernels/build/{variant.name}/{file.name}" for file in variant.glob("*.*")} <= there
    expected, home = run(model.fuse()), tmp_path / "home"
    home.mkdir()

    plain, words = load_elsewhere(hub, home, trust=False, with_package=True)
    assert not plain["kernels"] and not plain["imported"]
    assert words.count("S4 runs without compiled kernels") == 1 and "trust_remote_code=True" in words
    assert not hub.requests("GET", r"resolve/.*s4-kernels"), "nothing is fetched that may not run"

    trusted, words = load_elsewhere(hub, home, trust=True, with_package=False)
    assert trusted["kernels"] and trusted["imported"] and "without compiled kernels" not in words
    for result in (plain, trusted):
        assert relative_error(torch.tensor(result["logits"]), expected) < 1e-5

    name = f"s4-kernels/build/{variant.name}/_impl.py"
    HfApi().upload_file(path_or_fileobj=b"raise SystemExit('imported')", path_in_repo=name, repo_id=REPO)
    tampered, words = load_elsewhere(hub, home, trust=True, with_package=False)
    assert not tampered["kernels"] and not tampered["imported"] and "was changed: _impl.py" in words
    assert relative_error(torch.tensor(tampered["logits"]), expected) < 1e-5

    # the training form has none
    model.push_to_hub(REPO)
    assert not any(name.startswith("s4-kernels/") for name in hub.files(REPO))


def test_published_as_a_kernel_repository(hub, installed, not_installed, tmp_path):
    model = make_model(mode="diag")
    for _ in range(2):
        model.save_pretrained(tmp_path, fused=True, push_to_hub=True, repo_id=REPO, kernel_repo_id=KERNELS)
    assert hub.commits(KERNELS, f"v{VERSION}", kind="kernel") == ["Upload kernels", "initial commit"]
    record = AutoConfig.from_pretrained(REPO).kernels
    assert record["repo_id"] == KERNELS
    assert record["revision"] == hub.repo(KERNELS, "kernel").resolve(f"v{VERSION}")
    for path in installed.glob("torch*/*.*"):
        name = f"build/{path.parent.name}/{path.name}"
        assert hub.read(KERNELS, name, f"v{VERSION}", kind="kernel") == path.read_bytes()
    found = S4ForCausalLM.from_pretrained(REPO, trust_remote_code=True)
    assert found.use_kernels and not hub.requests("GET", r"alice/s4/resolve/.*s4-kernels")
    assert "kernels--alice--s4-kernels" in str(found._kernels.variant)


def test_account_that_may_not_publish(hub, installed, tmp_path, caplog):
    hub.fail("POST", "/api/repos/create", status=403, times=1)
    model = make_model(mode="diag")
    model.push_to_hub(REPO, fused=True, kernel_repo_id=KERNELS)
    assert "may not make the kernel repository" in caplog.text
    assert "repo_id" not in AutoConfig.from_pretrained(REPO).kernels


def test_publishing_needs_a_push_of_the_inference_form(tmp_path):
    model = make_model()
    for arguments in ({"fused": True}, {"push_to_hub": True}):
        with pytest.raises(ValueError, match="needs push_to_hub=True and fused=True"):
            model.save_pretrained(tmp_path, kernel_repo_id=KERNELS, **arguments)
    with pytest.raises(ValueError, match="needs fused=True"):
        model.push_to_hub(REPO, kernel_repo_id=KERNELS)
    assert not list(tmp_path.iterdir())
