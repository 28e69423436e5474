"""State spaces in checkpoints of all versions of the authors' S4 (github.com/state-spaces/s4), as `S4StateSpace`."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch.nn.functional import pad

from conversion_scripts.common import agreed
from fusible import S4Config
from fusible.models.s4.coefficients import real_pairs
from fusible.models.s4.scan import krylov
from fusible.models.s4.state_space import S4StateSpace


Tensors = dict[str, torch.Tensor]
Options = dict[str, Any]

MODES = {"nplr": "dplr", "dplr": "dplr", "s4": "dplr", "diag": "diag", "s4d": "diag"}
TOLERANCE = 1e-4  # of kernels, relative to their peaks, where a system needs another basis


def from_v4(theirs: Tensors, options: Mapping[str, Any]) -> tuple[Tensors, Options]:
    """Ours are the same, but for the shape of B; once the kernel has a length, C is that of the paper."""
    found = {name: options.get(name) or default for name, default in V4_TRANSFORMS.items()}
    found |= {"disc": "bilinear"} if "P" in theirs else diagonal_options(options, "zoh")
    length = int(theirs.pop("l_kernel", 0))
    if length:
        found["l_max"] = length
    return theirs | {"B": theirs["B"].flatten(0, -3)}, found


def from_v3(theirs: Tensors, options: Mapping[str, Any]) -> tuple[Tensors, Options]:
    """Also v2 with `hurwitz`. The imaginary part has its own sign, and `relu` no lower bound."""
    ours = without(theirs, "w_imag", "L") | {"A_imag": -theirs["w_imag"], "B": theirs["B"].flatten(0, -3)}
    found = old_options(options) | {"l_max": int(theirs["L"]) or None if "L" in theirs else length_in(theirs, options)}
    if found["real_transform"] == "relu":
        ours["A_real"], found["real_transform"] = theirs["A_real"].relu(), "none"
    return ours, found


def from_v3_diagonal(theirs: Tensors, options: Mapping[str, Any]) -> tuple[Tensors, Options]:
    """The parameter A is not used in theirs."""
    ours = without(theirs, "A", "inv_A_real") | {"A_real": theirs["inv_A_real"], "A_imag": -theirs["A_imag"]}
    ours["B"] = theirs["B"].flatten(0, -3)
    return ours, old_options(options) | diagonal_options(options, "bilinear")


def from_v2(theirs: Tensors, options: Mapping[str, Any]) -> tuple[Tensors, Options]:
    """A is diag(w) - P Q^T, with a Q of its own."""
    a, b, c, p, q = (torch.view_as_complex(theirs[name].contiguous()) for name in ("w", "B", "C", "P", "Q"))
    return from_free_rank(theirs, (a, b.flatten(0, -2), c, p, q), length_in(theirs, options))


def from_v1(theirs: Tensors, options: Mapping[str, Any]) -> tuple[Tensors, Options]:
    """As v2, with P below B and the conjugates of Q below those of C; w may be shared by all heads."""
    heads = len(theirs["log_dt"])
    w, b, c = (torch.view_as_complex(theirs[name].contiguous()) for name in ("w", "B", "C"))
    b, c = b.expand(heads, *b.shape[-2:]).movedim(1, 0), c.conj().expand(heads, *c.shape[-2:]).movedim(1, 0)
    return from_free_rank(theirs, (w.expand(heads, -1), b[0], c[:1], b[1:], c[1:]), length_in(theirs, options))


def from_minimal(theirs: Tensors, options: Mapping[str, Any]) -> tuple[Tensors, Options]:
    """The conjugate system, with no B."""
    ours = without(theirs, "log_A_real") | {"A_real": theirs["log_A_real"]}
    ours["C"] = torch.stack([theirs["C"][..., 0], -theirs["C"][..., 1]], dim=-1)[None]
    ours["B"] = torch.stack([torch.ones_like(theirs["A_imag"]), torch.zeros_like(theirs["A_imag"])], dim=-1)
    return ours, {"disc": "zoh"}


class Layout(NamedTuple):
    """The tensors of one version, those of them that may be missing, and what makes them ours."""

    names: set[str]
    optional: set[str]
    convert: Callable[[Tensors, Mapping[str, Any]], tuple[Tensors, Options]]


V4_TRANSFORMS = {"dt_transform": "exp", "real_transform": "exp", "imag_transform": "none"}
LAYOUTS = {
    "v4": Layout({"inv_dt", "A_real", "A_imag", "B", "C", "D"}, {"P", "l_kernel"}, from_v4),
    "v3": Layout({"log_dt", "A_real", "w_imag", "B", "C", "D", "P"}, {"L", "omega", "z"}, from_v3),
    "v3, diagonal": Layout({"log_dt", "inv_A_real", "A_imag", "B", "C", "D"}, {"A"}, from_v3_diagonal),
    "v2": Layout({"log_dt", "w", "B", "C", "D", "P", "Q"}, {"omega", "z"}, from_v2),
    "v1": Layout({"log_dt", "w", "B", "C", "D"}, {"nodes", "z"}, from_v1),
    "the minimal S4D": Layout({"log_dt", "log_A_real", "A_imag", "C", "D"}, set(), from_minimal),
}


def convert_state_space(theirs: Mapping[str, torch.Tensor], options: Mapping[str, Any]) -> tuple[Tensors, Options]:
    """
    The state spaces of one layer.

    Args:
        theirs: the tensors by the last part of their names; `inv_w_real` and `log_w_real` are called `A_real`.
        options: of their layer, as their configuration has them; `l_max` is needed for v1 and v2 without buffers.

    Returns:
        The tensors of `S4StateSpace`, and those options of `S4Config` that sizes of tensors do not show.

    Raises:
        ValueError: if the tensors are of no version, or the system cannot be one of ours.
    """
    names = set(theirs)
    for layout in LAYOUTS.values():
        if layout.names <= names <= layout.names | layout.optional:
            break
    else:
        nearest = max(LAYOUTS, key=lambda name: len(names & LAYOUTS[name].names))
        missing = sorted(LAYOUTS[nearest].names - names)
        unknown = sorted(names - LAYOUTS[nearest].names - LAYOUTS[nearest].optional)
        raise ValueError(
            f"These are no state spaces of {nearest} or another version: missing {missing}, unknown {unknown}."
        )
    mode = None if options.get("mode") is None else MODES.get(options["mode"], options["mode"])
    agreed("mode", mode, "dplr" if names & {"P", "w"} else "diag", "the tensors")
    agreed("d_state", options.get("d_state"), 2 * theirs["C"].shape[-2], "the tensors")
    try:
        ours, found = layout.convert(dict(theirs), options)
    except (RuntimeError, IndexError) as error:
        shapes = {name: tuple(tensor.shape) for name, tensor in theirs.items()}
        raise ValueError(f"The shapes of these state spaces do not fit together: {shapes}.") from error
    agreed("n_ssm", options.get("n_ssm"), len(ours["A_real"]), "the tensors")
    if "log_dt" in ours:
        ours["inv_dt"] = ours.pop("log_dt")[:, None]
    ours["D"] = ours["D"].reshape(-1, ours["inv_dt"].shape[0])
    ours = {name: tensor.contiguous() for name, tensor in without(ours, "omega", "z", "nodes").items()}
    return ours, V4_TRANSFORMS | found


def of_one_size(layers: Mapping[str, Tensors]) -> dict[str, Tensors]:
    """State spaces of layers, with modes that do nothing where other layers have more."""
    most = max(layer["A_real"].shape[1] for layer in layers.values())
    padded = {prefix: dict(layer) for prefix, layer in layers.items()}
    for layer in padded.values():
        missing = most - layer["A_real"].shape[1]
        if missing:
            layer["A_real"] = pad(layer["A_real"], (0, missing), value=1)
            layer["A_imag"] = pad(layer["A_imag"], (0, missing))
            layer["B"], layer["C"] = (pad(layer[name], (0, 0, 0, missing)) for name in ("B", "C"))
    return padded


def without(tensors: Mapping[str, torch.Tensor], *names: str) -> Tensors:
    """All but some."""
    return {name: tensor for name, tensor in tensors.items() if name not in names}


def old_options(options: Mapping[str, Any]) -> Options:
    """Options of v3 by our names; step sizes were always exponentials."""
    return {"real_transform": options.get("real_type") or "exp", "disc": "bilinear"}


def diagonal_options(options: Mapping[str, Any], disc: str) -> Options:
    """Of S4D, whose discretization has another default in each version, and a length only with DSS."""
    found = {"disc": options.get("disc") or disc}
    return found | {"l_max": options.get("l_max")} if found["disc"] == "dss" else found


def length_in(theirs: Mapping[str, torch.Tensor], options: Mapping[str, Any]) -> int:
    """
    Steps that C stands for in v1 and v2: `l_max`, doubled while inputs were longer.

    Raises:
        ValueError: if it is not known, or odd, for which these versions compute something else than a kernel.
    """
    length = options.get("l_max")
    if "z" in theirs and length is not None and length // 2 + 1 != len(theirs["z"]):
        length = None
    if "z" in theirs and length is None:
        length = 2 * (len(theirs["z"]) - 1)
    if not length or length % 2:
        raise ValueError(f"l_max is {length}; for checkpoints of v1 and v2 it must be given, and even.")
    return length


def from_free_rank(theirs: Tensors, system: tuple[torch.Tensor, ...], length: int) -> tuple[Tensors, Options]:
    """
    Systems diag(a) - P Q^T: ours where Q is the conjugate of P, and otherwise in the basis of their eigenvectors.

    Args:
        theirs: for the step sizes and D.
        system: a and b `[copies, state]`, c `[channels, heads, state]`, p and q `[rank, copies, state]`, complex.
        length: steps that c stands for.
    """
    a, b, c, p, q = system
    found = {"real_transform": "none", "disc": "bilinear", "l_max": length}
    ours = {"log_dt": theirs["log_dt"], "D": theirs["D"], "C": real_pairs(c)}
    if (q - p.conj()).abs().max() <= 1e-6 * p.abs().max():
        return ours | {"A_real": -a.real, "A_imag": -a.imag, "B": real_pairs(b), "P": real_pairs(p)}, found
    heads = c.shape[1]
    a, b = (x.to(torch.complex128).repeat(heads // len(x), 1) for x in (a, b))
    p, q = (x.to(torch.complex128).repeat(1, heads // x.shape[1], 1).movedim(1, 0) for x in (p, q))
    ours |= diagonal(a, b, c.to(torch.complex128).movedim(1, 0), p, q, theirs["log_dt"].double().exp(), length)
    return ours, found | {"l_max": None}


def sampled_kernel(transition: torch.Tensor, b: torch.Tensor, c: torch.Tensor) -> torch.Tensor:
    """
    Impulse responses of a system as `ssm_scan` takes it, at lags 0 ... 63 and 64 from each power of two up to 8192 on.

    Returns:
        `[heads, channels, samples]`.
    """
    columns, chunk_transition = krylov(transition, b[..., None], 64)
    # [heads, state, 64]; chunk_transition leaps 64 steps, and twice as many after each round
    columns, row = columns.flatten(1, 2), c
    samples = [row.flatten(2) @ columns]
    for _ in range(8):
        moved = (row.movedim(1, 2).contiguous() @ chunk_transition).movedim(2, 1)
        samples.append(moved.flatten(2) @ columns)
        chunk_transition = chunk_transition @ chunk_transition
    return torch.cat(samples, dim=-1)


def diagonal(
    a: torch.Tensor,
    b: torch.Tensor,
    c: torch.Tensor,
    p: torch.Tensor,
    q: torch.Tensor,
    dt: torch.Tensor,
    length: int,
) -> Tensors:
    """
    The modes of systems; a real one takes the place of a pair.

    Args:
        a: `[heads, state]`, like all but dt complex128.
        b: `[heads, state]`.
        c: `[heads, channels, state]`, of kernels of `length` steps.
        p: `[heads, rank, state]`.
        q: `[heads, rank, state]`.
        dt: `[heads]`, float64.
        length: steps.

    Raises:
        ValueError: if eigenvectors are too close to each other for single precision.
    """
    # on real and imaginary parts, so that modes are real or exact pairs
    blocks = torch.stack([real_pairs(a), real_pairs(a * 1j)], dim=-1)
    matrix = torch.stack([torch.block_diag(*head) for head in blocks])
    matrix = matrix - 2 * real_pairs(p).flatten(2).mT @ real_pairs(q.conj()).flatten(2)
    column, rows = real_pairs(b).flatten(1)[..., None], 2 * real_pairs(c.conj()).flatten(2)
    eye, half_step = torch.eye(matrix.shape[-1], dtype=dt.dtype), dt[:, None, None] / 2
    transition = torch.linalg.solve(eye - half_step * matrix, eye + half_step * matrix)
    rows = torch.linalg.solve(eye - torch.linalg.matrix_power(transition, length), rows, left=False)
    values, vectors = torch.linalg.eig(matrix)
    inputs = torch.linalg.solve(vectors, column.to(vectors)).squeeze(-1)
    column = torch.linalg.solve(eye - half_step * matrix, dt[:, None, None] * column)
    outputs = rows.to(vectors) @ vectors
    outputs = outputs * torch.where(values.imag > 0, 1, torch.where(values.imag == 0, 0.5, 0))[:, None]
    modes = int((values.imag >= 0).sum(1).max())
    order = values.imag.argsort(dim=1, descending=True)[:, :modes]
    values, inputs = values.gather(1, order), inputs.gather(1, order)
    outputs = outputs.gather(2, order[:, None].expand(-1, c.shape[1], -1))
    found = {
        "A_real": -values.real.float(),
        "A_imag": -values.imag.float(),
        "B": real_pairs(inputs).float(),
        "C": real_pairs(outputs.movedim(1, 0)).float(),
    }
    heads, channels = c.shape[:2]
    options = {"mode": "diag", "disc": "bilinear", "real_transform": "none", "num_ssm": heads, "channels": channels}
    layer = S4StateSpace(S4Config(hidden_size=heads, state_size=2 * modes, **options))
    layer.load_state_dict(found | {"inv_dt": dt.log().float()[:, None], "D": torch.zeros(channels, heads)})
    exact = sampled_kernel(transition[:, None], column.squeeze(-1)[:, None], rows[:, :, None])
    with torch.no_grad():
        difference = sampled_kernel(*layer.coefficients().matrices()) - exact
    error = difference.abs().amax((1, 2)) / exact.abs().amax((1, 2))
    if not error.max() < TOLERANCE:
        raise ValueError(
            f"Q is not the conjugate of P, and the modes of such a system differ by {error.max():.0e} from it in "
            "single precision; it cannot be converted."
        )
    return found
