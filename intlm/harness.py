"""The model `intlm` of lm-evaluation-harness (`intlm harness`, docs/evaluating.md).

- A context, even an empty one, is the beginning of a document: it is read from a zero state after a separator.
- Log-likelihoods are exact as in `intlm.evaluation`, in natural units; rolling ones follow its protocol.
- Context and continuation are tokenized as one text. A token that crosses the border between them belongs to the
  continuation.
- Requests are read side by side, which changes no digit; those of similar lengths together, so that there is little
  padding.

lm_eval does not look for plugins; importing this module registers the model there.
"""

import json
import math
import sys
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from intlm.arithmetic.fixed_point import Array
from intlm.arithmetic.random_bits import Domain, seed_key
from intlm.data.tokenizers import Decoder, Tokenizer
from intlm.errors import ConfigError, MissingPackage
from intlm.evaluation import FRACTION_BITS, Document, Segment, batches, default_batch, fixed_point_losses, measure, read
from intlm.generation import inverse_temperature
from intlm.language_model import BLOCK
from intlm.model import SEPARATOR
from intlm.model.sampling import sample
from intlm.run import load

try:
    from lm_eval.__main__ import cli_evaluate
    from lm_eval.api.instance import Instance
    from lm_eval.api.model import LM
    from lm_eval.api.registry import register_model
    from lm_eval.models.utils import normalize_gen_kwargs
except ModuleNotFoundError:
    raise MissingPackage("lm_eval", "intlm harness", "pip install 'intlm[harness]'") from None


def main(run: Path, arguments: Sequence[str]) -> None:
    """Runs lm_eval's command line with the model of a run; `arguments` are flags of `lm_eval run`.

    Raises ConfigError where lm_eval refuses them, such as a task that it does not know.
    """
    sys.argv = ["lm_eval", "run", "--model", "intlm", "--model_args", json.dumps({"run": str(run)}), *arguments]
    try:
        cli_evaluate()
    except ValueError as error:  # lm_eval's error for wrong arguments
        raise ConfigError(f"lm_eval: {error}") from error


class Writing(NamedTuple):
    """A text that is being generated."""

    number: int  # the number of the request, which is also the seed
    context: np.ndarray  # its tokens
    stops: list[bytes]
    limit: int  # the most tokens
    decoder: Decoder
    text: bytearray  # the text so far


