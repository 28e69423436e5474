"""The command `fusible convert`."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ._common import DtypeName, Json, Private, PushRevision, Revision, show


if TYPE_CHECKING:
    import torch
    from rich.table import Table

TEST_ROWS = 256  # that agreement is measured on, beyond those of the fit
DISTILLED_ROWS = 4096  # most rows that a distillation reads


def convert(
    source: Annotated[str, typer.Argument(help="Folder or Hub repository of a dense model.", show_default=False)],
    destination: Annotated[Path, typer.Argument(help="Folder for the inference form.", show_default=False)],
    data: Annotated[
        str,
        typer.Option(help="Folder of images, file with a text per line, or data set of the Hub; no labels needed."),
    ],
    idle_ratio: Annotated[
        float | None, typer.Option(min=0, max=1, help="Share of hidden channels without activation; 0.5 by default.")
    ] = None,
    speedup: Annotated[
        float | None, typer.Option(help="Instead: dense multiply-adds over fused; each block gets a share of its own.")
    ] = None,
    samples: Annotated[int, typer.Option(min=1, help="Rows that the fit reads.")] = 512,
    distill: Annotated[
        int | None, typer.Option(min=1, metavar="STEPS", help="Then train so long towards the dense model.")
    ] = None,
    min_agreement: Annotated[
        float | None, typer.Option(help="Exit 1 and write nothing if fewer predictions, or less cosine, stay.")
    ] = None,
    ffn_norm: Annotated[str | None, typer.Option(help="layer (exact) or batch (faster); for image models.")] = None,
    device: Annotated[str | None, typer.Option(help="Such as cuda; the CPU by default.")] = None,
    dtype: DtypeName = None,
    seed: Annotated[int, typer.Option(help="Of the choice of rows and tokens.")] = 0,
    push_to_hub: Annotated[str | None, typer.Option(metavar="USER/NAME", help="Also push it there.")] = None,
    revision: Revision = None,
    push_revision: PushRevision = None,
    private: Private = False,
    json: Json = False,
) -> None:
    """
    Make a dense model of transformers faster, on some inputs without labels, and say what it costs.

    Examples:

        fusible convert my-vit my-vit-fast --data photos --idle-ratio 0.75

        fusible convert sentence-transformers/all-MiniLM-L6-v2 minilm-fast --data sentences.txt --speedup 1.5
    """
    if idle_ratio is not None and speedup is not None:
        raise ValueError("Give --idle-ratio or --speedup, not both.")
    options: dict[str, Any] = {"idle_ratio": 0.5 if idle_ratio is None else idle_ratio}
    if speedup is not None:
        options = {"idle_ratio": "auto", "speedup": speedup}
    if ffn_norm is not None:
        options["ffn_norm"] = ffn_norm
    facts = convert_and_publish(
        source,
        destination,
        data,
        options,
        samples=samples,
        distill_steps=distill,
        min_agreement=min_agreement,
        device=device,
        dtype=dtype,
        seed=seed,
        repo_id=push_to_hub,
        revision=revision,
        push_revision=push_revision,
        private=private or None,
    )
    show(facts, json, conversion_table(facts))


def convert_and_publish(
    source: str,
    destination: Path,
    data: str,
    options: Mapping[str, Any],
    *,
    samples: int = 512,
    distill_steps: int | None = None,
    min_agreement: float | None = None,
    device: str | None = None,
    dtype: str | None = None,
    seed: int = 0,
    repo_id: str | None = None,
    revision: str | None = None,
    push_revision: str | None = None,
    private: bool | None = None,
) -> dict[str, Any]:
    """
    Converts a dense model, measures how far it agrees with it on other rows, and saves the inference form.

    Args:
        source: folder or Hub repository of a model of transformers.
        destination: folder, other than the source.
        data: see `data.inputs.sample_rows`.
        options: of the configuration, such as `idle_ratio`.
        samples: rows of the fit. Agreement is measured on up to 256 others; if there are none, on a tenth of these,
            without which the model is then fitted for the measurement alone.
        distill_steps: see `training.distill`, on up to `DISTILLED_ROWS`: those of the fit and, if there are more rows
            than these and those of the measurement, as many others as the steps take.
        min_agreement: least share of equal predictions, or mean cosine of models without a head.
        device: where the conversion runs.
        dtype: of the saved weights; the source's by default.
        seed: of the choice of rows and tokens.
        repo_id: where to push, if anywhere.
        revision: of the source repository.
        push_revision: branch to push to.
        private: visibility of a new repository.

    Returns:
        `source`, `revision`, `data`, `samples`, `test_rows`, `block_errors`, `agreement`, `options`, and of `dense`
        and `fused` the `parameters`, `macs` (per input), `megabytes` and `latency_ms`. With `distill_steps` also
        `distillation`: what `training.distill` returns, and `agreement_before`.

    Raises:
        ValueError: if the model or the data cannot be converted, source and destination are one, or too little agrees.
        OSError: if the source or the data are not there, or the folder or the push cannot be completed.
    """
    from functools import partial

    import torch

    from ..data.dataset import MappedDataset
    from ..data.inputs import example_of, input_batches, sample_rows
    from ..hub.processors import SavedProcessor
    from ..saved_models import find_dtype, publish
    from ..training.recovery import BATCH_SIZE, distill

    if destination.exists() and Path(source).exists() and destination.samefile(source):
        raise ValueError(f"{source} is both source and destination; give another folder.")
    cast_to = None if dtype is None else find_dtype(dtype)
    model_class, dense = load_dense_for(source, revision)
    processor = needed_processor(source, revision, dense)
    dense.to(device or "cpu")
    more = max(0, min((distill_steps or 0) * BATCH_SIZE, DISTILLED_ROWS) - samples)
    rows = sample_rows(data, dense.main_input_name, samples + TEST_ROWS + more, seed)
    fit, test, others = rows[:samples], rows[samples : samples + TEST_ROWS], rows[samples + TEST_ROWS :]
    held_out = not test
    if held_out:
        tenth = max(1, len(rows) // 10)
        fit, test = rows[tenth:], rows[:tenth]
    test_batches = list(input_batches(test, processor))

    def converted(fit: Sequence[Any]) -> tuple[Any, dict[str, float]]:
        """The inference form and, if it is distilled, the agreement before that."""
        model = model_class.from_dense(dense, input_batches(fit, processor), seed=seed, **options)
        after_fit = {}
        if distill_steps is not None:
            after_fit = compare_outputs_of(dense, model, test_batches)
            learned = MappedDataset([*fit, *others], partial(example_of, processor=processor))
            distill(model, dense, learned, steps=distill_steps, seed=seed)
        return model.fuse(share=True), after_fit

    fused, after_fit = converted(fit)
    agreement = compare_outputs_of(dense, fused, test_batches)
    if held_out:
        fused, _ = converted(rows)
    measure = "same_predictions" if "same_predictions" in agreement else "cosine"
    # also refuses what is no number
    if min_agreement is not None and not agreement[measure] >= min_agreement:
        raise ValueError(
            f"{measure} is {agreement[measure]:.4f} on {len(test)} other rows, less than {min_agreement}. Nothing was "
            "written. A lower --idle-ratio, more --samples or --distill keep more."
        )
    record = {
        "source": source,
        "revision": getattr(dense.config, "_commit_hash", None) or revision,
        "data": data,
        "test_rows": len(test),
        **fused.config.conversion,
        "agreement": agreement,
    }
    if distill_steps is not None:
        record["distillation"]["agreement_before"] = after_fit
    fused.config.conversion = record
    facts = {**record, "options": dict(options), **sizes_and_times(dense, fused, test_batches[0])}
    if cast_to is not None:
        fused.to(cast_to)
    publish(
        fused.to(torch.device("cpu")),
        destination,
        SavedProcessor(source, revision=revision or "main"),
        None,
        measure=False,
        repo_id=repo_id,
        revision=push_revision,
        private=private,
        card_data={"base_model": source} if not Path(source).exists() else None,
    )
    return facts


def load_dense_for(source: str, revision: str | None) -> tuple[Any, Any]:
    """
    The class that a dense model is converted to, and the model.

    Raises:
        ValueError: if there is none for it.
    """
    import transformers
    from transformers import AutoConfig

    from .._auto import AUTO_CLASSES
    from ..core.backbones import BACKBONES, backbone_spec
    from ..core.dense import dense_config
    from ..core.text_backbones import TEXT_BACKBONES
    from ..saved_models import class_for, load_complete

    config = dense_config(source, revision=revision or "main")  # of a CLIP its vision tower's
    whole = AutoConfig.from_pretrained(source, revision=revision or "main")
    family = "repa_text" if config.model_type in TEXT_BACKBONES else "repavit"
    if config.model_type not in {**BACKBONES, **TEXT_BACKBONES}:
        known = ", ".join(sorted({*BACKBONES, *TEXT_BACKBONES}))
        raise ValueError(f"{source} is a {config.model_type!r} model, which has no converter; known are {known}.")
    if family == "repavit":
        backbone_spec(config).check_ffn(config)
    _, with_head, head = (whole.architectures or [""])[0].partition("For")
    # a head that there is no class for, such as one of pretraining, is left out
    auto = f"AutoModelFor{head}" if f"AutoModelFor{head}" in AUTO_CLASSES[family] and with_head else "AutoModel"
    if auto == "AutoModel" and config.model_type != whole.model_type:
        raise ValueError(
            f"{source} is a {whole.model_type!r} model of two towers; convert its vision tower, saved by itself, or "
            "use RePaViTForZeroShotImageClassification.from_dense."
        )
    return class_for(family, auto), load_complete(
        getattr(transformers, auto), source, revision=revision or "main"
    ).eval()


def needed_processor(source: str, revision: str | None, dense: Any) -> Any:
    """
    What makes a dense model's inputs.

    Raises:
        ValueError: if nothing there does.
    """
    from ..saved_models import load_processor

    processor = load_processor(source, revision, dense.main_input_name)
    if processor is None:
        raise ValueError(f"{source} has nothing that makes {dense.main_input_name}; save its processor there.")
    return processor


def _outputs(model: Any, batch: Mapping[str, "torch.Tensor"]) -> "torch.Tensor":
    """Logits `[rows, labels]`, or features `[rows, channels]`: what is pooled of images, the mean of texts' tokens."""
    from ..hub.form_facts import moved

    found = model(**moved(batch, model.device, model.dtype))
    if "logits" in found:
        return found.logits.flatten(0, -2).float()
    if model.main_input_name == "input_ids":
        mask = batch["attention_mask"].to(model.device)[..., None]
        return ((found.last_hidden_state * mask).sum(1) / mask.sum(1)).float()
    pooled = found.get("pooler_output")
    return (found.last_hidden_state.flatten(1, -2).mean(1) if pooled is None else pooled.flatten(1)).float()


