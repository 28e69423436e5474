"""Base class of all S4 models: embedding, residual layers with state spaces or FFNs, and their states."""

import copy
from typing import Any, cast

import torch
from torch import nn
from transformers import Cache, DynamicCache, initialization as init
from transformers.cache_utils import LinearAttentionLayer

from .adaptive_softmax import AdaptiveEmbedding, AdaptiveSoftmax
from .configuration_s4 import S4Config
from .kernel_mixin import S4KernelModel
from .layers import S4FeedForward, S4Layer, ScalarNorm, make_norm
from .outputs import S4Output
from .pooling import S4DownPool, S4UpPool, check_padding, make_layers, skip_connections
from .recurrence import S4Recurrence
from .state_space import S4StateSpace


def check_shape(name: str, tensor: torch.Tensor, accepted: dict[str, int | None]) -> None:
    """Raises `ValueError` unless a tensor has these dimensions, of these sizes or, for `None`, of any size."""
    sizes = [size if wanted is None else wanted for size, wanted in zip(tensor.shape, accepted.values(), strict=False)]
    if tensor.ndim != len(accepted) or list(tensor.shape) != sizes:
        wanted = ", ".join(key if size is None else f"{key} = {size}" for key, size in accepted.items())
        raise ValueError(f"{name} has the shape {list(tensor.shape)}; this model takes [{wanted}].")


