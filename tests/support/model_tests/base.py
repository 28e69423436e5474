"""What the groups of tests share."""

import torch
from transformers import PreTrainedModel


@torch.no_grad()
def perturb_(model: torch.nn.Module, scale: float = 0.2) -> None:
    """Moves all weights and statistics away from their initial values, where many errors cancel."""
    for parameter in model.parameters():
        parameter.add_(torch.randn_like(parameter), alpha=scale)
    for name, buffer in model.named_buffers():
        if name.endswith("running_mean"):
            buffer.normal_()
        elif name.endswith("running_var"):
            buffer.uniform_(0.5, 2)


class ModelTests:
    """Base class: builds perturbed models in eval mode."""

    model_classes: tuple[type[PreTrainedModel], ...]
    cases: tuple[str, ...]
    main_cases: tuple[str, ...]

    def make_config(self, case: str):
        raise NotImplementedError

    def make_inputs(self, config, batch_size: int = 3) -> dict[str, torch.Tensor]:
        raise NotImplementedError

    def take_method_out(self, model: PreTrainedModel) -> None:
        raise NotImplementedError

    def make_model(self, model_class, case: str, dtype: torch.dtype = torch.float64) -> PreTrainedModel:
        model = model_class(self.make_config(case))
        perturb_(model)
        return model.to(dtype).eval()

    def is_fused(self, model: PreTrainedModel) -> bool:
        return model.config.fused

    def name_in_fused(self, name: str) -> str:
        """What a tensor of the training form is called in the inference form, if fusing leaves it alone."""
        return name

    def name_with_head(self, name: str) -> str:
        """What a tensor of the first model class is called in one with a head."""
        return name

    def load(self, model_class, folder, **arguments) -> PreTrainedModel:
        """A saved model of one of the `model_classes`, in its own form."""
        return model_class.from_pretrained(folder, **arguments)

    def head_class(self) -> type[PreTrainedModel]:
        return self.model_classes[-1]

    @torch.no_grad()
    def output(self, model: PreTrainedModel) -> torch.Tensor:
        """The model's first output on inputs that are the same for every model of one config."""
        generator_state = torch.get_rng_state()
        torch.manual_seed(1)
        inputs = self.make_inputs(model.config)
        torch.set_rng_state(generator_state)
        inputs.pop("labels")
        inputs = {k: v.to(model.dtype) if v.is_floating_point() else v for k, v in inputs.items()}
        return model(**inputs)[0]


def relative_error(actual: torch.Tensor, expected: torch.Tensor) -> float:
    return ((actual - expected).abs().max() / expected.abs().max()).item()
