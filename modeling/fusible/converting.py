"""Dense models that are converted and published, and how far they agree with what they were made from."""

import copy
import math
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
import transformers
from transformers import AutoConfig
from transformers.utils import CONFIG_NAME, cached_file, extract_commit_hash

from ._auto import AUTO_CLASSES
from .benchmark import count_macs, count_parameters, median_seconds
from .core.backbones import BACKBONES, backbone_spec
from .core.dense import dense_config
from .core.text_backbones import TEXT_BACKBONES
from .data.dataset import MappedDataset
from .data.inputs import example_of, input_batches, sample_rows
from .error_plot import check_plot, draw_errors
from .hub.form_facts import check_agreement, compare_forms, moved
from .hub.partial_work import PartialWork, digest_of
from .hub.processors import SavedProcessor
from .models.repavit.feed_forward import ChannelIdleFeedForward
from .models.repavit.linearity import IDLE_RATIOS, measure_linearity
from .saved_models import check_destination, class_for, find_device, find_dtype, load_complete, publish
from .training.recovery import BATCH_SIZE, distill


TEST_ROWS = 256  # that agreement is measured on, beyond those of the fit
DISTILLED_ROWS = 4096  # most rows that a distillation reads


def convert_and_publish(
    source: str,
    destination: Path,
    data: str,
    options: Mapping[str, Any],
    *,
    column: str | None = None,
    samples: int = 512,
    distill_steps: int | None = None,
    min_agreement: float | None = None,
    device: str | None = None,
    dtype: str | None = None,
    tolerance: float | None = None,
    plot: Path | None = None,
    seed: int = 0,
    repo_id: str | None = None,
    revision: str | None = None,
    push_revision: str | None = None,
    private: bool | None = None,
    token: str | None = None,
    trust_remote_code: bool = False,
) -> dict[str, Any]:
    """
    Converts a dense model, measures how far it agrees with it on other rows, and saves the inference form.

    A killed conversion goes on at its block when it is called again.

    Args:
        source: folder or Hub repository of a model of transformers.
        destination: folder, other than the source.
        data: see `data.inputs.sample_rows`.
        column: of a data set.
        options: of the configuration, such as `idle_ratio`.
        samples: rows of the fit. Agreement is measured on up to 256 others; if there are none, on a tenth of these,
            without which the model is then fitted for the measurement alone.
        distill_steps: see `training.distill`, on up to `DISTILLED_ROWS`: those of the fit and, if there are more rows
            than these and those of the measurement, as many others as the steps take.
        min_agreement: least share of equal predictions, or mean cosine of models without a head.
        device: where the conversion runs.
        dtype: of the saved weights; the source's by default.
        tolerance: how much the two forms of the result may differ on these rows, relative to the largest output;
            `None` does not compare.
        plot: file for a picture of error against idle ratio, see `draw_errors`; the record then has the numbers.
        seed: of the choice of rows and tokens.
        repo_id: where to push, if anywhere.
        revision: of the source repository.
        push_revision: branch to push to.
        private: visibility of a new repository.
        token: of the Hub.
        trust_remote_code: whether Python files of the source may run.

    Returns:
        `source`, `revision`, `data`, `samples`, `test_rows`, `block_errors`, `idle_ratios`, `agreement`,
        `options`, and of `dense` and `fused` the `parameters`, `macs` (per input), `megabytes` and `latency_ms`. With
        `distill_steps` also `distillation`: what `training.distill` returns, and `agreement_before`. With `plot` also
        `error_curves`: `idle_ratios` and, for each block, `errors` at these.

    Raises:
        ValueError: if the model or the data cannot be converted, source and destination are one, the destination is a
            file or holds a training form, the forms of the result differ, or too little agrees.
        OSError: if the source or the data are not there, or the folder or the push cannot be completed.
    """
    _check_places(source, destination, repo_id, revision, push_revision)
    if plot is not None:
        check_plot(plot)
    cast_to = None if dtype is None else find_dtype(dtype)
    used_device = find_device(device or "cpu")
    loading: dict[str, Any] = {"token": token} if token else {}
    loading |= {"trust_remote_code": True} if trust_remote_code else {}
    model_class, dense = load_dense_for(source, revision, **loading)
    more = max(0, min((distill_steps or 0) * BATCH_SIZE, DISTILLED_ROWS) - samples)
    rows = sample_rows(data, dense.main_input_name, samples + TEST_ROWS + more, seed, column, token)
    processor = needed_processor(source, revision, dense, **loading)
    dense.to(used_device)
    fit, test, others = rows[:samples], rows[samples : samples + TEST_ROWS], rows[samples + TEST_ROWS :]
    held_out = not test
    if held_out:
        if len(rows) == 1:
            raise ValueError(
                f"{data} has one row, which cannot both be fitted and show how well that went; give more."
            )
        tenth = max(1, len(rows) // 10)
        fit, test = rows[tenth:], rows[:tenth]
    work = PartialWork(destination)
    with work.kept_if_killed():
        test_batches = list(input_batches(test, processor))

        def converted(fit: Sequence[Any]) -> tuple[Any, dict[str, float]]:
            """The training form and, if it is distilled, the agreement before that."""
            batches = list(input_batches(fit, processor))
            key = digest_of(dense.state_dict(), batches, dict(options), seed, str(dense.device))
            finished = work.files(key, is_first=fit is not rows)
            model = model_class.from_dense(dense, batches, seed=seed, finished=finished, **options)
            after_fit = {}
            if distill_steps is not None:
                after_fit = compare_outputs_of(dense, model, test_batches)
                learned = MappedDataset([*fit, *others], partial(example_of, processor=processor))
                distill(model, dense, learned, steps=distill_steps, seed=seed)
            return model, after_fit

        model, after_fit = converted(fit)
        fused = model.fuse(share=True)
        agreement = compare_outputs_of(dense, fused, test_batches)
        if held_out:
            model, _ = converted(rows)
            fused = model.fuse(share=True)
        if tolerance is not None:
            check_agreement(compare_forms(model, fused, test_batches), tolerance)
        measure = "same_predictions" if "same_predictions" in agreement else "cosine"
        # also refuses what is no number
        if min_agreement is not None and not agreement[measure] >= min_agreement:
            raise ValueError(
                f"{measure} is {agreement[measure]:.4f} on {len(test)} other rows, less than {min_agreement}. Nothing "
                "was written. A lower --idle-ratio, more --samples or --distill keep more."
            )
        ffns = [module for module in model.modules() if isinstance(module, ChannelIdleFeedForward)]
        idle_ratios = [round(1 - ffn.active_channels / ffn.fc1.out_features, 6) for ffn in ffns]
        # of a Hub repository the path of a downloaded file says it
        config_file = cached_file(source, CONFIG_NAME, revision=revision or "main", token=token)
        record = {
            "source": source,
            "revision": extract_commit_hash(config_file, None) or revision,
            "data": data,
            "test_rows": len(test),
            **fused.config.conversion,
            "idle_ratios": idle_ratios,
            "agreement": agreement,
        }
        if distill_steps is not None:
            record["distillation"]["agreement_before"] = after_fit
        if plot is not None:
            # casting would change the model whose size is told
            twin = copy.deepcopy(dense) if dense.dtype.itemsize < 4 else dense
            found = measure_linearity(twin, model_class, input_batches(fit, processor), IDLE_RATIOS, seed)
            curves = [[round(error, 6) for error in curve] for curve in zip(*found["errors"].values(), strict=True)]
            record["error_curves"] = {"idle_ratios": list(IDLE_RATIOS), "errors": curves}
            draw_errors(plot, found["errors"], idle_ratios, title=Path(source).name)
        fused.config.conversion = record
        facts = {**record, "options": dict(options), **sizes_and_times(dense, fused, test_batches[0])}
        if cast_to is not None:
            fused.to(cast_to)
        publish(
            fused.to(torch.device("cpu")),
            destination,
            SavedProcessor(source, revision=revision or "main", **loading),
            None,
            measure=False,
            repo_id=repo_id,
            revision=push_revision,
            private=private,
            token=token,
            card_data={"base_model": source} if not Path(source).exists() else None,
        )
    return facts


def _check_places(
    source: str, destination: Path, repo_id: str | None, revision: str | None, push_revision: str | None
) -> None:
    """Raises `ValueError` if a destination is the source, or nothing can be saved there."""
    is_same = destination.exists() and Path(source).exists() and destination.samefile(source)
    # a folder of this name would stand for the repository from then on
    if is_same or str(destination) == source:
        raise ValueError(f"{source} is both source and destination; give another folder.")
    if repo_id == source and (push_revision or "main") == (revision or "main"):
        raise ValueError(f"{source} is both the source and where to push; give another repository or --push-revision.")
    check_destination(destination)


def load_dense_for(source: str, revision: str | None, **loading: Any) -> tuple[Any, Any]:
    """
    The class that a dense model is converted to, and the model.

    Args:
        source: folder or Hub repository.
        revision: of the repository.
        **loading: `token` and `trust_remote_code`, as for `from_pretrained`.

    Raises:
        ValueError: if there is none for it.
    """
    loading["revision"] = revision or "main"
    config = dense_config(source, **loading)  # of a CLIP its vision tower's
    whole = AutoConfig.from_pretrained(source, **loading)
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
    return class_for(family, auto), load_complete(getattr(transformers, auto), source, **loading).eval()


def needed_processor(source: str, revision: str | None, dense: Any, **loading: Any) -> Any:
    """
    What makes a dense model's inputs.

    Args:
        source: the model's folder or Hub repository.
        revision: of the repository.
        dense: the model.
        **loading: as for `load_dense_for`.

    Raises:
        ValueError: if nothing there does.
    """
    processor = SavedProcessor(source, revision=revision or "main", **loading).load(dense.main_input_name)
    if processor is None:
        raise ValueError(f"{source} has nothing that makes {dense.main_input_name}; save its processor there.")
    return processor


def _outputs(model: Any, batch: Mapping[str, torch.Tensor], fused: Any) -> torch.Tensor:
    """Logits `[rows, labels]`, or features `[rows, channels]`: what heads read of images, of texts the mean token."""
    found = model(**moved(batch, model.device, model.dtype))
    if "logits" in found:
        return found.logits.flatten(0, -2).float()
    if model.main_input_name == "input_ids":
        mask = batch["attention_mask"].to(model.device)[..., None]
        return ((found.last_hidden_state * mask).sum(1) / mask.sum(1)).float()
    # a dense model's own pooler may be another one, such as that of a ViT, which ends with tanh
    pooled = fused.feature(found)
    return (found.last_hidden_state.flatten(1, -2).mean(1) if pooled is None else pooled.flatten(1)).float()


def compare_outputs_of(dense: Any, fused: Any, batches: Sequence[Mapping[str, torch.Tensor]]) -> dict[str, float]:
    """
    How far two models agree.

    Returns:
        `cosine`, the mean over rows of that of their outputs; of logits also `same_predictions`, a share, and `kl`,
        the mean divergence from the dense model's distribution, in nats.
    """
    with torch.no_grad():
        pairs = [(_outputs(dense, batch, fused), _outputs(fused, batch, fused)) for batch in batches]
    expected, found = (torch.cat(part) for part in zip(*pairs, strict=True))
    results = {"cosine": F.cosine_similarity(expected, found).mean().item()}
    if type(fused).__name__.partition("For")[1] and expected.shape[-1] > 1:
        results["same_predictions"] = (expected.argmax(-1) == found.argmax(-1)).float().mean().item()
        own, wanted = F.log_softmax(found, dim=-1), F.log_softmax(expected, dim=-1)
        results["kl"] = F.kl_div(own, wanted, log_target=True, reduction="batchmean").item()
    return {name: round(value, 6) if math.isfinite(value) else value for name, value in results.items()}


def sizes_and_times(dense: Any, fused: Any, batch: Mapping[str, torch.Tensor]) -> dict[str, dict[str, float]]:
    """Size and cost of both models, their latencies taken in turns on one batch."""
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


__all__ = ["compare_outputs_of", "convert_and_publish", "load_dense_for", "needed_processor", "sizes_and_times"]
