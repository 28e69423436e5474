"""A saved model and a recipe that commands are given."""

import pytest
import yaml
from transformers import CLIPImageProcessorPil

from support.model_tests.base import perturb_
from support.small_models import make_model


@pytest.fixture
def source(tmp_path):
    model = make_model(num_labels=5)
    perturb_(model)
    model.save_pretrained(tmp_path / "training")
    CLIPImageProcessorPil(size={"height": 16, "width": 16}, do_center_crop=False).save_pretrained(
        tmp_path / "training"
    )
    return tmp_path / "training"


@pytest.fixture
def recipe(source):
    """Digits at the size of the model in `source`."""
    values = {"dataset": "digits", "training": {"max_steps": 2, "per_device_train_batch_size": 8, "use_cpu": True}}
    values["training"] |= {"eval_strategy": "no", "dataloader_num_workers": 0, "save_strategy": "no"}
    (source / "recipe.yaml").write_text(yaml.safe_dump(values), encoding="utf-8")
    return source / "recipe.yaml"
