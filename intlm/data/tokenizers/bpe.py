"""Pieces of several bytes, by byte-pair encoding (Sennrich, arXiv 1508.07909)."""

from dataclasses import dataclass

from intlm.data.tokenizers import TOKENIZERS
from intlm.data.tokenizers.pieces import PieceTrainer


@TOKENIZERS.register("bpe")
@dataclass(frozen=True, kw_only=True)
class Bpe(PieceTrainer):
    """Pieces of several bytes, by byte-pair encoding (SentencePiece)."""
