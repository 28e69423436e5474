"""`fusible train` and `fusible evaluate`."""

import json

import pytest
from huggingface_hub import ModelCard

from fusible import RePaViTForImageClassification
from support.commands import output_of


def test_train_dry_run(recipe, tmp_path):
    output = tmp_path / "trained"
    plan = output_of("train", recipe, f"output_dir={output}", "training.learning_rate=0.5", "--dry-run")
    parameters = sum(
        parameter.numel() for parameter in RePaViTForImageClassification.from_pretrained(recipe.parent).parameters()
    )
    assert plan["training_form"]["parameters"] == parameters > plan["fused_form"]["parameters"]
    assert (plan["learning_rate"], plan["max_steps"], plan["device"]) == (0.5, 2, "cpu") and not output.exists()


def test_train_and_evaluate(recipe, tmp_path):
    output = tmp_path / "trained"
    output.mkdir()
    (output / "README.md").write_text("# Mine", encoding="utf-8")
    results = output_of("train", recipe, f"output_dir={output}", "model.num_labels=10")
    assert json.loads((output / "results.json").read_text(encoding="utf-8")) == results
    assert (output / "README.md").read_text(encoding="utf-8") == "# Mine"
    for form, arguments in (("training", []), ("fused", ["--fused"])):
        measured = output_of("evaluate", output, recipe, "--batch-size", "64", *arguments)
        assert (measured["form"], measured["samples"]) == (form, 360)
        assert measured["accuracy"] == pytest.approx(results["training_form"]["eval_accuracy"])
    measured = output_of("evaluate", output / "fused", recipe, "--limit", "30", "--save")
    assert measured["form"] == "fused" and measured["samples"] == 30
    (result,) = [
        row
        for row in ModelCard.load(output / "fused" / "README.md").data.eval_results
        if row.metric_name == "Accuracy"
    ]
    assert (result.dataset_name, result.metric_value) == ("digits", pytest.approx(measured["accuracy"], abs=1e-6))
