"""The terms of the loss: tensors in, a scalar out. They know nothing of files, images or detectors.

A room is a module with `Settings`, a frozen dataclass whose fields are a recipe's; `terms(recipe, feature_dim,
projected_dim)`, which yields the recipe's `Term`s; and perhaps `schedules(recipe)`, which yields a name and a function
of the epoch for each schedule that its terms name. A user's own file is one as well (docs/terms.md).
"""

from types import ModuleType

from faap.objectives import adversarial, alignment, contrastive, momentum, transport
from faap.objectives.adversarial import Adversary, adversarial_confusion
from faap.objectives.alignment import mean_alignment, variance_alignment
from faap.objectives.contrastive import cross_group_similarity, infonce, similarity_statistics
from faap.objectives.heads import ProjectionHead
from faap.objectives.momentum import MomentumContrast, momentum_infonce
from faap.objectives.scores import image_scores
from faap.objectives.term import Term, View
from faap.objectives.transport import one_sided_wasserstein, score_distribution, score_gap_penalty
from faap.objectives.weighting import pair_log_weights, query_weights, reference_log_weights
from faap.settings import setting

__all__ = [
    "Adversary",
    "MomentumContrast",
    "ProjectionHead",
    "Term",
    "View",
    "adversarial_confusion",
    "cross_group_similarity",
    "image_scores",
    "infonce",
    "mean_alignment",
    "momentum_infonce",
    "one_sided_wasserstein",
    "pair_log_weights",
    "query_weights",
    "reference_log_weights",
    "score_distribution",
    "score_gap_penalty",
    "setting",
    "similarity_statistics",
    "variance_alignment",
]

# in the order in which their terms are summed
ROOMS: tuple[ModuleType, ...] = (momentum, contrastive, adversarial, alignment, transport)
