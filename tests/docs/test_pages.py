"""README and docs: every block of Python runs, every command exists, every link leads somewhere."""

import argparse
import dataclasses
import importlib.util
import re
import runpy
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
import typer
import yaml
from accelerate.commands.launch import launch_command_parser
from packaging.version import Version
from safetensors.torch import load_file
from torch import nn
from transformers import CLIPVisionConfig, CLIPVisionModel, ViTConfig, ViTForImageClassification

import fusible
from fusible import Fusible, RePaViTConfig, RePaViTForImageClassification
from fusible.cli import app
from fusible.hub.methods import METHODS
from fusible.recipes.catalog import find_recipe
from fusible.recipes.recipe import Recipe
from support.model_tests.base import perturb_
from support.pages import BLOCK, MORE_PAGES, PAGES, PICTURE, TINY, TINY_VIT, Block, blocks
from support.paths import ROOT
from support.text_models import make_dense, make_tokenizer


pytestmark = pytest.mark.filterwarnings("ignore:'pin_memory' argument is set as true:UserWarning")
INLINE = re.compile(r"`((?:python|fusible|make|accelerate) [^`]+)`")
LINK = re.compile(r"\]\(([^)#\s]*)(#[^)\s]*)?\)")
# what would take minutes, and what takes its place
STAND_INS = {
    'backbone_config={"model_type": "vit"}': f"backbone_config={TINY_VIT}",
    "num_labels=400": "num_labels=4",
}


def is_run(block: Block) -> bool:
    return "<!-- not run" not in block.comment


@pytest.fixture
def run_page(hub, tmp_path, monkeypatch) -> Callable[[Path], dict[str, Any]]:
    """Runs a page in an empty folder, with data, and with small models under the names on the Hub that it uses."""
    models: dict[str, Callable[[], transformers.PreTrainedModel]] = {
        "google/vit-base-patch16-224": lambda: ViTForImageClassification(ViTConfig(**TINY_VIT, num_labels=10)),
        "openai/clip-vit-base-patch16": lambda: CLIPVisionModel(
            CLIPVisionConfig(**TINY, image_size=PICTURE, patch_size=56)
        ),
        "user/my-training-checkpoint": lambda: RePaViTForImageClassification(
            RePaViTConfig(backbone_config=TINY_VIT, num_labels=10)
        ),
        "sentence-transformers/all-MiniLM-L6-v2": lambda: make_dense("bert", pad_token_id=1),
        "user/my-s4": lambda: fusible.S4ForCausalLM(
            fusible.S4Config(vocab_size=256, hidden_size=16, num_hidden_layers=2, state_size=4)
        ),
    }
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    pictures, videos = torch.randn(4, 3, PICTURE, PICTURE), torch.randn(2, 8, 3, PICTURE, PICTURE)
    namespace = {
        "dataset": [{"pixel_values": pixels, "labels": i} for i, pixels in enumerate(pictures)],
        "videos": [{"pixel_values": pixels, "labels": i} for i, pixels in enumerate(videos)],
        "prompt": torch.randint(256, (1, 10)),
        "texts": [{"input_ids": tokens, "labels": tokens} for tokens in torch.randint(256, (4, 12))],
    }

    def run(page: Path) -> dict[str, Any]:
        for name, make in models.items():
            if f'"{name}"' in page.read_text():
                monkeypatch.setitem(hub.tokens, hub.token, name.partition("/")[0])
                make().push_to_hub(name)
                if name.startswith("sentence-transformers/"):
                    make_tokenizer().push_to_hub(name)
        monkeypatch.setitem(hub.tokens, hub.token, "user")
        return run_blocks(page, namespace | {"__name__": page.stem})

    return run


def run_blocks(page: Path, namespace: dict[str, Any]) -> dict[str, Any]:
    for block in filter(is_run, blocks(page, "python")):
        text = block.text
        for long, short in STAND_INS.items():
            text = text.replace(long, short)
        exec(compile("\n" * block.line + text, page, "exec"), namespace)
    return namespace


@pytest.mark.parametrize("page", [page for page in PAGES[1:] if blocks(page, "python")], ids=lambda page: page.name)
def test_python_runs(page, run_page):
    run_page(page)


def test_python_of_the_readme_runs_and_publishes(hub, run_page, tmp_path):
    names = run_page(ROOT / "README.md")
    saved = load_file(tmp_path / "my-model-fused" / "model.safetensors")
    assert saved.keys() == names["also_fast"].state_dict().keys()
    assert "model.safetensors" in hub.files("user/my-model-fused")


def test_few_blocks_are_not_run():
    left_out = [block for page in PAGES for block in blocks(page, "python") if not is_run(block)]
    assert len(left_out) <= 3
    assert all(re.search(r"not run: \w+", block.comment) for block in left_out), "say why"


def test_every_block_has_a_language_that_is_known():
    for page in PAGES + MORE_PAGES:
        for block in blocks(page, *{match["language"] for match in BLOCK.finditer(page.read_text())}):
            assert block.language in ("", "python", "bash", "math", "yaml"), f"{page.name}:{block.line}"
            assert block.language or "fusible" not in block.text.replace(" fused", ""), f"{page.name}:{block.line}"


