"""Names that transformers deprecates are errors in the tests, and in the programs that these run."""

import pytest
from transformers import PreTrainedConfig

from support.processes import run_without_fusible


def test_logged_deprecations_are_errors():
    with pytest.raises(FutureWarning, match="`torch_dtype` is deprecated"):
        PreTrainedConfig().torch_dtype  # noqa: B018


@pytest.mark.parametrize(
    ("line", "name"),
    [("AutoConfig.for_model('vit').torch_dtype", "torch_dtype"), ("model.is_gradient_checkpointing", "checkpointing")],
)
def test_deprecations_are_errors_in_programs(line, name):
    """Of both kinds: logged and warned."""
    model = "model = Auto.from_config(AutoConfig.for_model('vit', hidden_size=8, num_attention_heads=1))"
    result = run_without_fusible(model, "print('here')", line)
    assert result.returncode == 1 and result.stdout == "here\n"
    assert "FutureWarning" in result.stderr.splitlines()[-1] and name in result.stderr.splitlines()[-1]
