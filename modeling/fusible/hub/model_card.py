"""Model cards: contents of a repository, effect of fusing, usage and citation."""

import re
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard, ModelCardData
from transformers import PreTrainedModel
from transformers.utils import logging

from .._auto import auto_class_of
from .atomic import atomic_folder
from .form_facts import form_facts, max_difference
from .methods import METHODS
from .processors import MODULES_FILE
from .weight_files import CARD_MARK, CARD_NAME, FusibleModel, is_card_of_user, is_fusible_model


logger = logging.get_logger(__name__)

PIPELINE_TAGS = {
    "AutoBackbone": "image-feature-extraction",
    "AutoModel": "image-feature-extraction",
    "AutoModelForAudioClassification": "audio-classification",
    "AutoModelForCausalLM": "text-generation",
    "AutoModelForImageClassification": "image-classification",
    "AutoModelForMaskedImageModeling": "image-feature-extraction",
    "AutoModelForMaskedLM": "fill-mask",
    "AutoModelForSemanticSegmentation": "image-segmentation",
    "AutoModelForSequenceClassification": "text-classification",
    "AutoModelForTimeSeriesPrediction": "time-series-forecasting",
    "AutoModelForTokenClassification": "token-classification",
    "AutoModelForVideoClassification": "video-classification",
    "AutoModelForZeroShotImageClassification": "zero-shot-image-classification",
}
SENTENCE_METADATA = {"library_name": "sentence-transformers", "pipeline_tag": "sentence-similarity"}


def make_card(
    model: PreTrainedModel,
    repo_id: str,
    source: FusibleModel | None = None,
    card_data: dict[str, Any] | None = None,
    measure: bool = True,
    embeds_sentences: bool = False,
) -> ModelCard:
    """
    The model card of a repository.

    Args:
        model: what the repository holds: one with two forms in either of them, or the plain one that one was fused to.
        repo_id: its full name.
        source: what a fused model was made from; needed for a plain one.
        card_data: more metadata, such as `license`, `datasets`, `metrics` and `base_model`.
        measure: also measure how much the outputs of source and model differ.
        embeds_sentences: the repository has what sentence-transformers needs to load it.

    Raises:
        ValueError: if the metadata is not what the Hub takes, or a plain model comes without its source.
    """
    if source is None and is_fusible_model(model):
        source = model
    if source is None:
        raise ValueError(f"The card of a plain {model.config.model_type!r} model needs the source it was fused from.")
    method, is_plain = METHODS[source.config.model_type], not is_fusible_model(model)
    fused = not is_fusible_model(model) or model.config.fused
    origin = model.name_or_path
    # the Hub knows no local folder as a base model
    parent = origin if origin and origin != repo_id and not Path(origin).exists() else None
    difference = max_difference(source, model) if measure and model is not source else (None, None)
    auto_class = auto_class_of(type(source))
    # the table's tags of these two are those for images; features of other inputs have a tag without kind
    is_vision = "image" in (source.input_modalities or []) or auto_class not in ("AutoModel", "AutoBackbone")
    metadata: dict[str, Any] = {
        "library_name": "transformers",
        "pipeline_tag": PIPELINE_TAGS[auto_class] if is_vision else "feature-extraction",
        "base_model": parent,
        **(SENTENCE_METADATA if embeds_sentences else {}),
        **(card_data or {}),
    }
    # tags of the caller take the place of the model's; those of the form are always there
    tags = [*metadata.pop("tags", source.model_tags or []), "fused" if fused else "training-form"]
    tags += [] if is_plain else ["custom_code"]
    conversion = getattr(model.config, "conversion", None) or {}
    return ModelCard.from_template(
        ModelCardData(tags=list(dict.fromkeys(tags)), **metadata),
        template_path=str(Path(__file__).parent / "templates" / "modelcard.md"),
        mark=CARD_MARK,
        model_name=repo_id.split("/")[-1],
        repo_id=repo_id,
        method=method,
        fused=fused,
        plain_type=model.config.model_type if is_plain else None,
        parent=parent,
        before=form_facts(source, fused=False) if source.has_fused_form else None,
        after=form_facts(source, fused=True) if source.has_fused_form else None,
        dtype=str(model.dtype).removeprefix("torch."),
        difference=difference[0],
        scale=difference[1],
        auto_class=auto_class,
        embeds_sentences=embeds_sentences,
        # of `from_dense` alone there is no source in it
        conversion=conversion if "source" in conversion else None,
    )


def write_card(
    folder: Path,
    model: PreTrainedModel,
    repo_id: str,
    source: FusibleModel | None = None,
    card_data: dict[str, Any] | None = None,
    measure: bool = True,
) -> None:
    """Writes the card of `make_card` into a saved model's folder, unless the user wrote the one that is there."""
    if is_card_of_user(folder / CARD_NAME):
        logger.warning(f"{folder / CARD_NAME} is not fusible's; it stays as it is, without facts of this model.")
        return
    embeds_sentences = (folder / MODULES_FILE).exists()
    replace_card(folder, str(make_card(model, repo_id, source, card_data, measure, embeds_sentences)))


def replace_card(folder: Path, card: str) -> None:
    """Puts the text of a card into a folder, whole or not at all."""
    with atomic_folder(folder, lambda name: False, CARD_NAME) as stage:
        (stage / CARD_NAME).write_text(card, encoding="utf-8")


def rename_repository_in_card(card: str, repo_id: str) -> str:
    """A card's text with the repository's name in its examples and its title, which a folder's name was before."""
    card = re.sub(r'((?:from_pretrained|SentenceTransformer)\(")[^"]+(?=")', rf"\g<1>{repo_id}", card)
    return re.sub(r"(?m)^# .*$", f"# {repo_id.split('/')[-1]}", card, count=1)
