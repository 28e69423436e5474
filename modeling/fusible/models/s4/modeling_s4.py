"""S4: sequence models of state space layers (https://huggingface.co/papers/2111.00396)."""

from typing import Any, cast

import torch
from torch import nn
from transformers import Cache, GenerationMixin, StoppingCriteriaList
from transformers.processing_utils import Unpack
from transformers.utils import TransformersKwargs
from transformers.utils.generic import can_return_tuple

from .adaptive_softmax import AdaptiveEmbedding, AdaptiveSoftmax
from .backbone import SEQUENCE_ARGUMENTS, S4PreTrainedModel, check_shape
from .classifier import S4PreTrainedClassifier
from .configuration_s4 import S4Config
from .generation import RecordingCriteria
from .outputs import S4CausalLMOutput, S4ClassifierOutput, S4Output, S4TimeSeriesOutput


class S4Model(S4PreTrainedModel):
    """The stack without a head."""

    _common_arguments = S4PreTrainedModel._common_arguments | SEQUENCE_ARGUMENTS

    def __init__(self, config: S4Config) -> None:
        super().__init__(config)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
        input_values: torch.Tensor | None = None,
        cache: Cache | None = None,
        use_cache: bool = False,
        **kwargs: Unpack[TransformersKwargs],
    ) -> S4Output:
        """
        Args:
            input_ids: `[batch, length]` (int64), for models with `config.vocab_size`.
            attention_mask: `[batch, length]`, 0 for padding, which may be anywhere: states stand still there. With
                `cache` also that of all positions so far.
            inputs_embeds: `[batch, length, hidden_size]`, instead of what would be embedded.
            input_values: `[batch, length, config.input_size]`, for models without.
            cache: states after the positions before, which are replaced: what a call returned, or transformers'
                `DynamicCache(config=model.config)`.
            use_cache: also return the states after the last position.
            **kwargs: `output_hidden_states`; and, where a row has several documents, what packing collators give:
                `seq_idx` `[batch, length]`, `position_ids` `[batch, length]` that restart, or `cu_seq_lens_q`
                `[documents + 1]` for one row. State spaces start anew with each document.

        Raises:
            ValueError: for arguments that are unknown or do not go together, or have wrong shapes.
        """
        self._check_arguments(kwargs)
        return self._forward_backbone(
            input_ids, input_values, inputs_embeds, attention_mask, cache, use_cache, **cast(Any, kwargs)
        )