@register_model("intlm")
class IntlmLM(LM):
    """The model of a run, or of an export.

    Args:
        run: its directory.
        batch_size: requests read side by side. 1, which is lm_eval's default, and "auto": as many as fit.
        max_batch_size, device: lm_eval gives them to every model; ignored here.
    """

    def __init__(
        self, run: str, batch_size: int | str = 1, max_batch_size: int | None = None, device: str | None = None
    ) -> None:
        super().__init__()
        self.model = load(str(run))
        size = int(batch_size) if str(batch_size).isdecimal() else 1
        self._batch = size if size > 1 else default_batch(self.model)

    def loglikelihood(self, requests: Sequence[Instance], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """The log-likelihood of each (context, continuation), and whether greedy generation gives the continuation."""
        segments = []
        for number, (context, continuation) in enumerate(request.args for request in requests):
            tokens, border = divide(self.model.tokenizer, context.encode(), continuation.encode())
            segments.append(Segment(np.concatenate([[SEPARATOR], tokens[:-1]]), tokens[border:], number))
        segments.sort(key=lambda segment: -len(segment.inputs))
        losses, is_greedy = [0] * len(requests), [True] * len(requests)
        watched = _watch(segments, "loglikelihood", len(requests), disable_tqdm)
        for block in read(self.model, watched, min(self._batch, len(requests))):
            summed = fixed_point_losses(block.logits, block.targets).sum(axis=1).tolist()
            likely = (block.targets < 0) | (block.logits.argmax(axis=-1) == block.targets)
            for segment, loss, all_likely in zip(block.segments, summed, likely.all(axis=1).tolist(), strict=False):
                losses[segment.document] += loss
                is_greedy[segment.document] &= all_likely
        return list(zip(map(natural, losses), is_greedy, strict=True))

    def loglikelihood_rolling(self, requests: Sequence[Instance], disable_tqdm: bool = False) -> list[float]:
        """The log-likelihood of each text by the protocol of `intlm evaluate`."""
        texts = (request.args[0].encode() for request in requests)
        documents = (Document(self.model.tokenizer.encode(text), text) for text in texts)
        measured = measure(self.model, documents, self._batch)
        watched = _watch(measured, "rolling loglikelihood", len(requests), disable_tqdm)
        return [natural(evaluation.loss) for _, evaluation in watched]

    def generate_until(self, requests: Sequence[Instance], disable_tqdm: bool = False) -> list[str]:
        """Generates the text after each context, up to a stop string, the document's end or `max_gen_toks` tokens.

        Greedy unless do_sample or temperature says otherwise; then it draws as `intlm.generate` does, with the
        request's number as the seed. The stop string is left out.
        """
        groups: dict[tuple[int, int], list[Writing]] = defaultdict(list)
        for number, (context, given) in enumerate(request.args for request in requests):
            options: dict[str, Any] = dict(normalize_gen_kwargs(given))
            stops = [stop.encode() for stop in options["until"] if stop]
            tokens, decoder = self.model.tokens(context), self.model.tokenizer.stream_decoder()
            writing = Writing(number, tokens, stops, options["max_gen_toks"], decoder, bytearray())
            groups[_sampling(options, self.model.architecture.vocab_size)].append(writing)
        with tqdm(desc="generate", total=len(requests), disable=disable_tqdm or None) as bar:
            for (inverse, top_k), writings in groups.items():
                writings.sort(key=lambda writing: -len(writing.context))
                batch = min(self._batch, len(writings))
                for first in range(0, len(writings), batch):
                    self._write(writings[first : first + batch], batch, inverse, top_k, bar.update)
        ended = sorted((writing for group in groups.values() for writing in group), key=lambda writing: writing.number)
        return [writing.text.decode(errors="replace") for writing in ended]

    def _write(
        self, writings: Sequence[Writing], batch: int, inverse: int, top_k: int, advance: Callable[[], object]
    ) -> None:
        """Generate some texts side by side, `batch` rows of them."""
        nothing = np.zeros(0, np.int32)
        segments = [Segment(np.concatenate([[SEPARATOR], writing.context]), nothing) for writing in writings]
        ((_, inputs, _),) = batches(segments, batch)
        states = self.model.start(batch)
        for first in range(0, inputs.shape[1], BLOCK):
            logits, states = self.model.read(inputs[:, first : first + BLOCK], states)
        seeds = [writing.number for writing in writings] + [0] * (batch - len(writings))
        keys = jnp.array([seed_key(seed, Domain.SAMPLING) for seed in seeds], jnp.uint32)
        open_rows = dict(enumerate(writings))
        for position in range(max(writing.limit for writing in writings)):
            if top_k == 1:
                drawn = logits[:, -1].argmax(axis=-1)
            else:
                drawn = np.asarray(_samples(top_k)(logits[:, -1], keys, np.uint32(position), np.int32(inverse)))
            for row, writing in list(open_rows.items()):
                if ends(writing, int(drawn[row]), position):
                    del open_rows[row]
                    advance()
            if not open_rows:
                return
            logits, states = self.model.read(drawn[:, None], states)


def divide(tokenizer: Tokenizer, context: bytes, continuation: bytes) -> tuple[np.ndarray, int]:
    """Returns the tokens of context and continuation, and the index of the first token with bytes of the second."""
    tokens, alone = tokenizer.encode(context + continuation), tokenizer.encode(context)
    both = min(len(tokens), len(alone))
    differ = np.flatnonzero(tokens[:both] != alone[:both])
    border = int(differ[0]) if len(differ) else both
    decoder = tokenizer.stream_decoder()
    size = len(decoder.feed(tokens[:border]))
    while size < len(context):
        size += len(decoder.feed(tokens[border : border + 1]))
        if size > len(context):
            break
        border += 1
    return tokens, border


def ends(writing: Writing, token: int, position: int) -> bool:
    """Add the token drawn at a position to its text, and say whether that was the last."""
    if position >= writing.limit or token == SEPARATOR:
        return True
    text, known = writing.text, len(writing.text)
    text += writing.decoder.feed([token])
    # A stop string ends within the new bytes.
    places = [text.find(stop, max(0, known - len(stop) + 1)) for stop in writing.stops]
    if stops := [at for at in places if at >= 0]:
        del text[min(stops) :]
    return bool(stops) or position + 1 == writing.limit


def natural(loss: int) -> float:
    """The natural log-likelihood of an exact loss, 2^FRACTION_BITS = one bit."""
    return -(loss / 2**FRACTION_BITS) * math.log(2)


def _sampling(options: dict[str, Any], vocabulary: int) -> tuple[int, int]:
    """The inverse temperature and the top k that generation_kwargs ask for."""
    if not options["do_sample"]:
        return 256, 1
    for key, neutral in (("top_p", 1), ("min_p", 0), ("repetition_penalty", 1)):
        if options.get(key, neutral) != neutral:
            raise ConfigError(f"generation_kwargs: {key} = {options[key]}: expected {neutral}, or do_sample = false")
    inverse = inverse_temperature(options.get("temperature", 1))
    return (inverse, min(int(options.get("top_k") or vocabulary), vocabulary)) if inverse else (256, 1)


@cache
def _samples(top_k: int) -> Callable[..., Array]:
    """`sample` for several streams with a key each."""
    return jax.jit(jax.vmap(partial(sample, top_k=top_k), in_axes=(0, 0, None, None)))


def _watch(some: Iterable[Any], purpose: str, total: int, is_silent: bool) -> Iterable[Any]:
    return tqdm(some, purpose, total, disable=is_silent or None)  # None: unless on a terminal
