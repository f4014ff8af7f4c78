"""One summand of the loss, and what every term sees of a batch."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

from torch import Tensor, nn

from faap.conform import conform
from faap.errors import FaapError
from faap.settings import shown

Pair = tuple[Tensor, Tensor]


@dataclass
class View:
    """What the terms see of a batch of B images; what belongs to an image comes as (anchor group's, reference group's).

    Attributes:
        pooled: (n, D) and (m, D) decoder states averaged over queries.
        projected: (n, d) and (m, d) unit vectors.
        scores: (n,) and (m,) image scores.
        match_scores, detect: compute the two properties below, when a term asks for them.
    """

    pooled: Pair
    projected: Pair
    scores: Pair
    match_scores: Callable[[], Pair]
    detect: Callable[[], Tensor]

    @cached_property
    def matched_scores(self) -> Pair:
        """(k,) and (l,): the score of every ground truth at its matched query."""
        return self.match_scores()

    @cached_property
    def detection(self) -> Tensor:
        """The detector's own loss."""
        return self.detect()


# what is logged beside the terms, under names that none of them can have
STATISTICS = ("total", "sim_f2m", "sim_f2f", "score_gap", "n_f", "n_m", "gradient_norm", "delta_linf", "delta_l2")


def scalar(name: str, value: object, place: str = "") -> Tensor:
    """Return a value that is a scalar tensor; raise a FaapError, which begins with a place, of another."""
    if not isinstance(value, Tensor) or value.ndim:
        what = f"of shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
        raise FaapError(f"{place}{name} is {what}; it must be a scalar tensor.")
    return value


@dataclass(frozen=True)
class Term:
    """One summand of the loss: weight × the schedule's value of the epoch × value(view).

    Attributes:
        name: as it is logged; a Python name.
        weight: constant factor; a term with 0 is left out.
        value: computes the term, a scalar.
        schedule: name of the schedule that multiplies it as well; None for none.
        state: what the term remembers or trains on its own; it is saved and resumed with the objective. What its
            `monitored()` returns, if it has one, is logged beside the terms: scalars by name, of which those in its
            `LOSSES` are losses.
    """

    name: str
    weight: float
    value: Callable[[View], Tensor]
    schedule: str | None = None
    state: nn.Module | None = None

    def __post_init__(self) -> None:
        conform(vars(self), {"name": str, "weight": float, "state": (None, nn.Module)}, f"the term {shown(self.name)}")
        if not self.name.isidentifier() or hasattr(nn.ModuleDict(), self.name):
            raise FaapError(f"a term's name is {shown(self.name)}; it must be a Python name, and none of a module's.")
        if self.name in STATISTICS:
            raise FaapError(f"a term's name is {self.name!r}, under which something else is logged; choose another.")
