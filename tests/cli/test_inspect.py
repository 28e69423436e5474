"""`fusible inspect`."""

import json

from fusible import RePaViTForImageClassification
from support.commands import run


def test_inspect(source, tmp_path):
    model = RePaViTForImageClassification.from_pretrained(source)
    result = run("inspect", source, "--check", "--json")
    assert result.exit_code == 0, result.output
    facts = json.loads(result.stdout)
    assert (facts["method"], facts["form"], facts["dtype"]) == ("RePaViT", "training", "float32")
    for form, key in ((model, "training"), (model.fuse(), "fused")):
        assert facts[key]["parameters"] == sum(parameter.numel() for parameter in form.parameters())
    assert facts["training"]["macs"] > facts["fused"]["macs"]
    assert 0 < facts["max_difference"] < 1e-4 * facts["max_output"]
    run("fuse", source, tmp_path / "fused")
    result = run("inspect", tmp_path / "fused")
    assert result.exit_code == 0 and "fused form" in result.output and "max |Δ|" not in result.output
