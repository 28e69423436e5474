"""The configuration of the authors' S4 (github.com/state-spaces/s4) as `S4Config`, checked against their tensors."""

from collections.abc import Mapping
from typing import Any

import torch

from conversion_scripts.common import agreed
from fusible import S4Config


INITS = {"fourier": "fout", "hippo": ["legs", "fout"], "diag": ["inv", "lin"], "legsd": "legs"}
ACTIVATIONS = {"gelu": "gelu", "relu": "relu", "tanh": "tanh", "sigmoid": "sigmoid", "silu": "silu", "swish": "silu"}
OUTPUTS = {"glu": "glu", "id": "linear", "identity": "linear", "linear": "linear", None: "none"}
POOLING = {"pool": "mean", "last": "last", "first": "first", "sum": "sum"}
NORMS = {"layer": "layer", "batch": "batch", "none": "none", None: "none"}
RESIDUALS = {"R": True, "F": False, "none": False, None: False}

# keys of a stack, of a layer with state spaces and of an FFN that have an effect here
STACK = {"d_model", "n_layers", "dropout", "tie_dropout", "residual", "pool", "prenorm", "norm", "transposed"}
STACK |= {"backbone", "layer", "d_input", "n_classes", "decoder_mode", "vocab", "cutoffs", "div_val", "l_max"}
STACK |= {"n_repeat", "bidirectional"}
LAYER = {"d_model", "d_state", "mode", "init", "measure", "rank", "n_ssm", "channels", "bidirectional", "disc"}
LAYER |= {"dt_tie", "dt_transform", "real_transform", "imag_transform", "real_type", "l_max", "dt_min", "dt_max"}
LAYER |= {"activation", "final_act", "postact", "dropout", "tie_dropout"}
FFN = {"expand", "activation", "dropout", "tie_dropout"}
# those that matter only while training, or not at all
IGNORED = {"_name_", "lr", "wd", "weight_decay", "verbose", "transposed", "deterministic", "initializer", "backend"}
IGNORED |= {"trainable", "keops", "real_tolerance", "length_correction", "hurwitz", "tie_state", "track_norms"}
IGNORED |= {"layer", "drop_kernel", "init_args", "measure_args", "use_lengths", "cache", "precision"}
# those that make another model, unless they are off
OFF: dict[str, Any] = dict.fromkeys(("gate", "bottleneck", "gate_act", "mult_act", "hyper_act", "swap_channels"))
OFF |= dict.fromkeys(
    ("is_real", "dt_fast", "bandlimit", "weight_norm", "input_linear", "use_state", "resample", "comp")
)
OFF |= {"dropinp": 0, "stride": 1}


def check_keys(section: Mapping[str, Any], known: set[str], where: str) -> None:
    """
    Nothing that is written in a configuration is passed over.

    Raises:
        ValueError: for keys that are not known, or make a model that is not ours.
    """
    unknown = sorted(set(section) - known - IGNORED - set(OFF))
    if unknown:
        raise ValueError(f"The configuration of {where} has keys that are not known: {', '.join(unknown)}.")
    for name, off in OFF.items():
        if section.get(name) and section[name] != off:
            raise ValueError(f"The configuration of {where} has {name} {section[name]!r}, which is not supported.")


def one_of(table: Mapping[Any, Any], name: str, value: Any) -> Any:
    """
    What a value of the authors' is with us.

    Raises:
        ValueError: if it is not known.
    """
    if value not in table:
        raise ValueError(f"{name} is {value!r}; known are {', '.join(map(repr, table))}.")
    return table[value]


def sections(theirs: Mapping[str, Any]) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """
    The stack's options and those of its layers, one after another, which are repeated.

    Args:
        theirs: a stack, with `layer` (or a list of them) and perhaps `backbone`, or the options of a single block.

    Raises:
        ValueError: for keys that are not known, or make a model that is not ours.
    """
    if "layer" not in theirs or isinstance(theirs["layer"], str):
        check_keys(theirs, LAYER, "the block")
        return {"d_model": theirs.get("d_model"), "residual": None}, [dict(theirs)]
    stack = {**theirs, **(theirs.get("backbone") or {})}
    check_keys(stack, STACK, "the stack")
    if stack.get("bidirectional"):
        raise ValueError(
            "A stack with bidirectional layers of its own is not supported, only bidirectional state spaces."
        )
    layers = [stack["layer"]] if isinstance(stack["layer"], Mapping) else list(stack["layer"])
    for number, layer in enumerate(layers):
        is_ffn = layer.get("_name_") in ("ff", "ffn")
        check_keys(layer, FFN if is_ffn else LAYER, f"layer {number}")
    return stack, [dict(layer) for layer in layers]


