"""Base class of all S4 models: embedding, residual layers with state spaces or FFNs, and their states."""

from typing import Any, cast

import torch
from torch import nn
from transformers import Cache, DynamicCache, initialization as init
from transformers.cache_utils import LinearAttentionLayer

from ...core.arguments import LOSS_ARGUMENTS
from .adaptive_softmax import AdaptiveEmbedding, AdaptiveSoftmax
from .configuration_s4 import S4Config
from .earlier_format import load_earlier_format
from .kernel_mixin import S4KernelModel
from .layers import S4FeedForward, S4Layer, ScalarNorm, make_norm
from .outputs import S4Output
from .pooling import S4DownPool, S4UpPool, make_layers, skip_connections
from .rows import Rows, check_mask, document_starts, one_document_each, without_padding
from .state_space import S4StateSpace
from .states import States, groups_of, join_rows, join_states, read_states, write_states


def check_shape(name: str, tensor: torch.Tensor, accepted: dict[str, int | None]) -> None:
    """Raises `ValueError` unless a tensor has these dimensions, of these sizes or, for `None`, of any size."""
    sizes = [size if wanted is None else wanted for size, wanted in zip(tensor.shape, accepted.values(), strict=False)]
    if tensor.ndim != len(accepted) or list(tensor.shape) != sizes:
        wanted = ", ".join(key if size is None else f"{key} = {size}" for key, size in accepted.items())
        raise ValueError(f"{name} has the shape {list(tensor.shape)}; this model takes [{wanted}].")


