"""Compiled kernels of S4 models, which may be saved beside the weights."""

import json
import os
from pathlib import Path
from typing import Any, Self

import torch
from huggingface_hub import CommitInfo
from transformers.utils import CONFIG_NAME

from ...core.modeling import FusiblePreTrainedModel
from ...core.options import DOWNLOAD_ARGUMENTS
from ...hub.kernel_repository import push_kernels
from ...hub.weight_files import KERNEL_FOLDER
from ...kernels.loading import (
    VERSION,
    Kernels,
    KernelSource,
    digest_of,
    installed_repository,
    load_kernels,
    variants_in,
    verify,
    write_variant,
)
from .configuration_s4 import S4Config
from .recurrence import S4Recurrence
from .state_space import S4StateSpace


class S4KernelModel(FusiblePreTrainedModel):
    """
    A model whose state spaces may run by compiled kernels, where tensors are on a device that these are for.

    By default, they do if the installed package has kernels or a trusted repository comes with them.
    """

    config: S4Config
    _kernels: Kernels | None = None  # what was found when the model was loaded

    def _layers(self) -> list[S4StateSpace | S4Recurrence]:
        return [module for module in self.modules() if isinstance(module, S4StateSpace | S4Recurrence)]

    def _use(self, kernels: Kernels | None) -> None:
        for layer in self._layers():
            layer.kernels = kernels

    @property
    def use_kernels(self) -> bool:
        """Whether the model has compiled kernels to run by; to be set as well."""
        return any(layer.kernels is not None for layer in self._layers())

    @use_kernels.setter
    def use_kernels(self, value: bool) -> None:
        self.set_use_kernels(value)

    def set_use_kernels(self, use_kernels: bool, kernel_config: Any = None, mode: Any = None) -> None:
        """
        Runs by compiled kernels from now on, or by plain torch.

        Args:
            use_kernels: `True` is a warning if there are none.
            kernel_config: other kernels, for parts that transformers knows; as for `PreTrainedModel`.
            mode: as for `PreTrainedModel`, for `kernel_config`.
        """
        if kernel_config is not None:
            super().set_use_kernels(use_kernels, kernel_config, mode)
        elif not use_kernels:
            self._use(None)
        elif not self.use_kernels:
            self._use(self._kernels or load_kernels(KernelSource(required=True)))

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | os.PathLike | None,
        *model_args: Any,
        use_kernels: bool | None = None,
        **kwargs: Any,
    ) -> Self:
        """
        Loads a model, as `FusiblePreTrainedModel.from_pretrained` does.

        Args:
            pretrained_model_name_or_path: folder or Hub repository.
            use_kernels: whether compiled kernels are used: `True` is a warning if there are none; by default, what
                the configuration says. Those that come with the model run only with `trust_remote_code=True`.
            **kwargs: the other arguments of `FusiblePreTrainedModel.from_pretrained`.
        """
        trusted = bool(kwargs.get("trust_remote_code"))
        download = {name: kwargs[name] for name in DOWNLOAD_ARGUMENTS if name in kwargs}
        result = super().from_pretrained(pretrained_model_name_or_path, *model_args, **kwargs)
        # a tuple with output_loading_info=True
        model = result[0] if isinstance(result, tuple) else result
        if use_kernels is not None:
            model.config.use_kernels = use_kernels
        if model.config.use_kernels is not False:
            # snapshot_download takes no subfolder: it becomes a part of the kernels' path
            record, subfolder = model.config.kernels or {}, download.pop("subfolder", None)
            folder = record.get("folder")
            source = KernelSource(
                repo_id=record.get("repo_id"),
                revision=record.get("revision"),
                model=str(pretrained_model_name_or_path),
                folder=f"{subfolder}/{folder}" if folder and subfolder else folder,
                download=download,
                digests=record.get("digests"),
                trust_remote_code=trusted,
                required=model.config.use_kernels is True,
            )
            model._kernels = load_kernels(source)
            model._use(model._kernels)
        return result

    def _whole_twin(self, state_dict: dict[str, torch.Tensor]) -> Self:
        twin = super()._whole_twin(state_dict)
        # not those that its constructor found: it runs by what this model runs by
        twin._kernels = self._kernels
        twin._use(next((layer.kernels for layer in self._layers()), None))
        return twin

    def _variants(self) -> list[Path]:
        """What there is to take along: the kernels of the package, or else those that the model came with."""
        repository = installed_repository()
        variants = [] if repository is None else variants_in(repository / "build")
        if not variants and self._kernels is not None:
            variants = variants_in(self._kernels.variant.parent)
        return variants

    def _save_extra_files(self, folder: Path) -> None:
        """Puts the kernels beside an inference form, and what they are into its configuration."""
        file = folder / CONFIG_NAME
        if not file.exists():
            return
        config = json.loads(file.read_text(encoding="utf-8"))
        # what the model came with need not be what is saved
        config.pop("kernels", None)
        variants = self._variants() if self.config.fused and self.config.use_kernels is not False else []
        if variants:
            for variant in variants:
                write_variant(verify(variant), folder / KERNEL_FOLDER / "build" / variant.name)
            digests = {variant.name: digest_of(variant) for variant in variants}
            published: dict[str, Any] = self.config.kernels or {}
            # the repository on the Hub has other kernels than those saved here
            if published.get("digests") != digests:
                published = {}
            config["kernels"] = published | {"folder": KERNEL_FOLDER, "digests": digests}
        file.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")

    def _publish_kernels(self, repo_id: str, token: bool | str | None, private: bool | None) -> None:
        variants, repository = self._variants(), installed_repository()
        if not variants:
            raise ValueError("There are no kernels to publish: the installed fusible has none; `make kernels`.")
        card = None if repository is None else repository / "CARD.md"
        commit = push_kernels(variants, repo_id, VERSION, card=card, token=token, private=private)
        # noted before the model is saved, whose configuration takes it along
        if commit is not None:
            digests = {variant.name: digest_of(variant) for variant in variants}
            self.config.kernels = {"repo_id": commit.repo_url.repo_id, "revision": commit.oid, "digests": digests}

    def save_pretrained(
        self, save_directory: str | os.PathLike, *args: Any, kernel_repo_id: str | None = None, **kwargs: Any
    ) -> None:
        """
        Saves the model, as `FusiblePreTrainedModel.save_pretrained` does; the inference form with its kernels.

        Args:
            save_directory: its other files stay as they are.
            *args: the other arguments of `FusiblePreTrainedModel.save_pretrained`.
            kernel_repo_id: with `fused=True` and `push_to_hub=True`, a kernel repository on the Hub to publish the
                kernels in as well, for any program. It is a warning if the account may not make one.
            **kwargs: the other arguments of `FusiblePreTrainedModel.save_pretrained`.

        Raises:
            ValueError: if kernels are to be published, but not pushed with a fused model, or there are none.
        """
        if kernel_repo_id is not None:
            if not kwargs.get("push_to_hub") or not (kwargs.get("fused") or self.config.fused):
                raise ValueError("kernel_repo_id needs push_to_hub=True and fused=True.")
            self._publish_kernels(kernel_repo_id, kwargs.get("token"), kwargs.get("private"))
        super().save_pretrained(save_directory, *args, **kwargs)

    def push_to_hub(self, repo_id: str, *, kernel_repo_id: str | None = None, **kwargs: Any) -> CommitInfo:  # type: ignore[override]
        """
        Pushes the model, as `FusiblePreTrainedModel.push_to_hub` does; the inference form with its kernels.

        Args:
            repo_id: `user/name`; created if missing.
            kernel_repo_id: with `fused=True`, as for `save_pretrained`.
            **kwargs: the other arguments of `FusiblePreTrainedModel.push_to_hub`.
        """
        if kernel_repo_id is not None:
            if not (kwargs.get("fused") or self.config.fused):
                raise ValueError("kernel_repo_id needs fused=True.")
            self._publish_kernels(kernel_repo_id, kwargs.get("token"), kwargs.get("private"))
        return super().push_to_hub(repo_id, **kwargs)


__all__ = ["S4KernelModel"]
