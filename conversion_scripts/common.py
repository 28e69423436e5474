"""What the conversion scripts share: reading checkpoints, renaming by a table, the command, ImageNet's particulars."""

import argparse
import errno
import pickle
import re
import zipfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from safetensors.torch import load_file
from transformers import CLIPImageProcessorPil
from transformers.image_utils import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

from conversion_scripts.torchscript import is_torchscript, read_torchscript
from fusible.core.modeling import FusiblePreTrainedModel
from fusible.saved_models import publish


T = TypeVar("T")
IMAGENET_CLASSES = Path(__file__).with_name("imagenet1k_classes.txt")


class Discarded:
    """Stands for what frameworks write beside the tensors; takes any state and does nothing."""

    def __init__(self, *args: Any) -> None: ...

    def __setstate__(self, state: Any) -> None: ...


def read_entries(file: Path, also_safe: Sequence[Any] = ()) -> Any:
    """
    What a checkpoint holds, without running any code that it may carry.

    Args:
        file: `.safetensors`, or a file of `torch.save`, or of `torch.jit.save`, whose tensors it gives.
        also_safe: what unpickling may use beside tensors, plain values and `argparse.Namespace`; as for
            `torch.serialization.safe_globals`.

    Raises:
        OSError: if the file is not there, cut off, or of another kind.
        ValueError: if it holds objects that may run code.
    """
    if is_torchscript(file):
        return read_torchscript(file)
    try:
        if file.suffix == ".safetensors":
            return load_file(file)
        with torch.serialization.safe_globals([argparse.Namespace, *also_safe]):
            return torch.load(file, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(file))
    except (SafetensorError, pickle.UnpicklingError, RuntimeError, EOFError, OSError) as error:
        if isinstance(error, OSError) and error.errno != errno.EINVAL:  # torch's for some of the files cut off
            raise
        refused = re.search(r"GLOBAL ([\w.]+)", str(error))
        if refused:
            raise ValueError(
                f"{file} holds a {refused[1]}, and unpickling that may run code. Only tensors, plain values and "
                "argparse.Namespace are read; nothing was loaded."
            ) from None  # torch's own message advises to allow everything
        raise OSError(f"{file} is cut off, or no file of torch.save or safetensors. Download it again.") from error


def state_dict_in(content: Any, file: Path) -> dict[str, torch.Tensor]:
    """
    The tensors of a checkpoint by name.

    Args:
        content: what the file holds. The state dict may be all of it or its entry `model` or `state_dict` (other
            entries, such as the optimizer's, are ignored); a prefix `module.` of all names goes.
        file: for messages.

    Raises:
        ValueError: if there is no state dict.
    """
    entries = content if isinstance(content, Mapping) else {}
    tensors = next(
        (entries[name] for name in ("model", "state_dict") if isinstance(entries.get(name), Mapping)), entries
    )
    if not tensors or not all(isinstance(tensor, torch.Tensor) for tensor in tensors.values()):
        raise ValueError(f"{file} holds no state dict, neither as a whole nor as its entry 'model' or 'state_dict'.")
    if all(name.startswith("module.") for name in tensors):
        tensors = {name.removeprefix("module."): tensor for name, tensor in tensors.items()}
    return dict(tensors)


def read_checkpoint(file: Path) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """
    The tensors and the training arguments of a checkpoint, without running any code that it may carry.

    Args:
        file: as for `read_entries`, with a state dict as for `state_dict_in`.

    Returns:
        Tensors by name, and the values of the entry `args` by name (none if there is no such entry).

    Raises:
        OSError: if the file is not there, cut off, or of another kind.
        ValueError: if it holds objects that may run code, or no state dict.
    """
    content = read_entries(file)
    tensors = state_dict_in(content, file)
    arguments = content.get("args")
    return tensors, vars(arguments) if isinstance(arguments, argparse.Namespace) else {}


