"""Perplexity of language models; for `evaluate.load`."""

from typing import Any

import datasets
import evaluate
import numpy as np


class Perplexity(evaluate.Metric):
    """Every token counts the same, wherever it stands."""

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description="exp of the mean negative log-likelihood of the tokens.",
            citation="",
            inputs_description="predictions: negative log-likelihood of each token, in nats.",
            features=datasets.Features({"predictions": datasets.Value("float64")}),
        )

    def _compute(self, predictions: Any) -> dict[str, float]:
        return {"perplexity": float(np.exp(np.mean(predictions)))}
