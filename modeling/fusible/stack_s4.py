"""What all models of the S4 family have: embedding, residual layers with state spaces or FFNs, and their states."""

from typing import Any, cast

import torch
from torch import nn
from transformers import initialization as init
from transformers.activations import ACT2FN
from transformers.modeling_layers import GradientCheckpointingLayer

from .adaptive_s4 import AdaptiveEmbedding, AdaptiveSoftmax
from .batch_norm_repavit import RecomputeSafeBatchNorm1d
from .configuration_s4 import S4Config
from .kernel_model_s4 import S4KernelModel
from .layer_s4 import S4StateSpace
from .outputs_s4 import S4Cache, S4Output
from .recurrence_s4 import S4Recurrence


class ScalarNorm(nn.Module):
    """LayerNorm over channels with one scale and one shift, without epsilon: `scale * ((x - mean) + shift) / std`."""

    def __init__(self) -> None:
        super().__init__()
        self.scale, self.shift = nn.Parameter(torch.ones(1)), nn.Parameter(torch.zeros(1))

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        std, mean = torch.std_mean(hidden_states, dim=-1, correction=0, keepdim=True)
        return self.scale / std * (hidden_states - mean + self.shift)


class TokenBatchNorm(RecomputeSafeBatchNorm1d):
    """BatchNorm over all positions of all sequences, padding included."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return super().forward(input.flatten(0, -2)).view_as(input)


def make_norm(config: S4Config) -> nn.Module:
    """The norm that the configuration names, of `[batch, length, hidden_size]`."""
    if config.norm == "layer":
        return nn.LayerNorm(config.hidden_size, eps=config.norm_eps)
    if config.norm == "batch":
        return TokenBatchNorm(config.hidden_size, eps=config.norm_eps)
    return ScalarNorm() if config.norm == "scalar" else nn.Identity()


class SequenceDropout(nn.Module):
    """Dropout of single values, or of whole channels of a sequence, `[batch, length, channels]`."""

    def __init__(self, config: S4Config) -> None:
        super().__init__()
        self.rate, self.tied = config.hidden_dropout_prob, config.tie_dropout

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        if self.rate == 0 or not self.training:
            return hidden_states
        if not self.tied:
            return nn.functional.dropout(hidden_states, self.rate)
        keep = 1 - self.rate
        return hidden_states * torch.empty_like(hidden_states[:, :1]).bernoulli_(keep).div_(keep)

    def extra_repr(self) -> str:
        return f"rate={self.rate}, tied={self.tied}"


class S4Mixer(nn.Module):
    """State spaces over positions, an activation, and a linear layer with or without gate over channels."""

    def __init__(self, config: S4Config, dense_heads: int | None) -> None:
        super().__init__()
        self.ssm: nn.Module = S4StateSpace(config, dense_heads)
        self.ssm_dropout = nn.Dropout(config.hidden_dropout_prob)
        self.activation = ACT2FN[config.hidden_act]
        self.dropout = SequenceDropout(config)
        width, self.output = config.channels * config.hidden_size, config.mixer_output
        if self.output != "none":
            self.out_proj = nn.Linear(width, config.hidden_size * (2 if self.output == "glu" else 1))

    def forward(
        self, hidden_states: torch.Tensor, state: torch.Tensor | None, return_state: bool
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        hidden_states, state = self.ssm(hidden_states, state, return_state)
        hidden_states = self.dropout(self.activation(self.ssm_dropout(hidden_states)))
        if self.output != "none":
            hidden_states = self.out_proj(hidden_states)
        return (nn.functional.glu(hidden_states) if self.output == "glu" else hidden_states), state


class S4FeedForward(nn.Module):
    """Two linear layers per position."""

    def __init__(self, config: S4Config) -> None:
        super().__init__()
        self.fc1 = nn.Linear(config.hidden_size, cast(int, config.intermediate_size))
        self.activation = ACT2FN[config.hidden_act]
        self.dropout = SequenceDropout(config)
        self.fc2 = nn.Linear(cast(int, config.intermediate_size), config.hidden_size)

    def forward(self, hidden_states: torch.Tensor, *_: Any) -> tuple[torch.Tensor, None]:
        return self.fc2(self.dropout(self.activation(self.fc1(hidden_states)))), None


class S4Layer(GradientCheckpointingLayer):
    """A layer: `x + f(norm(x))`, or `norm(x + f(x))`, or both without `x +`, where f gets zeros for padding."""

    def __init__(self, config: S4Config, kind: str, dense_heads: int | None) -> None:
        super().__init__()
        self.prenorm, self.residual = config.prenorm, config.residual
        self.norm = make_norm(config)
        self.mixer: nn.Module = S4Mixer(config, dense_heads) if kind == "s4" else S4FeedForward(config)
        self.dropout = SequenceDropout(config)

    def forward(
        self,
        hidden_states: torch.Tensor,
        mask: torch.Tensor | None = None,
        state: torch.Tensor | None = None,
        return_state: bool = False,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """
        Args:
            hidden_states: `[batch, length, hidden_size]`.
            mask: `[batch, length, 1]`, zero where state spaces must see zeros.
            state: of the state spaces before the first position.
            return_state: whether that after the last one is wanted.
        """
        branch = self.norm(hidden_states) if self.prenorm else hidden_states
        if mask is not None:
            branch = branch * mask
        branch, state = self.mixer(branch, state, return_state)
        branch = self.dropout(branch)
        hidden_states = hidden_states + branch if self.residual else branch
        return (hidden_states if self.prenorm else self.norm(hidden_states)), state


class S4PreTrainedModel(S4KernelModel):
    """Embedding, layers and final norm, which all models of the family have under the same names."""

    config: S4Config
    config_class: type[S4Config]
    base_model_prefix = ""
    main_input_name = "input_ids"
    supports_gradient_checkpointing = True
    model_tags = ["fusible", "s4"]
    _no_split_modules = ["S4Layer"]
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
        kinds, dense_heads = config.layer_kinds, list(config.dense_heads or [])
        self.layers = nn.ModuleList(
            S4Layer(config, kind, dense_heads.pop(0) if kind == "s4" and dense_heads else None) for kind in kinds
        )
        self.final_norm = make_norm(config) if config.prenorm else nn.Identity()

    def _note_structure(self) -> None:
        found = [module.num_dense_heads for module in self.modules() if isinstance(module, S4Recurrence)]
        self.config.__dict__["dense_heads"] = found

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, nn.Linear | S4StateSpace | AdaptiveEmbedding | AdaptiveSoftmax):
            module.reset_parameters()
        elif isinstance(module, nn.Embedding):
            init.normal_(module.weight, std=self.config.hidden_size**-0.5)
        elif isinstance(module, ScalarNorm):
            init.ones_(module.scale)
            init.zeros_(module.shift)
        else:
            super()._init_weights(module)

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

    def encode(
        self,
        input_ids: torch.Tensor | None = None,
        input_values: torch.Tensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        cache_params: S4Cache | None = None,
        use_cache: bool = False,
        output_hidden_states: bool | None = None,
        **_: Any,
    ) -> S4Output:
        """The stack's outputs; for the arguments see `S4Model`."""
        if sum(x is not None for x in (input_ids, input_values, inputs_embeds)) != 1:
            raise ValueError("Give exactly one of input_ids, input_values and inputs_embeds.")
        if (input_ids is not None and self.config.vocab_size is None) or (
            input_values is not None and self.config.vocab_size is not None
        ):
            raise ValueError("A model with config.vocab_size takes input_ids, one without takes input_values.")
        if inputs_embeds is not None:
            hidden_states = inputs_embeds
        else:
            hidden_states = self.embeddings(input_ids if input_values is None else input_values.to(self.dtype))
        mask = None
        if attention_mask is not None:
            # with a cache, that of the whole sequence may be given
            mask = attention_mask[:, -hidden_states.shape[1] :, None].to(hidden_states.dtype)
        if use_cache and cache_params is None:
            cache_params = S4Cache()
        keep = self.config.output_hidden_states if output_hidden_states is None else output_hidden_states
        kept = []
        for number, layer in enumerate(self.layers):
            kept.append(hidden_states if keep else None)
            if cache_params is None:
                hidden_states, _state = layer(hidden_states, mask)
            else:
                hidden_states, state = layer(hidden_states, mask, cache_params.states.get(number), True)
                if state is not None:
                    cache_params.states[number] = state
        if cache_params is not None:
            cache_params.length += hidden_states.shape[1]
        hidden_states = self.final_norm(hidden_states)
        all_states = (*cast(list[torch.Tensor], kept), hidden_states) if keep else None
        return S4Output(last_hidden_state=hidden_states, cache_params=cache_params, hidden_states=all_states)


__all__ = ["S4Layer", "S4PreTrainedModel", "ScalarNorm", "make_norm"]
