"""
Makes `import fusible` enough for transformers' Auto classes, at next to no import time.

Importing the model classes costs some seconds, and so does the image processor mapping. So nothing is registered
until transformers itself imports a mapping, and then only names: a class is imported when it is asked for.
"""

import importlib
import importlib.util
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

from ._auto import AUTO_CLASSES


# configuration class -> {backend: class in transformers}
_CLIP = {"torchvision": "CLIPImageProcessor", "pil": "CLIPImageProcessorPil"}
_VIDEO = {"torchvision": "VideoMAEImageProcessor", "pil": "VideoMAEImageProcessorPil"}
IMAGE_PROCESSORS = {"RePaViTConfig": _CLIP, "RePaViTCLIPConfig": _CLIP, "ZeroI2VConfig": _VIDEO}
# configuration class -> class in transformers
TOKENIZERS = {"RePaViTCLIPConfig": "CLIPTokenizer"}
# configuration class -> class in fusible.data.sequences
FEATURE_EXTRACTORS = {"S4Config": "SeriesFeatureExtractor"}


class LazyClasses(dict[Any, Any]):
    """
    The part of an Auto mapping that holds registered classes.

    Ours are there by name, and are imported when they are read; so are the configuration classes that are the keys,
    as importing them can import the very mapping that is being set up.
    """

    def __init__(
        self, registered: dict[Any, Any], values: Mapping[str, Callable[[], Any]], keys_are_classes: bool
    ) -> None:
        super().__init__(registered)
        self.unread = dict(values)
        self.keys_are_classes = keys_are_classes

    def _name(self, key: Any) -> str | None:
        # a class of another package with such a name is not ours
        if isinstance(key, type):
            return key.__name__ if key.__module__.partition(".")[0] == __package__ else None
        return key

    def __contains__(self, key: Any) -> bool:
        return super().__contains__(key) or self._name(key) in self.unread

    def __missing__(self, key: Any) -> Any:
        # only d[key] comes here, which is how transformers reads; dict.get would not
        name = self._name(key)
        if name not in self.unread:
            raise KeyError(key)
        # first, so that a class whose import fails can be asked for again
        self[key] = self.unread[name]()
        del self.unread[name]
        return self[key]

    def _read_all(self) -> None:
        for name in list(self.unread):
            self[_class(name) if self.keys_are_classes else name]

    def __len__(self) -> int:
        return super().__len__() + len(self.unread)

    def __iter__(self) -> Iterator[Any]:
        self._read_all()
        return super().__iter__()

    def keys(self) -> Any:
        self._read_all()
        return super().keys()

    def values(self) -> Any:
        self._read_all()
        return super().values()

    def items(self) -> Any:
        self._read_all()
        return super().items()


class AfterImport(MetaPathFinder):
    """Calls `action(module)` right after the module's first import."""

    def __init__(self, name: str, action: Callable[[ModuleType], None]) -> None:
        self.name = name
        self.action = action

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname != self.name:
            return None
        # the search below asks all finders, which must not be this one again
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(fullname)
        if spec is not None and spec.loader is not None:
            # a loader is made for one module, so the change reaches no other
            execute = spec.loader.exec_module

            def execute_then_act(module: ModuleType) -> None:
                execute(module)
                self.action(module)

            spec.loader.exec_module = execute_then_act  # type: ignore[method-assign]
        return spec


def _class(name: str, package: str = __package__) -> Any:
    return getattr(importlib.import_module(package), name)


def _classes(names: dict[str, str]) -> dict[str, Any]:
    # without torchvision, transformers would warn and give the other class
    has_torchvision = _class("is_torchvision_available", "transformers.utils")()
    usable = {backend: name for backend, name in names.items() if has_torchvision or backend != "torchvision"}
    return {backend: _class(name, "transformers") for backend, name in usable.items()}


def _extend(mapping: Any, values: Mapping[str, Callable[[], Any]], keys_are_classes: bool = True) -> None:
    # the dict that `register` of an Auto class fills; what users put there is kept
    mapping._extra_content = LazyClasses(mapping._extra_content, values, keys_are_classes)


def _register_configs(module: ModuleType) -> None:
    values = {model_type: partial(_class, classes["AutoConfig"]) for model_type, classes in AUTO_CLASSES.items()}
    _extend(module.CONFIG_MAPPING, values, keys_are_classes=False)


def _register_models(module: ModuleType) -> None:
    mappings: dict[str, dict[str, Callable[[], Any]]] = {}
    for classes in AUTO_CLASSES.values():
        for auto_class, name in classes.items():
            if auto_class != "AutoConfig":
                mappings.setdefault(auto_class, {})[classes["AutoConfig"]] = partial(_class, name)
    for auto_class, values in mappings.items():
        _extend(getattr(module, auto_class)._model_mapping, values)


def _register_image_processors(module: ModuleType) -> None:
    values = {config: partial(_classes, names) for config, names in IMAGE_PROCESSORS.items()}
    _extend(module.IMAGE_PROCESSOR_MAPPING, values)


def _register_tokenizers(module: ModuleType) -> None:
    values = {config: partial(_class, name, "transformers") for config, name in TOKENIZERS.items()}
    _extend(module.TOKENIZER_MAPPING, values)


def _register_feature_extractors(module: ModuleType) -> None:
    package = f"{__package__}.data.sequences"
    values = {config: partial(_class, name, package) for config, name in FEATURE_EXTRACTORS.items()}
    _extend(module.FEATURE_EXTRACTOR_MAPPING, values)


def register() -> None:
    """Registers all classes, each mapping as soon as it is imported."""
    for name, action in {
        "configuration_auto": _register_configs,
        "modeling_auto": _register_models,
        "image_processing_auto": _register_image_processors,
        "tokenization_auto": _register_tokenizers,
        "feature_extraction_auto": _register_feature_extractors,
    }.items():
        module = f"transformers.models.auto.{name}"
        if module in sys.modules:
            action(sys.modules[module])
        else:
            # before the finder of files, which would find the module and end the search
            sys.meta_path.insert(0, AfterImport(module, action))
