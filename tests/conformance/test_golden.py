"""The published vectors: the oracle still makes them byte for byte, and the package agrees with them."""

import importlib.util
import json
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
import jsonschema
import numpy as np
import oracle
import pytest
from test_engines import ENGINES, serving

from intlm.arithmetic.digits import DIGIT, DIGITS
from intlm.arithmetic.fixed_point import (
    activation_rescale,
    logit_rescale,
    rank_multiplier,
)
from intlm.arithmetic.random_bits import Domain, random_bytes, seed_key, threefry4x32
from intlm.cells import CELLS
from intlm.data.shards import Corpus, CorpusWriter, Split
from intlm.data.streams import MixedStreams
from intlm.data.tokenizers.alphabet import AlphabetTokenizer
from intlm.estimators import token
from intlm.estimators.member import Factors, Member, Perturbation, PerturbedWeights, parameter_noise, votes
from intlm.estimators.token import Token
from intlm.fitness import FITNESS
from intlm.model.forward import PlainWeights, norm, read_layer, zero_states
from intlm.model.loss import log_sum_exp2, loss
from intlm.model.parameters import Architecture, Kind, Layered, Parameters, Specification, initialise, specifications
from intlm.model.sampling import sample
from intlm.objectives.next_token import NextToken
from intlm.optimizers import OPTIMIZERS, Optimizer
from intlm.optimizers.threshold import Threshold
from intlm.population import Population, make_engine, native
from intlm.update import TrainState, make_update_step
from intlm.version import INFERENCE_VERSION, TRAINING_VERSION

GOLDEN = Path(__file__).resolve().parents[1] / "golden"
Case = dict[str, Any]


def load_make() -> ModuleType:
    """golden/make.py, which is a script."""
    found = importlib.util.spec_from_file_location("golden_make", GOLDEN / "make.py")
    assert found and found.loader
    module = importlib.util.module_from_spec(found)
    found.loader.exec_module(module)
    return module


make = load_make()


def path_of(stage: str) -> Path:
    """A stage's file: in the folder of the version in which its results last changed."""
    return GOLDEN / f"v{make.version_of(stage)}" / f"{stage}.json"


def cases(stage: str) -> list[Case]:
    """The cases of a file."""
    content = json.loads(path_of(stage).read_text(encoding="utf-8"))
    assert content["numerics_version"] == make.version_of(stage) and content["stage"] == stage and content["cases"]
    return content["cases"]


def numbered(stage: str) -> list[Any]:
    """Each of a file's cases as a parameter."""
    return [pytest.param(case, id=f"{stage}{i}") for i, case in enumerate(cases(stage))]


def architecture(case: Case) -> Architecture:
    """The architecture of a case's model."""
    m = case["model"]
    cell = CELLS[case.get("cell", "mgu")]()
    return Architecture(m["vocabulary"], m["hidden"], m["layers"], m["feed_forward"], m["nonlinearity"], cell)


def parameters(named: dict[str, Any], dtype: Any = jnp.int8) -> Parameters:
    """A case's parameters under the package's names: gate_input.0 is layers.0.gate_input."""

    def name(published: str) -> str:
        local, dot, layer = published.partition(".")
        return f"layers.{layer}.{local}" if dot else local

    return {name(key): jnp.asarray(value, dtype) for key, value in named.items()}


def assert_parameters(found: Parameters, named: dict[str, Any]) -> None:
    """Asserts that parameters are exactly those of a case."""
    expected = parameters(named, jnp.int32)
    assert set(found) == set(expected)
    for name, value in expected.items():
        np.testing.assert_array_equal(found[name], value, err_msg=name)


@pytest.mark.parametrize("stage", make.STAGES, ids=lambda stage: stage.__name__)
def test_the_oracle_makes_the_files(stage: Any) -> None:
    assert path_of(stage.__name__).read_bytes() == make.render(stage).encode()


