"""Objectives: the task of a member, and its loss. One file each."""

from collections.abc import Sequence
from typing import Any

from intlm.lazy import Array
from intlm.settings import Family, Part


class Objective(Part):
    """The text that a population's members are given in each update, and the loss that they are compared by.

    per_token: whether every token has a loss of its own (`token_losses`, `slopes`), as the estimator `token` needs.
    """

    per_token = False

    def streams(self, corpora: Sequence[tuple[int, Any]], texts: int, length: int, own: range) -> Any:
        """The batches of a run (`intlm.data.streams.MixedStreams`).

        corpora: shares and the training splits of a mixture. texts: of an update. length: tokens of each. own: the
        numbers of the texts that this process reads.
        """
        raise NotImplementedError

    def losses(self, weights: Any, batch: tuple[Array, ...], states: Array, architecture: Any) -> tuple[Array, Array]:
        """The losses of some members on their texts, and their states after it: int32 S, int8 [layers] + S + [hidden].

        weights: of the members (`intlm.model.forward.Weights`), of shape S. batch: `streams`' arrays for each text,
        indexed so that S comes first. states: int8 [layers] + S + [hidden].
        """
        raise NotImplementedError

    def token_losses(self, logits: Array, target: Array) -> Array:
        """The loss of one prediction each: int32 S. logits: int32 S + [vocabulary]. target: of the batch, S + [any]."""
        raise NotImplementedError

    def slopes(self, logits: Array, target: Array) -> Array:
        """How a prediction's loss falls with each logit, 127 * 2^8 = 1: int32 S + [vocabulary]. See `token_losses`."""
        raise NotImplementedError


OBJECTIVES: Family[Objective] = Family("objective", "intlm.objectives", of_training=True)
