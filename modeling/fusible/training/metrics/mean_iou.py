"""Intersection over union of segmentation maps; for `evaluate.load`."""

from typing import Any

import datasets
import evaluate
import numpy as np


class MeanIoU(evaluate.Metric):
    """Sums over all pixels of all maps first; classes that occur neither here nor there do not count."""

    def _info(self) -> evaluate.MetricInfo:
        maps = datasets.Sequence(datasets.Sequence(datasets.Value("int64")))
        return evaluate.MetricInfo(
            description="Mean over the classes of intersection / union, and share of right pixels.",
            citation="",
            inputs_description="predictions, references: maps of classes [height, width]; num_classes: their number; "
            "ignore_index: label of pixels that do not count.",
            features=datasets.Features({"predictions": maps, "references": maps}),
        )

    def _compute(
        self, predictions: Any, references: Any, num_classes: int, ignore_index: int = 255
    ) -> dict[str, float]:
        # [label, prediction]: one matrix for all maps, whose sizes may differ
        counts = np.zeros((num_classes, num_classes), dtype=np.int64)
        for prediction, reference in zip(predictions, references, strict=True):
            found, wanted = np.asarray(prediction).ravel(), np.asarray(reference).ravel()
            # the mask is that of the labels for both: what is predicted for an ignored pixel does not count
            found, wanted = (values[wanted != ignore_index] for values in (found, wanted))
            # a pair (label, prediction) is the number label * num_classes + prediction
            counts += np.bincount(num_classes * wanted + found, minlength=num_classes**2).reshape(counts.shape)
        # intersections, and unions: row + column - diagonal
        both, either = np.diagonal(counts), counts.sum(0) + counts.sum(1) - np.diagonal(counts)
        return {
            "mean_iou": float((both[either > 0] / either[either > 0]).mean()),
            "pixel_accuracy": float(both.sum() / counts.sum()),
        }
