"""Credit for each token: a rank-1 perturbation for each member and token (docs/numerics.md, 7.4 to 9.3).

A matrix's output at a token is perturbed by random signs u, for that token alone: W + u x^T / |x|^2 acts on the input
x as W x + u, so that A is drawn and B is the input itself. Every text has a clean member and some noisy ones. A token's
credit is how far a noisy member's loss is below the clean one's at that token and at those that follow. The vote of a
weight is the sum over texts and tokens of y x: y is the noise times fitness, summed over a text's noisy members, x the
clean member's input. The head has no noise: it votes by the loss's own slope.
"""

import math
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from itertools import accumulate
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

from intlm.arithmetic.digits import DIGITS, MOST_TERMS, digits_of, quotient, square_root, sum_digits
from intlm.arithmetic.fixed_point import MAX8, ONE, rounding_shift, saturate8
from intlm.arithmetic.random_bits import Domain, random_bytes, seed_key, threefry4x32
from intlm.estimators import ESTIMATORS, Estimator, Table
from intlm.lazy import Array, jax, jnp, np
from intlm.model import SEPARATOR
from intlm.model.forward import matrix_product, observed_step, zero_states
from intlm.model.parameters import (
    Architecture,
    Kind,
    Layered,
    Parameters,
    Specification,
    local_parameters,
    stack_layers,
    unstack_layers,
)
from intlm.population.chunks import numbered, scan_in_chunks
from intlm.schema import check_range
from intlm.settings import INT32_MAX, key

if TYPE_CHECKING:
    from intlm.objectives import Objective
    from intlm.population.engine import Engine, Population

MOST_TEXT_TOKENS = MOST_TERMS  # of an update: texts times the tokens of each
MOST_TEXTS = 1 << 19
MOST_SIGMA = 8
MOST_CREDIT = 294_920  # 8 times the largest loss of a token
KINDS = ("embedding", "gate", "candidate", "up", "down")  # of units, in the order of `Settings.sigmas`
CUT = 4  # fitness is largest at this many mean magnitudes
_BLOCK = 128  # random bits from one counter