def name_of(option: Any) -> Any:
    """The kind that an option names, by itself or as its `_name_`."""
    return option.get("_name_") if isinstance(option, Mapping) else option


def layer_kinds(tensors: Mapping[str, torch.Tensor]) -> list[str]:
    """
    `"s4"` or `"ffn"` for each layer.

    Raises:
        ValueError: if a layer is missing, or there is none.
    """
    kinds = {}
    for name in tensors:
        parts = name.split(".")
        if parts[0] == "layers" and parts[2] == "mixer" and parts[3] in ("ssm", "fc1"):
            kinds[int(parts[1])] = "s4" if parts[3] == "ssm" else "ffn"
    if not kinds or sorted(kinds) != list(range(len(kinds))):
        raise ValueError(f"These are no tensors of the authors' S4; they have the layers {sorted(kinds)}.")
    return [kinds[number] for number in range(len(kinds))]


def norm_of(tensors: Mapping[str, torch.Tensor]) -> str:
    """Kind of the norms."""
    for last, kind in (("running_mean", "batch"), ("scale", "scalar"), ("weight", "layer")):
        if f"layers.0.norm.{last}" in tensors:
            return kind
    return "none"


def stack_options(tensors: Mapping[str, torch.Tensor], stack: Mapping[str, Any], depth: int | None) -> dict[str, Any]:
    """Options of `S4Config` that are the stack's."""
    found_norm, source = norm_of(tensors), "the tensors"
    if "norm" in stack:
        norm = one_of(NORMS, "norm", name_of(stack["norm"]))
        agreed("norm", "scalar" if norm == "layer" and stack.get("transposed") else norm, found_norm, source)
    prenorm = any(name.startswith("final_norm.") for name in tensors)
    if found_norm != "none":
        agreed("prenorm", stack.get("prenorm"), prenorm, source)
    if (stack.get("pool") or {}).get("stride", 1) != 1:
        raise ValueError(f"pool is {stack['pool']}; only stacks of one length are supported.")
    kinds = layer_kinds(tensors)
    agreed("the number of layers", depth, len(kinds), source)
    period = next(n for n in range(1, len(kinds) + 1) if all(kinds[i] == kinds[i % n] for i in range(len(kinds))))
    options = {
        "num_hidden_layers": len(kinds),
        "layer_pattern": kinds[:period],
        "norm": found_norm,
        "prenorm": prenorm,
        "residual": one_of(RESIDUALS, "residual", name_of(stack.get("residual", "R"))),
    }
    if "ffn" in kinds:
        options["intermediate_size"] = len(tensors[f"layers.{kinds.index('ffn')}.mixer.fc1.bias"])
    return options


def head_options(tensors: Mapping[str, torch.Tensor], stack: Mapping[str, Any]) -> dict[str, Any]:
    """Options of `S4Config` that are those of embedding, classifier and softmax."""
    options: dict[str, Any] = {}
    source, weight = "the tensors", tensors.get("embeddings.weight")
    tables = [tensor for name, tensor in sorted(tensors.items()) if name.startswith("embeddings.table_")]
    vocab_size = None
    if tables:
        ends = torch.tensor([len(table) for table in tables]).cumsum(0).tolist()
        vocab_size, options["cutoffs"] = ends[-1], ends[:-1]
        options["div_val"] = tables[0].shape[1] // tables[min(1, len(tables) - 1)].shape[1]
        agreed("cutoffs", stack.get("cutoffs"), options["cutoffs"], source)
        agreed("div_val", stack.get("div_val"), options["div_val"], source)
    elif weight is not None and "embeddings.bias" not in tensors:
        vocab_size = len(weight)
    elif weight is not None:
        options["input_size"] = agreed("d_input", stack.get("d_input"), weight.shape[1], source)
    if vocab_size is not None:
        options["vocab_size"] = agreed("vocab", stack.get("vocab"), vocab_size, source)
    for last in ("classifier.bias", "classifier.2.bias"):
        if last in tensors:
            options["num_labels"] = agreed("n_classes", stack.get("n_classes"), len(tensors[last]), source)
            options["pooling"] = one_of(POOLING, "decoder_mode", stack.get("decoder_mode", "pool"))
            options["document_pairs"] = last == "classifier.2.bias"
    return options


