"""Model cards: what a repository holds, what fusing changed, how to load it, whom to cite."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard, ModelCardData
from transformers import PreTrainedModel

from ._auto import auto_class_of
from .checkpoints import FusibleModel, is_fusible_model
from .form_facts import form_facts, max_difference
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
    "ewa": Method(
        "EWA (Experts Weights Averaging)",
        "a vision Transformer some of whose FFNs are several experts while it trains, which get tokens at random and "
        "are pulled together in each step; afterwards their mean makes it the plain model again.",
        "2308.06093",
        """@article{huang2023experts,
  title   = {Experts Weights Averaging: A New General Training Scheme for Vision Transformers},
  author  = {Huang, Yongqi and Ye, Peng and Huang, Xiaoshui and Li, Sheng and Chen, Tao and He, Tong and
             Ouyang, Wanli},
  journal = {arXiv preprint arXiv:2308.06093},
  year    = {2023}
}""",
    ),
    "s4": Method(
        "S4 (Structured State Spaces)",
        "a sequence model of state spaces, which are long convolutions while it trains; afterwards they are "
        "recurrences, whose steps all cost the same.",
        "2111.00396",
        """@inproceedings{gu2022efficiently,
  title     = {Efficiently Modeling Long Sequences with Structured State Spaces},
  author    = {Gu, Albert and Goel, Karan and R{\\'e}, Christopher},
  booktitle = {International Conference on Learning Representations},
  year      = {2022}
}""",
    ),
    "zeroi2v": Method(
        "ZeroI2V",
        "an image Transformer that takes videos: some of its heads attend to other frames, and linear adapters, which "
        "fold into its own weights after training, are all that is trained.",
        "2310.01324",
        """@inproceedings{li2024zeroi2v,
  title     = {{ZeroI2V}: Zero-Cost Adaptation of Pre-trained Transformers from Image to Video},
  author    = {Li, Xinhao and Zhu, Yuhan and Wang, Limin},
  booktitle = {European Conference on Computer Vision},
  year      = {2024}
}""",
    ),
}
METHODS["repavit_clip"] = METHODS["repavit"]
PIPELINE_TAGS = {
    "AutoBackbone": "image-feature-extraction",
    "AutoModel": "image-feature-extraction",
    "AutoModelForAudioClassification": "audio-classification",
    "AutoModelForCausalLM": "text-generation",
    "AutoModelForImageClassification": "image-classification",
    "AutoModelForMaskedImageModeling": "image-feature-extraction",
    "AutoModelForSemanticSegmentation": "image-segmentation",
    "AutoModelForSequenceClassification": "text-classification",
    "AutoModelForTimeSeriesPrediction": "time-series-forecasting",
    "AutoModelForVideoClassification": "video-classification",
    "AutoModelForZeroShotImageClassification": "zero-shot-image-classification",
}


def make_card(
    model: PreTrainedModel,
    repo_id: str,
    source: FusibleModel | None = None,
    card_data: dict[str, Any] | None = None,
    measure: bool = True,
) -> ModelCard:
    """
    The model card of a repository.

    Args:
        model: what the repository holds: one with two forms in either of them, or the plain one that one was fused to.
        repo_id: its full name.
        source: what a fused model was made from; needed for a plain one.
        card_data: more metadata, such as `license`, `datasets`, `metrics` and `base_model`.
        measure: also measure how much the outputs of source and model differ.

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
    parent = origin if origin and origin != repo_id and not Path(origin).exists() else None
    difference = max_difference(source, model) if measure and model is not source else (None, None)
    auto_class = auto_class_of(type(source))
    sees = "image" in (source.input_modalities or []) or auto_class not in ("AutoModel", "AutoBackbone")
    metadata: dict[str, Any] = {
        "library_name": "transformers",
        "pipeline_tag": PIPELINE_TAGS[auto_class] if sees else "feature-extraction",
        "base_model": parent,
        **(card_data or {}),
    }
    tags = [*metadata.pop("tags", source.model_tags or []), "fused" if fused else "training-form"]
    tags += [] if is_plain else ["custom_code"]
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
    )


def write_card(
    folder: Path,
    model: PreTrainedModel,
    repo_id: str,
    source: FusibleModel | None = None,
    card_data: dict[str, Any] | None = None,
    measure: bool = True,
) -> None:
    """Writes the card of `make_card` into a saved model's folder."""
    make_card(model, repo_id, source, card_data, measure).save(folder / CARD_NAME)


def readdress(card: str, repo_id: str) -> str:
    """A card's text with the repository's name in its examples and its title, which a folder's name was before."""
    card = re.sub(r'(?<=from_pretrained\(")[^"]+(?=")', repo_id, card)
    return re.sub(r"(?m)^# .*$", f"# {repo_id.split('/')[-1]}", card, count=1)