class S4PreTrainedModel(S4KernelModel):
    """Embedding, layers and final norm, which all models of the family have under the same names."""

    config: S4Config
    config_class: type[S4Config]
    base_model_prefix = ""
    main_input_name = "input_ids"
    supports_gradient_checkpointing = True
    model_tags = ["fusible", "s4"]
    _no_split_modules = ["S4Layer"]
    # half precision has too few digits for step sizes and for transitions close to the identity
    _keep_in_fp32_modules_strict = {"ssm"}
    _can_compile_fullgraph = True
    _is_stateful = True
    _input_embed_layer = "embeddings"

    def __init__(self, config: S4Config) -> None:
        super().__init__(config)
        config.validate_architecture()
        if config.vocab_size is None:
            self.embeddings: nn.Module = nn.Linear(config.input_size, config.hidden_size)
        elif config.cutoffs is not None:
            self.embeddings = AdaptiveEmbedding(config)
        else:
            self.embeddings = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = make_layers(config)
        self.skips = skip_connections(config)
        # modules whose input is kept until it is added further on
        self.sources = frozenset(self.skips.values())
        feed_forward = [isinstance(layer, S4Layer) and isinstance(layer.mixer, S4FeedForward) for layer in self.layers]
        # numbers of the modules with a state, pools included, in the order of a cache's layers
        self.stateful = [number for number, is_ffn in enumerate(feed_forward) if not is_ffn]
        self.final_norm = make_norm(config) if config.prenorm else nn.Identity()

    def _record_structure(self) -> None:
        # the shapes of fused weights depend on it, and a saved model is built before they are read
        found = [module.num_dense_heads for module in self.modules() if isinstance(module, S4Recurrence)]
        if found != list(self.config.dense_heads or ()):
            # a copy: the next model of the same options may need other numbers
            self.config = copy.copy(self.config)
            self.config.dense_heads = found

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        # linear layers as torch draws them, as in the authors' code; transformers' own are normal
        if isinstance(module, nn.Linear | S4StateSpace | AdaptiveEmbedding | AdaptiveSoftmax):
            module.reset_parameters()
        elif isinstance(module, nn.Embedding):
            init.normal_(module.weight, std=self.config.hidden_size**-0.5)
        elif isinstance(module, ScalarNorm):
            init.ones_(module.scale)
            init.zeros_(module.shift)
        else:
            super()._init_weights(module)

    def resize_token_embeddings(self, *args: Any, **kwargs: Any) -> nn.Embedding:
        """As for all models; raises `ValueError` for an adaptive embedding."""
        if self.config.cutoffs is not None:
            raise ValueError("The embedding has the clusters of config.cutoffs, which cannot be resized.")
        return super().resize_token_embeddings(*args, **kwargs)

    def _shared_parts(self) -> list[nn.Module]:
        return [self.embeddings, self.layers, self.final_norm]

    @property
    def dummy_inputs(self) -> dict[str, torch.Tensor]:
        """Two random sequences, always the same ones."""
        generator = torch.Generator().manual_seed(0)
        length = min(self.config.l_max or 64, 64)
        if self.config.vocab_size is None:
            shape = (2, length, self.config.input_size)
            return {"input_values": torch.randn(shape, generator=generator, device="cpu")}
        ids = torch.randint(self.config.vocab_size, (2, length), generator=generator, device="cpu")
        return {"input_ids": ids}

    def _slots(self, cache: Cache, batch_size: int) -> dict[int, Any]:
        """A cache's layers for those with a state; raises `ValueError` if it is not for this form and batch."""
        layers, count = getattr(cache, "layers", []), len(self.stateful)
        slots = dict(zip(self.stateful, layers, strict=False))
        if len(layers) != count or not all(isinstance(slot, LinearAttentionLayer) for slot in slots.values()):
            kinds = ", ".join(sorted({type(layer).__name__ for layer in layers}))
            raise ValueError(
                f"cache is a {type(cache).__name__} of {len(layers)} layers ({kinds}). This model needs "
                f"{count}, a LinearAttentionLayer for each state: give what the model returned, or "
                "transformers.DynamicCache(config=model.config)."
            )
        state = next((slot.recurrent_states[0] for slot in slots.values() if slot.has_previous_state[0]), None)
        if state is not None and state.shape[0] != batch_size:
            raise ValueError(
                f"cache has states of {state.shape[0]} sequences, and the inputs are {batch_size}. "
                "cache.reorder_cache(indices) takes other ones, or some repeatedly."
            )
        if state is not None and getattr(cache, "is_fused", self.config.fused) != self.config.fused:
            raise ValueError("cache has the states of the model's other form, which are in another basis.")
        # transformers' caches do not know the basis of their states
        cast(Any, cache).is_fused = self.config.fused
        return slots

    @staticmethod
    def detach_states(cache: Cache) -> None:
        """Cuts states off from the graph that made them, for truncated backpropagation through time."""
        for slot in cache.layers:
            if isinstance(slot, LinearAttentionLayer) and slot.has_previous_state[0]:
                # a copy, as the graph may need the numbers that tokens are written over
                slot.recurrent_states[0] = cast(torch.Tensor, slot.recurrent_states[0]).detach().clone()

    def _forward_backbone(
        self,
        input_ids: torch.Tensor | None = None,
        input_values: torch.Tensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        cache: Cache | None = None,
        use_cache: bool = False,
        output_hidden_states: bool | None = None,
        cache_params: Cache | None = None,
        past_key_values: Any = None,
        **_: Any,
    ) -> S4Output:
        """The stack's outputs; for the arguments see `S4Model`. Raises `ValueError` for those that do not fit."""
        if past_key_values is not None:
            raise ValueError("States go in as cache, also those that generate() returns as past_key_values.")
        if cache_params is not None:
            if cache is not None and cache is not cache_params:
                raise ValueError("cache and cache_params are two names of one argument; give cache alone.")
            cache = cache_params
        if sum(x is not None for x in (input_ids, input_values, inputs_embeds)) != 1:
            raise ValueError("Give exactly one of input_ids, input_values and inputs_embeds.")
        if (input_ids is not None and self.config.vocab_size is None) or (
            input_values is not None and self.config.vocab_size is not None
        ):
            raise ValueError("A model with config.vocab_size takes input_ids, one without takes input_values.")
        sizes: dict[str, int | None] = {"batch": None, "length": None}
        if inputs_embeds is not None:
            check_shape("inputs_embeds", inputs_embeds, {**sizes, "config.hidden_size": self.config.hidden_size})
            hidden_states = inputs_embeds
        elif input_values is not None:
            check_shape("input_values", input_values, {**sizes, "config.input_size": self.config.input_size})
            hidden_states = self.embeddings(input_values.to(self.dtype))
        else:
            check_shape("input_ids", cast(torch.Tensor, input_ids), sizes)
            hidden_states = self.embeddings(input_ids)
        mask = None
        if attention_mask is not None:
            batch_size, length = hidden_states.shape[:2]
            if cache is not None:  # that of the whole sequence may be given
                length = max(length, attention_mask.shape[-1])
            check_shape("attention_mask", attention_mask, {"batch": batch_size, "length": length})
            if self.config.pool_sizes:
                check_padding(attention_mask)  # what comes behind is not seen by what is in front
            else:
                # [batch, length, 1], of the positions that are new
                mask = attention_mask[:, -hidden_states.shape[1] :, None].to(hidden_states.dtype)
        if use_cache and cache is None:
            cache = DynamicCache(config=self.config)
        slots = {} if cache is None else self._slots(cache, hidden_states.shape[0])
        # not where a layer runs again for its gradient: what it was given must be as it was
        with_state, overwrite = cache is not None, not torch.is_grad_enabled()
        keep = self.config.output_hidden_states if output_hidden_states is None else output_hidden_states
        kept, inputs = [], {}
        for number, layer in enumerate(self.layers):
            kept.append(hidden_states if keep else None)
            if number in self.sources:
                inputs[number] = hidden_states
            skip = inputs.pop(self.skips[number]) if number in self.skips else None
            slot = slots.get(number)
            before = slot.recurrent_states[0] if slot is not None and slot.has_previous_state[0] else None
            if isinstance(layer, S4DownPool):
                hidden_states, state = layer(hidden_states, before)
            elif isinstance(layer, S4UpPool):
                # its skip is the input of the matching pool, which has the length of the finer stage
                hidden_states, state = layer(hidden_states, cast(torch.Tensor, skip).shape[1], before)
            else:
                hidden_states, state = layer(hidden_states, mask, before, with_state, overwrite)
            if skip is not None:
                hidden_states = hidden_states + skip.to(hidden_states.device)  # layers may be on several
            # the same tensor where it was written over, or where a pool gave out nothing
            if slot is not None and state is not before:
                # update_recurrent_state() copies in place; states of pools change shape, and a graph may need the old
                slot.recurrent_states[0] = state
                # which reorder_cache() and prefetch() read
                slot.dtype = state.dtype
                slot.device = state.device
                slot.is_recurrent_states_initialized[0] = slot.has_previous_state[0] = True
        hidden_states = self.final_norm(hidden_states)
        all_states = (*cast(list[torch.Tensor], kept), hidden_states) if keep else None
        return S4Output(last_hidden_state=hidden_states, cache=cache, hidden_states=all_states)


__all__ = ["S4PreTrainedModel", "check_shape"]
