"""The commands that look at models take text encoders as well."""

import json

from fusible import RePaTextForSequenceClassification
from support.commands import run
from support.text_models import save_dense


def test_inspect_bench_and_export(tmp_path):
    dense = save_dense(tmp_path, auto_class="AutoModelForSequenceClassification")
    RePaTextForSequenceClassification.from_dense(dense, idle_ratio=0.75).save_pretrained(tmp_path / "model")
    result = run("inspect", tmp_path / "model", "--check", "--json")
    assert result.exit_code == 0, result.output
    facts = json.loads(result.stdout)
    assert facts["class"] == "RePaTextForSequenceClassification" and facts["max_difference"] < 1e-4
    # two linears of 16 x 64 become three of 16 x 16, the first of them in the place of 48 idle channels
    assert facts["training"]["parameters"] == sum(p.numel() for p in dense.parameters())
    assert facts["training"]["parameters"] - facts["fused"]["parameters"] == 3 * (2 * 16 * 64 + 64 - 3 * 16 * 16 - 16)
    # for one text of 24 tokens, all that the model takes
    assert facts["training"]["macs"] - facts["fused"]["macs"] == 3 * 24 * (2 * 16 * 64 - 3 * 16 * 16)
    result = run("bench", tmp_path / "model", "--batch-size", "3", "--repeats", "1", "--json")
    assert result.exit_code == 0 and json.loads(result.stdout)[0]["batch_size"] == 3, result.output
    result = run("export", tmp_path / "model", tmp_path / "program", "--dry-run", "--json")
    assert result.exit_code == 0 and json.loads(result.stdout)["inputs"]["input_ids"] == ["batch", "tokens"]
