"""intlm.harness: the answers to lm-evaluation-harness's requests, and its real evaluator on tasks of local files."""

import json
import math
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
from lm_eval import simple_evaluate
from lm_eval.api.instance import Instance
from lm_eval.tasks import TaskManager
from lm_eval.tasks.wikitext import preprocess_wikitext

from intlm.cli import main
from intlm.data.tokenizers import Tokenizer
from intlm.data.tokenizers.alphabet import AlphabetTokenizer
from intlm.data.tokenizers.byte import ByteTokenizer
from intlm.data.tokenizers.pieces import PieceTokenizer
from intlm.errors import ConfigError
from intlm.evaluation import FRACTION_BITS, SEGMENT, Evaluation, evaluate, exact_losses
from intlm.generation import generate
from intlm.harness import IntlmLM, divide, natural
from intlm.language_model import BLOCK, LanguageModel

TEXT = tiny.words(3000) + b" the cat that catches the other cathedral there, then theatres of category;\n\n" * 40
TOKENIZERS: dict[str, Tokenizer] = {
    "bytes": ByteTokenizer(),
    "alphabet": AlphabetTokenizer(b"\n abcdefgh"),
    "unigram": PieceTokenizer.train("unigram", [TEXT], 272),
}
LONG = (TEXT * 2)[: 2 * SEGMENT + 77].decode()
PAIRS = [
    ("", "a"), ("", ""), ("a", ""), ("ab ab", " abba"), ("ab ab ", "abba"), ("ab a", "bba baab"), ("\x00é", "日本\x00"),
    (" " * 3, "\n\n"), ("the c", "at"), ("x" * BLOCK, "y" * BLOCK), ("x" * (BLOCK - 1), "y"), (LONG, " ab"),
    ("b", LONG),
]  # fmt: skip


