"""The terms of the loss: tensors in, a scalar out. They know nothing of files, images or detectors.

A room is a module with `Settings`, a frozen dataclass whose fields are a recipe's; `terms(recipe, feature_dim,
projected_dim)`, which yields the recipe's `Term`s; and perhaps `schedules(recipe)`, which yields a name and a function
of the epoch for each schedule that its terms name. A user's own file is one as well (docs/terms.md).
"""

from types import ModuleType

from faap.objectives import adversarial, alignment, contrastive, transport
from faap.objectives.adversarial import Adversary as Adversary
from faap.objectives.adversarial import adversarial_confusion as adversarial_confusion
from faap.objectives.alignment import mean_alignment as mean_alignment
from faap.objectives.alignment import variance_alignment as variance_alignment
from faap.objectives.contrastive import cross_group_similarity as cross_group_similarity
from faap.objectives.contrastive import infonce as infonce
from faap.objectives.contrastive import similarity_statistics as similarity_statistics
from faap.objectives.heads import ProjectionHead as ProjectionHead
from faap.objectives.momentum import MomentumContrast as MomentumContrast
from faap.objectives.momentum import momentum_infonce as momentum_infonce
from faap.objectives.scores import image_scores as image_scores
from faap.objectives.term import Term as Term
from faap.objectives.term import View as View
from faap.objectives.transport import one_sided_wasserstein as one_sided_wasserstein
from faap.objectives.transport import score_distribution as score_distribution
from faap.objectives.transport import score_gap_penalty as score_gap_penalty
from faap.objectives.weighting import pair_log_weights as pair_log_weights
from faap.objectives.weighting import query_weights as query_weights
from faap.objectives.weighting import reference_log_weights as reference_log_weights
from faap.settings import setting as setting

# in the order in which their terms are summed
ROOMS: tuple[ModuleType, ...] = (contrastive, adversarial, alignment, transport)
