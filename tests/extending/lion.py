"""An optimizer: Lion (arXiv 2302.06675) in integers, steps of fixed size along the sign of the votes' mean."""

from dataclasses import dataclass

from intlm.arithmetic.fixed_point import rounding_shift
from intlm.lazy import jnp
from intlm.optimizers import OPTIMIZERS
from intlm.optimizers.steps import Stepped, masters, moved, rounded, standardised, zeros
from intlm.settings import key


@OPTIMIZERS.register("lion")
@dataclass(frozen=True, kw_only=True)
class Lion(Stepped):
    """Steps of fixed size along the sign of the votes' running mean."""

    memory: int = key("votes are averaged over 2**memory updates", 3, low=1, high=10)

    def init(self, parameters):
        return masters(parameters), zeros(parameters)

    def update(self, kinds, parameters, votes, state, deviations, setting):
        master, mean = dict(state[0]), dict(state[1])
        for name, kind in kinds.items():
            vote = standardised(votes[name], deviations[name])
            mean[name] += vote - rounding_shift(mean[name], self.memory)
            master[name] = moved(kind, master[name], 256 * jnp.sign(mean[name]), setting, self.weight_decay)
        return rounded(master), (master, mean)
