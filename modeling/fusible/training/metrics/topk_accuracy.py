"""Accuracy of classifiers, and whether the label is among the likeliest classes; for `evaluate.load`."""

from typing import Any

import datasets
import evaluate
import numpy as np


class TopKAccuracy(evaluate.Metric):
    """Takes classes in the order of their likelihood, so that no logits have to be kept."""

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description="Share of samples whose label is the first class, and one of the first five.",
            citation="",
            inputs_description="predictions: the likeliest classes, best first; references: labels.",
            features=datasets.Features(
                {
                    "predictions": datasets.Sequence(datasets.Value("int64")),
                    "references": datasets.Value("int64"),
                }
            ),
        )

    def _compute(self, predictions: Any, references: Any) -> dict[str, float]:
        hits = np.asarray(predictions) == np.asarray(references)[:, None]
        results = {"accuracy": float(hits[:, 0].mean())}
        # Trainer's predictions have fewer columns where there are fewer classes
        if hits.shape[1] >= 5:
            results["accuracy_top5"] = float(hits[:, :5].any(1).mean())
        return results
