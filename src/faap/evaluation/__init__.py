"""Group-wise detection metrics, gaps between groups and their errors, success criteria, image quality."""

from faap.evaluation.baseline import detect_baseline as detect_baseline
from faap.evaluation.bootstrap import check_resampling as check_resampling
from faap.evaluation.bootstrap import group_metrics as group_metrics
from faap.evaluation.criteria import verdict_of as verdict_of
from faap.evaluation.detections import Detections as Detections
from faap.evaluation.detections import detect as detect
from faap.evaluation.evaluate import evaluate as evaluate
from faap.evaluation.frame import MetricFrame as MetricFrame
from faap.evaluation.gaps import HEADLINE as HEADLINE
from faap.evaluation.gaps import headline as headline
from faap.evaluation.metrics import METRICS as METRICS
from faap.evaluation.quality import image_quality as image_quality
from faap.evaluation.selection import NONE_WORTH_IT as NONE_WORTH_IT
from faap.evaluation.selection import best_epoch as best_epoch
from faap.evaluation.selection import is_worth_deploying as is_worth_deploying
from faap.evaluation.selection import validation_row as validation_row
from faap.evaluation.statistics import t_interval as t_interval
