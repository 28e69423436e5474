"""Small models, backbones and trainers that several test modules build."""

import torch
from transformers import Trainer, TrainingArguments

from fusible import BACKBONES, RePaViTConfig, RePaViTForImageClassification

from .model_tests.training import Rows


SIZES = {
    "hidden_size": 16,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "image_size": 16,
    "patch_size": 8,
}
OTHER_INPUTS = ("point_vit", "siglip2_vision_model")  # than images; they have tests of their own
SMALL_BACKBONES = {name: SIZES for name in BACKBONES if name not in OTHER_INPUTS} | {
    "dinov2": SIZES | {"mlp_ratio": 4, "layerscale_value": 0.7},
    "dinov2_with_registers": SIZES | {"mlp_ratio": 4, "layerscale_value": 0.7, "num_register_tokens": 2},
    "dinov3_vit": SIZES | {"layerscale_value": 0.7, "mlp_bias": False, "num_register_tokens": 1},
    "beit": SIZES | {"use_relative_position_bias": True, "layer_scale_init_value": 0.5},
    "swin": {
        "embed_dim": 16,
        "depths": [2, 1],
        "num_heads": [1, 2],
        "window_size": 2,
        "image_size": 16,
        "patch_size": 4,
    },
    "poolformer": {
        "hidden_sizes": [16, 32],
        "depths": [2, 1],
        "patch_sizes": [7, 3],
        "strides": [4, 2],
        "padding": [2, 1],
        "num_encoder_blocks": 2,
        "layer_scale_init_value": 0.5,
    },
}
SIGLIP2 = {key: value for key, value in SIZES.items() if key != "image_size"} | {
    "model_type": "siglip2_vision_model",
    "patch_size": 4,
    "num_patches": 16,
}


def backbone_of(name: str) -> dict:
    return {"model_type": name, **SMALL_BACKBONES[name], "num_labels": 5}


def make_model(**arguments) -> RePaViTForImageClassification:
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    backbone = {"model_type": "vit", "image_size": 16, "patch_size": 8, **sizes}
    return RePaViTForImageClassification(RePaViTConfig(backbone_config=backbone, **arguments)).eval()


def make_trainer(model, folder, *callbacks, **arguments) -> Trainer:
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randn(16, 3, 16, 16, generator=generator)
    rows = Rows({"pixel_values": pixels, "labels": torch.arange(16) % 3})
    settings = TrainingArguments(
        str(folder),
        per_device_train_batch_size=4,
        max_steps=6,
        learning_rate=1e-2,
        report_to=[],
        disable_tqdm=True,
        use_cpu=True,
        dataloader_pin_memory=False,
        save_steps=3,
        **arguments,
    )
    return Trainer(model, settings, train_dataset=rows, eval_dataset=rows, callbacks=list(callbacks))
