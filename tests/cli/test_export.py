"""`fusible export`."""

import pytest

from support.commands import output_of


@pytest.mark.filterwarnings("ignore:.*treespec.*:FutureWarning")
def test_export(source, tmp_path):
    planned = output_of("export", source, tmp_path / "program", "--format", "torch", "--dry-run")
    assert planned["inputs"] == {"pixel_values": ["batch", 3, 16, 16]} and not (tmp_path / "program").exists()
    assert output_of("export", source, tmp_path / "program", "--int8", "--dry-run")["int8"]
    facts = output_of("export", source, tmp_path / "program", "--format", "torch")
    assert facts["inputs"] == planned["inputs"] and facts["max_difference"] <= 1e-4 * facts["max_output"]
    assert set(facts["files"]) == {file.name for file in (tmp_path / "program").iterdir()}
