"""Group-wise detection metrics, gaps between groups and their errors, success criteria, image quality."""

from faap.evaluation.baseline import detect_baseline
from faap.evaluation.bootstrap import check_resampling, gap_with_error, paired_bootstrap
from faap.evaluation.criteria import verdict_of
from faap.evaluation.detections import Detections, detect
from faap.evaluation.evaluate import evaluate
from faap.evaluation.gaps import HEADLINE, headline, validation_row
from faap.evaluation.metrics import METRICS, coco_metrics, group_metrics
from faap.evaluation.quality import image_quality
from faap.evaluation.selection import best_epoch
from faap.evaluation.statistics import t_interval

__all__ = [
    "HEADLINE",
    "METRICS",
    "Detections",
    "best_epoch",
    "check_resampling",
    "coco_metrics",
    "detect",
    "detect_baseline",
    "evaluate",
    "gap_with_error",
    "group_metrics",
    "headline",
    "image_quality",
    "paired_bootstrap",
    "t_interval",
    "validation_row",
    "verdict_of",
]
