"""The published vectors: the oracle still makes them byte for byte, and the package agrees with them."""

import importlib.util
import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
import jsonschema
import numpy as np
import oracle
import pytest
import tiny
from test_engines import ENGINES

from intlm.arithmetic.fixed_point import (
    activation_rescale,
    logit_rescale,
    rank_multiplier,
)
from intlm.arithmetic.random_bits import Domain, random_bytes, seed_key, threefry4x32
from intlm.data.shards import Corpus, CorpusWriter, Split
from intlm.data.streams import MixedStreams
from intlm.data.tokenizers.alphabet import AlphabetTokenizer
from intlm.estimators.member import Factors, Member, Perturbation, PerturbedWeights, parameter_noise, votes
from intlm.fitness import FITNESS
from intlm.model.forward import PlainWeights, norm, read_layer, zero_states
from intlm.model.loss import log_sum_exp2, loss
from intlm.model.parameters import Architecture, Kind, Layered, Parameters, Specification, initialise
from intlm.model.sampling import sample
from intlm.optimizers import OPTIMIZERS
from intlm.optimizers.threshold import Threshold
from intlm.population import Population, make_engine, native
from intlm.update import TrainState
from intlm.version import INFERENCE_VERSION, TRAINING_VERSION

GOLDEN = Path(__file__).resolve().parents[1] / "golden"
VERSIONS = {"inference": INFERENCE_VERSION, "training": TRAINING_VERSION}
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
    """A stage's file: in the folder of the version that its part of the arithmetic has."""
    return GOLDEN / f"v{VERSIONS[make.part_of(stage)]}" / f"{stage}.json"


def cases(stage: str) -> list[Case]:
    """The cases of a file."""
    content = json.loads(path_of(stage).read_text(encoding="utf-8"))
    assert content["numerics_version"] == VERSIONS[content["part"]] and content["stage"] == stage and content["cases"]
    return content["cases"]


def numbered(stage: str) -> list[Any]:
    """Each of a file's cases as a parameter."""
    return [pytest.param(case, id=f"{stage}{i}") for i, case in enumerate(cases(stage))]


def architecture(case: Case) -> Architecture:
    """The architecture of a case's model."""
    m = case["model"]
    return Architecture(m["vocabulary"], m["hidden"], m["layers"], m["feed_forward"], m["nonlinearity"])


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
    assert sum(path.stat().st_size for path in files) < 300_000


def test_the_schema_describes_every_file() -> None:
    """The schema accepts every file, and refuses a missing key, an extra key, and a value of another type."""
    schema = json.loads((GOLDEN / "schema.json").read_text(encoding="utf-8"))
    jsonschema.Draft202012Validator.check_schema(schema)
    valid = jsonschema.Draft202012Validator(schema).is_valid
    for stage in make.STAGES:
        content = json.loads(path_of(stage.__name__).read_text(encoding="utf-8"))
        assert valid(content), stage.__name__
        case = content["cases"][0]
        for name in case if stage is not make.update else ():  # it is long
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
    compiled = jax.jit(parameter_noise, static_argnums=(0, 2), compiler_options=tiny.quick_options())
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

    @partial(jax.jit, compiler_options=tiny.quick_options())
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
    quickly = partial(jax.jit, compiler_options=tiny.quick_options())
    compiled_log_sum_exp2, compiled_loss = quickly(log_sum_exp2), quickly(loss)
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
