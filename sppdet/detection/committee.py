"""Scores of the same proposals by several models: how far they agree."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from sppdet.detection.detect import Classifiers, ScoredProposals
from sppdet.types import Labels


@torch.inference_mode()
def committee_margins(
    scored: ScoredProposals,
    committee: Classifiers,
    rows: NDArray[np.int64],
    labels: Labels,
) -> NDArray[np.float64]:
    """Compute the margins (N, F) that F models give to the proposals of `rows`, each for its label.

    Args:
        committee: weights (F · K, D) and biases (F · K,), model by model.
    """
    view = scored.views[0].of(rows)
    products = view.products(scored.parts.extractor, committee.layer, committee.weights)
    classes = len(scored.parts.class_names)
    margins = (products + committee.biases).reshape(len(products), -1, classes).cpu().numpy()
    return np.asarray(margins[view.windows.index, :, labels - 1], dtype=np.float64)
