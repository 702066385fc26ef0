"""Language modelling: the integer cross-entropy of the token that follows (docs/numerics.md, section 6)."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from intlm.arithmetic.fixed_point import MAX8, rounding_shift
from intlm.lazy import Array, jax, jnp
from intlm.model.forward import Weights, step
from intlm.model.loss import exp2_terms, log_sum_exp2, loss
from intlm.model.parameters import Architecture
from intlm.objectives import OBJECTIVES, Objective
from intlm.settings import key


@OBJECTIVES.register("next_token")
@dataclass(frozen=True, kw_only=True)
class NextToken(Objective):
    """Language modelling: a member reads a text; its loss is the cross-entropy of the next tokens."""

    targets: int = key(
        "target tokens per prediction, a power of two; 1: the next token only; more: also the tokens that follow the "
        "most similar contexts in the training text", 1, low=1, high=1024,
    )  # fmt: skip

    per_token = True

    def check(self, config: Any) -> Iterator[tuple[tuple[str, ...], str]]:
        """See `Part.check`."""
        if self.targets & (self.targets - 1):
            name = f"{self.name}.targets"
            yield (name,), f"{name} = {self.targets}: must be a power of two (the mean over them is a shift)"

    def streams(self, corpora: Sequence[tuple[int, Any]], texts: int, length: int, own: range) -> Any:
        """See `Objective.streams`."""
        from intlm.data.streams import MixedStreams

        return MixedStreams(corpora, texts, length, self.targets, own)

    def losses(
        self, weights: Weights, batch: tuple[Array, ...], states: Array, architecture: Architecture
    ) -> tuple[Array, Array]:
        """See `Objective.losses`. batch: tokens, S + [T], and targets, S + [T, K]."""
        tokens, targets = batch
        rank = tokens.ndim - 1
        tokens, targets = (jnp.moveaxis(x.astype(jnp.int32), rank, 0) for x in batch)  # [T] + S, [T] + S + [K]
        shape = states.shape[1:-1]
        tokens = jnp.broadcast_to(tokens, (len(tokens), *shape))
        targets = jnp.broadcast_to(targets, (*tokens.shape, targets.shape[-1]))

        def read(carry: tuple[Array, Array], token: tuple[Array, Array]) -> tuple[tuple[Array, Array], None]:
            states, total = carry
            logits, states = step(weights, token[0], states, architecture)
            return (states, total + self.token_losses(logits, token[1])), None

        (states, total), _ = jax.lax.scan(read, (states, jnp.zeros(shape, jnp.int32)), (tokens, targets))
        return total, states

    def token_losses(self, logits: Array, target: Array) -> Array:
        """See `Objective.token_losses`. target: int32 S + [K]."""
        return loss(logits, target)

    def slopes(self, logits: Array, target: Array) -> Array:
        """See `Objective.slopes`: target minus probability. target: int32 S + [K]."""
        shape = logits.shape
        logits, target = logits.reshape(-1, shape[-1]), target.reshape(-1, target.shape[-1])
        share = exp2_terms(log_sum_exp2(logits)[:, None] - logits)  # 2^24 = 1
        wanted = jnp.zeros(logits.shape, jnp.int32).at[jnp.arange(len(logits))[:, None], target].add(1)
        wanted = (wanted * (MAX8 << 8)) >> (target.shape[-1].bit_length() - 1)
        return (wanted - rounding_shift(share * MAX8, 16)).reshape(shape)