@ESTIMATORS.register("token")
@dataclass(frozen=True, kw_only=True)
class Token(Estimator):
    """Ours: noise of its own for each token, and credit for each token: learns more from every evaluated token."""

    training_version: ClassVar[int] = 4
    evaluates_halves: ClassVar[bool] = True

    members: int = key(
        "noisy members that read each text, beside a clean one; members + 1 divides population", 8, low=1, high=MAX8
    )
    credit: int = key("eighths of the next token's credit that a token has", 4, low=0, high=7)
    sigma_shift: int = key("noise is scaled by 2**-sigma_shift", 0, low=0, high=4)
    reset_updates: int = key(
        "updates after which a text's recurrent state starts at zero again; 0: never", 256, low=0, high=INT32_MAX
    )

    def check(self, config: Any) -> Iterator[tuple[tuple[str, ...], str]]:
        """See `Part.check`."""
        population, name = config.eggroll.population, "eggroll.population"
        own, tokens = f"eggroll.{self.name}.members", config.train.tokens_per_update
        texts = self.units(population)
        if population % (1 + self.members):
            yield (
                (name, own),
                f"{name} = {population}: must be a multiple of {1 + self.members} ({own} = {self.members} noisy "
                "members and a clean one read each text)",
            )
        if texts > MOST_TEXTS:
            yield (name, own), f"{name} = {population}: must be at most {MOST_TEXTS} times {own} + 1"
        if texts * tokens > MOST_TEXT_TOKENS:
            yield (
                (name, "train.tokens_per_update"),
                f"{name} = {population}, train.tokens_per_update = {tokens}: sums would overflow: texts * tokens = "
                f"{texts * tokens} exceeds {MOST_TEXT_TOKENS}; lower either",
            )
        if not config.objective.per_token:
            yield (
                ("eggroll.estimator", "objective"),
                f'eggroll.estimator = "{self.name}": needs a loss for each token, which objective = '
                f'"{config.objective.name}" does not have; expected eggroll.estimator = "member"',
            )

    def units(self, members: int) -> int:
        """See `Estimator.units`: the texts."""
        return members // (1 + self.members)

    def units_of_a_text(self) -> int:
        """See `Estimator.units_of_a_text`."""
        return 1

    def scored(self, members: int) -> int:
        """See `Estimator.scored`: the clean members."""
        return self.units(members)

    def init(self, population: "Population") -> Array:
        """The clean members' recurrent states: int8 [texts, layers, state size]."""
        return zero_states((population.units,), population.architecture)

    def init_common(self, population: "Population") -> Array:
        """The mean magnitudes of d and of R: int32 [2]."""
        return jnp.ones(2, jnp.int32)

    def check_common(self, common: Array, place: object) -> None:
        """See `Estimator.check_common`."""
        check_range(np.asarray(common), 1, MOST_CREDIT, f"{place}: means")

    def settings(self, population: "Population") -> "Settings":
        """The settings of a population's members."""
        sigmas = tuple(sigma + self.sigma_shift for sigma in Settings._field_defaults["sigmas"])
        return Settings(population.seed, population.units, self.members, sigmas, self.credit)

    def evaluate(
        self, engine: "Engine", parameters: Parameters, batch: tuple[Array, ...], kept: Array, common: Array,
        update: Array, first: Array, there: Array | None = None, halves: bool = False,
    ) -> tuple["Seen", Array]:  # fmt: skip
        """See `Estimator.evaluate`. With `halves`, each half of the noisy members also votes alone."""
        tokens, targets = batch
        if self.reset_updates:
            again = (update + first + numbered(kept)) % self.reset_updates == 0
            kept = jnp.where(again[:, None, None], jnp.int8(0), kept)

        def read(voters: Array | None) -> Evaluation:
            return engine.evaluate_tokens(parameters, tokens, targets, kept, common, update, first, there, voters)

        whole = read(None)
        early = jnp.arange(self.members) < self.members // 2
        sums = [whole.sums, *(read(voters).sums for voters in (early, ~early) if halves)]
        return Seen(whole.losses, jax.tree.map(lambda *parts: jnp.stack(parts), *sums)), whole.states

    def losses(self, seen: "Seen") -> Array:
        """See `Estimator.losses`."""
        return seen.losses

    def totals(self, seen: "Seen") -> Array:
        """The sums of the magnitudes of d and of R: int32 [2, 4]."""
        return seen.sums.sizes[0]

    def learn(self, population: "Population", common: Array, totals: Array) -> Array:
        """See `Estimator.learn`."""
        return means(totals, self.settings(population), population.tokens)

    def votes(
        self, engine: "Engine", seen: "Seen", totals: Array, update: Array, first: Array, half: int | None = None
    ) -> tuple[Parameters, Parameters]:
        """See `Estimator.votes`. A half does not vote on the head, where both would vote alike."""
        votes, chance, _ = jax.tree.map(lambda parts: parts[0 if half is None else 1 + half], seen.sums)
        if half is not None:
            votes["head"] = jnp.zeros_like(votes["head"])
        return votes, chance

    def deviations(
        self, population: "Population", specifications: Iterable[Specification], chance: Parameters
    ) -> Parameters:
        """One standard deviation of chance: int32 of each parameter's shape."""
        shift = vote_shift(population.units, population.tokens)
        return {
            s.name: jnp.broadcast_to(
                deviation(chance[s.name], shift)
                if s.kind is Kind.MATRIX
                else deviation(chance[s.name]).reshape((-1,) + (1,) * (len(s.shape) - 1)),
                s.shape,
            )
            for s in specifications
        }

    def standardised(self, votes: Parameters, deviations: Parameters) -> tuple[Parameters, Parameters]:
        """Votes in 256ths of their standard deviation."""
        return {n: standardised(v, deviations[n]) for n, v in votes.items()}, dict.fromkeys(votes, jnp.int32(1))

    def saturated(self, kept: Array) -> Array:
        """See `Estimator.saturated`."""
        return jnp.sum(jnp.abs(kept) == MAX8, axis=(1, 2), dtype=jnp.int32)

    def noise_values(self, specifications: Iterable[Specification], members: int, tokens: int) -> int:
        """See `Estimator.noise_values`: a sign for each unit, token and noisy member."""
        outputs = {s.name: s.shape[0] if s.kind is Kind.MATRIX else s.shape[1] for s in specifications if s.shape[1:]}
        units = sum(size for name, size in outputs.items() if name != "head" and not name.endswith("_state"))
        return (members - self.units(members)) * tokens * units

    def states_of_a_unit(self, architecture: Architecture) -> int:
        """See `Estimator.states_of_a_unit`."""
        return architecture.num_layers * architecture.state_size

    def inspect(self, population: "Population", parameters: Parameters, tokens: Array) -> Table:
        """See `Estimator.inspect`: what the noise of each kind of units does to the loss."""
        architecture, objective = population.architecture, population.objective
        settings = self.settings(population)._replace(texts=len(tokens))
        kinds = ("embedding", *(units.kind for units in layer_units(architecture)))
        given = (
            stack_layers(parameters), jnp.uint32(0), jnp.arange(len(tokens), dtype=jnp.uint32),
            zero_states((len(tokens),), architecture), tokens[:, :-1], tokens[:, 1:, None],
        )  # fmt: skip
        rows = []
        for label, noisy in (("all", kinds), *((kind, (kind,)) for kind in kinds)):
            losses = read_members(architecture, objective, settings, *given, noisy)[0]
            d = np.asarray(losses[..., :1] - losses[..., 1:]) / 256
            far = np.asarray(credits(losses[..., :1] - losses[..., 1:], tokens[:, :-1].T, self.credit)) / 256
            sigma = f"2^-{settings.sigma(label)}" if label in kinds else ""
            rows.append(
                (label, sigma, *(f"{value:.4f}" for value in (np.abs(d).mean(), np.abs(far).mean(), -d.mean())))
            )
        return ["noise", "of 1.0", "mean |d|, bits", "mean |R|", "mean loss added"], rows

    def read_tokens(self, population: "Population", chunk: int, parameters: Parameters, *given: Any) -> "Evaluation":
        """`Engine.evaluate_tokens` in plain JAX, `chunk` texts at a time."""
        settings = self.settings(population)
        return evaluate(population.architecture, population.objective, settings, chunk, parameters, *given)


