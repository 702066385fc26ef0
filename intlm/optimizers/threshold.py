"""The paper's integer optimizer: a weight moves by one where its vote passes a Z-test (arXiv 2511.16652, section 6).

Under the hypothesis that fitness says nothing about a weight, its vote has mean 0 and a standard deviation that the
estimator knows. A weight moves when the vote is beyond the two-sided quantile of a level that decays from 1 as
1 / (1 + (2^alpha - 1) * update / decay_updates).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from intlm.arithmetic.fixed_point import MAX8
from intlm.arithmetic.tables import threshold_quantile
from intlm.lazy import Array, jnp
from intlm.model.parameters import Kind, Parameters
from intlm.optimizers import OPTIMIZERS, Optimizer
from intlm.settings import INT32_MAX, key


@OPTIMIZERS.register("threshold")
@dataclass(frozen=True, kw_only=True)
class Threshold(Optimizer):
    """The paper's: a weight moves by one int8 unit where its vote is significantly different from chance."""

    alpha: int = key(
        "the test's significance level, the share of weights that chance alone moves, decays from 1 to 2**-alpha", 4,
        low=0, high=16,
    )  # fmt: skip
    decay_updates: int = key("updates until the level has decayed to 2**-alpha", 1000, low=1, high=INT32_MAX)

    def setting(self, update: int) -> int:
        """256 times the quantile that a vote must pass at this update (0 for the first: then every vote moves)."""
        return threshold_quantile(self.decay_updates, self.decay_updates + (2**self.alpha - 1) * update)

    def schedule_end(self) -> int:
        """See `Optimizer.schedule_end`."""
        return self.decay_updates

    def update(
        self, kinds: Mapping[str, Kind], parameters: Parameters, votes: Parameters, state: Any,
        deviations: Parameters, setting: Array,
    ) -> tuple[Parameters, Any]:  # fmt: skip
        """See `Optimizer.update`."""
        after = {}
        for name in kinds:
            vote, weight = votes[name], parameters[name].astype(jnp.int32)
            move = jnp.where(jnp.abs(vote) >= setting * deviations[name], jnp.sign(vote), 0)
            after[name] = jnp.clip(weight + move, -MAX8, MAX8).astype(jnp.int8)
        return after, state
