"""`import fusible` is enough for the Auto classes, in any order, and imports nothing heavy."""

import subprocess
import sys

import pytest

from fusible._auto import AUTO_CLASSES


def run(code: str) -> str:
    result = subprocess.run([sys.executable, "-W", "error::ImportWarning", "-c", code], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr[-3000:]
    assert "requires torchvision" not in result.stderr
    return result.stdout


def test_import_is_light():
    heavy = run(
        "import sys, fusible; print([name for name in ('torch', 'transformers', 'numpy') if name in sys.modules])"
    )
    assert heavy.strip() == "[]"


USE = """
config = AutoConfig.for_model("repavit", backbone_config={"model_type": "vit", "num_hidden_layers": 1})
model = AutoModelForImageClassification.from_config(config)
assert type(model) is fusible.RePaViTForImageClassification, type(model)
assert type(AutoModel.from_config(config)) is fusible.RePaViTModel
from transformers.models.auto.image_processing_auto import IMAGE_PROCESSOR_MAPPING
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
assert IMAGE_PROCESSOR_MAPPING[type(config)]["pil"].__name__ == "CLIPImageProcessorPil"
assert CONFIG_MAPPING["repavit"] is type(config) is fusible.RePaViTConfig
assert type(config) in dict(IMAGE_PROCESSOR_MAPPING._extra_content.items())
from transformers.models.auto.tokenization_auto import TOKENIZER_MAPPING
assert TOKENIZER_MAPPING[fusible.RePaViTCLIPConfig].__name__ == "CLIPTokenizer"
assert "repavit_clip" in CONFIG_MAPPING and "no_such" not in CONFIG_MAPPING
assert fusible.RePaViTCLIPConfig in IMAGE_PROCESSOR_MAPPING and int not in IMAGE_PROCESSOR_MAPPING._extra_content
assert {"repavit", "repavit_clip"} <= set(CONFIG_MAPPING._extra_content.keys())
assert fusible.RePaViTModel in AutoModel._model_mapping._extra_content.values()
print("ok")
"""
AUTO = "from transformers import AutoConfig, AutoModel, AutoModelForImageClassification, AutoImageProcessor\n"


@pytest.mark.parametrize(
    "imports",
    [
        f"import fusible\n{AUTO}",
        f"{AUTO}import fusible\n",
        f"import transformers.modeling_utils, transformers.pipelines\nimport fusible\n{AUTO}",
        f"from fusible import RePaViTConfig\nimport fusible\n{AUTO}",
        f"from fusible import RePaViTModel\nimport fusible\n{AUTO}",
        f"from transformers import AutoImageProcessor\nimport fusible\n{AUTO}",
        f"from transformers import AutoTokenizer\nfrom fusible import RePaViTCLIPConfig\nimport fusible\n{AUTO}",
        f"from transformers import CLIPConfig, CLIPModel, CLIPTokenizer\nimport fusible\n{AUTO}",
    ],
)
def test_auto_classes_know_the_models(imports):
    assert run(imports + USE).endswith("ok\n")


def test_public_names():
    import fusible

    tables = {"BACKBONES": ("vit", "ViTLayer"), "TEXT_BACKBONES": ("bert", "BertLayer")}
    for name in fusible.__all__:
        if name in tables:
            model_type, block = tables[name]
            assert getattr(fusible, name)[model_type].block == block
        else:
            assert getattr(fusible, name).__name__ == name
    assert set(fusible.__all__) <= set(dir(fusible))
    assert {name for classes in AUTO_CLASSES.values() for name in classes.values()} <= set(fusible.__all__)
    with pytest.raises(AttributeError, match="RePaVit"):
        _ = fusible.RePaVit
