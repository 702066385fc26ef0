"""EGGROLL with a rank-1 perturbation for each member and token, and credit for each token (docs/numerics-token.md).

A matrix's output at a token is perturbed by random signs u, for that token alone: W + u x^T / |x|^2 acts on the input
x as W x + u, so that A is drawn and B is the input itself. Every text has a clean member and some noisy ones. A token's
credit is how far a noisy member's loss is below the clean one's at that token and at those that follow. The vote of a
weight is the sum over texts and tokens of y x: y is the noise times fitness, summed over a text's noisy members, x the
clean member's input.
"""

import math
from collections.abc import Callable
from itertools import accumulate
from typing import Any, NamedTuple, TypeVar

from intlm.arithmetic.fixed_point import MAX8, ONE, integer_sqrt, rounding_shift, saturate8
from intlm.arithmetic.random_bits import Domain, random_bytes, seed_key, threefry4x32
from intlm.lazy import Array, jax, jnp
from intlm.model import SEPARATOR
from intlm.model.forward import matrix_product, observed_step
from intlm.model.loss import exp2_terms, log_sum_exp2, loss
from intlm.model.parameters import Architecture, Layered, Parameters, stack_layers, unstack_layers

MOST_TEXT_TOKENS = 1 << 24  # of an update: texts times the tokens of each
MOST_TEXTS = 1 << 19
CUT = 4  # fitness is largest at this many mean magnitudes
_DIGITS, _DIGIT = 4, 7  # a sum of up to 2^24 values below 2^28 is kept as 4 sums, one for each digit of 7 bits
_BLOCK = 128  # random bits from one counter

Tree = TypeVar("Tree")


class Units(NamedTuple):
    """Pre-activations that share their noise and their votes."""

    noise: str  # the product whose accumulator the noise enters
    products: tuple[str, ...]  # all products that are added up in these pre-activations
    bias: str | None = None


# The units of a layer in the order of their noise: those of the cell come before its state, those of the feed-forward
# after it.
CELL = (
    Units("gate_input", ("gate_input", "gate_state"), "gate_bias"),
    Units("candidate_input", ("candidate_input", "candidate_state"), "candidate_bias"),
)
FEED_FORWARD = (Units("up", ("up",)), Units("down", ("down",)))
# Where noise enters, in the order of `Token.sigmas`.
NOISY = ("embedding", "gate_input", "candidate_input", "up", "down", "head")


class Token(NamedTuple):
    """The settings of the estimator. Hashable, so that they can be static under jit."""

    seed: int
    texts: int  # of an update
    members: int  # noisy ones of a text, 1 to 127
    sigmas: tuple[int, ...] = (4, 1, 2, 3, 4, 3)  # noise is ±2^-sigma of 1.0, 0 to 8, for each of NOISY
    credit: int = 4  # eighths of the next token's credit that a token has
    slope: bool = True  # whether the head votes by the loss's own slope, and logits have no noise

    @property
    def largest(self) -> int:
        """The largest |fitness|: the sum of a text's members' is an int8."""
        return MAX8 // self.members

    def amplitude(self, name: str, fan_in: int) -> int:
        """The magnitude of the noise of a product's units, in its accumulator."""
        return math.isqrt(fan_in * 4 ** (8 - self.sigmas[NOISY.index(name)]))

    @property
    def embedding_amplitude(self) -> int:
        """The magnitude of the noise of the embedding's output, 1 at least."""
        return max(1, ONE >> self.sigmas[0])


class Votes(NamedTuple):
    """The votes of some texts, to be added up over the parts of a population. All int32."""

    votes: Parameters  # by parameter, its shape
    # By parameter, the sum over texts and tokens of the vote's variance under noise alone, one sum for each digit:
    # [4, fan-in] of a matrix, whose rows are all alike; [4, vocabulary] of the embedding; [4, 1] of a bias.
    chance: Parameters
    sizes: Array  # [2, 4], the sums of |d| and of |R|, one for each digit


