"""What the scores of a group's detections are worth: distribution, calibration, and what a threshold makes of them."""

from typing import Any

import numpy as np

from faap.audit.side import Side
from faap.evaluation.matching import Bools
from faap.evaluation.statistics import Floats

BINS = 10


class Scores:
    """The scores of one group's detections at IoU .50.

    Args:
        side: the group.

    Attributes:
        scores: (n,) falling; ignored detections are left out.
        right: (n,) which are true positives.
        image: (n,) where the image of each lies in its group.
    """

    def __init__(self, side: Side) -> None:
        counted = np.concatenate([~each.ignored for each in side.errors])
        scores, right = (np.concatenate([getattr(each, name) for each in side.errors]) for name in ("scores", "hits"))
        image = np.repeat(np.arange(len(side.errors)), [len(each.scores) for each in side.errors])
        scores, right, image = scores[counted], right[counted], image[counted]
        order = np.argsort(-scores, kind="stable")
        self.scores, self.right, self.image = scores[order], right[order], image[order]
        self._copies, self._positives = side.copies, side.box_copies.sum(axis=0)

    def at(self, threshold: float) -> dict[str, Floats]:
        """Return recall and precision of the detections of that score or more, each (R,)."""
        above = self.scores >= threshold
        right, count = self._count(above & self.right), self._count(above)
        with np.errstate(invalid="ignore", divide="ignore"):
            return {"recall": right / self._positives, "precision": right / count}

    def equal_recall(self, recall: Floats) -> dict[str, Floats]:
        """Return the highest threshold with a recall (R,), and the precision there; nan where none has or needs it."""
        hits, copies = self.scores[self.right], self._copies[self.image[self.right]]
        reached = np.cumsum(copies, axis=0) >= recall * self._positives - 1e-9
        thresholds = np.append(hits, np.nan)[(~reached).sum(axis=0)]
        thresholds[~(recall > 0)] = np.nan
        # of falling scores, how many are not below
        ends = np.searchsorted(-self.scores, -thresholds, side="right")
        precision = np.full(len(ends), np.nan)
        for column in np.flatnonzero(np.isfinite(thresholds)).tolist():
            part = self._copies[self.image[: ends[column]], column]
            precision[column] = part[self.right[: ends[column]]].sum() / max(part.sum(), 1)
        return {"threshold": thresholds, "precision": precision}

    def calibration(self) -> list[dict[str, Any]]:
        """Return for each tenth of the scores how many right and wrong detections have them, and the share of right."""
        place = np.minimum((self.scores * BINS).astype(int), BINS - 1)
        rows: list[dict[str, Any]] = []
        for number in range(BINS):
            mine = place == number
            right, count = self._count(mine & self.right), self._count(mine)
            with np.errstate(invalid="ignore", divide="ignore"):
                share = right / count
            score = float(self.scores[mine].mean()) if mine.any() else None
            wrong = int(count[0] - right[0])
            rows.append({"from": number / BINS, "score": score, "right": int(right[0]), "wrong": wrong, "share": share})
        return rows

    def _count(self, mine: Bools) -> Floats:
        return np.bincount(self.image[mine], minlength=len(self._copies)).astype(float) @ self._copies
