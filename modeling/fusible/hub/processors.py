"""
Tokenizers, image processors and feature extractors, and what sentence-transformers has after a model, such as its
pooling: what is saved beside a model and goes where it goes.
"""

import json
import os
import shutil
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path, PurePosixPath
from tempfile import TemporaryDirectory
from typing import Any

from transformers import AutoFeatureExtractor, AutoImageProcessor, AutoTokenizer, PreTrainedModel
from transformers.tokenization_utils_base import CHAT_TEMPLATE_FILE, FULL_TOKENIZER_FILE, TOKENIZER_CONFIG_FILE
from transformers.utils import IMAGE_PROCESSOR_NAME, PROCESSOR_NAME, VIDEO_PROCESSOR_NAME, cached_file, logging

from .weight_files import files_in


logger = logging.get_logger(__name__)
TOKENIZER_FILES = (TOKENIZER_CONFIG_FILE, FULL_TOKENIZER_FILE)
# that tell what there is; a feature extractor's has the name of an image processor's
PROCESSOR_FILES = (PROCESSOR_NAME, IMAGE_PROCESSOR_NAME, VIDEO_PROCESSOR_NAME, *TOKENIZER_FILES)
# of sentence-transformers: the list of its modules, of which the model is one, and its options for them
MODULES_FILE = "modules.json"
SENTENCE_FILES = (
    MODULES_FILE,
    "config_sentence_transformers.json",
    *(f"sentence_{kind}_config.json" for kind in ("bert", "distilbert", "roberta", "xlm-roberta")),
)
MODULE_FILES = ("config.json", "model.safetensors", "pytorch_model.bin")  # of a module, in a folder of its own
# by a model's `main_input_name`: what makes it, the files of which one is then there, and the class that loads it
NEEDED: dict[str, tuple[str, tuple[str, ...], Any]] = {
    "pixel_values": ("image processor", PROCESSOR_FILES[:3], AutoImageProcessor),
    "input_ids": ("tokenizer", TOKENIZER_FILES, AutoTokenizer),
    "input_values": ("feature extractor", PROCESSOR_FILES[:2], AutoFeatureExtractor),
    "past_values": ("feature extractor", PROCESSOR_FILES[:2], AutoFeatureExtractor),
}


class SavedProcessor:
    """
    What a folder or Hub repository has to make a model's inputs, of whatever kind.

    Args:
        source: the folder or repository.
        **download: `revision`, `token` and `local_files_only`, as for `from_pretrained`.
    """

    def __init__(self, source: str | os.PathLike, **download: Any) -> None:
        self.source = str(source)
        self.download = download

    def _file(self, name: str) -> str | None:
        return cached_file(self.source, name, _raise_exceptions_for_missing_entries=False, **self.download)

    def has(self, names: Iterable[str] = PROCESSOR_FILES) -> bool:
        """
        Whether one of these files is there.

        Raises:
            OSError: if the source is not there.
        """
        return any(self._file(name) is not None for name in names)

    def load(self, main_input_name: str) -> Any | None:
        """
        What makes a model's main input, if there is one.

        Args:
            main_input_name: the model's.

        Raises:
            OSError: if the source is not there.
            ValueError: if the files cannot be read.
        """
        _, names, auto_class = NEEDED.get(main_input_name, ("", (), None))
        if not self.has(names):
            return None
        # PIL in training and evaluation alike: torchvision's resizing gives slightly different pixels
        options = {"backend": "pil"} if auto_class is AutoImageProcessor else {}
        return auto_class.from_pretrained(self.source, **options, **self.download)

    def save_pretrained(self, folder: str | os.PathLike) -> list[str]:
        """
        Saves all that is there, as the method of this name of processors does.

        A tokenizer that cannot be loaded stays behind, with a warning; so do modules of sentence-transformers that
        expect the model elsewhere than beside their list.

        Returns:
            Paths of the files written.
        """
        before = set(files_in(Path(folder)))
        # files and not objects: they need neither the classes that read them nor what these need
        for name in (*PROCESSOR_FILES[:3], CHAT_TEMPLATE_FILE, *self._sentence_files()):
            if (file := self._file(name)) is not None:
                Path(folder, name).parent.mkdir(exist_ok=True, parents=True)
                shutil.copyfile(file, Path(folder, name))
        if self.has(TOKENIZER_FILES):
            try:
                # only its class knows the names of a tokenizer's files
                AutoTokenizer.from_pretrained(self.source, **self.download).save_pretrained(folder)
            except (OSError, ValueError, ImportError) as error:
                logger.warning(f"The tokenizer of {self.source} stays behind, as it cannot be loaded: {error}")
        return [str(Path(folder, name)) for name in files_in(Path(folder)) if name not in before]

    def fetch(self) -> None:
        """Downloads all that `save_pretrained` saves, so that it is in the cache; without a network, what is there."""
        with TemporaryDirectory() as folder, suppress(OSError):
            self.save_pretrained(folder)

    def _sentence_files(self) -> list[str]:
        """Names of the files of sentence-transformers that may be there, those of its modules with their path."""
        listed = self._file(MODULES_FILE)
        if listed is None:
            return []
        try:
            paths = [str(module["path"]) for module in json.loads(Path(listed).read_text(encoding="utf-8"))]
        except (ValueError, KeyError, TypeError) as error:
            logger.warning(f"{MODULES_FILE} of {self.source} stays behind, as it cannot be read: {error!r}")
            return []
        # the model's own path is empty where it is at the top, as it is where models are saved here
        if "" not in paths or any(PurePosixPath(path).is_absolute() or ".." in path for path in paths):
            logger.warning(f"{MODULES_FILE} of {self.source} stays behind: the model is not at the top of that place.")
            return []
        return [*SENTENCE_FILES, *(f"{path}/{name}" for path in paths if path for name in MODULE_FILES)]


