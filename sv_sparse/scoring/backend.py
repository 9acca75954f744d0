"""What turns embeddings into scores, log-likelihood ratios and decisions, fixed before any trial is seen."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from sv_sparse.scoring.as_norm import as_norm, cohort_statistics
from sv_sparse.scoring.calibration import Calibration
from sv_sparse.scoring.cosine import Array, Rows, centred_unit, cosine_scores


@dataclass(frozen=True)
class Backend:
    """From embeddings to scores.

    Attributes:
        mean: [E], which is subtracted from every embedding.
        cohort: [K, E], mean embedding of each of K training speakers, for AS-norm; None where there is none.
        top_n: closest of them that AS-norm looks at.
        calibration: scores to log-likelihood ratios; None where no speakers were held out, or scores say nothing.
    """

    mean: Array
    cohort: Array | None = None
    top_n: int = 0
    calibration: Calibration | None = None

    def score(self, embeddings: Array, enrolment: Rows, test: Rows) -> Array:
        """Scores of trials, larger for likelier targets.

        Args:
            embeddings: [N, E].
            enrolment: [trials], row of each trial's enrolment.
            test: [trials], row of each trial's test utterance.

        Returns:
            [trials]: cosines, or with a cohort standard deviations above close strangers.

        Raises:
            ValueError: the cohort has fewer speakers than ``top_n``.
        """
        unit = centred_unit(embeddings, self.mean)
        scores = cosine_scores(unit, enrolment, test)
        if self.cohort is None:
            return scores
        means, deviations = cohort_statistics(unit, centred_unit(self.cohort, self.mean), self.top_n)
        return as_norm(scores, means, deviations, enrolment, test)

    @property
    def normalization(self) -> str:
        """How scores are normalized, in words."""
        if self.cohort is None:
            return "none"
        return f"AS-norm, top {self.top_n} of {len(self.cohort):,} training speakers"

    def state(self) -> dict[str, Any]:
        """Tensors and plain data, from which ``of`` makes it again."""
        return {
            "mean": torch.from_numpy(self.mean),
            "cohort": torch.from_numpy(self.cohort) if self.cohort is not None else None,
            "top_n": self.top_n,
            "calibration": self.calibration.as_dict() if self.calibration is not None else None,
        }

    @classmethod
    def of(cls, state: Mapping[str, Any]) -> "Backend":
        """The back-end of a network file."""
        cohort, calibration = state["cohort"], state["calibration"]
        return cls(
            state["mean"].numpy(),
            cohort.numpy() if cohort is not None else None,
            state["top_n"],
            Calibration(**calibration) if calibration is not None else None,
        )
