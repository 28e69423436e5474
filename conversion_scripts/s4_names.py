"""The tensor names of the authors' S4 (github.com/state-spaces/s4), of all versions, as those of our S4 models."""

import re
from collections.abc import Mapping

import torch

from conversion_scripts.common import rename


LAYER = r"(?:model\.)?layers\.(\d+)"
SSM = r"(?:layer\.)?(?:kernel\.|krylov\.)*"  # v4 nests the convolution, older versions the kernel
A_REAL = r"A_real|inv_w_real|log_w_real"
OTHERS = r"inv_dt|log_dt|A_imag|inv_A_real|log_A_real|A|w|w_imag|B|C|D|P|Q|L|l_kernel|omega|nodes|z"

# the names of github.com/state-spaces/s4/blob/main/example.py as those of the others
EXAMPLE = {
    r"s4_layers\.(\d+)\.(.*)": r"layers.\1.layer.\2",
    r"norms\.(\d+)\.(.*)": r"layers.\1.norm.norm.\2",
    r"encoder\.(weight|bias)": r"encoder.0.\1",
    r"decoder\.(weight|bias)": r"decoder.0.output_transform.\1",
    r"(.*)": r"\1",
}
# a block by itself is the only layer of a stack
BLOCK = {
    r"((?:layer\.|kernel\.)*(?:D|kernel\..*))": r"layers.0.layer.\1",
    r"(output_linear\..*)": r"layers.0.layer.\1",
}
NAMES: dict[str, str | None] = {
    rf"{LAYER}\.layer\.{SSM}(?:{A_REAL})": r"layers.\1.mixer.ssm.A_real",
    rf"{LAYER}\.layer\.{SSM}({OTHERS})": r"layers.\1.mixer.ssm.\2",
    rf"{LAYER}\.layer\.output_linear\.(?:0\.)?(weight|bias)": r"layers.\1.mixer.out_proj.\2",
    rf"{LAYER}\.layer\.ff\.0\.0\.(weight|bias)": r"layers.\1.mixer.fc1.\2",
    rf"{LAYER}\.layer\.ff\.2\.(weight|bias)": r"layers.\1.mixer.fc2.\2",
    rf"{LAYER}\.norm\.norm\.s": r"layers.\1.norm.scale",
    rf"{LAYER}\.norm\.norm\.m": r"layers.\1.norm.shift",
    rf"{LAYER}\.norm\.norm\.(weight|bias|running_mean|running_var|num_batches_tracked)": r"layers.\1.norm.\2",
    r"(?:model\.)?norm\.norm\.s": r"final_norm.scale",
    r"(?:model\.)?norm\.norm\.m": r"final_norm.shift",
    r"(?:model\.)?norm\.norm\.(weight|bias|running_mean|running_var|num_batches_tracked)": r"final_norm.\1",
    r"encoder\.0\.(weight|bias)": r"embeddings.\1",
    r"encoder\.0\.emb_layers\.(\d+)\.weight": r"embeddings.table_\1",
    r"encoder\.0\.emb_projs\.(\d+)": r"embeddings.projection_\1",
    r"decoder\.0\.output_transform\.(weight|bias)": r"classifier.\1",
    r"decoder\.0\.retrieval\.classifier\.([02])\.(weight|bias)": r"classifier.\1.\2",
    r"loss\.out_projs\.0": r"lm_head.projection",
    r"loss\.out_layers_biases\.(\d+)": r"lm_head.biases.\1",
    r"loss\.cluster_(weight|bias)": r"lm_head.cluster_\1",
    r"loss\.shared_out_projs\.\d+": None,  # are the embedding's
    r"loss_val\..*": None,  # is the loss once more
}


def convert_names(state_dict: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """
    The authors' tensors under our names; those of state spaces end in the names of their own version.

    Raises:
        ValueError: if a tensor has a name that the authors' models do not have, or two have one name.
    """
    is_block = any(re.fullmatch(r"(?:layer\.)?D", name) for name in state_dict)
    tensors = rename(rename(state_dict, (BLOCK if is_block else {}) | EXAMPLE), NAMES)
    for name, tensor in tensors.items():
        if name.endswith(".out_proj.weight") and tensor.shape[2:] == (1,):  # a convolution of width 1
            tensors[name] = tensor.squeeze(-1)
    return tensors


def state_spaces(tensors: Mapping[str, torch.Tensor]) -> dict[str, dict[str, torch.Tensor]]:
    """The tensors of each layer's state spaces by the last part of their names, by the prefix of their names."""
    found: dict[str, dict[str, torch.Tensor]] = {}
    for name, tensor in tensors.items():
        prefix, ssm, last = name.rpartition(".ssm.")
        if ssm:
            found.setdefault(prefix + ssm, {})[last] = tensor
    return found
