"""A tokenizer: all bytes, and the most frequent pairs of bytes."""

import re
from collections import Counter
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from intlm.data.tokenizers import PART, TOKENIZERS, Tokenizer, TokenizerTrainer
from intlm.data.tokenizers.pieces import PieceDecoder
from intlm.settings import key


@dataclass(frozen=True)
class PairTokenizer(Tokenizer):
    pairs: tuple[bytes, ...]
    name = "pairs"

    @property
    def pieces(self):
        return [b"", *(bytes([byte]) for byte in range(256)), *self.pairs]  # token 0 is the separator

    @property
    def vocab_size(self):
        return len(self.pieces)

    def encode(self, data):
        tokens = {piece: token for token, piece in enumerate(self.pieces)}
        find = re.compile(b"|".join([*map(re.escape, self.pairs), b"."]), re.DOTALL).findall
        parts = (data[start : start + PART] for start in range(0, len(data), PART))
        return np.array([tokens[piece] for part in parts for piece in find(part)], self.dtype)

    def stream_decoder(self):
        return PieceDecoder(self)

    def to_json(self):
        return {"name": "pairs", "pairs": [pair.hex() for pair in self.pairs]}


@TOKENIZERS.register("pairs")
@dataclass(frozen=True, kw_only=True)
class Pairs(TokenizerTrainer):
    """All bytes, and the most frequent pairs of them."""

    most: int = key("pairs in the vocabulary", 64, low=1, high=65000)

    def train(self, texts):
        counts = Counter()
        for text in texts("counting pairs"):
            counts.update(pairwise(text))
        return PairTokenizer(tuple(bytes(pair) for pair, _ in counts.most_common(self.most)))

    @classmethod
    def read(cls, description):
        return PairTokenizer(tuple(map(bytes.fromhex, description["pairs"])))