def test_yaml_is_of_recipes():
    found = [block for page in PAGES + MORE_PAGES for block in blocks(page, "yaml")]
    assert found
    for block in found:
        values = yaml.safe_load(block.text)
        # it refuses keys and values that it does not know
        recipe = Recipe(**{"dataset": "digits", **values})
        assert all(getattr(recipe, section) == entries for section, entries in values.items())


def test_stand_ins_stand_in_for_something():
    text = "".join(page.read_text() for page in PAGES)
    assert [long for long in STAND_INS if long not in text] == []


def your_own_module() -> tuple[type[Fusible], str]:
    page = ROOT / "docs" / "your_own_module.md"
    (block,) = [block for block in blocks(page, "python") if "the law is asserted" in block.comment]
    namespace: dict[str, Any] = {"__name__": "your_own_module"}
    exec(compile("\n" * block.line + block.text, page, "exec"), namespace)
    return next(v for v in namespace.values() if isinstance(v, type) and v.__module__ == "your_own_module"), block.text


@pytest.mark.parametrize("branches", [1, 3])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-9), (torch.float32, 1e-4)])
def test_equivalence_of_your_own_module(branches, dtype, tolerance):
    module_class, _ = your_own_module()
    module = module_class(6, branches)
    perturb_(module)
    module = module.to(dtype).eval()
    inputs = torch.randn(9, 6, dtype=dtype)
    fused = module.fuse()
    assert type(fused) is nn.Linear and fused.weight.dtype == dtype
    torch.testing.assert_close(fused(inputs), module(inputs), rtol=tolerance, atol=tolerance)
    assert (module(inputs) - inputs).abs().max() > 0.1, "the branches matter"


def test_your_own_module_is_short_and_fuses_on_meta():
    module_class, text = your_own_module()
    assert len(text.splitlines()) <= 40
    with torch.device("meta"):
        assert module_class(6).fuse().weight.is_meta


class Parsed(BaseException):
    """Ends a script when its arguments are read."""


def command_lines(page: Path) -> Iterator[str]:
    """Commands in blocks of bash, and those within the text."""
    text = page.read_text()
    for block in blocks(page, "bash"):
        for line in block.text.replace("\\\n", " ").splitlines():
            if line.partition("#")[0].strip():
                yield line
    yield from (match[1] for match in INLINE.finditer(BLOCK.sub("", text)))


def check_command(words: list[str]) -> None:
    """Raises unless a command exists and takes these arguments."""
    while words and re.fullmatch(r"[A-Z_]+=\S*", words[0]):  # environment
        words = words[1:]
    name, arguments = words[0].rpartition("/")[2], words[1:]
    if name == "make":
        known = re.findall(r"^([\w-]+)(?::| \?=)", (ROOT / "Makefile").read_text(), re.MULTILINE)  # rules, variables
        assert {argument.partition("=")[0] for argument in arguments} <= set(known)
    elif name == "fusible":
        check_fusible(arguments)
    elif name == "python" and arguments[0] == "-m":
        assert importlib.util.find_spec(arguments[1]) is not None
    elif name == "python":
        check_script(arguments)
    elif name == "accelerate":
        assert arguments[0] == "launch"
        launched = launch_command_parser().parse_args(arguments[1:])
        check_launched(launched.training_script, launched.module, launched.training_script_args)
    elif name == "torchrun":
        place = arguments.index("-m")
        check_launched(arguments[place + 1], True, arguments[place + 2 :])
    elif name == "pip":
        extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
        wanted = re.findall(r"fusible\[([^]]+)\]|\.\[([^]]+)\]", " ".join(arguments))
        assert {extra for pair in wanted for extra in "".join(pair).split(",")} <= set(extras)
    else:
        assert name in ("cd", "export", "git"), f"unknown command {name}"


def check_fusible(arguments: list[str]) -> None:
    command: Any = typer.main.get_command(app)
    if arguments[0].startswith("-"):
        assert arguments[0] in [option for parameter in command.params for option in parameter.opts]
        return
    if arguments[0] not in command.commands:
        raise ValueError(f"fusible has no {arguments[0]}")
    if len(arguments) == 1:  # only named
        return
    context = command.commands[arguments[0]].make_context(arguments[0], arguments[1:])  # reads options, runs nothing
    if arguments[0] == "train" and not context.params["recipe"].startswith("my-"):
        Recipe.load(find_recipe(context.params["recipe"]), context.params["overrides"] or ())


def check_script(arguments: list[str]) -> None:
    script = ROOT / arguments[0]
    assert "parse" in script.read_text(), "it would run"
    parse = argparse.ArgumentParser.parse_args

    def only_parse(parser: argparse.ArgumentParser, args: Any = None, namespace: Any = None) -> None:
        parse(parser, args, namespace)
        raise Parsed

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", [str(script), *arguments[1:]])
        patch.syspath_prepend(script.parent)
        patch.setattr(argparse.ArgumentParser, "parse_args", only_parse)
        with pytest.raises(Parsed):
            runpy.run_path(str(script), run_name="__main__")