class Seen(NamedTuple):
    """The result of `Token.evaluate`."""

    losses: Array  # int32 [texts], see `Evaluation`
    sums: "Sums"  # with a first axis: of all noisy members, then, where asked for, of those of each half


class Settings(NamedTuple):
    """The settings of an update's members. Hashable, so that they can be static under jit."""

    seed: int
    texts: int  # of an update
    members: int  # noisy ones of a text, 1 to 127
    # Noise is ±2^-sigma of 1.0, 0 to 8, for each of the kinds below. With these all kinds have about the same share in
    # what noise does to the loss.
    sigmas: tuple[int, ...] = (4, 1, 2, 3, 4)
    credit: int = 4  # eighths of the next token's credit that a token has

    @property
    def largest(self) -> int:
        """The largest |fitness|: the sum of a text's members' is an int8."""
        return MAX8 // self.members

    def sigma(self, kind: str) -> int:
        """The sigma of a kind of units; a cell's units of other names have that of the candidate."""
        return self.sigmas[KINDS.index(kind if kind in KINDS else "candidate")]

    def amplitude(self, kind: str, fan_in: int) -> int:
        """The magnitude of the noise of a product's units, in its accumulator."""
        return math.isqrt(fan_in * 4 ** (MOST_SIGMA - self.sigma(kind)))

    @property
    def embedding_amplitude(self) -> int:
        """The magnitude of the noise of the embedding's output, 1 at least."""
        return max(1, ONE >> self.sigma("embedding"))