class Evaluation(NamedTuple):
    """The result of `evaluate` for some texts."""

    losses: Array  # int32 [texts], the clean members', summed over their tokens; 256 = one bit
    states: Array  # int8 [texts, layers, hidden], the clean members' after the text
    told: Votes


def layer_units() -> tuple[Units, ...]:
    """The units of a layer in the order of their noise."""
    return (*CELL, *FEED_FORWARD)


def widths(architecture: Architecture) -> dict[str, int]:
    """The number of units of each product of a layer that noise enters, in the order of the noise."""
    hidden, wide = architecture.hidden_size, architecture.feed_forward_size
    return {units.noise: wide if units.noise == "up" else hidden for units in layer_units()}


def noise(architecture: Architecture, settings: Token, update: Array, texts: Array, token: Array) -> Layered[Array]:
    """The signs of some texts' noisy members at one token, by the product that they enter, and of the embedding.

    update, token: uint32 scalars, the token's place in its text. texts: uint32 [texts].
    Returns int8 (N +) [texts, members, units], 1 or -1; N is [layers]. The head has none with `slope`.
    """
    vocabulary, hidden, layers = architecture.vocab_size, architecture.hidden_size, architecture.num_layers
    sizes = widths(architecture)
    inside = hidden + layers * sum(sizes.values())
    count = inside + (0 if settings.slope else vocabulary)
    member = _member(settings, texts[:, None], 1 + jnp.arange(settings.members, dtype=jnp.uint32))
    blocks = jnp.arange(-(-count // _BLOCK), dtype=jnp.uint32)
    key = seed_key(settings.seed, Domain.TOKEN)
    words = jnp.stack(threefry4x32(key, (update, member[..., None], token, blocks)), axis=-1)
    bits = (words[..., None] >> jnp.arange(32, dtype=jnp.uint32)) & 1
    signs = (2 * bits.astype(jnp.int8) - 1).reshape(*member.shape, -1)
    inner = signs[..., hidden:inside].reshape(*member.shape, layers, -1)
    parts = jnp.split(jnp.moveaxis(inner, -2, 0), list(accumulate(sizes.values()))[:-1], axis=-1)
    outer = {"embedding": signs[..., :hidden]}
    if not settings.slope:
        outer["head"] = signs[..., inside:count]
    return Layered(outer, dict(zip(sizes, parts, strict=True)))


def _member(settings: Token, texts: Array, members: Array | int) -> Array:
    """A member's number in the whole update; member 0 of a text is the clean one: uint32."""
    return texts * (1 + settings.members) + jnp.uint32(members)


def slopes(settings: Token, update: Array, texts: Array, token: Array, logits: Array, targets: Array) -> Array:
    """The slopes of the loss at a token, by which the head votes: 127 times target minus probability, rounded at random
    to one of its two neighbours, so that small probabilities are not lost.

    update, texts, token: see `noise`. logits: int32 [texts, vocabulary], the clean members'. targets: int32 [texts, K].
    Returns int8 [texts, vocabulary].
    """
    count, vocabulary = logits.shape
    key = seed_key(settings.seed, Domain.TOKEN)
    octets = random_bytes(key, (update, _member(settings, texts, 0), token, 0), vocabulary).astype(jnp.int32)
    share = exp2_terms(jnp.maximum(0, log_sum_exp2(logits)[:, None] - logits))  # 2^24 = 1
    wanted = jnp.zeros(logits.shape, jnp.int32).at[jnp.arange(count)[:, None], targets].add(1)
    wanted = (wanted * (MAX8 << 8)) >> (targets.shape[-1].bit_length() - 1)
    return ((wanted - rounding_shift(share * MAX8, 16) + octets) >> 8).astype(jnp.int8)


class NoisyWeights:
    """The shared weights as some texts' members see them at one token: S is [texts, 1 + members], the clean one first.

    noise: see `noise`.
    """

    def __init__(self, parameters: Layered[Array], noise: Layered[Array], settings: Token) -> None:
        self.parameters, self.noise = parameters.outer, noise.outer
        self.layers = (parameters.layers, noise.layers)
        self.settings = settings
        self.seen: dict[str, Array] = {}  # int8 [texts, fan-in], what the clean member's products read

    def layer(self, entry: tuple[dict[str, Array], dict[str, Array]]) -> "NoisyWeights":
        """See `Weights.layer`."""
        parameters, noise = entry
        return NoisyWeights(Layered(parameters, {}), Layered(noise, {}), self.settings)

    def _signs(self, name: str) -> Array:
        """The signs of a product's noise: int32 [texts, 1 + members, units], 0 for the clean member."""
        return jnp.pad(self.noise[name].astype(jnp.int32), ((0, 0), (1, 0), (0, 0)))

    def embed(self, tokens: Array) -> Array:
        """tokens: int32 [texts, 1 + members]."""
        row = self.parameters["embedding"][tokens].astype(jnp.int32)
        return saturate8(row + self.settings.embedding_amplitude * self._signs("embedding"))

    def multiply(self, name: str, x: Array) -> Array:
        """x: int8 [texts, 1 + members, fan-in]. Returns int32 [texts, 1 + members, fan-out]."""
        self.seen[name] = x[:, 0]
        product = matrix_product(x, self.parameters[name])
        if name in self.noise:
            product += self.settings.amplitude(name, x.shape[-1]) * self._signs(name)
        return product

    def vector(self, name: str) -> Array:
        """See `Weights.vector`."""
        return self.parameters[name]


def credits(differences: Array, tokens: Array, eighths: int) -> Array:
    """R[t] = d[t] + the share of R[t + 1], whose magnitude is rounded down; nothing of it where token t + 1 is a
    separator.

    differences: int32 [T, texts, members], at most 36,865 in magnitude. tokens: int32 [T, texts].
    Returns int32 [T, texts, members], at most 294,920 in magnitude.
    """

    def back(after: Array, at: tuple[Array, Array]) -> tuple[Array, Array]:
        difference, token = at
        own = difference + jnp.sign(after) * (jnp.abs(after) * eighths >> 3)
        return jnp.where(token[:, None] == SEPARATOR, 0, own), own

    return jax.lax.scan(back, jnp.zeros_like(differences[0]), (differences, tokens), reverse=True)[1]


def fitness(credit: Array, mean: Array, settings: Token) -> Array:
    """Credit scaled so that CUT mean magnitudes give `largest`, and cut there. mean: int32 scalar, 1 at least.

    Returns int32.
    """
    size = (jnp.abs(credit) * settings.largest + (CUT // 2) * mean) // (CUT * mean)
    return jnp.sign(credit) * jnp.minimum(size, settings.largest)


def vote_shift(texts: int, tokens: int) -> int:
    """The smallest shift of a text's votes for a matrix with which the votes of all texts cannot pass int32."""
    shift = 0
    while texts * ((tokens * MAX8**2 + (1 << shift >> 1)) >> shift) >= 1 << 31:
        shift += 1
    return shift


def digits(values: Array, axes: tuple[int, ...]) -> Array:
    """The sums of a value's digits over some axes: int32, a first axis [4]. values: int32, 0 to 2^28 - 1.

    Up to 2^24 values can be added up, in any order.
    """
    return jnp.stack(
        [jnp.sum((values >> (_DIGIT * k)) & ((1 << _DIGIT) - 1), axis=axes, dtype=jnp.int32) for k in range(_DIGITS)]
    )


def _carried(sums: Array) -> tuple[Array, Array]:
    """The sum of `digits`, as high * 2^21 + low. sums: int32 [4] + S. Returns int32 S, below 2^31 and 2^21."""
    low = jnp.zeros_like(sums[0])
    carry = jnp.zeros_like(sums[0])
    for k in range(_DIGITS - 1):
        held = sums[k] + carry
        low |= (held & ((1 << _DIGIT) - 1)) << (_DIGIT * k)
        carry = held >> _DIGIT
    return sums[-1] + carry, low


def quotient(sums: Array, divisor: int) -> Array:
    """The sum that `digits` returned, divided by divisor and rounded down: int32 S, where it is below 2^31.

    sums: int32 [4] + S. divisor: 1 to 2^31 - 1.
    """
    high, low = (part.astype(jnp.uint32) for part in _carried(sums))
    found, rest = high // divisor, high % divisor
    for bit in reversed(range(_DIGIT * (_DIGITS - 1))):
        rest = 2 * rest + ((low >> bit) & 1)
        over = (rest >= divisor).astype(jnp.uint32)
        found, rest = 2 * found + over, rest - over * divisor
    return found.astype(jnp.int32)


def means(sizes: Array, settings: Token, tokens: int) -> Array:
    """The mean magnitudes of d and of R, 1 at least: int32 [2]. sizes: of a whole update; tokens: of a text."""
    return jnp.maximum(1, quotient(sizes.T, settings.texts * settings.members * tokens))


def deviation(sums: Array, shift: int = 0) -> Array:
    """One standard deviation of a vote by chance, to 14 bits, 1 at least: int32 S below 2^26.

    sums: int32 [4] + S, see `Votes.chance`. shift: the votes'.
    """
    high, low = _carried(sums)
    # An even number of bits is dropped, such that 30 stay.
    dropped = jnp.maximum(0, 32 - jax.lax.clz(high) - 9 + 1) & ~1
    wide = jnp.left_shift(high, jnp.maximum(0, 21 - dropped)) + jnp.right_shift(low, jnp.minimum(21, dropped))
    kept = jnp.where(dropped <= 21, wide, jnp.right_shift(high, jnp.maximum(0, dropped - 21)))
    return jnp.maximum(1, jnp.left_shift(integer_sqrt(kept), dropped // 2) >> shift)


def standardised(votes: Array, deviation: Array) -> Array:
    """Votes in standard deviations of chance, 256 = one, at most 64: int32. Both int32, broadcast together."""
    dropped = jnp.maximum(0, 32 - jax.lax.clz(deviation) - 16)
    unit = jnp.right_shift(deviation, dropped)  # below 2^16
    size = jnp.minimum(jnp.right_shift(jnp.abs(votes), dropped), 1 << 22) * 256
    return jnp.sign(votes) * jnp.minimum((size + unit // 2) // unit, 1 << 14)


def broadcast(name: str, deviation: Array) -> Array:
    """Shapes a deviation to broadcast along the parameter called `name`."""
    return deviation[:, None] if name == "embedding" else deviation


def evaluate(
    architecture: Architecture,
    settings: Token,
    parameters: Parameters,
    states: Array,
    means: Array,
    tokens: Array,
    targets: Array,
    update: Array,
    first: Array,
    chunk: int,
    heard: Array | None = None,
) -> Evaluation:
    """Read some consecutive texts with their clean and noisy members, and gather their votes.

    parameters: int8, by name. states: int8 [texts, layers, hidden], the clean members'. means: int32 [2], the mean
    magnitudes of d and R that fitness is measured by. tokens: uint16 [texts, T]. targets: uint16 [texts, T, K].
    update, first: uint32 scalars, the number of the first text. chunk: texts that are read at once, which changes
    no bit. heard: bool [members], the noisy members that vote; None: all.
    """
    shared = stack_layers(parameters)
    shift = vote_shift(settings.texts, tokens.shape[1])

    def one(total: Votes, texts: tuple[Array, ...]) -> tuple[Votes, tuple[Array, Array]]:
        losses, states, told = _chunk(architecture, settings, shared, means, update, shift, heard, *texts)
        return jax.tree.map(jnp.add, total, told), (losses, states)

    numbers = first + jnp.arange(tokens.shape[0], dtype=jnp.uint32)
    told, (losses, after) = scan_in_chunks(one, no_votes(parameters), (states, tokens, targets, numbers), chunk)
    return Evaluation(losses, after, told)


def no_votes(parameters: Parameters) -> Votes:
    """Votes of zero, those of no text."""
    widths = {name: w.shape[0] if name == "embedding" else (*w.shape, 1)[1] for name, w in parameters.items()}
    return Votes(
        {name: jnp.zeros(w.shape, jnp.int32) for name, w in parameters.items()},
        {name: jnp.zeros((_DIGITS, width), jnp.int32) for name, width in widths.items()},
        jnp.zeros((2, _DIGITS), jnp.int32),
    )


def scan_in_chunks(
    function: Callable[[Any, Tree], tuple[Any, Tree]], start: Any, xs: Any, size: int
) -> tuple[Any, Any]:
    """jax.lax.scan of function over the chunks of the first axis of xs, `size` entries each but the last."""
    count = jax.tree.leaves(xs)[0].shape[0]
    whole = count // size * size
    chunks = jax.tree.map(lambda x: x[:whole].reshape(-1, size, *x.shape[1:]), xs)
    total, found = jax.lax.scan(function, start, chunks)
    found = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), found)
    if whole == count:
        return total, found
    total, rest = function(total, jax.tree.map(lambda x: x[whole:], xs))
    return total, jax.tree.map(lambda a, b: jnp.concatenate([a, b]), found, rest)


def _chunk(
    architecture: Architecture,
    settings: Token,
    shared: Layered[Array],
    means: Array,
    update: Array,
    shift: int,
    heard: Array | None,
    states: Array,
    tokens: Array,
    targets: Array,
    texts: Array,
) -> tuple[Array, Array, Votes]:
    """`evaluate` of one chunk."""
    everyone = 1 + settings.members
    reading = tokens.astype(jnp.int32).T  # [T, texts]
    follow = jnp.moveaxis(targets.astype(jnp.int32), 1, 0)  # [T, texts, K]
    places = jnp.arange(reading.shape[0], dtype=jnp.uint32)

    def read(states: Array, at: tuple[Array, Array, Array]) -> tuple[Array, Any]:
        token, wanted, place = at
        weights = NoisyWeights(shared, noise(architecture, settings, update, texts, place), settings)
        token = jnp.broadcast_to(token[:, None], (*token.shape, everyone))
        logits, states, seen = observed_step(weights, token, states, architecture)
        own = slopes(settings, update, texts, place, logits[:, 0], wanted) if settings.slope else None
        wanted = jnp.broadcast_to(wanted[:, None], (*token.shape, wanted.shape[-1]))
        return states, (loss(logits, wanted), Layered(weights.seen, seen), own)

    start = jnp.broadcast_to(
        jnp.moveaxis(states, 1, 0)[:, :, None], (states.shape[1], len(texts), everyone, states.shape[2])
    )
    # losses [T, texts, 1 + members]; head_votes [T, texts, vocabulary] or None
    after, (losses, seen, head_votes) = jax.lax.scan(read, start, (reading, follow, places))
    d = losses[..., :1] - losses[..., 1:]
    far = credits(d, reading, settings.credit)
    sizes = jnp.stack([digits(jnp.sum(jnp.abs(credit), axis=-1), (0, 1)) for credit in (d, far)])
    scores = [fitness(credit, mean, settings) for credit, mean in zip((d, far), means, strict=True)]
    if heard is not None:
        scores = [jnp.where(heard, score, 0) for score in scores]

    def node_votes(_: None, at: tuple[Array, Array, Array]) -> tuple[None, Layered[Array]]:
        place, own, far = at  # fitness int32 [texts, members]
        signs = noise(architecture, settings, update, texts, place)

        def vote(score: Array, signs: Array) -> Array:
            return jnp.sum(score[..., None] * signs, axis=-2).astype(jnp.int8)

        layers = {name: vote(far, sign) for name, sign in signs.layers.items()}
        for units in FEED_FORWARD:
            last = vote(own, signs.layers[units.noise][-1])
            layers[units.noise] = layers[units.noise].at[-1].set(last)
        outer = {name: vote(far if name == "embedding" else own, sign) for name, sign in signs.outer.items()}
        return None, Layered(outer, layers)

    _, y = jax.lax.scan(node_votes, None, (places, scores[0], scores[1]))  # int8 [T, (layers,) texts, units]
    own, far = (jnp.sum(jnp.square(score), axis=-1) for score in scores)  # [T, texts]
    votes, chance = {}, {}
    for units in layer_units():
        by_layer = jnp.broadcast_to(far[:, None], (far.shape[0], architecture.num_layers, far.shape[1]))
        if units in FEED_FORWARD:
            by_layer = by_layer.at[:, -1].set(own)
        for name in units.products:
            x = seen.layers[name]
            votes[name] = jax.vmap(lambda y, x: matrix_votes(y, x, shift), in_axes=1)(y.layers[units.noise], x)
            chance[name] = jax.vmap(lambda e, x: digits(_energy(e, x), (0, 1)), in_axes=1)(by_layer, x)
        if units.bias:
            votes[units.bias] = jnp.sum(y.layers[units.noise], axis=(0, 2), dtype=jnp.int32)
            chance[units.bias] = jnp.moveaxis(digits(by_layer[..., None], (0, 2)), 0, 1)
    x = seen.outer["head"]
    if head_votes is None:
        head_votes = y.outer["head"]
    else:
        own = jnp.maximum(1, jnp.sum(jnp.square(head_votes.astype(jnp.int32)), axis=-1) // head_votes.shape[-1])
    outer = {"head": matrix_votes(head_votes, x, shift)}
    outer_chance = {"head": digits(_energy(own, x), (0, 1))}
    rows = jnp.zeros(shared.outer["embedding"].shape, jnp.int32)
    outer["embedding"] = rows.at[reading].add(y.outer["embedding"].astype(jnp.int32))
    parts = jnp.stack([(far >> (_DIGIT * k)) & ((1 << _DIGIT) - 1) for k in range(_DIGITS)])
    outer_chance["embedding"] = jnp.zeros((_DIGITS, rows.shape[0]), jnp.int32).at[:, reading].add(parts)
    told = Votes(
        unstack_layers(Layered(outer, votes), architecture),
        unstack_layers(Layered(outer_chance, chance), architecture),
        sizes,
    )
    return jnp.sum(losses[..., 0], axis=0), jnp.moveaxis(after[:, :, 0], 0, 1), told


def _energy(scores: Array, x: Array) -> Array:
    """The variance of a vote under noise alone. scores: int32 [T, texts], the sum of the squared fitness.
    x: int8 [T, texts, fan-in]."""
    return scores[..., None] * jnp.square(x.astype(jnp.int32))


def matrix_votes(y: Array, x: Array, shift: int) -> Array:
    """The sum over texts of the rounding shift of a text's sum of y x. y: int8 [T, texts, fan-out];
    x: int8 [T, texts, fan-in]. Returns int32 [fan-out, fan-in]."""

    def product(y: Array, x: Array) -> Array:
        return jax.lax.dot_general(y, x, (((0,), (0,)), ((), ())), preferred_element_type=jnp.int32)

    if shift == 0:
        return product(y.reshape(-1, y.shape[-1]), x.reshape(-1, x.shape[-1]))

    def add(total: Array, text: tuple[Array, Array]) -> tuple[Array, None]:
        return total + rounding_shift(product(*text), shift), None

    zero = jnp.zeros((y.shape[-1], x.shape[-1]), jnp.int32)
    return jax.lax.scan(add, zero, (y.swapaxes(0, 1), x.swapaxes(0, 1)))[0]