@pytest.fixture(scope="module", params=list(TOKENIZERS))
def lm(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> IntlmLM:
    directory = tmp_path_factory.mktemp("harness") / "run"
    tiny.write_run(directory, tiny.make_model(TOKENIZERS[request.param]))
    return IntlmLM(run=str(directory))


def requests(kind: Any, arguments: Sequence[tuple[Any, ...]]) -> list[Instance]:
    return [Instance(kind, {}, some, number) for number, some in enumerate(arguments)]


def rows(lm: IntlmLM, batch: int) -> IntlmLM:
    """The same model with other rows side by side."""
    other = object.__new__(IntlmLM)
    other.__dict__ |= lm.__dict__ | {"_batch": batch}
    return other


def alone(model: LanguageModel, context: str, continuation: str) -> tuple[float, bool]:
    """One request, its whole text read at once."""
    text = context.encode() + continuation.encode()
    tokens, logits = model.tokens(text), model.logits(text)
    ends = [len(model.tokenizer.decode(tokens[: n + 1])) for n in range(len(tokens))]
    starts = [0, *ends]
    chosen = [n for n, end in enumerate(ends) if end > len(context.encode()) or starts[n] == len(context.encode())]
    losses = np.rint(exact_losses(logits[chosen], tokens[chosen]) * 2**FRACTION_BITS)
    return natural(int(losses.sum())), bool((logits[chosen].argmax(axis=-1) == tokens[chosen]).all())


def test_loglikelihood(lm: IntlmLM) -> None:
    """The log-likelihood of any text is exact to the last digit, whatever is read beside it."""
    expected = [alone(lm.model, *pair) for pair in PAIRS]
    assert [value < 0 for value, _ in expected] == [bool(continuation) for _, continuation in PAIRS]
    for batch in (3, 64):
        assert rows(lm, batch).loglikelihood(requests("loglikelihood", PAIRS)) == expected
    assert lm.loglikelihood([]) == []


def test_greedy(lm: IntlmLM) -> None:
    """A continuation reported as greedy is what greedy generation gives, for anything that may follow a letter."""
    pairs = [(context, chr(code)) for context in "abcdefgh \n.x" for code in range(128)]
    greedy = [is_greedy for _, is_greedy in lm.loglikelihood(requests("loglikelihood", pairs))]
    assert greedy == [alone(lm.model, *pair)[1] for pair in pairs]
    assert 0 < sum(greedy) < len(greedy) / 20
    for (context, continuation), is_greedy in zip(pairs, greedy, strict=True):
        if is_greedy and len(divide(lm.model.tokenizer, context.encode(), b"")[0]) == 1:
            assert written(lm, context, max_gen_toks=4).startswith(continuation)


def written(lm: IntlmLM, context: str, **options: object) -> str:
    """One text that is generated."""
    (text,) = lm.generate_until(requests("generate_until", [(context, options)]))
    return text


def test_a_token_over_the_border_is_the_continuation_s() -> None:
    tokenizer = TOKENIZERS["unigram"]
    text = b"the cat ab abba the caat\n\n the cat"
    straddled = 0
    for cut in range(len(text) + 1):
        tokens, border = divide(tokenizer, text[:cut], text[cut:])
        assert tokens.tolist() == tokenizer.encode(text).tolist()
        before, to = (len(tokenizer.decode(tokens[:n])) for n in (border, border + 1))
        assert before <= cut < to or cut == len(text) == before
        straddled += before < cut
    assert straddled > 5
    # The tokens of a context may be others than those of the same text where it goes on.
    assert any(
        tokenizer.encode(text[:cut]).tolist() != tokenizer.encode(text)[: len(tokenizer.encode(text[:cut]))].tolist()
        for cut in range(len(text))
    )


def test_rolling_is_evaluation(lm: IntlmLM) -> None:
    texts = [LONG, "", "a", "日本 \x00", "ab " * 400]
    expected = [evaluate(lm.model, [lm.model.tokenizer.encode(text.encode())], 4) for text in texts]
    for batch in (2, 4):
        answers = rows(lm, batch).loglikelihood_rolling(requests("loglikelihood_rolling", [(text,) for text in texts]))
        assert answers == [natural(one.loss) for one in expected]


def test_generation(lm: IntlmLM) -> None:
    """Text is that of `intlm generate` up to the first stop string, whatever is written beside it."""
    contexts = ["", "a", "ab ", "é\x00", LONG, "abba " * 30]
    sampled = {"do_sample": True, "temperature": 0.7, "top_k": 20, "until": ["\x01\x02"]}
    kinds: list[tuple[dict[str, Any], dict[str, Any]]] = [
        ({}, {"temperature": 0}),
        (sampled, {"temperature": "0.7", "top_k": 20}),
        ({"do_sample": True}, {}),
    ]
    asked, expected = [], []
    for options, meant in kinds:
        for tokens in (1, 40, 0):
            for context in contexts:
                seed = len(asked)
                text = b"".join(generate(lm.model, context.encode(), tokens, **meant, seed=seed))
                asked.append((context, {**options, "max_gen_toks": tokens}))
                expected.append(text)
    for batch in (4, 64):
        answers = rows(lm, batch).generate_until(requests("generate_until", asked))
        assert answers == [text.split(b"\x01\x02")[0].decode(errors="replace") for text in expected], batch


def test_stop_strings(tmp_path: Path) -> None:
    """A text ends before the first of them, wherever tokens begin; an empty one stops nothing."""
    tiny.write_run(tmp_path / "run", tiny.make_model(AlphabetTokenizer(bytes(range(1, 127)))))
    lm, options = IntlmLM(str(tmp_path / "run")), {"max_gen_toks": 60, "do_sample": True}
    context, plain = next(
        (context, text)
        for context in "abcdefghijklmnopqrstuvwxyz"
        if (text := written(lm, context, **options)).isascii() and len(text) == 60
    )
    for stops in (plain[3:5], [plain[20:30], plain[30:32]], ["~~", "", plain[50:]], [plain[9:14]], ["\x7f"], plain[0]):
        given = [stops] if isinstance(stops, str) else stops
        ends = [plain.index(stop) for stop in given if stop and stop in plain]
        assert written(lm, context, until=stops, **options) == plain[: min(ends, default=60)]


def test_sampling_that_there_is_not(lm: IntlmLM) -> None:
    with pytest.raises(ConfigError, match=r"^generation_kwargs: top_p = 0\.9: expected 1, or do_sample = false$"):
        written(lm, "a", do_sample=True, top_p=0.9)
    assert written(lm, "a", do_sample=False, top_p=0.9, max_gen_toks=5) == written(lm, "a", max_gen_toks=5)


WIKITEXT = """
 = First <unk> =\x20

 The first @-@ ever page , of 1 @,@ 000 words ( or 2 @.@ 5 ) : " it " is ; he 's here .
 = = A part = =
 Some more . = not a title =
 = Second one =\x20

 The cats ' page [ sic ] .
"""

CHOICE = """task: choice
dataset_path: json
dataset_kwargs: {{data_files: {{test: {0}/choice.jsonl}}, cache_dir: {0}/cache}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{question}}}}"
doc_to_choice: "{{{{choices}}}}"
doc_to_target: label
metric_list: [{{metric: acc}}, {{metric: acc_norm}}]
"""
ROLLING = """task: rolling
dataset_path: parquet
dataset_kwargs: {{data_files: {{test: {0}/rolling.parquet}}, cache_dir: {0}/cache}}
test_split: test
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{{{text}}}}"
metric_list: [{{metric: word_perplexity}}, {{metric: byte_perplexity}}, {{metric: bits_per_byte}}]
"""
WRITING = """task: writing
dataset_path: json
dataset_kwargs: {{data_files: {{test: {0}/writing.jsonl}}, cache_dir: {0}/cache}}
test_split: test
output_type: generate_until
doc_to_text: "{{{{prompt}}}}"
doc_to_target: "{{{{answer}}}}"
generation_kwargs: {{until: ["b"], max_gen_toks: 12, do_sample: false}}
metric_list: [{{metric: exact_match}}]
"""


@pytest.fixture(scope="module")
def local(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tasks as a user's directory holds them, with their files."""
    import pyarrow
    import pyarrow.parquet

    home = tmp_path_factory.mktemp("tasks")
    for name, task in {"choice": CHOICE, "rolling": ROLLING, "writing": WRITING}.items():
        (home / f"{name}.yaml").write_text(task.format(home))
    questions = [
        {"question": f"ab {'ba ' * n}", "choices": ["abba", "baab b", "z", "é"], "label": n % 4} for n in range(30)
    ]
    (home / "choice.jsonl").write_text("".join(json.dumps(row) + "\n" for row in questions))
    texts = {"text": [LONG, "a few words", "é\n\nab "]}
    pyarrow.parquet.write_table(pyarrow.table(texts), home / "rolling.parquet")
    run = tiny.trained().directory
    prompts = [{"prompt": prompt, "answer": "a"} for prompt in ("ab ", "ba", "b", "abba b")]
    (home / "writing.jsonl").write_text("".join(json.dumps(row) + "\n" for row in prompts))
    (home / "run").symlink_to(run)
    return home


def test_tasks_of_local_files(local: Path) -> None:
    """The figures of the harness's own evaluator are those of the model, counted by hand."""
    manager = TaskManager(include_path=str(local), include_defaults=False)
    result = simple_evaluate(
        model="intlm",
        model_args=f"run={local / 'run'}",
        tasks=["choice", "rolling", "writing"],
        task_manager=manager,
        bootstrap_iters=0,
    )
    assert result
    lm = IntlmLM(str(local / "run"))

    questions = [json.loads(line) for line in (local / "choice.jsonl").read_text().splitlines()]
    right = right_norm = 0
    for question in questions:  # the harness puts a space between
        scores = [alone(lm.model, question["question"], f" {choice}")[0] for choice in question["choices"]]
        right += int(np.argmax(scores)) == question["label"]
        sizes = [len(choice) for choice in question["choices"]]
        right_norm += int(np.argmax(np.array(scores) / sizes)) == question["label"]
    assert result["results"]["choice"]["acc,none"] == right / len(questions)
    assert result["results"]["choice"]["acc_norm,none"] == right_norm / len(questions)

    texts = [LONG, "a few words", "é\n\nab "]
    whole = evaluate(lm.model, [lm.model.tokenizer.encode(text.encode()) for text in texts])
    samples = sorted(result["samples"]["rolling"], key=lambda sample: sample["doc_id"])
    ours = [natural(evaluate(lm.model, [lm.model.tokenizer.encode(text.encode())]).loss) for text in texts]
    assert [sample["filtered_resps"][0] for sample in samples] == ours
    assert whole.words == sum(sample["word_perplexity"][1] for sample in samples)
    assert whole.bytes == sum(sample["bits_per_byte"][1] for sample in samples)
    assert_the_same(result["results"]["rolling"], whole)

    prompts = [json.loads(line)["prompt"] for line in (local / "writing.jsonl").read_text().splitlines()]
    samples = sorted(result["samples"]["writing"], key=lambda sample: sample["doc_id"])
    expected = [b"".join(generate(lm.model, prompt.encode(), 12, 0)).split(b"b")[0].decode() for prompt in prompts]
    assert [sample["filtered_resps"][0] for sample in samples] == expected
    assert result["results"]["writing"]["exact_match,none"] == sum(text == "a" for text in expected) / len(expected)


def assert_the_same(harness: dict[str, Any], ours: Evaluation) -> None:
    """The figures are equal but for how floats round in two ways to compute them."""
    summary = ours.summary()
    for name, own in (
        ("word_perplexity", "perplexity_per_word"),
        ("byte_perplexity", "perplexity_per_byte"),
        ("bits_per_byte", "bits_per_byte"),
    ):
        assert math.isclose(harness[f"{name},none"], summary[own] or math.inf, rel_tol=1e-9), name


def test_wikitext(local: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`intlm evaluate --wikitext` gives the figures of the harness's task, whose functions are taken here."""
    (local / "wiki.raw").write_text(WIKITEXT)
    pages = WIKITEXT.split("\n = Second")
    rows = [{"page": page} for page in (pages[0].removeprefix("\n"), " = Second" + pages[1])]
    (local / "wiki.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    task = {
        "task": "wiki",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(local / "wiki.jsonl")}, "cache_dir": str(local / "cache")},
        "test_split": "test",
        "output_type": "loglikelihood_rolling",
        "doc_to_text": "",
        "doc_to_target": preprocess_wikitext.wikitext_detokenizer,
        "process_results": preprocess_wikitext.process_results,
        "metric_list": [{"metric": name} for name in ("word_perplexity", "byte_perplexity", "bits_per_byte")],
    }
    manager = TaskManager(include_path=str(local), include_defaults=False)
    lm = IntlmLM(str(local / "run"))
    result = simple_evaluate(model=lm, tasks=[task], task_manager=manager, bootstrap_iters=0)
    assert result
    arguments = ["evaluate", local / "run", "--text", local / "wiki.raw", "--wikitext", "--json"]
    capsys.readouterr()
    assert main([str(argument) for argument in arguments]) == 0
    ours = json.loads(capsys.readouterr().out)
    for name, own in (
        ("word_perplexity", "perplexity_per_word"),
        ("byte_perplexity", "perplexity_per_byte"),
        ("bits_per_byte", "bits_per_byte"),
    ):
        assert math.isclose(result["results"]["wiki"][f"{name},none"], ours[own], rel_tol=1e-9), name
    samples = result["samples"]["wiki"]
    assert ours["words"] == sum(sample["word_perplexity"][1] for sample in samples)
    assert ours["bytes"] == sum(sample["bits_per_byte"][1] for sample in samples)


def test_command(local: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """`intlm harness RUN` is lm_eval's command line; a mistake is one line."""
    # So that it does not read its own thousands of tasks each time.
    monkeypatch.setattr("lm_eval.tasks.TaskManager", partial(TaskManager, include_defaults=False))
    monkeypatch.setattr(sys, "argv", ["intlm"])
    run = str(local / "run")
    assert main(["harness", run, "--include_path", str(local), "--tasks", "choice", "--limit", "4"]) == 0
    assert "|choice|" in capsys.readouterr().out
    assert main(["harness", run, "--include_path", str(local), "--tasks", "nonsense"]) == 2
    assert "intlm: lm_eval: Tasks not found: nonsense\n" in capsys.readouterr().err
    assert main(["harness", str(local / "absent"), "--include_path", str(local), "--tasks", "choice"]) == 2
    assert f"intlm: {local / 'absent'}: not a run" in capsys.readouterr().err


def test_without_lm_eval() -> None:
    script = """
import sys
sys.modules["lm_eval"] = None
from intlm.cli import main
sys.exit(main(["harness", "run", "--tasks", "wikitext"]))
"""
    done = tiny.intlm(python=("-c", script))
    assert done.returncode == 3
    assert done.stderr == "intlm: lm_eval: not installed, and intlm harness needs it: pip install 'intlm[harness]'\n"