def compare_outputs_of(dense: Any, fused: Any, batches: Sequence[Mapping[str, "torch.Tensor"]]) -> dict[str, float]:
    """
    How far two models agree.

    Returns:
        `cosine`, the mean over rows of that of their outputs; of logits also `same_predictions`, a share, and `kl`,
        the mean divergence from the dense model's distribution, in nats.
    """
    import torch
    import torch.nn.functional as F

    with torch.no_grad():
        pairs = [(_outputs(dense, batch), _outputs(fused, batch)) for batch in batches]
    expected, found = (torch.cat(part) for part in zip(*pairs, strict=True))
    results = {"cosine": F.cosine_similarity(expected, found).mean().item()}
    if type(fused).__name__.partition("For")[1] and expected.shape[-1] > 1:
        results["same_predictions"] = (expected.argmax(-1) == found.argmax(-1)).float().mean().item()
        own, wanted = F.log_softmax(found, dim=-1), F.log_softmax(expected, dim=-1)
        results["kl"] = F.kl_div(own, wanted, log_target=True, reduction="batchmean").item()
    return {name: round(value, 6) if math.isfinite(value) else value for name, value in results.items()}


def sizes_and_times(dense: Any, fused: Any, batch: Mapping[str, "torch.Tensor"]) -> dict[str, dict[str, float]]:
    """Size and cost of both models, their latencies taken in turns on one batch."""
    from functools import partial

    from ..benchmark import count_macs, count_parameters, median_seconds
    from ..hub.form_facts import moved

    inputs = moved(batch, dense.device, dense.dtype)
    rows = len(inputs[dense.main_input_name])
    models = {"dense": dense, "fused": fused}
    seconds = median_seconds([partial(model, **inputs) for model in models.values()], 5, 1, dense.device)
    return {
        name: {
            "parameters": count_parameters(model),
            "macs": count_macs(model, **inputs) // rows,
            "megabytes": sum(tensor.nbytes for tensor in model.state_dict().values()) / 1e6,
            "latency_ms": 1e3 * time,
        }
        for (name, model), time in zip(models.items(), seconds, strict=True)
    }


def conversion_table(facts: Mapping[str, Any]) -> "Table":
    """A conversion for the terminal."""
    from rich.table import Table

    table = Table("", "dense", "fused", "ratio", title=f"{facts['source']}, {facts['options']}")
    names = {"parameters": ",", "macs": ",", "megabytes": ",.1f", "latency_ms": ",.1f"}
    for name, form in names.items():
        before, after = facts["dense"][name], facts["fused"][name]
        table.add_row(name, format(before, form), format(after, form), f"{after / before:.2f}")
    for name, value in facts["agreement"].items():
        table.add_row(f"{name} ({facts['test_rows']} rows)", "", f"{value:.4f}", "")
    for name, value in facts.get("distillation", {}).get("agreement_before", {}).items():
        table.add_row(f"{name} before distillation", "", f"{value:.4f}", "")
    for number, error in enumerate(facts["block_errors"]):
        table.add_row(f"error of block {number}", "", f"{error:.4f}", "")
    return table


__all__ = ["convert"]