def rename(state_dict: Mapping[str, torch.Tensor], table: Mapping[str, str | None]) -> dict[str, torch.Tensor]:
    """
    Renames every tensor by the first pattern of the table that matches its whole name.

    Args:
        state_dict: tensors by their old names.
        table: regular expression -> replacement, as for `re.sub`, or `None` for tensors to leave out.

    Raises:
        ValueError: if names are left that no pattern matches, or two tensors get one name.
    """
    renamed: dict[str, torch.Tensor] = {}
    unknown = []
    for name, tensor in state_dict.items():
        pattern = next((pattern for pattern in table if re.fullmatch(pattern, name)), None)
        if pattern is None:
            unknown.append(name)
            continue
        replacement = table[pattern]
        if replacement is None:
            continue
        new_name = re.sub(pattern, replacement, name)
        if new_name in renamed:
            raise ValueError(f"Two tensors would be named {new_name}; the second was {name}.")
        renamed[new_name] = tensor
    if unknown:
        raise ValueError(f"{len(unknown)} tensors are of no known name: {', '.join(sorted(unknown)[:10])}")
    return renamed


def agreed(option: str, given: T | None, found: T | None, source: str) -> T | None:
    """
    The value of a command line option: the one given, or else the one found in the checkpoint.

    Raises:
        ValueError: if there are both and they differ.
    """
    if given is not None and found is not None and given != found:
        raise ValueError(
            f"{option} {given} contradicts {source}: {found}. Leave out {option}, or convert another file."
        )
    return found if given is None else given


def class_names(num_classes: int) -> dict[int, str]:
    """
    Names by class id: of ImageNet-1k for 1000 classes, otherwise the ids themselves.

    ImageNet's are the WordNet lemmas of its synsets, in the order of the synsets' ids, which is that of `ImageFolder`.
    Two classes are called "crane", the bird (134) and the machine (517).
    """
    if num_classes != 1000:
        return {index: str(index) for index in range(num_classes)}
    return dict(enumerate(IMAGENET_CLASSES.read_text(encoding="utf-8").splitlines()))


def image_processor(image_size: int) -> CLIPImageProcessorPil:
    """ImageNet's evaluation: short side to `image_size / 0.875`, bicubic, center crop, mean and deviation."""
    return CLIPImageProcessorPil(
        size={"shortest_edge": int(image_size / 0.875)},
        crop_size={"height": image_size, "width": image_size},
        image_mean=IMAGENET_DEFAULT_MEAN,
        image_std=IMAGENET_DEFAULT_STD,
    )


def load_and_publish(
    model: FusiblePreTrainedModel,
    tensors: Mapping[str, torch.Tensor],
    options: argparse.Namespace,
    processor: Any | None = None,
) -> FusiblePreTrainedModel:
    """
    Loads converted tensors and writes the folder, in the form that the command line asks for.

    Args:
        model: of the configuration; on the meta device, it takes the tensors themselves.
        tensors: by our names.
        options: of the command line, as `parser_for` has them.
        processor: to save with the model.

    Returns:
        The model as it was written.

    Raises:
        OSError: if the folder or the push cannot be completed.
        ValueError: if tensors are left over, missing or of other shapes; nothing was written.
    """
    try:
        model.load_state_dict(tensors, assign=model.device.type == "meta")
    except RuntimeError as error:
        raise ValueError(f"{options.checkpoint} does not fit the model that its sizes describe: {error}") from error
    source = None
    if options.fused and not model.config.fused:
        model, source = model.fuse(), model
    publish(model, options.output, processor, source, repo_id=options.push_to_hub)
    return model


def parser_for(doc: str | None, checkpoint: str) -> argparse.ArgumentParser:
    """
    A command line with the options that all conversions have.

    Args:
        doc: docstring of the script: a description, an empty line, and examples.
        checkpoint: what files `--checkpoint` takes.
    """
    description, examples = str(doc).split("\n\n", 1)
    parser = argparse.ArgumentParser(
        description=description, epilog=examples, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--checkpoint", type=Path, required=True, metavar="FILE", help=checkpoint)
    add("--output", type=Path, required=True, metavar="DIR", help="folder; made if missing")
    add("--fused", action="store_true", help="fuse a training checkpoint, and measure the difference for the card")
    add("--push-to-hub", metavar="USER/NAME", help="also push the folder there")
    return parser


def run(
    convert: Callable[[argparse.Namespace], str], parser: argparse.ArgumentParser, arguments: Sequence[str] | None
) -> None:
    """Runs a conversion; ends with one line and exit status 1 if the checkpoint cannot be converted."""
    try:
        print(convert(parser.parse_args(arguments)))
    except KeyError as error:
        raise SystemExit(f"Error: the checkpoint has no tensor {error}.") from error
    except (OSError, ValueError, StrictDataclassError) as error:
        raise SystemExit(f"Error: {error}") from error
