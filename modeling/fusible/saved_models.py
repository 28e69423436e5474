"""Loading and publishing saved models."""

import json
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import CONFIG_MAPPING, AutoConfig, PreTrainedConfig, PreTrainedModel
from transformers.utils import CONFIG_NAME

from ._auto import AUTO_CLASSES
from .core.completeness import check_complete
from .hub.atomic import finish_save
from .hub.methods import METHODS
from .hub.model_card import write_card
from .hub.processors import SavedProcessor
from .hub.publishing import open_repository
from .hub.saving import save_model
from .hub.weight_files import FusibleModel, is_fusible_model, warn_of_non_finite


def class_for(model_type: str, auto_class: str) -> type[PreTrainedModel]:
    """The model class that an Auto class gives for a model type of fusible's."""
    # by transformers' mapping, which imports the code of this model alone
    return getattr(transformers, auto_class)._model_mapping[CONFIG_MAPPING[model_type]]


def load_model_class(config: PreTrainedConfig, plain: bool = False) -> type[PreTrainedModel]:
    """
    The class that a configuration names in `architectures`.

    Args:
        config: of a model of fusible's.
        plain: also of a model without two forms, whose class is one of transformers.

    Raises:
        ValueError: if there is none.
    """
    name = (config.architectures or ["none"])[0]
    if plain and config.model_type not in AUTO_CLASSES:
        model_class = getattr(transformers, name, None)
        if model_class is None:
            raise ValueError(
                f"The configuration of type {config.model_type!r} names the class {name}, which is unknown."
            )
        return model_class
    for auto_class, class_name in AUTO_CLASSES.get(config.model_type, {}).items():
        if class_name == name:
            return class_for(config.model_type, auto_class)
    raise ValueError(
        f"The configuration of type {config.model_type!r} names {name}, a class that fusible does not have."
    )


def load(source: str, revision: str | None, plain: bool = False) -> Any:
    """
    A saved model in its own form and class, see `load_complete`.

    Args:
        source: folder or Hub repository.
        revision: of the repository.
        plain: also take models without two forms, such as what EWA's are fused to.

    Raises:
        ValueError: if it is not one of fusible's, nor a plain one that may be taken, or lacks weights.
        OSError: if it is not there.
    """
    finish_save(source)
    config = AutoConfig.from_pretrained(source, revision=revision or "main")
    if not plain and config.model_type not in METHODS:
        raise ValueError(f"{source} is a {config.model_type!r} model; fusible has {', '.join(sorted(METHODS))}.")
    return load_complete(load_model_class(config, plain), source, config=config, revision=revision or "main")


def load_complete(model_class: Any, source: str, **kwargs: Any) -> Any:
    """
    A model with all of its weights; of plain ones, transformers would draw missing ones at random.

    A warning says if weights are not finite.

    Args:
        model_class: its class, or an Auto class.
        source: folder or Hub repository.
        **kwargs: for `from_pretrained`.

    Raises:
        ValueError: if weights are missing.
        OSError: if it is not there.
    """
    model, found = model_class.from_pretrained(source, output_loading_info=True, **kwargs)
    # unexpected tensors are in many old checkpoints of plain models
    check_complete(model, source, found["missing_keys"], ())
    warn_of_non_finite(model.state_dict(), source)
    return model


def load_processor(source: str, revision: str | None, main_input_name: str) -> Any | None:
    """
    The tokenizer, image processor or feature extractor saved with a model, if there is one.

    Args:
        source: folder or Hub repository.
        revision: of the repository.
        main_input_name: the model's, which says which of them is meant.

    Raises:
        ValueError: if its files cannot be read.
        OSError: if the source is not there.
    """
    return SavedProcessor(source, revision=revision or "main").load(main_input_name)


def find_dtype(name: str) -> torch.dtype:
    """
    A floating-point dtype by its name.

    Raises:
        ValueError: if there is none.
    """
    dtype = getattr(torch, name, None)
    if not (isinstance(dtype, torch.dtype) and dtype.is_floating_point):
        raise ValueError(f"{name!r} is no dtype of torch; take float32, bfloat16 or float16.")
    return dtype


def find_device(name: str) -> torch.device:
    """
    A device by its name.

    Raises:
        ValueError: if there is none here that torch can use.
    """
    try:
        # which asks the driver; the name alone tells nothing
        return torch.empty(0, device=name).device
    except (AssertionError, NotImplementedError, RuntimeError) as error:
        raise ValueError(f"The device {name!r} cannot be used here: {str(error).splitlines()[0]}") from error


def check_destination(folder: Path) -> None:
    """
    Checks that a fused model can be saved into a folder, and that no training form is overwritten by it, the source's
    for one, as nothing brings it back.

    Raises:
        ValueError: if the folder holds one, or is a file.
    """
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"{folder} is a file; give a folder.")
    try:
        config = json.loads((folder / CONFIG_NAME).read_text(encoding="utf-8"))
        is_training_form = config["model_type"] in METHODS and not config.get("fused")
    except (OSError, ValueError, KeyError, TypeError):  # no model, or none of fusible's
        return
    if is_training_form:
        raise ValueError(
            f"{folder} holds a training form, which the inference form would overwrite for good. Give another folder."
        )


def publish(
    model: PreTrainedModel,
    destination: Path,
    processor: Any | None = None,
    source: FusibleModel | None = None,
    *,
    measure: bool = True,
    repo_id: str | None = None,
    revision: str | None = None,
    private: bool | None = None,
    token: str | None = None,
    card_data: dict[str, Any] | None = None,
) -> None:
    """
    Saves a model into a folder, with processor and model card, and pushes that folder.

    Args:
        model: one with two forms in either of them, or a plain one that one was fused to.
        destination: folder; files that are there already stay, except older weights and a card of fusible's.
        processor: what makes the model's inputs, if there is anything: an image processor, a tokenizer, or a
            `SavedProcessor` for all that another folder or repository has.
        source: what a fused model was made from. A plain model without gets no card.
        measure: also measure the difference of the two for the card.
        repo_id: where to push, if anywhere.
        revision: branch to push to.
        private: visibility of a new repository.
        token: of the Hub.
        card_data: more metadata for the card.

    Raises:
        OSError: if the folder or the push cannot be completed.
    """
    names = save_model(model, destination, processor=processor)
    has_card = is_fusible_model(model) or source is not None
    if repo_id is None and has_card:
        write_card(destination, model, destination.name, source, card_data, measure=measure)
    if repo_id is None:
        return
    repository = open_repository(repo_id, revision=revision, private=private, token=token)
    if has_card and repository.takes_card_from(destination):
        write_card(destination, model, repository.repo_id, source, card_data, measure=measure)
    repository.commit(destination, names)


__all__ = [
    "check_destination",
    "class_for",
    "find_device",
    "find_dtype",
    "load",
    "load_complete",
    "load_processor",
    "publish",
]