class S4ForCausalLM(S4PreTrainedModel, GenerationMixin):
    """S4 that predicts the next token; `generate()` costs the same for every token in the inference form."""

    accepts_loss_kwargs = True
    _common_arguments = S4PreTrainedModel._common_arguments | SEQUENCE_ARGUMENTS
    _tied_weights_keys: dict[str, str] = {"lm_head.weight": "embeddings.weight"}

    def __init__(self, config: S4Config) -> None:
        super().__init__(config)
        if config.vocab_size is None or config.bidirectional:
            raise ValueError("S4ForCausalLM needs config.vocab_size, and cannot be bidirectional.")
        if isinstance(self.embeddings, AdaptiveEmbedding):
            self.lm_head: nn.Module = AdaptiveSoftmax(config, self.embeddings.sizes)
        else:
            self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    @classmethod
    def _supports_default_dynamic_cache(cls) -> bool:
        return False  # states have no length, which a cache under the name `past_key_values` is asked for

    def generate(self, *args: Any, cache_params: Cache | None = None, **kwargs: Any) -> Any:
        """As for all models. `cache` (or `cache_params`, its older name) has states to go on from."""
        if cache_params is not None:
            kwargs["cache"] = cache_params
        return cast(Any, super()).generate(*args, **kwargs)

    def _sample(self, *args: Any, stopping_criteria: StoppingCriteriaList, **kwargs: Any) -> Any:  # type: ignore[override]
        # prepare_inputs_for_generation() is not told which rows are complete
        criteria = RecordingCriteria(stopping_criteria)
        return cast(Any, super())._sample(*args, stopping_criteria=criteria, criteria=criteria, **kwargs)

    def prepare_inputs_for_generation(  # type: ignore[override, unused-ignore]  # positions differ between versions
        self,
        input_ids: torch.LongTensor,
        is_first_iteration: bool | None = False,
        attention_mask: torch.Tensor | None = None,
        criteria: RecordingCriteria | None = None,
        **kwargs: Any,
    ) -> dict[str, Any]:
        """As for all models. With `cache`, `input_ids` are those that the states have not seen yet."""
        cache, use_cache = kwargs.get("cache"), kwargs.get("use_cache")
        if is_first_iteration and cache is not None:
            if not use_cache:
                raise ValueError("cache goes with use_cache=True only.")
            cache._is_user_defined = True  # otherwise generate() may run one token ahead
        takes_last = use_cache and not is_first_iteration
        added = None if criteria is None else criteria.mask_of_added(1 if takes_last else None)
        if takes_last:
            # the padding in front is in the states already
            attention_mask = None if added is None or bool(added.all()) else added
        elif added is not None:
            attention_mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
            attention_mask = torch.cat([attention_mask[:, : -added.shape[1]], added.to(attention_mask)], dim=1)
        return cast(Any, super()).prepare_inputs_for_generation(
            input_ids, is_first_iteration=is_first_iteration, attention_mask=attention_mask, **kwargs
        )

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        cache: Cache | None = None,
        use_cache: bool = False,
        logits_to_keep: int | torch.Tensor = 0,
        **kwargs: Unpack[TransformersKwargs],
    ) -> S4CausalLMOutput:
        """
        Args:
            input_ids: `[batch, length]` (int64).
            attention_mask: `[batch, length]`, 0 for padding, which may be anywhere: states stand still there. With
                `cache` also that of all positions so far.
            inputs_embeds: `[batch, length, hidden_size]`, instead of what would be embedded.
            labels: `[batch, length]`, the same tokens, which are shifted here; -100 for those that do not count.
            cache: states after the positions before, which are replaced: what a call returned, or transformers'
                `DynamicCache(config=model.config)`.
            use_cache: also return the states after the last position.
            logits_to_keep: for how many positions at the end, or for which ones, logits are wanted; 0 for all.
            **kwargs: `output_hidden_states`; and, where a row has several documents, what packing collators give:
                `seq_idx` `[batch, length]`, `position_ids` `[batch, length]` that restart, or `cu_seq_lens_q`
                `[documents + 1]` for one row. State spaces start anew with each document.

        Raises:
            ValueError: for arguments that are unknown or do not go together, or have wrong shapes.
        """
        self._check_arguments(kwargs)
        outputs = self._forward_backbone(
            input_ids, None, inputs_embeds, attention_mask, cache, use_cache, **cast(Any, kwargs)
        )
        # all positions for 0, as -0 is the start
        kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        hidden_states = cast(torch.Tensor, outputs.last_hidden_state)[:, kept]
        if isinstance(self.lm_head, AdaptiveSoftmax):
            embedding = cast(AdaptiveEmbedding, self.embeddings)
            # as arguments: they belong to the embedding, which may be on another device
            logits = self.lm_head(hidden_states, embedding.tables, embedding.projections)
        else:
            logits = self.lm_head(hidden_states)
        loss = None
        if labels is not None:
            loss = self.loss_function(logits, labels, vocab_size=self.config.vocab_size, **kwargs)
        return S4CausalLMOutput(loss=loss, logits=logits, cache=outputs.cache, hidden_states=outputs.hidden_states)


class S4ForSequenceClassification(S4PreTrainedClassifier):
    """
    S4 with a classifier, of tokens or of sequences of numbers.

    With `config.document_pairs` it classifies pairs: inputs and mask then are `[batch, 2, length, ...]`.
    """

    @property
    def dummy_inputs(self) -> dict[str, torch.Tensor]:
        """Two random sequences, or pairs of them, always the same ones."""
        inputs = super().dummy_inputs
        if self.config.document_pairs:
            inputs = {name: torch.stack([x, x.flip(0)], dim=1) for name, x in inputs.items()}
        return inputs

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
        input_values: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> S4ClassifierOutput:
        """
        Args:
            input_ids: `[batch, length]` (int64), for models with `config.vocab_size`.
            attention_mask: `[batch, length]`, 0 for padding.
            inputs_embeds: `[batch, length, hidden_size]`, instead of what would be embedded.
            input_values: `[batch, length, config.input_size]`, for models without.
            labels: `[batch]` class ids (int64), or targets in the form that `config.problem_type` names.
        """
        inputs = {"input_ids": input_ids, "input_values": input_values, "inputs_embeds": inputs_embeds}
        return self.classify(labels, attention_mask, **inputs, **kwargs)


