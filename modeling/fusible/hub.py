"""Model cards: what a repository holds, what fusing changed, how to load it, whom to cite."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard, ModelCardData

from .benchmark import form_facts, max_difference
from .fusion import FusiblePreTrainedModel
from .publishing import CARD_MARK, CARD_NAME


@dataclass(frozen=True)
class Method:
    """A published method."""

    name: str
    summary: str
    paper: str  # arXiv id
    citation: str


METHODS = {
    "repavit": Method(
        "RePaViT",
        "a vision Transformer whose FFNs let most hidden channels skip the activation, so that after training they "
        "and the BatchNorms fold into one small FFN and one linear per block.",
        "2505.21847",
        """@inproceedings{xu2025repavit,
  title     = {{RePaViT}: Scalable Vision Transformer Acceleration via Structural Reparameterization on Feedforward
               Network Layers},
  author    = {Xu, Xuwei and Li, Yang and Chen, Yudong and Liu, Jiajun and Wang, Sen},
  booktitle = {International Conference on Machine Learning},
  year      = {2025}
}""",
    ),
}
METHODS["repavit_clip"] = METHODS["repavit"]
PIPELINE_TAGS = {
    "AutoBackbone": "image-feature-extraction",
    "AutoModel": "image-feature-extraction",
    "AutoModelForImageClassification": "image-classification",
    "AutoModelForZeroShotImageClassification": "zero-shot-image-classification",
}


def make_card(
    model: FusiblePreTrainedModel,
    repo_id: str,
    training_form: FusiblePreTrainedModel | None = None,
    card_data: dict[str, Any] | None = None,
) -> ModelCard:
    """
    The model card of a repository.

    Args:
        model: what the repository holds, in either form.
        repo_id: its full name.
        training_form: what a fused model was made from, to measure the difference.
        card_data: more metadata, such as `license`, `datasets`, `metrics` and `base_model`.

    Raises:
        ValueError: if the metadata is not what the Hub takes.
    """
    method = METHODS[model.config.model_type]
    fused = model.config.fused
    source = model.name_or_path
    parent = source if source and source != repo_id and not Path(source).exists() else None
    difference = max_difference(training_form, model) if training_form is not None else (None, None)
    auto_class = str(model._auto_class)
    metadata: dict[str, Any] = {
        "library_name": "transformers",
        "pipeline_tag": PIPELINE_TAGS[auto_class],
        "base_model": parent,
        **(card_data or {}),
    }
    tags = [*metadata.pop("tags", model.model_tags or []), "custom_code", "fused" if fused else "training-form"]
    return ModelCard.from_template(
        ModelCardData(tags=list(dict.fromkeys(tags)), **metadata),
        template_path=str(Path(__file__).parent / "templates" / "modelcard.md"),
        mark=CARD_MARK,
        model_name=repo_id.split("/")[-1],
        repo_id=repo_id,
        method=method,
        fused=fused,
        parent=parent,
        before=form_facts(model, fused=False),
        after=form_facts(model, fused=True),
        dtype=str(model.dtype).removeprefix("torch."),
        difference=difference[0],
        scale=difference[1],
        auto_class=auto_class,
    )


def write_card(
    folder: Path,
    model: FusiblePreTrainedModel,
    repo_id: str,
    training_form: FusiblePreTrainedModel | None = None,
    card_data: dict[str, Any] | None = None,
) -> None:
    """Writes the card of `make_card` into a saved model's folder."""
    make_card(model, repo_id, training_form, card_data).save(folder / CARD_NAME)
