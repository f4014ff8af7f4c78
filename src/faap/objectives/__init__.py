"""The terms of the loss: tensors in, a scalar out. They know nothing of files, images or detectors."""

from faap.objectives.adversarial import Adversary, adversarial_confusion
from faap.objectives.alignment import mean_alignment, variance_alignment
from faap.objectives.contrastive import cross_group_similarity, infonce, similarity_statistics
from faap.objectives.heads import ProjectionHead
from faap.objectives.momentum import MomentumContrast, momentum_infonce
from faap.objectives.scores import image_scores
from faap.objectives.transport import one_sided_wasserstein, score_distribution, score_gap_penalty
from faap.objectives.weighting import pair_log_weights, query_weights, reference_log_weights

__all__ = [
    "Adversary",
    "MomentumContrast",
    "ProjectionHead",
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
    "similarity_statistics",
    "variance_alignment",
]
