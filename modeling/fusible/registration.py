"""
Makes `import fusible` enough for transformers' Auto classes, at next to no import time.

Importing the model classes costs some seconds, and so does the image processor mapping. So nothing is registered
until transformers itself imports a mapping, and then only names: a class is imported when it is asked for.
"""

import importlib
import importlib.util
import sys
from collections.abc import Callable, Sequence
from functools import partial
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any


# model type -> configuration class
CONFIGS = {"repavit": "RePaViTConfig", "repavit_clip": "RePaViTCLIPConfig"}
# mapping in transformers.models.auto.modeling_auto -> {configuration class: model class}
MODELS = {
    "MODEL_MAPPING": {
        "RePaViTConfig": "RePaViTModel",
        "RePaViTCLIPConfig": "RePaViTForZeroShotImageClassification",
    },
    "MODEL_FOR_BACKBONE_MAPPING": {"RePaViTConfig": "RePaViTBackbone"},
    "MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING": {"RePaViTConfig": "RePaViTForImageClassification"},
    "MODEL_FOR_ZERO_SHOT_IMAGE_CLASSIFICATION_MAPPING": {"RePaViTCLIPConfig": "RePaViTForZeroShotImageClassification"},
}
# configuration class -> {backend: class in transformers}
_CLIP = {"torchvision": "CLIPImageProcessor", "pil": "CLIPImageProcessorPil"}
IMAGE_PROCESSORS = {"RePaViTConfig": _CLIP, "RePaViTCLIPConfig": _CLIP}
# configuration class -> class in transformers
TOKENIZERS = {"RePaViTCLIPConfig": "CLIPTokenizer"}


class LazyClasses(dict[Any, Any]):
    """The part of an Auto mapping that holds registered classes, or functions that import them when asked."""

    def __getitem__(self, key: Any) -> Any:
        value = super().__getitem__(key)
        return value if isinstance(value, type | dict) else value()

    def values(self) -> Any:
        return {key: self[key] for key in self}.values()

    def items(self) -> Any:
        return {key: self[key] for key in self}.items()


class AfterImport(MetaPathFinder):
    """Calls `action(module)` right after the module's first import."""

    def __init__(self, name: str, action: Callable[[ModuleType], None]) -> None:
        self.name, self.action = name, action

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname != self.name:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(fullname)
        if spec is not None and spec.loader is not None:
            execute = spec.loader.exec_module

            def execute_then_act(module: ModuleType) -> None:
                execute(module)
                self.action(module)

            spec.loader.exec_module = execute_then_act  # type: ignore[method-assign]
        return spec


def _class(name: str, package: str = __package__) -> Any:
    return getattr(importlib.import_module(package), name)


def _extend(mapping: Any, key: Any, value: Callable[[], Any]) -> None:
    if not isinstance(mapping._extra_content, LazyClasses):
        mapping._extra_content = LazyClasses(mapping._extra_content)
    mapping.register(key, value, exist_ok=True)


def _register_configs(module: ModuleType) -> None:
    for model_type, config in CONFIGS.items():
        _extend(module.CONFIG_MAPPING, model_type, partial(_class, config))


def _register_models(module: ModuleType) -> None:
    for mapping, models in MODELS.items():
        for config, model in models.items():
            _extend(module.__dict__[mapping], _class(config), partial(_class, model))


def _classes(names: dict[str, str]) -> dict[str, Any]:
    return {backend: _class(name, "transformers") for backend, name in names.items()}


def _register_image_processors(module: ModuleType) -> None:
    for config, processors in IMAGE_PROCESSORS.items():
        _extend(module.IMAGE_PROCESSOR_MAPPING, _class(config), partial(_classes, processors))


def _register_tokenizers(module: ModuleType) -> None:
    for config, tokenizer in TOKENIZERS.items():
        _extend(module.TOKENIZER_MAPPING, _class(config), partial(_class, tokenizer, "transformers"))


def register() -> None:
    """Registers all classes, each mapping as soon as it is imported."""
    for name, action in {
        "configuration_auto": _register_configs,
        "modeling_auto": _register_models,
        "image_processing_auto": _register_image_processors,
        "tokenization_auto": _register_tokenizers,
    }.items():
        module = f"transformers.models.auto.{name}"
        if module in sys.modules:
            action(sys.modules[module])
        else:
            sys.meta_path.insert(0, AfterImport(module, action))
