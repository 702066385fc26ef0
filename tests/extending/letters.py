"""An objective: the cross-entropy of the tokens that follow, where some tokens count nothing."""

from dataclasses import dataclass

from intlm.lazy import jnp
from intlm.objectives import OBJECTIVES
from intlm.objectives.next_token import NextToken
from intlm.settings import key


@OBJECTIVES.register("letters")
@dataclass(frozen=True, kw_only=True)
class Letters(NextToken):
    """The cross-entropy of the tokens that follow, those of small numbers excepted."""

    least: int = key("tokens below it count nothing", 2, low=0, high=65535)

    def token_losses(self, logits, target):
        return jnp.where(target[..., 0] >= self.least, super().token_losses(logits, target), 0)
