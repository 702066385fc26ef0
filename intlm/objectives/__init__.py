"""Objectives: what a member does, and what it is scored by. One file each."""

from collections.abc import Sequence
from typing import Any

from intlm.lazy import Array
from intlm.settings import Family, Part


class Objective(Part):
    """What members of a population are given in each update, and the loss that they are compared by.

    per_token: whether every token has a loss of its own (`token_losses`), as the estimator `token` needs.
    """

    per_token = False

    def streams(self, corpora: Sequence[tuple[int, Any]], texts: int, length: int, own: range) -> Any:
        """The batches of a run (`intlm.data.streams.MixedStreams`).

        corpora: shares and the training splits of a mixture. texts: of an update. length: tokens of each. own: the
        texts that this process reads.
        """
        raise NotImplementedError

    def losses(self, weights: Any, batch: tuple[Array, ...], states: Array, architecture: Any) -> tuple[Array, Array]:
        """What some members lose on their texts, and their states after it: int32 S, int8 [layers] + S + [hidden].

        weights: of the members (`intlm.model.forward.Weights`), of shape S. batch: what `streams` gives for each text,
        indexed to S in front. states: int8 [layers] + S + [hidden].
        """
        raise NotImplementedError

    def token_losses(self, logits: Array, target: Array) -> Array:
        """The loss of one prediction each: int32 S. logits: int32 S + [vocabulary]. target: of the batch, S + [any]."""
        raise NotImplementedError


OBJECTIVES: Family[Objective] = Family("objective", "intlm.objectives", of_training=True)
