"""Group-wise detection metrics, gaps between groups and their errors, success criteria, image quality."""

from faap.evaluation.baseline import detect_baseline
from faap.evaluation.bootstrap import check_resampling, gap_with_error, paired_bootstrap, replicate
from faap.evaluation.criteria import MET, NOT_MET, UNKNOWN, is_dead, success_criteria, verdict_of, warnings_about
from faap.evaluation.detections import Detections, Found, detect
from faap.evaluation.evaluate import evaluate, measurable
from faap.evaluation.gaps import GAPS, HEADLINE, gap, headline, validation_row
from faap.evaluation.metrics import METRICS, coco_metrics, comparable_categories, group_metrics
from faap.evaluation.quality import image_quality
from faap.evaluation.selection import best_epoch
from faap.evaluation.statistics import t_interval

__all__ = [
    "GAPS",
    "HEADLINE",
    "MET",
    "METRICS",
    "NOT_MET",
    "UNKNOWN",
    "Detections",
    "Found",
    "best_epoch",
    "check_resampling",
    "coco_metrics",
    "comparable_categories",
    "detect",
    "detect_baseline",
    "evaluate",
    "gap",
    "gap_with_error",
    "group_metrics",
    "headline",
    "image_quality",
    "is_dead",
    "measurable",
    "paired_bootstrap",
    "replicate",
    "success_criteria",
    "t_interval",
    "validation_row",
    "verdict_of",
    "warnings_about",
]
