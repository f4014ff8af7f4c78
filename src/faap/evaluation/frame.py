"""The numbers of a split's groups, what sets the groups apart, and the errors of both."""

from collections.abc import Callable, Sequence
from functools import cached_property, partial
from typing import Any

import numpy as np

from faap.data import Split
from faap.errors import FaapError
from faap.evaluation.bootstrap import Replicates, replicate, replicate_all
from faap.evaluation.detections import Detections
from faap.evaluation.metrics import METRICS
from faap.evaluation.statistics import Floats, change, estimate, known

# metric -> what `estimate` says of it, or of two detectors `change`
Row = dict[str, dict[str, Any]]


class MetricFrame:
    """COCO's numbers of the groups of a split, and of all of them together, each with its error.

    `overall`, `by_group`, `difference`, `ratio` and `worst` are fairlearn's words. Of one detector each number is
    value, standard_error and ci95; of two on the same images it is baseline, perturbed, change, relative_change and,
    from the same redrawn images before and after, standard_error, ci95 and p_value of the change, baseline_ci95 and
    perturbed_ci95. Without replicates, errors are None.

    Args:
        split: images of any number of groups.
        detections: of one detector, or before and after; one entry a record, in the same order.
        samples: bootstrap replicates; 0 for none.
        seed: of the bootstrap, 0 or more.
        metrics: which of COCO's; see `weighted_metrics`.

    Attributes:
        drawn: the replicates of each detector, as `replicate` returns them.

    Raises:
        FaapError: if detections and split do not belong together, or a group has fewer than two images or scenes.
    """

    def __init__(
        self,
        split: Split,
        *detections: Sequence[Detections],
        samples: int = 1000,
        seed: int = 0,
        metrics: Sequence[str] = METRICS,
    ) -> None:
        self.split, self.metrics = split, tuple(metrics)
        self.drawn: list[Replicates] = replicate(split, *detections, samples=samples, seed=seed, metrics=metrics)
        self._everybody = partial(replicate_all, split, *detections, samples=samples, seed=seed, metrics=metrics)
        self._said = change if len(detections) > 1 else estimate

    @cached_property
    def overall(self) -> Row:
        """All images, whoever is in them."""
        everybody = self._everybody()
        return {metric: self._said(*(each[metric] for each in everybody)) for metric in self.metrics}

    @cached_property
    def by_group(self) -> dict[str, Row]:
        """Each group; the anchor first, the reference second."""
        return self._rows(list(self.drawn[0]), lambda group, _: group)

    @cached_property
    def difference(self) -> dict[str, Row]:
        """Reference − group, for each other group: that of the anchor group is the gap."""
        return self._rows(self._others, lambda group, reference: reference - group)

    @cached_property
    def ratio(self) -> dict[str, Row]:
        """Group / reference, for each other group."""
        return self._rows(self._others, lambda group, reference: group / reference)

    @cached_property
    def worst(self) -> Row:
        """The least of the groups' numbers; also group (whose it is), and the share of replicates in which it is so."""
        found: Row = {}
        for metric in self.metrics:
            # whoever has nothing to find is not the worst
            there = [group for group, values in self.drawn[-1].items() if np.isfinite(values[metric][0])]
            names = there or list(self.drawn[-1])
            tables = [np.stack([each[group][metric] for group in names]) for each in self.drawn]
            least = [table.min(axis=0) for table in tables]
            is_least = tables[-1] == least[-1]  # (groups, 1 + samples)
            group, drawn = int(np.argmax(is_least[:, 0])), len(known(least[-1][1:]))
            share = float(is_least[group, 1:].sum() / drawn) if drawn else None
            name = names[group] if there else None
            found[metric] = {"group": name, "share": share} | self._said(*least)
        return found

    def to_frame(self) -> Any:
        """Return all of it as a pandas frame: a row for each of what, group and metric; intervals as two columns.

        Raises:
            FaapError: if pandas is not installed.
        """
        try:
            import pandas as pd
        except ImportError:
            raise FaapError("to_frame needs pandas, which is not installed: pip install 'faap[pandas]'.") from None
        rows = {("overall", "", metric): number for metric, number in self.overall.items()}
        for what in ("by_group", "difference", "ratio"):
            for group, row in getattr(self, what).items():
                rows |= {(what, group, metric): number for metric, number in row.items()}
        rows |= {("worst", number["group"], metric): number for metric, number in self.worst.items()}
        index = pd.MultiIndex.from_tuples(rows, names=["what", "group", "metric"])
        table = pd.DataFrame(list(rows.values()), index=index).drop(columns="group")
        for name in [name for name in table.columns if name.endswith("ci95")]:
            table[[f"{name}_low", f"{name}_high"]] = [ends or [np.nan] * 2 for ends in table.pop(name)]
        return table

    @property
    def _others(self) -> list[str]:
        return [group for group in self.drawn[0] if group != self.split.reference]

    def _rows(self, groups: Sequence[str], of: Callable[[Floats, Floats], Floats]) -> dict[str, Row]:
        """Say of each group what comes of its own numbers and the reference group's."""
        reference = self.split.reference
        with np.errstate(divide="ignore", invalid="ignore"):  # a ratio to nothing is nan or infinite
            return {
                group: {
                    m: self._said(*(of(each[group][m], each[reference][m]) for each in self.drawn))
                    for m in self.metrics
                }
                for group in groups
            }
