"""An estimator: as `member`, with noise of random signs, +16 or -16, in place of Gaussian noise."""

from dataclasses import dataclass

from intlm.estimators import ESTIMATORS
from intlm.estimators.member import Factors, Member
from intlm.lazy import jnp


@ESTIMATORS.register("signs")
@dataclass(frozen=True, kw_only=True)
class Signs(Member):
    """Antithetic pairs, each with a low-rank perturbation of random signs."""

    def noise(self, specification, number, seed, epoch, pairs):
        def signs(z):
            return jnp.where(z < 0, jnp.int8(-16), jnp.int8(16))

        drawn = super().noise(specification, number, seed, epoch, pairs)
        return Factors(*map(signs, drawn)) if isinstance(drawn, Factors) else signs(drawn)
