"""Configuration of ZeroI2V (https://huggingface.co/papers/2310.01324)."""

from typing import Any, ClassVar, Literal, cast

from huggingface_hub.dataclasses import strict
from transformers import AutoConfig, PreTrainedConfig
from transformers.configuration_utils import SubConfigSpec

from ...core.backbone_configuration import BackboneFusibleConfig
from ...core.backbones import backbone_spec


Offsets = list[int | list[int]]


def usual_offsets(num_frames: int, num_heads: int) -> Offsets:
    """
    Temporal offsets by number of frames, as in the authors' configurations and best ablations (paper, table 1).

    Neighbors at a distance of 1 always, of 2 from 16 frames on, and of 3 in the past from 32 frames on. One head each
    for fewer than 16 heads; from there on every eighth head for a distance of 1 and every sixteenth for the others. At
    most half of the heads are temporal, and with less than 4 heads only neighbors matter, which share a head if there
    are less than 3.
    """
    if num_frames == 1:
        return []
    if num_heads < 3:
        return [[-1, 1]]
    # 12 heads: 1 and 1; 16 heads: 2 and 1
    near, far = max(1, num_heads // 8), max(1, num_heads // 16)
    offsets = [-1] * near + [1] * near
    if num_frames >= 16:
        offsets += [-2] * far + [2] * far
    if num_frames >= 32:
        offsets += [-3] * far
    return cast(Offsets, offsets if 2 * len(offsets) <= num_heads else offsets[:2])


@strict
class ZeroI2VConfig(BackboneFusibleConfig):
    r"""
    An image backbone that takes videos: some of its heads attend to other frames, and linear adapters train it.

    Args:
        backbone_config (`PreTrainedConfig` or `dict`, *optional*):
            Configuration of the image backbone; a `dict` needs `model_type`. Defaults to `CLIPVisionConfig()`.
        num_frames (`int`, *optional*, defaults to 8): frames of a clip.
        temporal_offsets (`list` or `"auto"`, *optional*, defaults to `"auto"`):
            For each head, from the first on, the offset of the frame whose keys and values it attends to: -1 is the
            frame before, 1 the next one, 0 its own; heads after the end of the list attend to their own frame too.
            The same in all blocks. A list in place of an offset divides the channels of that head evenly between
            several offsets: `[[-1, 1]]` are the "half heads" of the paper. A frame whose source would be outside the
            clip attends to itself. `"auto"` becomes `usual_offsets(...)`, for 8 frames and 12 heads `[-1, 1]`.
        num_adapters (4, 3 or 2, *optional*, defaults to 4):
            Linear adapters of each block: before queries, keys and values and before the FFN (2), after the
            attention's output projection (3), after the FFN (4).
        adapter_ratio (`float`, *optional*, defaults to 0.25): rank of the adapters, relative to the width.
        adapter_scale (`float`, *optional*, defaults to 0.5):
            Factor of the adapters' branch. The authors' checkpoints do not show it: 0.5 on Kinetics-400, UCF101 and
            HMDB51, 1 on Something-Something v2.
        adapter_dropout (`float`, *optional*, defaults to 0.1): between the two linears of an adapter.
        classifier_dropout (`float`, *optional*, defaults to 0.5): before the classifier.
        freeze_backbone (`bool`, *optional*, defaults to `True`):
            Train only adapters, temporal embedding, last norm and classifier. It holds after loading, and for the
            inference form, whose folded weights are frozen.
        view_average (`"probabilities"` or `"logits"`, *optional*, defaults to `"probabilities"`):
            What is averaged if several views of a video are given. The authors average probabilities; it needs
            classes that exclude each other, and for other problem types logits are averaged.
        sampling (`"dense"` or `"uniform"`, *optional*, defaults to `"dense"`):
            How frames are chosen: every `frame_interval`-th one, or spread over the whole video.
        frame_interval (`int`, *optional*, defaults to 16): distance of the frames with `sampling="dense"`.
        num_clips (`int`, *optional*, defaults to 3): clips of a video in evaluation.
        num_crops (`int`, *optional*, defaults to 1): crops of a clip in evaluation; clips times crops are views.
    """

    model_type = "zeroi2v"
    inherits_labels: ClassVar[bool] = False  # of images
    sub_configs_defaults = {"backbone_config": SubConfigSpec(AutoConfig, model_type="clip_vision_model")}
    non_structural_fields: ClassVar[frozenset[str]] = frozenset(
        {
            "adapter_dropout",
            "classifier_dropout",
            "freeze_backbone",
            "view_average",
            "sampling",
            "frame_interval",
            "num_clips",
            "num_crops",
        }
    )

    num_frames: int = 8
    temporal_offsets: list[int | list[int]] | Literal["auto"] = "auto"
    num_adapters: Literal[4, 3, 2] = 4
    adapter_ratio: float | int = 0.25
    adapter_scale: float | int = 0.5
    adapter_dropout: float | int = 0.1
    classifier_dropout: float | int = 0.5
    freeze_backbone: bool = True
    view_average: Literal["probabilities", "logits"] = "probabilities"
    sampling: Literal["dense", "uniform"] = "dense"
    frame_interval: int = 16
    num_clips: int = 3
    num_crops: int = 1

    def __post_init__(self, **kwargs: Any) -> None:
        # before the base class builds it: the error for an unknown type names the supported ones
        if isinstance(self.backbone_config, dict):
            backbone_spec(self.backbone_config)
        for name in ("adapter_ratio", "adapter_scale"):  # 1 and 1.0 are one structure
            if isinstance(getattr(self, name), int):
                setattr(self, name, float(getattr(self, name)))
        super().__post_init__(**kwargs)
        dense = cast(PreTrainedConfig, self.backbone_config)
        # saved resolved, so that another rule changes no saved model; Swin's first stage has the fewest heads
        if self.temporal_offsets == "auto" and backbone_spec(dense).supports_frame_batches:
            self.temporal_offsets = usual_offsets(self.num_frames, min(backbone_spec(dense).attention_heads(dense)))

    @property
    def offsets(self) -> Offsets:
        """The temporal offsets, once "auto" is resolved."""
        return cast(Offsets, self.temporal_offsets)

    @property
    def num_views(self) -> int:
        """Views of a video in evaluation."""
        return self.num_clips * self.num_crops

    def validate_architecture(self) -> None:
        """Raises `ValueError` for a backbone that takes no videos and for options outside their range."""
        super().validate_architecture()
        dense = cast(PreTrainedConfig, self.backbone_config)
        spec = backbone_spec(dense)
        if not spec.supports_frame_batches:
            raise ValueError(
                f"{dense.model_type!r} has no attention within images of one size, so no heads for other frames."
            )
        spec.check_ffn(dense)
        for name in ("num_frames", "frame_interval", "num_clips", "num_crops"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least 1.")
        for name in ("adapter_dropout", "classifier_dropout"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be in [0, 1).")
        # one list and one ratio for all stages: they must fit the narrowest
        width = min(spec.stage_widths(dense))
        if int(self.adapter_ratio * width) < 1:
            raise ValueError(f"adapter_ratio is {self.adapter_ratio}; of {width} channels this leaves no rank.")
        heads = min(spec.attention_heads(dense))
        if self.temporal_offsets != "auto" and len(self.offsets) > heads:
            raise ValueError(f"temporal_offsets has {len(self.offsets)} entries for {heads} heads.")
        if self.temporal_offsets != "auto" and [] in self.offsets:
            raise ValueError("temporal_offsets has a head without offset; 0 is a head that stays with its frame.")


__all__ = ["ZeroI2VConfig", "usual_offsets"]
