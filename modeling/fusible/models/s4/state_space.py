"""
The state space layer of S4: a convolution for training, a recurrence for inference.

S4: https://huggingface.co/papers/2111.00396; S4D: https://huggingface.co/papers/2206.11893.
"""

import math
from collections.abc import Callable
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import nn
from transformers import initialization as init
from transformers.activations import ACT2FN
from transformers.utils.generic import maybe_autocast

from ...core.fusion import Fusible
from ...kernels.loading import KernelSource, load_kernels
from .coefficients import Coefficients, real_pairs
from .configuration_s4 import S4Config
from .convolution import low_rank_kernel, real_fft, vandermonde
from .hippo import initial_state_space
from .recurrence import S4Recurrence, keep_float32
from .scan import scan_system


TRANSFORMS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "exp": torch.exp,
    "softplus": F.softplus,
    "sigmoid": torch.sigmoid,
    "relu": lambda x: F.relu(x) + 1e-4,
    "none": lambda x: x,
}
INVERSES: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "exp": torch.log,
    # log(exp(x) - 1) that neither overflows nor loses the digits of small x
    "softplus": lambda x: x + torch.log(-torch.expm1(-x)),
    "sigmoid": torch.logit,
    "relu": lambda x: x - 1e-4,
    "none": lambda x: x,
}


def precise(tensor: torch.Tensor) -> torch.Tensor:
    """In float64, where the device has it."""
    return tensor.float() if tensor.device.type == "mps" else tensor.double()


def fft_length(length: int) -> int:
    """The smallest number from `length` on that Fourier transforms are fast for."""
    return min(odd << max(0, math.ceil(math.log2(length / odd))) for odd in (1, 3, 5, 9, 15))


def long_convolution(inputs: torch.Tensor, kernel: torch.Tensor, backward_kernel: torch.Tensor | None) -> torch.Tensor:
    """
    `y_t = sum_j k_j u_{t-j}`, and with a backward kernel also `sum_j q_j u_{t+1+j}`.

    Args:
        inputs: u `[batch, heads, length]`, float32 or float64.
        kernel: k `[heads, channels, length]`.
        backward_kernel: q `[heads, channels, length]`.

    Returns:
        `[batch, heads, channels, length]`.
    """
    length = inputs.shape[-1]
    if inputs.numel() == 0:  # MKL has no transforms of nothing
        return inputs[:, :, None].expand(-1, -1, kernel.shape[1], -1)
    size = fft_length(2 * length)
    if backward_kernel is not None:
        # the convolution is circular: lags -1, -2, ... are at the end of the kernel
        gap = kernel.new_zeros(*kernel.shape[:2], size - 2 * length)
        kernel = torch.cat([kernel, gap, backward_kernel.flip(-1)], dim=-1)
    spectrum = real_fft(inputs, size)[:, :, None] * real_fft(kernel, size)
    return torch.fft.irfft(spectrum, n=size)[..., :length]


