"""Table of all model classes: by model type, the class that each Auto class of transformers gives."""

# The last Auto class of a model class is the one that saved models and cards name.
AUTO_CLASSES: dict[str, dict[str, str]] = {
    "ewa": {
        "AutoConfig": "EWAConfig",
        "AutoModel": "EWAModel",
        "AutoModelForImageClassification": "EWAForImageClassification",
        "AutoModelForMaskedImageModeling": "EWAForMaskedImageModeling",
        "AutoModelForSemanticSegmentation": "EWAForSemanticSegmentation",
    },
    "point_vit": {
        "AutoConfig": "PointViTConfig",
        "AutoModel": "PointViTModel",
        "AutoModelForImageClassification": "PointViTForPointCloudClassification",
    },
    "repavit": {
        "AutoConfig": "RePaViTConfig",
        "AutoModel": "RePaViTModel",
        "AutoBackbone": "RePaViTBackbone",
        "AutoModelForImageClassification": "RePaViTForImageClassification",
    },
    "repavit_clip": {
        "AutoConfig": "RePaViTCLIPConfig",
        "AutoModel": "RePaViTForZeroShotImageClassification",
        "AutoModelForZeroShotImageClassification": "RePaViTForZeroShotImageClassification",
    },
    "repa_text": {
        "AutoConfig": "RePaTextConfig",
        "AutoModel": "RePaTextModel",
        "AutoModelForMaskedLM": "RePaTextForMaskedLM",
        "AutoModelForTokenClassification": "RePaTextForTokenClassification",
        "AutoModelForSequenceClassification": "RePaTextForSequenceClassification",
    },
    "s4": {
        "AutoConfig": "S4Config",
        "AutoModel": "S4Model",
        "AutoModelForAudioClassification": "S4ForAudioClassification",
        "AutoModelForCausalLM": "S4ForCausalLM",
        "AutoModelForImageClassification": "S4ForImageClassification",
        "AutoModelForSequenceClassification": "S4ForSequenceClassification",
        "AutoModelForTimeSeriesPrediction": "S4ForTimeSeriesPrediction",
    },
    "zeroi2v": {
        "AutoConfig": "ZeroI2VConfig",
        "AutoModel": "ZeroI2VModel",
        "AutoModelForVideoClassification": "ZeroI2VForVideoClassification",
    },
}


def auto_class_of(model_class: type) -> str:
    """
    Name of the Auto class that gives a model class, or the nearest of its base classes that one gives.

    Raises:
        ValueError: if no Auto class gives any of them.
    """
    autos = {name: auto for row in AUTO_CLASSES.values() for auto, name in row.items()}
    # by name, as remote code has classes of its own with the names of these
    for base in model_class.__mro__:
        if base.__name__ in autos:
            return autos[base.__name__]
    head = f"AutoModelFor{model_class.__name__.partition('For')[2]}"
    # plain models are named alike
    if model_class.__module__.startswith("transformers.") and head in autos.values():
        return head
    raise ValueError(f"No Auto class gives {model_class.__name__}; fusible has {', '.join(sorted(autos))}.")


__all__ = ["AUTO_CLASSES", "auto_class_of"]