def ssm_options(tensors: Mapping[str, torch.Tensor], prefix: str, layer: Mapping[str, Any]) -> dict[str, Any]:
    """Options of `S4Config` that are those of one layer with state spaces, beside what its conversion found."""
    a, c, d = (tensors[f"{prefix}ssm.{name}"] for name in ("A_real", "C", "D"))
    source, mode = "the tensors", "dplr" if f"{prefix}ssm.P" in tensors else "diag"
    init = layer.get("measure") or layer.get("init")
    init = str(init).removeprefix("diag-").removeprefix("dplr-") if init else None
    output = "none"
    if f"{prefix}out_proj.bias" in tensors:
        output = "glu" if len(tensors[f"{prefix}out_proj.bias"]) == 2 * d.shape[1] else "linear"
    given = [layer[name] for name in ("final_act", "postact") if name in layer]
    if given:
        agreed("final_act", one_of(OUTPUTS, "final_act", next(filter(None, given), None)), output, source)
    options = {
        "hidden_size": agreed("d_model", layer.get("d_model"), d.shape[1], source),
        "num_ssm": len(a),
        "channels": agreed("channels", layer.get("channels"), len(d), source),
        "bidirectional": agreed("bidirectional", layer.get("bidirectional"), len(c) == 2 * len(d), source),
        "tie_dt": agreed("dt_tie", layer.get("dt_tie"), tensors[f"{prefix}ssm.inv_dt"].shape[1] == 1, source),
        "state_size": 2 * a.shape[1],
        "mode": mode,
        "hidden_act": one_of(ACTIVATIONS, "activation", layer.get("activation", "gelu")),
        "mixer_output": output,
        "init": INITS.get(init, init) if init else None,
        "dt_min": layer.get("dt_min", 0.001),
        "dt_max": layer.get("dt_max", 0.1),
    }
    if mode == "dplr":
        options["rank"] = agreed("rank", layer.get("rank"), len(tensors[f"{prefix}ssm.P"]), source)
    return options


def config_for(
    theirs: Mapping[str, Any], tensors: Mapping[str, torch.Tensor], found: Mapping[str, Mapping[str, Any]]
) -> S4Config:
    """
    The configuration of a model with the authors' tensors.

    Args:
        theirs: their configuration. What tensors show may be left out.
        tensors: by our names, their state spaces converted.
        found: options that the conversion of state spaces found, by the prefix of their names.

    Raises:
        ValueError: if the two contradict each other, or make no model of ours.
        KeyError: if a tensor is missing.
    """
    stack, layers = sections(theirs)
    depth = stack.get("n_layers")
    depth = None if depth is None else depth * len(layers) * stack.get("n_repeat", 1)
    options: dict[str, Any] = {}
    for number, kind in enumerate(layer_kinds(tensors)):
        layer = layers[number % len(layers)]
        if kind == "ffn":
            continue
        prefix = f"layers.{number}.mixer."
        of_layer = ssm_options(tensors, prefix, {"d_model": stack.get("d_model"), **layer}) | found[f"{prefix}ssm."]
        different = sorted(name for name, value in of_layer.items() if options.get(name, value) != value)
        if different:
            raise ValueError(f"Layer {number} has another {different[0]} than those before; all must be alike.")
        options |= of_layer
        options.setdefault("hidden_dropout_prob", stack.get("dropout") or layer.get("dropout") or 0.0)
        options.setdefault("tie_dropout", bool(stack.get("tie_dropout", layer.get("tie_dropout"))))
    if "hidden_size" not in options:
        raise ValueError("These tensors have no state spaces.")
    return S4Config(**options | stack_options(tensors, stack, depth) | head_options(tensors, stack))