class S4ForImageClassification(S4PreTrainedClassifier):
    """S4 with a classifier of images, whose pixels it reads row by row; `config.input_size` is their channels."""

    main_input_name = "pixel_values"

    @property
    def dummy_inputs(self) -> dict[str, torch.Tensor]:
        """Two random images, always the same ones."""
        generator = torch.Generator().manual_seed(0)
        return {"pixel_values": torch.randn(2, self.config.input_size, 8, 8, generator=generator, device="cpu")}

    @can_return_tuple
    def forward(
        self,
        pixel_values: torch.Tensor,
        labels: torch.Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> S4ClassifierOutput:
        """
        Args:
            pixel_values: `[batch, channels, height, width]`.
            labels: `[batch]` class ids (int64), or targets in the form that `config.problem_type` names.
        """
        sizes = {"batch": None, "config.input_size": self.config.input_size, "height": None, "width": None}
        check_shape("pixel_values", pixel_values, sizes)
        # [batch, height * width, channels]
        return self.classify(labels, input_values=pixel_values.flatten(2).mT, **kwargs)


class S4ForAudioClassification(S4PreTrainedClassifier):
    """S4 with a classifier of raw waveforms."""

    main_input_name = "input_values"

    @can_return_tuple
    def forward(
        self,
        input_values: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> S4ClassifierOutput:
        """
        Args:
            input_values: `[batch, samples]`, or `[batch, frames, config.input_size]`.
            attention_mask: `[batch, length]`, 0 for padding.
            labels: `[batch]` class ids (int64), or targets in the form that `config.problem_type` names.
        """
        values = input_values[..., None] if input_values.ndim == 2 else input_values
        return self.classify(labels, attention_mask, input_values=values, **kwargs)


class S4ForTimeSeriesPrediction(S4PreTrainedModel):
    """
    S4 that forecasts: the future is read as zeros that are marked as such, and predicted where it is read.

    As in the authors' forecasting experiments, which are those of Informer (https://huggingface.co/papers/2012.07436).
    """

    main_input_name = "past_values"
    label_names = ("future_values",)

    def __init__(self, config: S4Config) -> None:
        super().__init__(config)
        if config.vocab_size is not None:
            raise ValueError("S4ForTimeSeriesPrediction takes numbers; leave out config.vocab_size.")
        self.future_embedding = nn.Embedding(2, config.hidden_size)
        self.time_embeddings = nn.ModuleList(nn.Embedding(size, config.hidden_size) for size in config.time_features)
        self.head = nn.Linear(config.hidden_size, config.input_size)
        self.post_init()

    @property
    def dummy_inputs(self) -> dict[str, torch.Tensor]:
        """Two random series, always the same ones."""
        values = super().dummy_inputs["input_values"]
        shape = (2, values.shape[1] + self.config.prediction_length)
        times = [torch.zeros(shape, dtype=torch.int64, device="cpu")] * len(self.config.time_features)
        return {"past_values": values, **({"time_features": torch.stack(times, dim=-1)} if times else {})}

    @can_return_tuple
    def forward(
        self,
        past_values: torch.Tensor,
        time_features: torch.Tensor | None = None,
        future_values: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> S4TimeSeriesOutput:
        """
        Args:
            past_values: `[batch, length, config.input_size]`.
            attention_mask: `[batch, length + config.prediction_length]`, 0 for padding; the future is none.
            time_features: `[batch, length + config.prediction_length, features]` (int64), such as hour and weekday,
                each below its number in `config.time_features`.
            future_values: `[batch, config.prediction_length, config.input_size]`, to learn from.
        """
        self._check_arguments(kwargs)
        future, width = self.config.prediction_length, {"config.input_size": self.config.input_size}
        check_shape("past_values", past_values, {"batch": None, "length": None, **width})
        if future_values is not None:
            steps = {"batch": len(past_values), "config.prediction_length": future}
            check_shape("future_values", future_values, {**steps, **width})
        length, total = past_values.shape[1], past_values.shape[1] + future
        padded = nn.functional.pad(past_values, (0, 0, 0, future))
        # tells zeros that are to be predicted from zeros in the data
        is_future = torch.arange(total, device=past_values.device).ge(length).long()
        embedded = self.embeddings(padded.to(self.dtype)) + self.future_embedding(is_future)
        if (time_features is None) != (len(self.time_embeddings) == 0):
            raise ValueError("Give time_features exactly if config.time_features names some.")
        if time_features is not None:
            counts = {"batch": len(past_values), "length + config.prediction_length": total}
            check_shape("time_features", time_features, {**counts, "features": len(self.time_embeddings)})
            for embedding, feature in zip(self.time_embeddings, time_features.unbind(-1), strict=True):
                embedded = embedded + embedding(feature)
        outputs = self._forward_backbone(inputs_embeds=embedded, attention_mask=attention_mask, **cast(Any, kwargs))
        predictions = self.head(cast(torch.Tensor, outputs.last_hidden_state)[:, length:])
        loss = None if future_values is None else nn.functional.mse_loss(predictions, future_values)
        return S4TimeSeriesOutput(loss=loss, predictions=predictions, hidden_states=outputs.hidden_states)


__all__ = [
    "S4ForAudioClassification",
    "S4ForCausalLM",
    "S4ForImageClassification",
    "S4ForSequenceClassification",
    "S4ForTimeSeriesPrediction",
    "S4Model",
]