class S4StateSpace(Fusible):
    """
    State spaces, one per channel of the input, and the activation of their outputs, in the form that trains.

    All parameters are real and stay float32 when the model is cast to half precision; complex numbers have a last
    dimension of 2. A, B and P are shared by channels, `heads % num_ssm` being the number of the one that a head uses.

    A state is `[batch, heads, state_size / 2, 2]`: real and imaginary parts in the basis of the parameters.

    `kernels` are compiled operations, if there are any to use; by default those of the installed package.
    """

    # which train best with a low learning rate and no weight decay
    slow_parameters: ClassVar[tuple[str, ...]] = ("inv_dt", "A_real", "A_imag", "B", "P")

    def __init__(self, config: S4Config) -> None:
        super().__init__()
        self.config = config
        heads, copies, half = config.hidden_size, config.num_ssm, config.state_size // 2
        directions = 2 if config.bidirectional else 1

        def parameter(*shape: int) -> nn.Parameter:
            return nn.Parameter(torch.empty(shape, dtype=torch.float32))

        self.inv_dt = parameter(heads, 1 if config.tie_dt else half)
        self.A_real, self.A_imag = parameter(copies, half), parameter(copies, half)
        self.B = parameter(copies, half, 2)
        self.C = parameter(directions * config.channels, heads, half, 2)
        self.D = parameter(config.channels, heads)
        if config.mode == "dplr":
            self.P = parameter(config.rank, copies, half, 2)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)
        self.activation = ACT2FN[config.hidden_act]
        self.kernels = None
        if config.use_kernels is not False:
            # on the meta device, what will be used is not known yet
            self.kernels = load_kernels(KernelSource(required=config.use_kernels is True and not self.C.is_meta))
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Draws step sizes, C and D; A, B and P come from `config.init`."""
        if self.C.is_meta:
            return
        config = self.config
        dt = torch.rand(self.inv_dt.shape, dtype=torch.float64) * math.log(config.dt_max / config.dt_min)
        # init's functions leave alone what was loaded
        init.copy_(self.inv_dt, INVERSES[config.dt_transform](dt.exp() * config.dt_min))
        is_low_rank = config.mode == "dplr"
        system = initial_state_space(
            config.init or "legs", config.state_size, config.num_ssm, config.rank, is_low_rank, config.b_clip
        )
        # the authors' bound, which keeps the inverses finite
        init.copy_(self.A_real, INVERSES[config.real_transform]((-system.a.real).clamp(min=1e-4)))
        init.copy_(self.A_imag, INVERSES[config.imag_transform]((-system.a.imag).clamp(min=1e-4)))
        init.copy_(self.B, real_pairs(system.b))
        if is_low_rank:
            init.copy_(self.P, real_pairs(system.p))
        init.normal_(self.C, std=math.sqrt(0.5))
        init.normal_(self.D)
        if is_low_rank and config.l_max is not None:
            a, b, c, p, dt = self.system()
            # what was drawn is C, and the parameter stands for C (I - A ** l_max)
            transition = Coefficients.bilinear(a, b, c, p, dt).transition()
            init.copy_(self.C, real_pairs(self._truncated(c, transition, self._l_max).movedim(1, 0)))

    def _apply(self, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> "S4StateSpace":
        return super()._apply(keep_float32(fn), recurse)

    @property
    def _l_max(self) -> int:
        """Steps that C stands for, at the sampling rate of the configuration."""
        return round((self.config.l_max or 0) / self.config.rate)

    def system(self) -> tuple[torch.Tensor, ...]:
        """
        The continuous system in complex128: a `[heads, state]`, b `[heads, state]`, c `[heads, channels, state]`,
        p `[heads, rank, state]` (empty without low-rank part), and dt `[heads, 1 or state]` in float64.
        """
        config = self.config
        repeats = config.hidden_size // config.num_ssm
        dt = TRANSFORMS[config.dt_transform](precise(self.inv_dt)) * config.rate
        a = torch.complex(
            -TRANSFORMS[config.real_transform](precise(self.A_real)),
            -TRANSFORMS[config.imag_transform](precise(self.A_imag)),
        ).repeat(repeats, 1)
        b = torch.view_as_complex(precise(self.B)).repeat(repeats, 1)
        c = torch.view_as_complex(precise(self.C)).movedim(0, 1)
        p = a.new_zeros(len(a), 0, a.shape[1])
        if config.mode == "dplr":
            p = torch.view_as_complex(precise(self.P)).repeat(1, repeats, 1).movedim(0, 1)
        return a, b, c, p, dt

    def _discretized(self, a: torch.Tensor, b: torch.Tensor, dt: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Transition without the identity and input of diagonal systems, `[heads, state]`, complex."""
        step = a * dt
        if self.config.disc == "bilinear":
            # (1 + dt/2 a) / (1 - dt/2 a) - 1 and dt b / (1 - dt/2 a), with both sides of the quotients doubled
            return 2 * step / (2 - step), b * dt * 2 / (2 - step)
        # expm1 keeps the digits of small steps
        increment = torch.expm1(step)
        if self.config.disc == "zoh":
            return increment, b * increment / a
        # DSS normalizes each state's kernel over l_max steps; the half is that of 2 Re, which it does without
        self._check_growth(step)
        # and counts growing ones back from their last step, which is not the same because of the 1e-7
        grows = a.real > 0
        decay, back = torch.where(grows, -step, step), torch.where(grows, -step, 0) * (self._l_max - 1)
        total = torch.expm1(decay * self._l_max) * a
        normed = b * torch.expm1(decay) * total.conj() / (total * total.conj() + 1e-7) / 2
        return increment, normed * back.exp()

    def _check_growth(self, step: torch.Tensor) -> None:
        """Raises `ValueError` if states grow more in the l_max steps of DSS than float32 can hold."""
        # of all real_transform, only "none" lets the real part of A be positive
        if self.config.real_transform != "none" or step.is_meta:
            return
        growth = step.real.max().item() * self._l_max
        if growth > 80:
            raise ValueError(
                f"A_real goes down to {self.A_real.min().item():.3g}: states would grow by exp({growth:.3g}) in "
                f"l_max={self.config.l_max} steps of disc 'dss', which numbers cannot hold. "
                "real_transform 'exp' keeps them from growing."
            )

    @staticmethod
    def _truncated(c: torch.Tensor, transition: torch.Tensor, length: int, sign: int = -1) -> torch.Tensor:
        """`C (I - A ** length)`, or with a plus; complex `[heads, channels, state]`."""
        # read as a row that real and imaginary parts of a state are multiplied by
        row = real_pairs(c.conj()).flatten(2)
        row = row + sign * row @ torch.linalg.matrix_power(transition, length)
        return torch.view_as_complex(row.unflatten(2, (-1, 2))).conj()

    def kernel(self, length: int, dtype: torch.dtype | None = None) -> torch.Tensor:
        """
        Impulse responses `[heads, channels, length]`, backward ones in the second half of channels.

        They are in float64 by default. With compiled kernels, those of diagonal systems take half the time in
        float32, in which then the sums are.
        """
        a, b, c, p, dt = self.system()
        if self.config.mode == "diag":
            increment, b = self._discretized(a, b, dt)
            return vandermonde(c * b[:, None], 1 + increment, length, dtype, self.kernels)
        # the transform's length must be the one that C stands for
        size = self._l_max or length
        if self._l_max == 0 or size < length:
            transition = Coefficients.bilinear(a, b, c, p, dt).transition()
            if self._l_max == 0:
                c = self._truncated(c, transition, length)
            # C (I - A^s) (I + A^s) = C (I - A^2s)
            while size < length:
                c, size = self._truncated(c, transition, size, sign=1), 2 * size
        return low_rank_kernel(a, b, c, p, dt[:, 0], size, self.kernels)[..., :length].to(dtype or dt.dtype)

    def coefficients(self) -> Coefficients:
        """The discrete system on real and imaginary parts of the state, in float64 and exact."""
        a, b, c, p, dt = self.system()
        if self.config.mode == "diag":
            increment, b = self._discretized(a, b, dt)
            # 2 Re(c x) = 2 (Re c Re x - Im c Im x)
            return Coefficients(real_pairs(increment), None, real_pairs(b), 2 * real_pairs(c.conj()), None, None)
        system = Coefficients.bilinear(a, b, c, p, dt)
        if not self._l_max:
            return system
        # back from C (I - A ** l_max) to C itself
        power = torch.linalg.matrix_power(system.transition(), self._l_max)
        eye = torch.eye(power.shape[-1], dtype=dt.dtype, device=dt.device)
        c = torch.linalg.solve(eye - power, system.c.flatten(2), left=False)
        return system._replace(c=c.view_as(system.c))

    def _empty_coefficients(self) -> Coefficients:
        """What `coefficients` gives, rounded, without values."""
        outputs, heads, half, _ = self.C.shape
        increment, residual, b = (self.C.new_empty(heads, half, 2) for _ in range(3))
        c, rank = self.C.new_empty(heads, outputs, half, 2), self.config.rank
        left, right = (
            self.C.new_empty(heads, rank, half, 2) if self.config.mode == "dplr" else None for _ in range(2)
        )
        return Coefficients(increment, residual, b, c, left, right)

    def forward(
        self,
        inputs: torch.Tensor,
        state: torch.Tensor | None = None,
        return_state: bool = False,
        *,
        overwrite: bool = False,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """
        Args:
            inputs: `[batch, length, heads]`.
            state: what a call on the positions before returned.
            return_state: whether a state is wanted.
            overwrite: as for the inference form; this one always makes a new state.

        Returns:
            `[batch, length, channels * heads]` in the dtype of the inputs, behind the activation, and the state after
            the last position.

        Raises:
            ValueError: if a bidirectional layer is asked to use states.
        """
        has_state = state is not None or return_state
        if has_state and self.config.bidirectional:
            raise ValueError("A bidirectional layer has no state to pass on; it needs the whole sequence.")
        with maybe_autocast(inputs.device.type, enabled=False):
            u = inputs.movedim(1, 2).to(torch.promote_types(inputs.dtype, torch.float32))
            if has_state:
                y, state = scan_system(u, self.coefficients(), state, self.D, self.kernels)
            else:
                responses = self.kernel(u.shape[-1], u.dtype).split(self.config.channels, dim=1)
                ahead = responses[1] if self.config.bidirectional else None
                # [batch, channels, heads, length]
                y = long_convolution(u, responses[0], ahead).movedim(2, 1)
                y = y + self.D.to(u.dtype)[..., None] * u[:, None]
            # before the outputs are rounded to half precision
            y = self.activation(self.dropout(y.flatten(1, 2).mT))
        return y.to(inputs.dtype), state if return_state else None

    @torch.no_grad()
    def fuse(self) -> nn.Module:
        """The recurrence, in the dtype of the parameters."""
        # a saved model is built before its weights are read: shapes alone take a tenth of the time
        system = self._empty_coefficients() if self.C.is_meta else self.coefficients().rounded(self.D.dtype)
        fused = S4Recurrence(system, self.D, self.config.bidirectional)
        fused.dropout = self.dropout
        fused.activation = self.activation
        fused.kernels = self.kernels
        # in eval mode where this form is: dropout is part of both
        return fused.train(self.training)


__all__ = ["INVERSES", "TRANSFORMS", "S4StateSpace", "long_convolution"]