class Units(NamedTuple):
    """Pre-activations of a layer that share their noise and their votes."""

    kind: str
    width: int
    noise: str  # the product whose accumulator the noise enters
    products: tuple[str, ...]  # all products that are added up in these pre-activations
    bias: str | None  # the bias that is added to them
    future: bool  # whether the layer's next state depends on them


class Sums(NamedTuple):
    """The sums that texts add to, over the parts of a population. All int32."""

    votes: Parameters  # by parameter, its shape
    # By parameter, the sum over texts and tokens of the vote's variance under noise alone, as a sum of digits
    # (intlm.arithmetic.digits): [4, fan-in] of a matrix, whose rows are all alike; [4, vocabulary] of the embedding;
    # [4, 1] of a bias.
    chance: Parameters
    sizes: Array  # [2, 4], the sums of |d| and of |R| as sums of digits


class Evaluation(NamedTuple):
    """The result of `Engine.evaluate_tokens` for some texts."""

    losses: Array  # int32 [texts], the clean members', summed over their tokens; 256 = one bit
    states: Array  # int8 [texts, layers, state size], the clean members' after the text
    sums: Sums


def layer_units(architecture: Architecture) -> tuple[Units, ...]:
    """The units of a layer in the order of their noise: those of the cell, then those of the feed-forward."""
    shapes = {local.name: local.shape for local in local_parameters(architecture)}
    units = []
    for kind in (name.removesuffix("_input") for name in shapes if name.endswith("_input")):
        products = tuple(f"{kind}_{source}" for source in ("input", "state") if f"{kind}_{source}" in shapes)
        bias = f"{kind}_bias" if f"{kind}_bias" in shapes else None
        units.append(Units(kind, shapes[products[0]][0], products[0], products, bias, kind in architecture.cell.future))
    return (*units, *(Units(kind, shapes[kind][0], kind, (kind,), None, False) for kind in ("up", "down")))


