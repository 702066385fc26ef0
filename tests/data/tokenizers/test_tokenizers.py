"""Both tokenizers reproduce any bytes, however the text or the tokens are cut."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from intlm.data.tokenizers import Tokenizer, identity, tokenizer_from_json
from intlm.data.tokenizers.alphabet import AlphabetTokenizer
from intlm.data.tokenizers.byte import ByteTokenizer
from intlm.errors import DataError
from intlm.model import SEPARATOR

alphabets = st.sets(st.integers(0, 255), min_size=1).map(lambda some: AlphabetTokenizer(bytes(sorted(some))))
tokenizers = st.just(ByteTokenizer()) | alphabets
# Text in which the bytes that need an escape are not rare.
texts = st.binary(max_size=200) | st.lists(st.sampled_from([0, 1, 97, 254, 255]), max_size=50).map(bytes)


@given(tokenizers, texts)
def test_round_trip(tokenizer: Tokenizer, text: bytes) -> None:
    tokens = tokenizer.encode(text)
    assert tokens.dtype == (np.uint8 if tokenizer.vocab_size <= 256 else np.uint16)
    assert SEPARATOR not in tokens
    assert not len(tokens) or tokens.max() < tokenizer.vocab_size
    assert tokenizer.decode(tokens) == text
    assert tokenizer.decode(tokens.tolist()) == text


@given(tokenizers, texts, texts)
def test_text_may_be_cut_anywhere(tokenizer: Tokenizer, a: bytes, b: bytes) -> None:
    np.testing.assert_array_equal(tokenizer.encode(a + b), np.concatenate([tokenizer.encode(a), tokenizer.encode(b)]))


def naive_decode(tokenizer: Tokenizer, tokens: list[int]) -> bytes:
    """Decodes by the definition, one token at a time."""
    result, pending = b"", None
    digits = max(map(len, tokenizer.codes)) - 1
    for token in tokens:
        if token == SEPARATOR:
            pending = None
        elif pending is not None:
            pending = (*pending, token)
            if len(pending) == digits + 1:
                result += bytes([tokenizer.codes.index(pending)]) if pending in tokenizer.codes else b""
                pending = None
        elif token == tokenizer.escape:
            pending = (token,)
        else:
            result += bytes([tokenizer.codes.index((token,))])
    return result


@given(tokenizers, st.data())
def test_any_tokens_decode_whole_streamed_or_in_parts(tokenizer: Tokenizer, data: st.DataObject) -> None:
    token = st.integers(0, tokenizer.vocab_size - 1) | st.sampled_from([SEPARATOR, tokenizer.escape])
    tokens = data.draw(st.lists(token, max_size=40))
    text = naive_decode(tokenizer, tokens)
    assert tokenizer.decode(tokens) == text
    assert tokenizer.decode(np.array(tokens, tokenizer.dtype)) == text
    decoder = tokenizer.stream_decoder()
    assert b"".join(decoder.feed([token]) for token in tokens) == text
    cut = data.draw(st.integers(0, len(tokens)))
    decoder = tokenizer.stream_decoder()
    assert decoder.feed(tokens[:cut]) + decoder.feed(tokens[cut:]) == text


def test_byte_codes() -> None:
    assert ByteTokenizer().encode(b"\x00a\xff\x01").tolist() == [255, 1, 97, 255, 255, 1]
    # A separator ends an escape; an escape of no byte swallows what belongs to it.
    assert ByteTokenizer().decode([97, 0, 98, 255, 0, 1, 255, 99, 100, 255]) == b"ab\x01d"


def test_alphabet_codes() -> None:
    tokenizer = AlphabetTokenizer.from_counts(np.bincount(list(b"banana"), minlength=256))
    assert tokenizer.alphabet == b"abn" and tokenizer.vocab_size == 5
    # base 4: 255 is 3333 and 10 is 0022
    assert tokenizer.encode(b"ban\xff\n").tolist() == [3, 2, 4, 1, 4, 4, 4, 4, 1, 1, 1, 3, 3]


@pytest.mark.parametrize(("size", "digits"), [(1, 8), (14, 3), (15, 2), (254, 2), (255, 1), (256, 1)])
def test_alphabet_digits(size: int, digits: int) -> None:
    tokenizer = AlphabetTokenizer(bytes(range(size)))
    assert tokenizer.vocab_size == size + 2
    assert {len(code) for code in tokenizer.codes} <= {1, 1 + digits}
    assert (tokenizer.vocab_size - 1) ** digits >= 256 > (tokenizer.vocab_size - 1) ** (digits - 1)
    assert tokenizer.decode(tokenizer.encode(bytes(range(256)))) == bytes(range(256))


@given(tokenizers)
def test_json_round_trip(tokenizer: Tokenizer) -> None:
    again = tokenizer_from_json(tokenizer.to_json())
    assert again == tokenizer and identity(again) == identity(tokenizer)


def test_identities_are_stable_and_differ() -> None:
    assert identity(ByteTokenizer()) == "f98386685668b686fbc8e18bf88c167c6ba06370b7f5cbe370156f6a1b49364b"
    assert identity(AlphabetTokenizer(b"a")) != identity(AlphabetTokenizer(b"b"))


@pytest.mark.parametrize(
    "description",
    [
        None,
        [],
        {},
        {"name": "words"},
        {"name": "bytes", "alphabet": "61"},
        {"name": "alphabet"},
        {"name": "alphabet", "alphabet": 7},
        {"name": "alphabet", "alphabet": ""},
        {"name": "alphabet", "alphabet": "6g"},
        {"name": "alphabet", "alphabet": "6261"},
        {"name": "alphabet", "alphabet": "6161"},
    ],
)
def test_malformed_json_is_refused(description: object) -> None:
    with pytest.raises(DataError, match="alphabet"):
        tokenizer_from_json(description)


@pytest.mark.parametrize("tokens", [[-1], [256], [97, 300]])
def test_tokens_outside_the_vocabulary_are_refused(tokens: list[int]) -> None:
    with pytest.raises(DataError, match="expected 0 to 255"):
        ByteTokenizer().decode(tokens)