def test_there_are_no_other_files() -> None:
    files = {path_of(stage.__name__) for stage in make.STAGES}
    assert files == set(GOLDEN.glob("v*/*"))
    assert sum(path.stat().st_size for path in files) < 420_000


def test_versions() -> None:
    """Each stage has the version of what it belongs to: inference, or an estimator; training has the last one."""
    versions = {stage.__name__: make.version_of(stage.__name__) for stage in make.STAGES}
    assert {versions[stage.__name__] for stage in make.INFERENCE} == {INFERENCE_VERSION}
    assert {versions[stage.__name__] for stage in make.TRAINING} == {Member.training_version}
    assert {versions[stage.__name__] for stage in make.TOKEN} == {Token.training_version}
    assert max(versions.values()) == TRAINING_VERSION


def test_the_schema_describes_every_file() -> None:
    """The schema accepts every file, and refuses a missing key, an extra key, and a value of another type."""
    schema = json.loads((GOLDEN / "schema.json").read_text(encoding="utf-8"))
    jsonschema.Draft202012Validator.check_schema(schema)
    valid = jsonschema.Draft202012Validator(schema).is_valid
    for stage in make.STAGES:
        content = json.loads(path_of(stage.__name__).read_text(encoding="utf-8"))
        assert valid(content), stage.__name__
        case = content["cases"][0]
        for name in case if stage not in (make.update, make.token_update) else ():  # they are long
            fewer = {key: value for key, value in case.items() if key != name}
            assert not valid(content | {"cases": [fewer]}) or name in ("token", "x", "positions", "before"), name
            assert not valid(content | {"cases": [case | {name: None}]}), name
        assert not valid(content | {"cases": [case | {"more": 0}]}) and not valid(content | {"cases": []})
        assert not valid(content | {"part": "training" if content["part"] == "inference" else "inference"})


