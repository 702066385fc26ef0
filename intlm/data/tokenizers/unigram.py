"""Pieces of several bytes, by a unigram model (Kudo, arXiv 1804.10959)."""

from dataclasses import dataclass

from intlm.data.tokenizers import TOKENIZERS
from intlm.data.tokenizers.pieces import PieceTrainer


@TOKENIZERS.register("unigram")
@dataclass(frozen=True, kw_only=True)
class Unigram(PieceTrainer):
    """Pieces of several bytes, by a unigram model (SentencePiece)."""
