"""`fusible list`."""

from fusible.recipes import catalog
from support.commands import output_of, run
from support.paths import HUB_CONFIGS


def test_list():
    recipes = {recipe["name"]: recipe for recipe in output_of("list")}
    folders = {file.parent.name for file in HUB_CONFIGS.glob("*/recipe.yaml")}
    assert recipes.keys() == folders
    base = recipes["repavit-vit-base-0.75"]
    assert (base["method"], base["dataset"], base["parameters_m"]) == ("RePaViT", "imagenet-1k", 86.6)
    assert base["paper"]["fused"]["top1"] == 81.3 and "table 1" in base["paper"]["source"]
    assert all(name.startswith(f"{recipe['model_type']}-") for name, recipe in recipes.items())
    chosen = [recipe["name"] for recipe in output_of("list", "--method", "repavit")]
    assert chosen == [name for name in sorted(folders) if recipes[name]["model_type"] == "repavit"]
    assert "repavit-digits" in chosen and "repavit-vit-base-0.75" in chosen
    result = run("list", "--method", "zeroi2v")
    assert "zeroi2v-base-k400-8f" in result.stdout and "83.0" in result.stdout


def test_recipes_come_with_an_installed_package(tmp_path, monkeypatch):
    package = tmp_path / "site-packages" / "fusible"
    monkeypatch.setattr(catalog, "__file__", str(package / "recipes" / "catalog.py"))
    result = run("train", "mine", "--dry-run")
    assert result.exit_code == 1 and "fusible's recipes are not there" in result.output
    (package / "hub_configs" / "mine").mkdir(parents=True)
    (package / "hub_configs" / "mine" / "recipe.yaml").touch()
    assert catalog.names() == ["mine"] and catalog.find_recipe("mine").parent == package / "hub_configs" / "mine"
