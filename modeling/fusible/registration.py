"""
Makes `import fusible` enough for transformers' Auto classes, at next to no import time.

Importing the model classes costs some seconds, and so does the image processor mapping. So nothing is registered
until transformers itself imports a mapping, and then only names: a class is imported when it is asked for.
"""

import importlib
import importlib.util
import sys
from collections.abc import Callable, Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any


# config class -> {mapping in transformers.models.auto.modeling_auto: model class}
MODELS = {
    "RePaViTConfig": {
        "MODEL_MAPPING": "RePaViTModel",
        "MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING": "RePaViTForImageClassification",
    },
}
# config class -> {backend: class in transformers}
IMAGE_PROCESSORS = {
    "RePaViTConfig": {"torchvision": "CLIPImageProcessor", "pil": "CLIPImageProcessorPil"},
}


class LazyClasses(dict[type, Any]):
    """The part of an Auto mapping that holds registered classes, with callables that import them in their place."""

    def __getitem__(self, config_class: type) -> Any:
        value = super().__getitem__(config_class)
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


def _class(name: str) -> Any:
    return getattr(importlib.import_module(__package__), name)


def _transformers_class(name: str) -> Any:
    return getattr(importlib.import_module("transformers"), name)


def _register_configs(module: ModuleType) -> None:
    for name in MODELS:
        config_class = _class(name)
        module.CONFIG_MAPPING.register(config_class.model_type, config_class, exist_ok=True)


def _extend(mapping: Any, config_name: str, value: Any) -> None:
    if not isinstance(mapping._extra_content, LazyClasses):
        mapping._extra_content = LazyClasses(mapping._extra_content)
    mapping.register(_class(config_name), value, exist_ok=True)


def _register_models(module: ModuleType) -> None:
    for config_name, models in MODELS.items():
        for mapping, name in models.items():
            _extend(module.__dict__[mapping], config_name, lambda name=name: _class(name))


def _register_image_processors(module: ModuleType) -> None:
    for config_name, processors in IMAGE_PROCESSORS.items():
        _extend(
            module.IMAGE_PROCESSOR_MAPPING,
            config_name,
            lambda processors=processors: {k: _transformers_class(v) for k, v in processors.items()},
        )


def register() -> None:
    """Registers all classes, each mapping as soon as it is imported."""
    for name, action in {
        "configuration_auto": _register_configs,
        "modeling_auto": _register_models,
        "image_processing_auto": _register_image_processors,
    }.items():
        module = f"transformers.models.auto.{name}"
        if module in sys.modules:
            action(sys.modules[module])
        else:
            sys.meta_path.insert(0, AfterImport(module, action))