def processor_of(model: PreTrainedModel, **download: Any) -> SavedProcessor | None:
    """
    The processor where a model was loaded from. A warning says if what makes the model's main input is not there.

    Args:
        model: any.
        **download: see `SavedProcessor`.
    """
    source, found, reason = model.name_or_path, None, "the model was not loaded from a folder or repository"
    kind, names, _ = NEEDED.get(model.main_input_name, ("", (), None))
    is_there = not kind
    if source:
        in_cache = download.get("local_files_only") and not Path(source).is_dir()
        reason = f"{'the cache of ' * bool(in_cache)}{source} has none"
        try:
            found = SavedProcessor(source, **download)
            is_there = is_there or found.has(names)
        except OSError as error:  # a folder that is gone, for instance
            found, reason = None, str(error)
    if not is_there:
        logger.warning(
            f"No {kind} goes along with this {type(model).__name__}: {reason}. pipeline() needs one; give "
            "processor=..., or save it into the same folder."
        )
    return found


def keeps_processor(place: str | os.PathLike, names: Iterable[str], model: PreTrainedModel) -> bool:
    """
    Whether there is a processor already where a model goes. It stays, with a warning if the model is from elsewhere.

    Args:
        place: folder or repository.
        names: of the files there.
        model: any.
    """
    if set(PROCESSOR_FILES).isdisjoint(names):
        return False
    if model.name_or_path not in ("", str(place)):
        logger.warning(
            f"{place} has a tokenizer, image processor or feature extractor already, which stays; processor=... puts "
            "another in its place."
        )
    return True


def processor_for_folder(
    model: PreTrainedModel, folder: str | os.PathLike, pushed: bool, **download: Any
) -> SavedProcessor | None:
    """
    What goes along with a model into a folder: what is there already, or else `processor_of` the model.

    Args:
        model: any.
        folder: it may be missing.
        pushed: the folder is then pushed. Only then are files downloaded; otherwise those in the cache have to do.
        **download: see `SavedProcessor`.
    """
    if os.path.isdir(folder) and keeps_processor(folder, os.listdir(folder), model):
        # written once more, to be among the files that are pushed
        return SavedProcessor(folder) if pushed else None
    return processor_of(model, local_files_only=not pushed, **download)


__all__ = ["SavedProcessor", "keeps_processor", "processor_for_folder", "processor_of"]
