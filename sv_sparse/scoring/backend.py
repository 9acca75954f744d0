"""Scoring back-end: embeddings to scores and log-likelihood ratios, fixed before any trial is seen."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from sv_sparse.scoring.arrays import Float32Array, IndexArray
from sv_sparse.scoring.as_norm import as_norm, cohort_statistics
from sv_sparse.scoring.calibration import Calibration
from sv_sparse.scoring.cosine import center_and_normalize, cosine_scores


@dataclass(frozen=True)
class Backend:
    """Cosine scoring, with AS-norm and a calibration where these are set.

    Attributes:
        mean: float32 [E], subtracted from each embedding.
        cohort: float32 [K, E], the mean embedding of each training speaker, for AS-norm; None for plain cosines.
        top_n: number of closest cohort speakers that AS-norm takes; 0 without a cohort.
        calibration: map from scores to log-likelihood ratios; None if no speakers were held out, or if higher
            scores did not mean targets.

    >>> import numpy as np
    >>> backend = Backend(mean=np.zeros(2, np.float32))
    >>> embeddings = np.array([[3.0, 4.0], [3.0, -4.0]], np.float32)
    >>> backend.score(embeddings, enrollment=np.array([0]), test=np.array([1])).round(2)
    array([-0.28], dtype=float32)
    """

    mean: Float32Array
    cohort: Float32Array | None = None
    top_n: int = 0
    calibration: Calibration | None = None

    def score(self, embeddings: Float32Array, enrollment: IndexArray, test: IndexArray) -> Float32Array:
        """Score trials of rows ``enrollment`` and ``test``, int64 [trials] each, of embeddings, float32 [N, E].

        Returns:
            float32 [trials]: cosines in [-1, 1], or with a cohort AS-norm scores.

        Raises:
            ValueError: the cohort has fewer speakers than ``top_n``.
        """
        unit = center_and_normalize(embeddings, self.mean)
        scores = cosine_scores(unit, enrollment, test)
        if self.cohort is None:
            return scores
        cohort = center_and_normalize(self.cohort, self.mean)
        means, deviations = cohort_statistics(unit, cohort, self.top_n)
        return as_norm(scores, means, deviations, enrollment, test)

    @property
    def score_norm(self) -> str:
        """Description of the score normalization, ``none`` without a cohort."""
        return "none" if self.cohort is None else f"AS-norm, top {self.top_n} of {len(self.cohort):,} training speakers"

    def to_dict(self) -> dict[str, Any]:
        """Return tensors and plain data, from which ``from_dict`` makes the back-end again."""
        # Tensors, not arrays: torch.load with weights_only refuses what numpy pickles.
        return {
            "mean": torch.from_numpy(self.mean),
            "cohort": None if self.cohort is None else torch.from_numpy(self.cohort),
            "top_n": self.top_n,
            "calibration": None if self.calibration is None else self.calibration.to_dict(),
        }

    @classmethod
    def from_dict(cls, state: Mapping[str, Any]) -> "Backend":
        """Return the back-end of a checkpoint or package, from what ``to_dict`` returned."""
        cohort = state["cohort"]
        calibration = state["calibration"]
        return cls(
            mean=np.asarray(state["mean"]),
            cohort=None if cohort is None else np.asarray(cohort),
            top_n=state["top_n"],
            calibration=None if calibration is None else Calibration(**calibration),
        )
