"""Public names and their modules. Each is imported when it is first used."""

from .callbacks import EWACallback as EWACallback, FusedExportCallback as FusedExportCallback
from .distillation import (
    DistillationTrainer as DistillationTrainer,
    distillation_loss as distillation_loss,
    soft_cross_entropy as soft_cross_entropy,
    state_distance as state_distance,
)
from .ema import EMACallback as EMACallback
from .evaluate import evaluate_model as evaluate_model, load_metric as load_metric, trainer_metrics as trainer_metrics
from .optim import Lamb as Lamb, optimizer_cls_and_kwargs as optimizer_cls_and_kwargs, param_groups as param_groups
from .recovery import distill as distill
from .setup import (
    build_model as build_model,
    load_data as load_data,
    load_processor as load_processor,
    load_teacher as load_teacher,
)
from .train import prepare as prepare, run as run