# of models that give an output for each position: states, and where the documents of packed rows start
SEQUENCE_ARGUMENTS = frozenset(
    {
        "cache_params",
        "cu_seq_lens_k",
        "cu_seq_lens_q",
        "max_length_k",
        "max_length_q",
        "past_key_values",
        "position_ids",
        "seq_idx",
    }
)


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
    # not all that transformers gives to models: what says something of positions would be lost
    _common_arguments = LOSS_ARGUMENTS | {"output_attentions", "output_hidden_states", "return_dict"}

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

    def _load_earlier_format(self, files: list[str]) -> dict[str, torch.Tensor] | None:
        return load_earlier_format(files, self.config.mode if self.config.fused else None)

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
        """A cache's layers for those with a state; raises `ValueError` if it is not for this model and batch."""
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
        return slots

    @staticmethod
    def detach_states(cache: Cache) -> None:
        """Cuts states off from the graph that made them, for truncated backpropagation through time."""
        for slot in cache.layers:
            if isinstance(slot, LinearAttentionLayer) and slot.has_previous_state[0]:
                # a copy: the graph may need the numbers that the next token's are written over
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
        output_attentions: bool | None = None,
        seq_idx: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        cu_seq_lens_q: torch.Tensor | None = None,
        cu_seq_lens_k: torch.Tensor | None = None,
        **_: Any,
    ) -> S4Output:
        """
        The stack's outputs; for the arguments see `S4Model`. Raises `ValueError` for those that do not fit.

        Others must have been checked: losses take them, or they say again what `cu_seq_lens_q` says.
        """
        if past_key_values is not None:
            raise ValueError("States go in as cache, also those that generate() returns as past_key_values.")
        if output_attentions:
            raise ValueError("S4 has no attention, so output_attentions cannot be True.")
        if cache_params is not None:
            if cache is not None and cache is not cache_params:
                raise ValueError("cache and cache_params are two names of one argument; give cache alone.")
            cache = cache_params
        hidden_states = self._embed(input_ids, input_values, inputs_embeds)
        shape = hidden_states.shape[:2]
        mask = None
        if attention_mask is not None:
            batch_size, length = shape
            if cache is not None:  # that of the whole sequence may be given
                length = max(length, attention_mask.shape[-1])
            check_shape("attention_mask", attention_mask, {"batch": batch_size, "length": length})
            # of the positions that are new
            mask = check_mask(attention_mask[:, length - shape[1] :]).to(hidden_states.device)
        starts = document_starts(shape, seq_idx, position_ids, cu_seq_lens_q, cu_seq_lens_k, mask)
        if use_cache and cache is None:
            cache = DynamicCache(config=self.config)
        slots = {} if cache is None else self._slots(cache, shape[0])
        rows = None
        if starts is not None:
            if cache is not None:
                raise ValueError("Rows of several documents have no states to go on with; leave out the cache.")
            rows = one_document_each(starts.to(hidden_states.device), mask)
        elif mask is not None:
            # pools count positions from the first one; states must not go through padding
            goes_on = any(slot.has_previous_state[0] for slot in slots.values())
            rows = without_padding(mask, at_end=not (goes_on or self.config.pool_sizes))
        if rows is not None:
            hidden_states = rows.take(hidden_states)
        keep = self.config.output_hidden_states if output_hidden_states is None else output_hidden_states
        kept = self._run(hidden_states, rows, slots, bool(keep))
        if rows is not None:
            # the coarser stages of pools have fewer positions, and stay as they are
            kept = [rows.put_back(part) if part.shape[1] == rows.source.shape[1] else part for part in kept]
        return S4Output(last_hidden_state=kept[-1], cache=cache, hidden_states=tuple(kept) if keep else None)

    def _embed(
        self, input_ids: torch.Tensor | None, input_values: torch.Tensor | None, inputs_embeds: torch.Tensor | None
    ) -> torch.Tensor:
        """`[batch, length, hidden_size]` of the one argument that is given."""
        if sum(x is not None for x in (input_ids, input_values, inputs_embeds)) != 1:
            raise ValueError("Give exactly one of input_ids, input_values and inputs_embeds.")
        if (input_ids is not None and self.config.vocab_size is None) or (
            input_values is not None and self.config.vocab_size is not None
        ):
            raise ValueError("A model with config.vocab_size takes input_ids, one without takes input_values.")
        sizes: dict[str, int | None] = {"batch": None, "length": None}
        if inputs_embeds is not None:
            check_shape("inputs_embeds", inputs_embeds, {**sizes, "config.hidden_size": self.config.hidden_size})
            return inputs_embeds
        if input_values is not None:
            check_shape("input_values", input_values, {**sizes, "config.input_size": self.config.input_size})
            return self.embeddings(input_values.to(self.dtype))
        check_shape("input_ids", cast(torch.Tensor, input_ids), sizes)
        return self.embeddings(input_ids)

    def _run(
        self, hidden_states: torch.Tensor, rows: Rows | None, slots: dict[int, Any], keep: bool
    ) -> list[torch.Tensor]:
        """The last hidden states, behind the inputs of all layers if these are wanted; replaces the slots' states."""
        length = hidden_states.shape[1]
        # a state that is zero stays so through padding in front
        padding = None if rows is None or rows.at_end else rows.mask
        groups = groups_of(slots, padding, length) if slots else []
        if not groups:
            # pools go with one direction only, which does not see what is behind
            mask = None if rows is None or self.config.pool_sizes else rows.mask[..., None].to(hidden_states.dtype)
            kept, states = self._run_layers(hidden_states, mask, read_states(slots), bool(slots), keep)
            write_states(slots, states, {})
            return kept
        if self.training and self.config.norm == "batch":
            raise ValueError("BatchNorm cannot be trained on padded rows that go on from states; leave padding out.")
        runs = []
        for group in groups:
            part = hidden_states.index_select(0, group.rows)[:, : group.length]
            runs.append(self._run_layers(part, None, read_states(slots, group), True, keep))
        write_states(slots, *join_states([states for _, states in runs], groups))
        return [join_rows(list(parts), groups, length) for parts in zip(*(kept for kept, _ in runs), strict=True)]

    def _run_layers(
        self, hidden_states: torch.Tensor, mask: torch.Tensor | None, states: States, with_state: bool, keep: bool
    ) -> tuple[list[torch.Tensor], States]:
        """The last hidden states, behind the inputs of all layers if these are wanted; and the next states."""
        kept, inputs, after = [], {}, {}
        # states are a cache's, which gets the new ones; checkpoints run layers without gradients and then again
        overwrite = not torch.is_grad_enabled()
        for number, layer in enumerate(self.layers):
            if keep:
                kept.append(hidden_states)
            if number in self.sources:
                inputs[number] = hidden_states
            skip = inputs.pop(self.skips[number]) if number in self.skips else None
            before = states.get(number)
            if isinstance(layer, S4DownPool):
                hidden_states, state = layer(hidden_states, before)
            elif isinstance(layer, S4UpPool):
                # its skip is the input of the matching pool, which has the length of the finer stage
                hidden_states, state = layer(hidden_states, cast(torch.Tensor, skip).shape[1], before)
            else:
                hidden_states, state = layer(hidden_states, mask, before, with_state, overwrite=overwrite)
            if number in states:
                after[number] = state
            if skip is not None:
                hidden_states = hidden_states + skip.to(hidden_states.device)  # layers may be on several
        return [*kept, self.final_norm(hidden_states)], after


__all__ = ["SEQUENCE_ARGUMENTS", "S4PreTrainedModel", "check_shape"]
