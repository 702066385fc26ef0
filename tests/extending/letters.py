"""An objective: the cross-entropy of the next tokens, except some that are not counted."""

from dataclasses import dataclass

from intlm.lazy import jnp
from intlm.objectives import OBJECTIVES
from intlm.objectives.next_token import NextToken
from intlm.settings import key


@OBJECTIVES.register("letters")
@dataclass(frozen=True, kw_only=True)
class Letters(NextToken):
    """The cross-entropy of the next tokens, except those with small numbers."""

    least: int = key("tokens with smaller numbers are not counted", 2, low=0, high=65535)

    def token_losses(self, logits, target):
        return jnp.where(target[..., 0] >= self.least, super().token_losses(logits, target), 0)