def test_random_bits() -> None:
    for case in cases("random_bits"):
        if "words" in case:
            assert [int(word) for word in threefry4x32(case["key"], case["counter"])] == case["words"]
        else:
            key = seed_key(int(case["seed"]), Domain(case["domain"]))
            assert list(key) == case["key"]
            found = random_bytes(key, (*case["stream"], 0), len(case["bytes"]) // 2)
            assert np.asarray(found).tobytes().hex() == case["bytes"]


def test_rescale() -> None:
    rules = {"act": activation_rescale, "act3": partial(activation_rescale, extra_shift=3), "logit": logit_rescale}
    for case in cases("rescale"):
        rule = rules[case["kind"]](case["fan_in"])
        assert rule == (case["shift"], case["multiplier"])
        assert rule(np.array(case["x"], np.int32)).tolist() == case["y"]


def drawn(case: Case, pairs: list[int]) -> tuple[Specification, Factors | jax.Array]:
    """A case's parameter and its noise for some pairs."""
    size = tuple(case["shape"])
    described = Specification("w", size, Kind.MATRIX if len(size) == 2 else Kind.BIAS)
    perturbation = Perturbation(int(case["seed"]), case["rank"], 4, case["noise_reuse"])
    epoch = perturbation.epoch(jnp.uint32(case["update"]))
    assert int(epoch) == case.get("epoch", int(epoch))
    compiled = jax.jit(parameter_noise, static_argnums=(0, 2))
    number = jnp.uint32(case["parameter"])
    return described, compiled(described, number, perturbation, epoch, jnp.array(pairs, jnp.uint32))


@pytest.mark.parametrize("case", numbered("noise"))
def test_noise(case: Case) -> None:
    _, found = drawn(case, [case["pair"]])
    if isinstance(found, Factors):
        assert found.a[0].tolist() == case["A"] and found.b[0].tolist() == case["B"]
        assert rank_multiplier(case["rank"]) == case["c_r"]
    else:
        assert found[0].tolist() == case["z"]


@pytest.mark.parametrize("case", numbered("perturbation"))
def test_perturbation(case: Case) -> None:
    _, noise = drawn(case, [case["pair"]])
    perturbation = Perturbation(int(case["seed"]), case["rank"], case["sigma_shift"], case["noise_reuse"])
    name = "w" if "token" not in case else "embedding"

    @jax.jit
    def read(weights: jax.Array, noise: Any) -> jax.Array:
        member = PerturbedWeights(Layered({name: weights}, {}), Layered({name: noise}, {}), perturbation)
        if "token" in case:
            return member.embed(jnp.full((1, 2), case["token"]))
        if "x" in case:
            return member.multiply(name, jnp.array([[case["x"]] * 2], jnp.int8))
        return member.vector(name)

    assert read(jnp.array(case["weights"], jnp.int8), noise)[0].tolist() == case["read"]


def corpus_of(ring: list[int], vocabulary: int, directory: Path) -> Split:
    """A corpus whose training split is this ring of tokens."""
    tokenizer = AlphabetTokenizer(bytes(range(vocabulary - 2)))
    assert ring[0] == 0 and 1 not in ring and tokenizer.vocab_size == vocabulary
    with CorpusWriter(directory, tokenizer, 5) as writer:
        for i, token in enumerate(ring):
            if token == 0:
                end = next((j for j in range(i + 1, len(ring)) if ring[j] == 0), len(ring))
                writer.write("train", bytes(other - 2 for other in ring[i + 1 : end]), True)
        writer.finish({})
    split = Corpus.open(directory).split("train")
    assert split.read(0, split.tokens).tolist() == ring
    return split


@pytest.mark.parametrize("case", numbered("texts"))
def test_texts(case: Case, tmp_path: Path) -> None:
    parts = enumerate(case["mixture"])
    mixture = [(p["share"], corpus_of(p["ring"], case["vocabulary"], tmp_path / str(i))) for i, p in parts]
    count = len(case["targets"][0][0])
    streams = MixedStreams(mixture, case["texts"], case["tokens_per_update"], count)
    batch = streams.batch(case["update"])
    assert batch.tokens.tolist() == case["tokens"] and batch.targets.tolist() == case["targets"]


def test_first_values() -> None:
    for case in cases("first_values"):
        found = jax.jit(lambda case=case: initialise(architecture(case), int(case["seed"])))()
        assert_parameters(found, case["parameters"])


def test_norm() -> None:
    compiled = jax.jit(norm)
    for case in cases("norm"):
        assert compiled(jnp.array(case["x"], jnp.int8)).tolist() == case["y"]


@pytest.mark.parametrize("case", numbered("layer"))
def test_layer(case: Case) -> None:
    shape = Architecture(2, case["hidden"], 1, case["feed_forward"], case["nonlinearity"])
    weights = PlainWeights(Layered(parameters(case["parameters"]), {}))
    x, h, x_after, h_after = (
        jnp.array([step[name] for step in case["steps"]], jnp.int8) for name in ("x", "h", "x_after", "h_after")
    )

    found_x, found_h = jax.jit(lambda x, h: read_layer(weights, x, h, shape))(x, h)
    np.testing.assert_array_equal(found_h, h_after)
    np.testing.assert_array_equal(found_x, x_after)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("case", numbered("logits"))
def test_logits(engine: str, case: Case, bridge: Any) -> None:
    population = bridge.population(oracle.Shape(**case["model"]), oracle.Noise(0, 1, 4), 1)
    assert population.architecture == architecture(case)
    tokens, states = jnp.array([case["tokens"]], jnp.uint16), jnp.array([case["states"]], jnp.int8)
    made = make_engine(engine, population)
    prepared = jax.jit(made.prepare)(parameters(case["parameters"]))
    found, after = jax.jit(made.infer)(prepared, tokens, states)
    assert found[0].tolist() == case["logits"] and after[0].tolist() == case["states_after"]


def test_loss() -> None:
    compiled_log_sum_exp2, compiled_loss = jax.jit(log_sum_exp2), jax.jit(loss)
    for case in cases("loss"):
        row = jnp.array(case["logits"], jnp.int32)
        assert int(compiled_log_sum_exp2(row)) == case["log_sum_exp2"]
        assert [int(compiled_loss(row, jnp.array(some, jnp.int32))) for some in case["targets"]] == case["losses"]


def test_fitness() -> None:
    for case in cases("fitness"):
        losses = jnp.array(case["losses"], jnp.int32).reshape(-1, 2)
        assert FITNESS["normalised"]().largest(losses.shape[0], case["rank"]) == case["D"]
        for kind in ("sign", "normalised"):
            shaping = FITNESS[kind]()
            found = shaping.shape(losses, case["rank"], losses.shape[0], shaping.totals(losses))
            assert found.tolist() == case[kind]


@pytest.mark.parametrize("case", numbered("votes"))
def test_votes(case: Case) -> None:
    scores = case["fitness"]
    described, noise = drawn(case, list(range(len(scores))))
    compiled = jax.jit(votes, static_argnums=(0, 3))
    assert compiled(described, noise, jnp.array(scores, jnp.int8), max(map(abs, scores))).tolist() == case["votes"]


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("case", numbered("update"))
def test_update(engine: str, case: Case, bridge: Any) -> None:
    setting = oracle.Noise(int(case["seed"]), case["rank"], case["sigma_shift"], case["noise_reuse"])
    pairs, kind = case["pairs"], case["fitness_kind"]
    shape, group_size = oracle.Shape(**case["model"]), case["group_size"]
    population = bridge.population(shape, setting, pairs, group_size, kind, chunk_size=4)
    run = bridge.update(engine, population)
    weights = parameters(case["parameters"])
    state = TrainState(weights, (), zero_states((pairs, 2), population.architecture))
    for step in case["updates"]:
        number, quantile = step["update"], step["quantile"]
        assert Threshold(alpha=case["alpha"], decay_updates=case["decay_updates"]).setting(number) == quantile
        batch = (jnp.array(step[name], jnp.uint16) for name in ("tokens", "targets"))
        state, report, scores, found = run(state, tuple(batch), jnp.uint32(number), jnp.int32(quantile))
        assert report.seen.ravel().tolist() == step["losses"]
        states = np.array(step["states_after"])
        np.testing.assert_array_equal(state.members.reshape(states.shape), states)
        assert scores.tolist() == step["fitness"]
        assert_parameters(found, step["votes"])
        assert_parameters(state.parameters, step["parameters_after"])


@pytest.mark.parametrize("case", numbered("optimizers"))
def test_optimizers(case: Case) -> None:
    name = "sgd" if case["optimizer"] == "momentum" and not case["momentum"] else case["optimizer"]
    made = OPTIMIZERS[name]
    optimizer = made(**{field: case[field] for field in made.__dataclass_fields__ if field in case})  # type: ignore[attr-defined]
    weights = {"w": jnp.array(case["weights"], jnp.int8)}
    described = Specification("w", weights["w"].shape, Kind.MATRIX if weights["w"].ndim == 2 else Kind.BIAS)
    estimator = Member(rank=case["rank"])
    compiled = jax.jit(partial(optimizer.update, {"w": described.kind}))
    state = optimizer.init(weights)
    if "before" in case:
        state = state._replace(**{name: {"w": jnp.array(leaf, jnp.int32)} for name, leaf in case["before"].items()})
    for step in case["updates"]:
        setting = step["quantile" if case["optimizer"] == "threshold" else "s"]
        assert optimizer.setting(step["update"]) == setting
        energy = jnp.sum(jnp.square(jnp.array(step["fitness"], jnp.int32)))
        votes = {"w": jnp.array(step["votes"], jnp.int32)}
        deviations = estimator.deviations(None, [described], energy)  # type: ignore[arg-type]
        weights, state = compiled(weights, votes, state, deviations, jnp.int32(setting))
        fields = state._asdict() if state else {}  # of sgd the master alone: a mean over one update is the vote
        assert {field: leaf["w"].tolist() for field, leaf in fields.items()} == {field: step[field] for field in fields}
        assert weights["w"].tolist() == step["weights_after"]


def draws(vocabulary: int) -> list[Callable[..., Any]]:
    """The functions that sample a token: the reference, and the native engine's where there is one."""
    if not native.available():
        return [sample]
    population = Population(Architecture(vocabulary, 8, 1, 8, "clip"))
    engine = make_engine("native", population)
    prepared = engine.prepare(initialise(population.architecture, 0))

    def draw(logits: Any, key: Any, position: Any, inverse: Any, top_k: int) -> Any:
        states = jnp.zeros((1, 8), jnp.int8)
        return engine.generate(prepared, logits, states, key, position, inverse, top_k, 1)[0][0]

    return [sample, draw]


def test_sampling() -> None:
    for case in cases("sampling"):
        key = jnp.array(seed_key(int(case["seed"]), Domain.SAMPLING), jnp.uint32)
        row, v = jnp.array(case["logits"], jnp.int16), jnp.int32(case["v"])
        for draw in draws(len(row)):
            positions = case.get("positions", range(len(case["tokens"])))
            found = [int(draw(row, key, jnp.uint32(i), v, case["k"])) for i in positions]
            assert found == case["tokens"]


def test_sampling_from_the_largest_vocabulary() -> None:
    """Too large to publish, hence against the oracle. Here a draw has as many values as there are tokens, or nearly,
    so that any unit of a share, of their sum or of the draw itself shows."""
    key = jnp.array(seed_key(3, Domain.SAMPLING), jnp.uint32)
    rng = np.random.default_rng(5)
    rows = [rng.integers(-3070, -3050, 65536), np.full(65536, -3456), np.full(65536, 2 - 2**15), np.zeros(65536, int)]
    for row in rows[:3]:  # two likely tokens; the tails are cut to small numbers, that 128 bits below to 0
        row[[7, 40_000]] = 0
    for row in rows:
        row += 2**14 - 1 - row.max()  # int16, as far as logits go
        for v in (256, 300):
            expected = [oracle.sample(row, v, 65536, 3, i) for i in range(3)]
            for draw in draws(len(row)):
                drawn = [int(draw(row.astype(np.int16), key, jnp.uint32(i), jnp.int32(v), 65536)) for i in range(3)]
                assert drawn == expected


def test_slopes() -> None:
    compiled = jax.jit(NextToken().slopes)
    alike: dict[tuple[int, int], list[tuple[list[int], ...]]] = {}  # of one size, hence of one compiled program
    for case in cases("slopes"):
        for wanted, expected in zip(case["targets"], case["slopes"], strict=True):
            alike.setdefault((len(expected), len(wanted)), []).append((case["logits"], wanted, expected))
    for some in alike.values():
        logits, wanted, expected = (jnp.array(part, jnp.int32) for part in zip(*some, strict=True))
        np.testing.assert_array_equal(compiled(logits, wanted), expected)


def settings(case: Case, **others: int) -> token.Settings:
    """The settings of `token` in a case, of the texts of one device's largest update where it does not say."""
    keys = {key: case[key] for key in ("members", "credit", "sigma_shift") if key in case} | others
    made = Token(**keys)
    texts = case.get("texts", token.MOST_TEXTS)
    population = Population(
        Architecture(2, 8, 1, 8, "clip"), made, texts * (1 + made.members), int(case.get("seed", 0))
    )
    return made.settings(population)


def test_token_noise() -> None:
    for case in cases("token_noise"):
        if "signs" not in case:
            own = settings(case, members=1)
            size = {"embedding": lambda _, own=own: own.embedding_amplitude}.get(
                case["kind"], partial(own.amplitude, case["kind"])
            )
            assert [size(fan_in) for fan_in in case["fan_in"]] == case["size"]
            continue
        shape = architecture(case)
        draw = jax.jit(partial(token.noise, shape, settings(case)))
        found = draw(jnp.uint32(case["update"]), jnp.array([case["text"]], jnp.uint32), jnp.uint32(case["token"]))
        q = case["noisy_member"]
        named = {"embedding": found.outer["embedding"][0, q].tolist()}
        for units in token.layer_units(shape):
            for layer in range(shape.num_layers):
                named[f"{units.kind}.{layer}"] = found.layers[units.noise][layer, 0, q].tolist()
        assert named == case["signs"]


def digits_of(values: list[int]) -> jax.Array:
    """Exact integers below 2^52 as `sum_digits` holds them: int32 [4, ...]."""
    lower = [[value >> DIGIT * k & (1 << DIGIT) - 1 for value in values] for k in range(DIGITS - 1)]
    return jnp.array([*lower, [value >> DIGIT * (DIGITS - 1) for value in values]], jnp.int32)


def values_of(sums: jax.Array) -> list[int]:
    """The exact values of some sums of digits, int32 [4, any]."""
    return [sum(digit << DIGIT * k for k, digit in enumerate(column)) for column in np.array(sums).T.tolist()]


def test_token_credit() -> None:
    quickly = jax.jit
    for case in cases("token_credit"):
        own = settings(case)
        if "sums" in case:
            compiled = quickly(lambda sizes, own=own, case=case: token.means(sizes.T, own, case["tokens_per_update"]))
            assert compiled(digits_of(case["sums"])).tolist() == case["means_after"]
            continue

        @quickly
        def read(clean: Any, noisy: Any, tokens: Any, means: Any, own: Any = own, case: Case = case) -> Any:
            diff = (clean - noisy).T[:, None]  # [T, texts, members]
            far = token.credits(diff, tokens[:, None], case["credit"])
            scores = [token.fitness(x, mean, own) for x, mean in zip((diff, far), means, strict=True)]
            return [x[:, 0].T for x in (diff, far, *scores)]

        found = read(*(jnp.array(case[name], jnp.int32) for name in ("clean", "noisy", "tokens", "means")))
        for name, values in zip(("diff", "R", "fitness_diff", "fitness_R"), found, strict=True):
            np.testing.assert_array_equal(values, case[name], err_msg=name)


def test_token_votes() -> None:
    quickly = jax.jit
    deviation, chance = quickly(token.deviation), quickly(token.matrix_chance)
    votes = quickly(token.matrix_votes, static_argnames="shift")
    standardised = []
    for case in cases("token_votes"):
        if "slope" in case:
            found = quickly(partial(token.head_votes, settings(case)))(
                jnp.uint32(case["update"]), jnp.array([case["text"]], jnp.uint32), jnp.uint32(case["token"]),
                jnp.array([case["slope"]], jnp.int32),
            )  # fmt: skip
            assert found[0].tolist() == case["Y"]
        elif "standardised" in case:
            standardised += [
                (z, case["deviation"], to) for z, to in zip(case["votes"], case["standardised"], strict=True)
            ]
        else:
            assert deviation(digits_of(case["C"]), case["vote_shift"]).tolist() == case["deviations"]
            if "Y" in case:
                shift = token.vote_shift(case["texts"], case["tokens_per_update"])
                assert shift == case["vote_shift"]
                y, x = (jnp.array(case[name], jnp.int8).swapaxes(0, 1) for name in ("Y", "x"))
                assert votes(y, x, shift=shift).tolist() == case["votes"]
                assert values_of(chance(jnp.array(case["variance"], jnp.int32).T, x)) == case["C"]
    z, deviations, expected = (jnp.array(part, jnp.int32) for part in zip(*standardised, strict=True))
    np.testing.assert_array_equal(quickly(token.standardised)(z, deviations), expected)


def token_population(case: Case) -> Population:
    """The population of a case of `token_update` or `token_part`."""
    estimator = Token(members=case["members"], credit=case["credit"], sigma_shift=case["sigma_shift"], reset_updates=0)
    step = case["updates"][0] if "updates" in case else case
    texts, targets = step["tokens"], step["targets"]
    members = case.get("texts", len(texts)) * (1 + estimator.members)
    objective = NextToken(targets=len(targets[0][0]))
    return Population(architecture(case), estimator, members, int(case["seed"]), objective, tokens=len(texts[0]))


def served(stage: str) -> list[Any]:
    """Each engine and case of a stage that it serves, as a parameter."""
    return [
        pytest.param(engine, case, id=f"{engine}-{stage}{i}")
        for i, case in enumerate(cases(stage))
        for engine in serving(token_population(case))
    ]


def assert_votes(population: Population, sums: token.Sums, expected: Case) -> None:
    """Asserts that sums over texts give the votes and the deviations of a case."""
    assert_parameters(sums.votes, expected["votes"])
    described = specifications(population.architecture)
    deviations = population.estimator.deviations(population, described, sums.chance)
    for name, along in parameters(expected["deviations"], jnp.int32).items():
        along = along[:, None] if name == "embedding" else along
        whole = np.broadcast_to(along, sums.votes[name].shape)
        np.testing.assert_array_equal(deviations[name], whole, err_msg=name)


@pytest.mark.parametrize(("engine", "case"), served("token_part"))
def test_token_part(engine: str, case: Case) -> None:
    population = token_population(case)
    assert token.vote_shift(population.units, population.tokens) == case["vote_shift"] > 0
    made = make_engine(engine, population)
    assert made.name == engine
    found = jax.jit(made.evaluate_tokens)(
        parameters(case["parameters"]), *(jnp.array(case[name], jnp.uint16) for name in ("tokens", "targets")),
        jnp.array(case["states"], jnp.int8), jnp.array(case["means"], jnp.int32), jnp.uint32(case["update"]),
        jnp.uint32(case["first"]),
    )  # fmt: skip
    assert found.losses.tolist() == case["losses"]
    np.testing.assert_array_equal(found.states, case["states_after"])
    assert_votes(population, found.sums, case)
    for name, expected in parameters(case["C"], jnp.int32).items():
        assert values_of(found.sums.chance[name]) == expected.tolist(), name
    assert values_of(found.sums.sizes.T) == case["sums"]


@cache
def token_run(engine: str, population: Population, optimizer: Optimizer) -> Any:
    """An update of `token`, compiled once."""
    made = make_engine(engine, population)
    assert made.name == engine
    return jax.jit(make_update_step(population, made, optimizer))


@pytest.mark.parametrize(("engine", "case"), served("token_update"))
def test_token_update(engine: str, case: Case) -> None:
    population = token_population(case)
    keys = dict(case["optimizer"])
    optimizer = OPTIMIZERS[keys.pop("name")](**keys)
    run = token_run(engine, population, optimizer)
    weights = parameters(case["parameters"])
    states, means = jnp.array(case["states"], jnp.int8), jnp.array(case["means"], jnp.int32)
    state = TrainState(weights, optimizer.init(weights), states, means)
    for step in case["updates"]:
        batch = tuple(jnp.array(step[name], jnp.uint16) for name in ("tokens", "targets"))
        setting = jnp.int32(optimizer.setting(step["update"]))
        state, report = run(state, batch, jnp.uint32(step["update"]), setting)
        assert report.seen.losses.tolist() == step["losses"]
        np.testing.assert_array_equal(state.members, step["states_after"])
        assert_votes(population, jax.tree.map(lambda whole: whole[0], report.seen.sums), step)
        assert_parameters(state.parameters, step["parameters_after"])
        assert state.common.tolist() == step["means_after"]