def noise(architecture: Architecture, settings: Settings, update: Array, texts: Array, token: Array) -> Layered[Array]:
    """The signs of some texts' noisy members at one token, by the product that they enter, and of the embedding.

    update, token: uint32 scalars, the token's place in its text. texts: uint32 [texts].
    Returns int8 (N +) [texts, members, units], 1 or -1; N is [layers].
    """
    hidden, layers = architecture.hidden_size, architecture.num_layers
    widths = {units.noise: units.width for units in layer_units(architecture)}
    count = hidden + layers * sum(widths.values())
    member = _member(settings, texts[:, None], 1 + jnp.arange(settings.members, dtype=jnp.uint32))
    blocks = jnp.arange(-(-count // _BLOCK), dtype=jnp.uint32)
    key = seed_key(settings.seed, Domain.TOKEN)
    words = jnp.stack(threefry4x32(key, (update, member[..., None], token, blocks)), axis=-1)
    bits = (words[..., None] >> jnp.arange(32, dtype=jnp.uint32)) & 1
    signs = (2 * bits.astype(jnp.int8) - 1).reshape(*member.shape, -1)
    inner = signs[..., hidden:count].reshape(*member.shape, layers, -1)
    parts = jnp.split(jnp.moveaxis(inner, -2, 0), list(accumulate(widths.values()))[:-1], axis=-1)
    return Layered({"embedding": signs[..., :hidden]}, dict(zip(widths, parts, strict=True)))


def _member(settings: Settings, texts: Array, members: Array | int) -> Array:
    """A member's number in the whole update; member 0 of a text is the clean one: uint32."""
    return texts * (1 + settings.members) + jnp.uint32(members)


def head_votes(settings: Settings, update: Array, texts: Array, token: Array, slopes: Array) -> Array:
    """The loss's slopes at a token rounded at random to one of their two neighbours, so that small ones are not lost.

    update, texts, token: see `noise`. slopes: int32 [texts, vocabulary], see `Objective.slopes`.
    Returns int8 [texts, vocabulary].
    """
    key = seed_key(settings.seed, Domain.TOKEN)
    octets = random_bytes(key, (update, _member(settings, texts, 0), token, 0), slopes.shape[-1])
    return ((slopes + octets.astype(jnp.int32)) >> 8).astype(jnp.int8)


class NoisyWeights:
    """The shared weights as some texts' members see them at one token: S is [texts, 1 + members], the clean one first.

    noise: see `noise`.
    """

    def __init__(
        self, parameters: Layered[Array], noise: Layered[Array], settings: Settings, kinds: Mapping[str, str]
    ) -> None:
        self.parameters, self.noise = parameters.outer, noise.outer
        self.layers = (parameters.layers, noise.layers)
        self.settings = settings
        self.kinds = kinds  # of the units that have noise, by the product that it enters
        self.seen: dict[str, Array] = {}  # int8 [texts, fan-in], what the clean member's products read

    def layer(self, entry: tuple[dict[str, Array], dict[str, Array]]) -> "NoisyWeights":
        """See `Weights.layer`."""
        parameters, noise = entry
        return NoisyWeights(Layered(parameters, {}), Layered(noise, {}), self.settings, self.kinds)

    def _signs(self, name: str) -> Array:
        """The signs of a product's noise: int32 [texts, 1 + members, units], 0 for the clean member."""
        return jnp.pad(self.noise[name].astype(jnp.int32), ((0, 0), (1, 0), (0, 0)))

    def embed(self, tokens: Array) -> Array:
        """tokens: int32 [texts, 1 + members]."""
        row = self.parameters["embedding"][tokens]
        if "embedding" not in self.kinds:
            return row
        return saturate8(row.astype(jnp.int32) + self.settings.embedding_amplitude * self._signs("embedding"))

    def multiply(self, name: str, x: Array) -> Array:
        """x: int8 [texts, 1 + members, fan-in]. Returns int32 [texts, 1 + members, fan-out]."""
        self.seen[name] = x[:, 0]
        product = matrix_product(x, self.parameters[name])
        if name in self.kinds:
            product += self.settings.amplitude(self.kinds[name], x.shape[-1]) * self._signs(name)
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


def fitness(credit: Array, mean: Array, settings: Settings) -> Array:
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


def means(sizes: Array, settings: Settings, tokens: int) -> Array:
    """The mean magnitudes of d and of R, 1 at least: int32 [2]. sizes: of a whole update; tokens: of a text."""
    return jnp.maximum(1, quotient(sizes.T, settings.texts * settings.members * tokens))


def deviation(sums: Array, shift: int = 0) -> Array:
    """One standard deviation of a vote by chance, to 14 bits, 1 at least: int32 S below 2^26.

    sums: int32 [4] + S, see `Sums.chance`. shift: the votes'.
    """
    return jnp.maximum(1, square_root(sums) >> shift)


def standardised(votes: Array, deviation: Array) -> Array:
    """Votes in standard deviations of chance, 256 = one, at most 64: int32. Both int32, broadcast together."""
    dropped = jnp.maximum(0, 32 - jax.lax.clz(deviation) - 16)
    unit = jnp.right_shift(deviation, dropped)  # below 2^16
    size = jnp.minimum(jnp.right_shift(jnp.abs(votes), dropped), 1 << 22) * 256
    return jnp.sign(votes) * jnp.minimum((size + unit // 2) // unit, 1 << 14)


def evaluate(
    architecture: Architecture,
    objective: "Objective",
    settings: Settings,
    chunk: int,
    parameters: Parameters,
    tokens: Array,
    targets: Array,
    states: Array,
    means: Array,
    update: Array,
    first: Array,
    there: Array | None = None,
    voters: Array | None = None,
) -> Evaluation:
    """Read some consecutive texts with their clean and noisy members, and gather their votes.

    chunk: texts that are read at once, which changes no bit. For the others see `Engine.evaluate_tokens`.
    """
    shared = stack_layers(parameters)
    shift = vote_shift(settings.texts, tokens.shape[1])

    def read(total: Sums, texts: tuple[Array, ...]) -> tuple[Sums, tuple[Array, Array]]:
        found = _evaluate_chunk(architecture, objective, settings, shared, means, update, shift, voters, *texts)
        return jax.tree.map(jnp.add, total, found.sums), (found.losses, found.states)

    numbers = jnp.arange(tokens.shape[0], dtype=jnp.uint32)
    there = jnp.ones(numbers.shape, bool) if there is None else there
    xs = (states, tokens, targets, first + numbers, there)
    sums, (losses, states) = scan_in_chunks(read, no_votes(parameters), xs, chunk)
    return Evaluation(losses, states, sums)


def no_votes(parameters: Parameters) -> Sums:
    """The sums of no text."""
    widths = {name: w.shape[0] if name == "embedding" else (*w.shape, 1)[1] for name, w in parameters.items()}
    return Sums(
        {name: jnp.zeros(w.shape, jnp.int32) for name, w in parameters.items()},
        {name: jnp.zeros((DIGITS, width), jnp.int32) for name, width in widths.items()},
        jnp.zeros((2, DIGITS), jnp.int32),
    )


def read_members(
    architecture: Architecture, objective: "Objective", settings: Settings, shared: Layered[Array], update: Array,
    texts: Array, states: Array, tokens: Array, targets: Array, noisy: Collection[str] | None = None,
) -> tuple[Array, Array, tuple[Layered[Array], Array]]:  # fmt: skip
    """Read some texts with their members. texts: uint32 [texts], their numbers. noisy: the kinds of units that have
    noise (None: all).

    Returns losses, int32 [T, texts, 1 + members]; the clean members' states, int8 [texts, layers, state size]; what the
    clean members' products read, int8 [T, (layers,) texts, fan-in], and the head's votes, int8 [T, texts, vocabulary].
    """
    everyone = 1 + settings.members
    kinds = {units.noise: units.kind for units in layer_units(architecture)} | {"embedding": "embedding"}
    kinds = {product: kind for product, kind in kinds.items() if noisy is None or kind in noisy}

    def read(states: Array, at: tuple[Array, Array, Array]) -> tuple[Array, Any]:
        token, wanted, place = at
        weights = NoisyWeights(shared, noise(architecture, settings, update, texts, place), settings, kinds)
        token = jnp.broadcast_to(token[:, None], (*token.shape, everyone))
        logits, states, seen = observed_step(weights, token, states, architecture)
        head = head_votes(settings, update, texts, place, objective.slopes(logits[:, 0], wanted))
        wanted = jnp.broadcast_to(wanted[:, None], (*token.shape, wanted.shape[-1]))
        return states, (objective.token_losses(logits, wanted), Layered(weights.seen, seen), head)

    start = jnp.broadcast_to(
        jnp.moveaxis(states, 1, 0)[:, :, None], (states.shape[1], len(texts), everyone, states.shape[2])
    )
    reading = tokens.astype(jnp.int32).T  # [T, texts]
    follow = jnp.moveaxis(targets.astype(jnp.int32), 1, 0)  # [T, texts, K]
    places = jnp.arange(len(reading), dtype=jnp.uint32)
    after, (losses, seen, head) = jax.lax.scan(read, start, (reading, follow, places))
    return losses, jnp.moveaxis(after[:, :, 0], 0, 1), (seen, head)


def _evaluate_chunk(
    architecture: Architecture, objective: "Objective", settings: Settings, shared: Layered[Array], means: Array,
    update: Array, shift: int, voters: Array | None, states: Array, tokens: Array, targets: Array, texts: Array,
    there: Array,
) -> Evaluation:  # fmt: skip
    """`evaluate` of one chunk. texts: uint32 [texts], their numbers; there: bool [texts]."""
    every_units = layer_units(architecture)
    places = jnp.arange(tokens.shape[1], dtype=jnp.uint32)
    losses, states, (seen, head) = read_members(
        architecture, objective, settings, shared, update, texts, states, tokens, targets
    )
    reading = tokens.astype(jnp.int32).T  # [T, texts]
    losses, head = jnp.where(there[:, None], losses, 0), jnp.where(there[:, None], head, 0)
    d = losses[..., :1] - losses[..., 1:]
    far = credits(d, reading, settings.credit)
    sizes = jnp.stack([sum_digits(jnp.sum(jnp.abs(credit), axis=-1), (0, 1)) for credit in (d, far)])
    scores = [fitness(credit, mean, settings) for credit, mean in zip((d, far), means, strict=True)]
    if voters is not None:
        scores = [jnp.where(voters, score, 0) for score in scores]

    def by_layer(units: Units, far: Array, own: Array) -> Array:
        """What belongs to some units, with a first axis [layers]: `far` where a later token's loss depends on them."""
        layers = [far] * (architecture.num_layers - 1) + [far if units.future else own]
        return jnp.stack(layers)

    def node_votes(_: None, at: tuple[Array, Array, Array]) -> tuple[None, Layered[Array]]:
        place, own, far = at  # fitness int32 [texts, members]
        signs = noise(architecture, settings, update, texts, place)

        def vote(score: Array, signs: Array) -> Array:
            return jnp.sum(score[..., None] * signs, axis=-2).astype(jnp.int8)

        layers = {units.noise: vote(by_layer(units, far, own), signs.layers[units.noise]) for units in every_units}
        return None, Layered({"embedding": vote(far, signs.outer["embedding"])}, layers)

    _, y = jax.lax.scan(node_votes, None, (places, scores[0], scores[1]))  # int8 [T, (layers,) texts, units]
    own, far = (jnp.sum(jnp.square(score), axis=-1) for score in scores)  # [T, texts]
    votes, chance = {}, {}
    for units in every_units:
        variance = by_layer(units, far, own)  # [layers, T, texts]
        for name in units.products:
            x = seen.layers[name]
            votes[name] = jax.vmap(partial(matrix_votes, shift=shift), in_axes=1)(y.layers[units.noise], x)
            chance[name] = jax.vmap(matrix_chance, in_axes=(0, 1))(variance, x)
        if units.bias:
            votes[units.bias] = jnp.sum(y.layers[units.noise], axis=(0, 2), dtype=jnp.int32)
            chance[units.bias] = jax.vmap(lambda v: sum_digits(v, (0, 1))[:, None])(variance)
    x = seen.outer["head"]
    of_head = jnp.maximum(1, jnp.sum(jnp.square(head.astype(jnp.int32)), axis=-1) // head.shape[-1])
    rows = jnp.zeros(shared.outer["embedding"].shape, jnp.int32)
    no_rows = jnp.zeros((DIGITS, rows.shape[0]), jnp.int32)
    outer_votes = {
        "embedding": rows.at[reading].add(y.outer["embedding"].astype(jnp.int32)),
        "head": matrix_votes(head, x, shift),
    }
    outer_chance = {
        "embedding": no_rows.at[:, reading].add(digits_of(far)),
        "head": matrix_chance(jnp.where(there, of_head, 0), x),
    }
    sums = Sums(
        unstack_layers(Layered(outer_votes, votes), architecture),
        unstack_layers(Layered(outer_chance, chance), architecture),
        sizes,
    )
    return Evaluation(jnp.sum(losses[..., 0], axis=0), states, sums)


def matrix_chance(variance: Array, x: Array) -> Array:
    """The variance of a matrix's votes under noise alone, as a sum of digits, for each column: int32 [4, fan-in].

    variance: int32 [T, texts], of the y of each. x: int8 [T, texts, fan-in].
    """
    return sum_digits(variance[..., None] * jnp.square(x.astype(jnp.int32)), (0, 1))


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
