"""Configuration of S4 (https://huggingface.co/papers/2111.00396) and S4D (https://huggingface.co/papers/2206.11893)."""

import copy
import math
from collections.abc import Sequence
from typing import Any, ClassVar, Literal, cast

from huggingface_hub.dataclasses import strict
from transformers import PreTrainedConfig
from transformers.activations import ACT2FN

from ...core.configuration import FusibleConfig
from .hippo import DIAGONALS, MEASURES


Transform = Literal["exp", "softplus", "sigmoid", "relu", "none"]


@strict
class S4Config(FusibleConfig):
    r"""
    A stack of state space layers, which are convolutions in training and recurrences in the inference form.

    Options are in groups: sizes and stages (from `vocab_size` on), state spaces (from `state_size` on), layers around
    them (from `hidden_act` on), heads (from `pooling` on), large vocabularies (from `cutoffs` on), and kernels.

    Args:
        vocab_size (`int`, *optional*): number of tokens; `None` for sequences of numbers.
        input_size (`int`, *optional*, defaults to 1): numbers per position, where there are no tokens.
        hidden_size (`int`, *optional*, defaults to 256): width, which is the number of state spaces of a layer.
        num_hidden_layers (`int`, *optional*, defaults to 6): number of residual layers, or that of each stage.
        layer_pattern (`list[str]`, *optional*, defaults to `("s4",)`):
            Kinds of the layers, `"s4"` or `"ffn"`, repeated until there are `num_hidden_layers`.
        intermediate_size (`int`, *optional*): hidden width of FFN layers; `4 * hidden_size` by default.
        pool_sizes (`list[int]`, *optional*, defaults to `()`):
            For a model of several resolutions (SaShiMi, https://huggingface.co/papers/2202.09729): how many positions
            each pool joins, from the finest stage to the coarsest. Each stage has `num_hidden_layers` layers.
        expand (`int`, *optional*, defaults to 2): how many times wider than the stage before a coarser one is.
        unet (`bool`, *optional*, defaults to `True`):
            Stages have layers on the way down as well, and the input of each module is added to the output of its
            mirror image. Otherwise, there are layers behind the pools only, and each stage is a residual branch.
        state_size (`int`, *optional*, defaults to 64): N of the papers, real numbers per state; even.
        mode (`"dplr"` or `"diag"`, *optional*, defaults to `"dplr"`): diagonal plus low rank (S4), or diagonal (S4D).
        init (`str` or `list[str]`, *optional*):
            HiPPO measure `"legs"`, `"legt"`, `"fout"` or `"lagt"`, or diagonal `"lin"`, `"inv"`, `"inv2"`, `"quad"`,
            `"rand"` or `"real"`. Several share the state spaces of a layer. `"legs"` by default, or `"lin"` for S4D.
        rank (`int`, *optional*, defaults to 1): rank of the low-rank part; `"legt"` needs 2.
        b_clip (`float`, *optional*, defaults to 2.0): bound of the imaginary part of HiPPO's B; `None` for none.
        disc (`"bilinear"`, `"zoh"` or `"dss"`, *optional*):
            Discretization. Bilinear by default and always for `"dplr"`, zero-order hold by default for `"diag"`;
            `"dss"` is that of https://huggingface.co/papers/2203.14343 over `l_max` steps.
        num_ssm (`int`, *optional*, defaults to 1):
            Number of different A and B of a layer; channel h uses number h modulo it. It divides `hidden_size`.
            Where it equals that, coarser stages have one for each channel, too.
        channels (`int`, *optional*, defaults to 1): outputs per state space.
        bidirectional (`bool`, *optional*, defaults to `False`): also look ahead, from the next position on.
        dt_min (`float`, *optional*, defaults to 0.001): the step sizes start log-uniform between this
        dt_max (`float`, *optional*, defaults to 0.1): and this.
        tie_dt (`bool`, *optional*, defaults to `True`): one step size per channel, as `"dplr"` needs.
        dt_transform, real_transform, imag_transform (`str`, *optional*):
            What maps the parameters to step sizes and to the negatives of real and imaginary parts of A: `"exp"`,
            `"softplus"`, `"sigmoid"`, `"relu"` (plus 1e-4) or `"none"`.
        l_max (`int`, *optional*):
            With `"dplr"`, the parameter C is that of the paper, C (I - A^l_max): quickest for inputs of up to that
            length, which all cost as much as the longest. `None`: it is C itself. With `"dss"`, its length.
            Nothing is cut off: longer inputs have all of their past.
        rate (`float`, *optional*, defaults to 1.0): sampling interval of the inputs relative to that of training.
        hidden_act (`str`, *optional*, defaults to `"gelu"`): activation after state spaces and in FFNs.
        mixer_output (`"glu"`, `"linear"` or `"none"`, *optional*, defaults to `"glu"`): what follows the activation.
        norm (`"layer"`, `"batch"`, `"scalar"` or `"none"`, *optional*, defaults to `"layer"`):
            `"scalar"` is a layer norm with one scale, one shift and no epsilon.
        prenorm (`bool`, *optional*, defaults to `True`): norm in front of the layers and at the end, or after each.
        norm_eps (`float`, *optional*, defaults to 1e-5): epsilon of layer and batch norms.
        residual (`bool`, *optional*, defaults to `True`): layers add to their input; without, they replace it.
        hidden_dropout_prob (`float`, *optional*, defaults to 0.0): dropout in and after the layers.
        tie_dropout (`bool`, *optional*, defaults to `False`): dropout of whole channels of a sequence.
        pooling (`"mean"`, `"last"`, `"first"` or `"sum"`, *optional*, defaults to `"mean"`): feature of classifiers.
        document_pairs (`bool`, *optional*, defaults to `False`): sequence classifiers compare two documents.
        prediction_length (`int`, *optional*, defaults to 24): steps that forecasts look ahead.
        time_features (`list[int]`, *optional*, defaults to `()`):
            For forecasts: number of values of each calendar feature, such as 24 hours and 7 weekdays.
        cutoffs (`list[int]`, *optional*):
            First token of each rarer cluster of an adaptive embedding and softmax (paper
            1809.10853); by default, one embedding for all.
        div_val (`int`, *optional*, defaults to 4): each cluster's embedding is this many times narrower.
        tie_word_embeddings (`bool`, *optional*, defaults to `False`):
            Language models predict with the weights of the embedding; not with `cutoffs`, which shares its own.
        use_kernels (`bool`, *optional*):
            Compiled kernels: `False` for plain torch, `True` for a warning where there are none. By default they
            are used where they are found, and torch elsewhere.
        kernels (`dict`, *optional*):
            Set by saving the inference form: the folder of the kernels that come with the model, the digests of their
            variants, and the repository and commit on the Hub, if they were published.
        dense_heads (`list[int]`, *optional*):
            Of fused models of before format 4: how many channels of each layer had a dense transition.
    """

    model_type = "s4"
    # since 4, fused transitions are diagonal plus low rank
    format_number: ClassVar[int] = 4
    non_structural_fields: ClassVar[frozenset[str]] = frozenset(
        {"b_clip", "dt_max", "dt_min", "hidden_dropout_prob", "init", "kernels", "tie_dropout", "use_kernels"}
    )

    vocab_size: int | None = None
    input_size: int = 1
    hidden_size: int = 256
    num_hidden_layers: int = 6
    layer_pattern: list[str] | tuple[str, ...] = ("s4",)
    intermediate_size: int | None = None
    pool_sizes: list[int] | tuple[int, ...] = ()
    expand: int = 2
    unet: bool = True
    state_size: int = 64
    mode: Literal["dplr", "diag"] = "dplr"
    init: str | list[str] | tuple[str, ...] | None = None
    rank: int = 1
    b_clip: float | int | None = 2.0
    disc: Literal["bilinear", "zoh", "dss"] | None = None
    num_ssm: int = 1
    channels: int = 1
    bidirectional: bool = False
    dt_min: float = 0.001
    dt_max: float = 0.1
    tie_dt: bool = True
    dt_transform: Transform = "exp"
    real_transform: Transform = "exp"
    imag_transform: Transform = "none"
    l_max: int | None = None
    rate: float | int = 1.0
    hidden_act: str = "gelu"
    mixer_output: Literal["glu", "linear", "none"] = "glu"
    norm: Literal["layer", "batch", "scalar", "none"] = "layer"
    prenorm: bool = True
    norm_eps: float = 1e-5
    residual: bool = True
    hidden_dropout_prob: float | int = 0.0
    tie_dropout: bool = False
    pooling: Literal["mean", "last", "first", "sum"] = "mean"
    document_pairs: bool = False
    prediction_length: int = 24
    time_features: list[int] | tuple[int, ...] = ()
    cutoffs: list[int] | tuple[int, ...] | None = None
    div_val: int = 4
    tie_word_embeddings: bool = False
    use_kernels: bool | None = None
    kernels: dict[str, Any] | None = None
    dense_heads: list[int] | tuple[int, ...] | None = None

    def __post_init__(self, **kwargs: Any) -> None:
        if self.init is None:
            self.init = "legs" if self.mode == "dplr" else "lin"
        if self.disc is None:
            self.disc = "bilinear" if self.mode == "dplr" else "zoh"
        if self.intermediate_size is None:
            self.intermediate_size = 4 * self.hidden_size
        super().__post_init__(**kwargs)

    @property
    def layer_kinds(self) -> list[str]:
        """`"s4"` or `"ffn"` for each layer."""
        return [self.layer_pattern[i % len(self.layer_pattern)] for i in range(self.num_hidden_layers)]

    @property
    def layer_types(self) -> list[str]:
        """
        The layers of a cache: one for each layer of the model that has a state, pools included.

        There is none for FFNs: transformers asks a cache with layers of several kinds for its number of positions.
        """
        depth = len(self.pool_sizes)
        # a U-Net has the finer stages twice, on the way down and up
        stages = 2 * depth + 1 if self.unet else depth + 1
        return ["linear_attention"] * (2 * depth + stages * self.layer_kinds.count("s4"))

    @property  # type: ignore[misc]
    def per_layer_config(self) -> Sequence[PreTrainedConfig]:
        """This configuration for each layer of a cache."""
        return [self] * len(self.layer_types)

    def stage(self, number: int) -> "S4Config":
        """The options of the layers behind `number` pools."""
        if number == 0:
            return self
        factor, joined = self.expand**number, math.prod(self.pool_sizes[:number])
        stage = copy.copy(self)
        stage.hidden_size = factor * self.hidden_size
        stage.intermediate_size = factor * cast(int, self.intermediate_size)
        stage.num_ssm = (factor if self.num_ssm == self.hidden_size else 1) * self.num_ssm
        stage.l_max = None if self.l_max is None else self.l_max // joined
        return stage

    def validate_layer_type(self) -> None:
        """Nothing to do: `layer_types` are those of all stages."""

    def validate_architecture(self) -> None:
        """Raises `ValueError` for options outside their range or that do not go together."""
        super().validate_architecture()
        self._check_sizes()
        self._check_initial_systems()
        self._check_discretization()
        self._check_layers()
        self._check_pools()
        self._check_vocabulary()

    def _check_sizes(self) -> None:
        sizes = ("input_size", "hidden_size", "num_hidden_layers", "rank", "num_ssm", "channels", "prediction_length")
        for name in (*sizes, "dt_min", "rate", "expand"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be positive.")
        for name in ("norm_eps", "b_clip"):
            if (getattr(self, name) or 0) < 0:
                raise ValueError(f"{name} is {getattr(self, name)}; it must not be negative.")
        if self.state_size < 2 or self.state_size % 2:
            raise ValueError(f"state_size is {self.state_size}; it must be even and at least 2.")

    def _check_initial_systems(self) -> None:
        kinds = [self.init] if isinstance(self.init, str) else list(self.init or [])
        if not kinds or set(kinds) - {*MEASURES, *DIAGONALS}:
            raise ValueError(f"init is {self.init!r}; known are {', '.join(MEASURES + DIAGONALS)}.")
        if self.hidden_size % self.num_ssm:
            raise ValueError(f"num_ssm is {self.num_ssm}; it must divide hidden_size, which is {self.hidden_size}.")
        if self.num_ssm % len(kinds):
            raise ValueError(f"num_ssm is {self.num_ssm}; it must be a multiple of the {len(kinds)} kinds of init.")
        if self.mode == "dplr" and "legt" in kinds and self.rank < 2:
            raise ValueError(f"rank is {self.rank}; init 'legt' needs 2.")

    def _check_discretization(self) -> None:
        if self.mode == "dplr" and self.disc != "bilinear":
            raise ValueError(f"disc is {self.disc!r}; mode 'dplr' has 'bilinear' only.")
        if self.mode == "dplr" and not self.tie_dt:
            raise ValueError("tie_dt is False; mode 'dplr' has one step size per channel.")
        if self.disc == "dss" and self.l_max is None:
            raise ValueError("disc 'dss' needs l_max.")
        if self.dt_max < self.dt_min:
            raise ValueError(f"dt_max is {self.dt_max}; it must be at least dt_min, which is {self.dt_min}.")

    def _check_layers(self) -> None:
        if not self.layer_pattern or set(self.layer_pattern) - {"s4", "ffn"}:
            raise ValueError(f"layer_pattern is {self.layer_pattern}; it must be of 's4' and 'ffn'.")
        if self.mixer_output == "none" and self.channels > 1:
            raise ValueError(f"channels is {self.channels}; without a linear layer after them it must be 1.")
        if self.hidden_act not in ACT2FN:
            raise ValueError(f"hidden_act is {self.hidden_act!r}; known are {', '.join(ACT2FN)}.")
        if not 0 <= self.hidden_dropout_prob < 1:
            raise ValueError(f"hidden_dropout_prob is {self.hidden_dropout_prob}; it must be in [0, 1).")

    def _check_pools(self) -> None:
        if any(size < 2 for size in self.pool_sizes):
            raise ValueError(f"pool_sizes are {self.pool_sizes}; a pool joins at least 2 positions.")
        if self.pool_sizes and self.bidirectional:
            raise ValueError("bidirectional is True; models with pool_sizes read in one direction only.")
        joined = math.prod(self.pool_sizes)
        # rounded as the coarsest stage and its state spaces do it
        if self.l_max is not None and round(self.l_max // joined / self.rate) < 1:
            where = f" and with pool_sizes {self.pool_sizes}" if self.pool_sizes else ""
            raise ValueError(f"l_max is {self.l_max}; at rate {self.rate}{where} it must be at least {joined}.")

    def _check_vocabulary(self) -> None:
        if self.cutoffs is None:
            return
        if self.tie_word_embeddings:
            raise ValueError("tie_word_embeddings is True; with cutoffs, embedding and softmax share what they can.")
        if self.div_val < 1:
            raise ValueError(f"div_val is {self.div_val}; it must be positive.")
        bounds = [0, *self.cutoffs, self.vocab_size or 0]
        if any(low >= high for low, high in zip(bounds, bounds[1:], strict=False)):
            raise ValueError(f"cutoffs are {self.cutoffs}; they must grow, between 0 and vocab_size.")
        if self.hidden_size % self.div_val ** len(self.cutoffs):
            raise ValueError(f"div_val is {self.div_val}; hidden_size must be divisible by it for each cutoff.")

    def structure(self) -> dict[str, Any]:
        """As for all models. Weights of the training form can be read at any sampling rate."""
        structure = super().structure()
        if not self.fused:
            structure.pop("rate", None)
        if not self.pool_sizes:
            structure.pop("expand", None)
            structure.pop("unet", None)
        return structure

    def _first_digest(self, unused: frozenset[str] = frozenset()) -> str:
        digested = copy.copy(self)
        if not self.pool_sizes:  # as it was when there were no pools
            unused |= {"pool_sizes", "expand", "unet"}
        if not self.tie_word_embeddings:
            unused |= {"tie_word_embeddings"}
        if not self.fused:
            digested.rate = 1.0
        return FusibleConfig._first_digest(digested, unused)


__all__ = ["S4Config"]