def check_launched(program: str, is_module: bool, arguments: list[str]) -> None:
    if not is_module:
        assert (ROOT / program).exists(), program
        return
    assert importlib.util.find_spec(program) is not None
    if program == "fusible.training.train" and "<" not in arguments[0]:
        Recipe.load(ROOT / arguments[0], arguments[1:])


@pytest.mark.parametrize("page", PAGES + MORE_PAGES, ids=lambda page: page.name)
def test_commands_exist(page):
    for line in dict.fromkeys(command_lines(page)):
        try:
            for command in line.partition(" #")[0].split("&&"):
                check_command(shlex.split(command))
        except (Exception, SystemExit) as error:
            raise AssertionError(f"{page.name}: {line}: {error!r}") from error


@pytest.mark.parametrize(
    "line",
    [
        "fusible fuze a b",
        "fusible fuse a b --chek",
        "fusible --instal-completion",
        "fusible train repavit-vit-gigantic",
        "make tests",
        "python benchmarks/nothing.py",
        "python benchmarks/repavit.py --mode fast",
        "python -m fusibel",
        "accelerate launch --num_proceses 2 -m fusible.training.train hub_configs/repavit-digits/recipe.yaml",
        "accelerate launch -m fusible.training.train hub_configs/repavit-digits/recipe.yaml training.learning_rat=1",
        "pip install fusible[vidoe]",
        "frobnicate",
    ],
)
def test_wrong_commands_are_found(line):
    with pytest.raises((Exception, SystemExit)):
        check_command(shlex.split(line))


def test_errors_name_the_line_of_the_page(tmp_path):
    page = tmp_path / "page.md"
    page.write_text(
        "words\n\n```python\nx = 1\n```\n\n<!-- not run: no -->\n```python\nno\n```\n\n```python\nx +\n```\n"
    )
    with pytest.raises(SyntaxError) as info:
        run_blocks(page, {})
    assert (info.value.filename, info.value.lineno) == (str(page), 13)


def headings(page: Path) -> set[str]:
    found = re.findall(r"^#+ (.*)$", BLOCK.sub("", page.read_text()), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in found}


@pytest.mark.parametrize("page", PAGES + MORE_PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    for target, anchor in LINK.findall(BLOCK.sub("", page.read_text())):
        if target.startswith("http"):
            continue
        file = page.parent / target if target else page
        assert file.exists(), f"{page.name}: {target}"
        assert not anchor or anchor[1:] in headings(file), f"{page.name}: {target}{anchor}"


def test_citation_names_the_version_and_the_papers():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["version"] == fusible.__version__
    urls = {reference["url"] for reference in citation["references"]}
    assert urls == {f"https://huggingface.co/papers/{method.paper}" for method in METHODS.values()}
    assert fusible.__version__ in (ROOT / "CHANGELOG.md").read_text()


@pytest.mark.parametrize(
    "workflow", sorted((ROOT / ".github" / "workflows").glob("*.yml")), ids=lambda file: file.name
)
def test_workflows_make_what_there_is(workflow):
    jobs = yaml.safe_load(workflow.read_text())["jobs"]
    lines = [
        line for job in jobs.values() for step in job.get("steps", ()) for line in step.get("run", "").splitlines()
    ]
    made = [line.partition("#")[0] for line in lines if line.startswith("make ")]
    assert made
    for line in made:
        check_command(shlex.split(line))


def test_tested_versions_are_the_bounds_and_the_pins():
    bounds = subprocess.run([sys.executable, ".ci/oldest_versions.py"], cwd=ROOT, capture_output=True, check=True)
    pins = {"oldest": bounds.stdout.decode(), "newest": (ROOT / "constraints.txt").read_text()}
    page = (ROOT / "docs" / "versions.md").read_text()
    table = [row.split(" | ") for row in re.findall(r"^\| (.*) \|$", page, re.MULTILINE)]
    rows = {row[0]: dict(zip(table[0][4:], row[4:], strict=True)) for row in table}
    for name, text in pins.items():
        pinned = dict(re.findall(r"^([\w-]+)==([\d.]+)", text.replace("_", "-"), re.MULTILINE))
        assert {library: Version(version) for library, version in rows[name].items()} == {
            library: Version(pinned[library]) for library in rows[name]
        }


def test_options_in_tables_are_those_of_the_configurations():
    for page in PAGES:
        for table in re.findall(r"^\| option of .*?(?=^$|\Z)", page.read_text(), re.MULTILINE | re.DOTALL):
            header, _, *rows = table.splitlines()
            config_class = getattr(fusible, re.search(r"`(\w+)`", header)[1])
            known = {field.name for field in dataclasses.fields(config_class)}
            own = known - {field.name for field in dataclasses.fields(transformers.PreTrainedConfig)}
            named = {name for row in rows for name in re.findall(r"`(\w+)`", row.split("|")[1])}
            assert named and named <= own, f"{page.name}: {named - own}"
