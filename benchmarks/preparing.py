"""Measures the speed and the memory of text preparation.

    python benchmarks/preparing.py [--rounds N] [--processes N]
    python benchmarks/preparing.py --text FILE [--vocab-size N]
    python benchmarks/preparing.py --gigabytes 10 --tokenizer bytes

First, for each tokenizer (vocabulary 1,024, trained before): megabytes of text a second of the whole preparation,
from the start of the processes to shards synced to the disk, from a text file and from Parquet. Then the encoder
alone, in one process: on text that it meets for the first time, on the same again, and SentencePiece with Unicode
characters and byte fallback, by lines; and the bytes per token of both. The text is the source of the standard
library of the Python that runs this, one document per file: about 32 MB, in which words repeat less than in prose.
Where other programs share the processors, the seconds of processor time say more than those of the clock: both are
shown, the encoders by processor time.

With --text, only the encoders are timed, on at most 16 MB of a file. With --gigabytes, a corpus of that size is made up
as it is read, and the peak memory of this process and its children together is shown.
"""

import argparse
import io
import json
import multiprocessing
import os
import statistics
import sysconfig
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import sentencepiece

from intlm.config import DataConfig
from intlm.data.prepare import prepare, train_tokenizer
from intlm.data.tokenizers import TokenizerTrainer
from intlm.data.tokenizers.pieces import PieceTokenizer
from intlm.settings import build
from intlm.tracking.table import format_table

SEPARATOR = "\n\x1e\n"
GENERATOR = """
import random

def documents():
    rng, size = random.Random(0), 0
    words = [bytes(rng.choices(b"etaoinshrdlu", k=rng.randint(1, 9))) for _ in range(30000)]
    weights = [1 / (rank + 3) for rank in range(len(words))]
    pool = b" ".join(rng.choices(words, weights, k=4_000_000))
    while size < {size}:
        start, length = rng.randrange(len(pool)), rng.randint(200, 20_000)
        # A word that was never seen, so that what is remembered of words is as much as it can be.
        text = b"%x " % rng.getrandbits(64) + pool[start : start + length]
        size += len(text)
        yield text
"""


def library() -> Iterator[bytes]:
    """The standard library's modules, tests included."""
    root = Path(sysconfig.get_paths()["stdlib"])
    for path in sorted(root.rglob("*.py")):
        if "site-packages" not in path.parts and path.stat().st_size:
            yield path.read_bytes()


def processor_seconds() -> float:
    """Processor time of this process and of the children that have ended."""
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


def speed(directory: Path, rounds: int, processes: int) -> str:
    """Time the library's preparation with every tokenizer, from a text file and from Parquet."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    texts = list(library())
    (directory / "text").write_bytes(SEPARATOR.encode().join(texts))
    (directory / "set").mkdir()
    for number in range(4):
        table = pa.table({"text": [text.decode(errors="replace") for text in texts[number::4]]})
        pq.write_table(table, directory / "set" / f"train-{number:05}-of-00004.parquet")
    rows = []
    for name in ("bytes", "unigram", "bpe"):
        file = directory / f"{name}.json"
        asked: dict[str, Any] = {"document_separator": SEPARATOR, "processes": processes}
        made = train_tokenizer(DataConfig(train=str(directory / "text"), tokenizer=trainer(name), prepared="", **asked))
        file.write_text(json.dumps(made.to_json()))
        for source, shown in (("text", "text"), ("set", "Parquet")):
            rates, used = [], []
            for number in range(rounds):
                place = str(directory / f"{name}-{source}-{number}")
                began, before = time.monotonic(), processor_seconds()
                data = DataConfig(train=str(directory / source), tokenizer_file=str(file), prepared=place, **asked)
                split = prepare(data).split("train")
                rates.append(split.bytes / (time.monotonic() - began) / 1e6)
                used.append(split.bytes / (processor_seconds() - before) / 1e6)
            rows.append((name, shown, spread(rates), spread(used), f"{split.bytes / split.tokens:.3f}"))
    headers = ["tokenizer", "from", "MB/s, min / median / max", "MB a processor second", "bytes per token"]
    return format_table(headers, rows, "llrrr")


def encoders(text: bytes, vocab_size: int, rounds: int) -> str:
    """The encoders of pieces alone, and SentencePiece's own."""
    lines = text.decode(errors="replace").split("\n")
    rows = []
    for name in ("unigram", "bpe"):
        model = io.BytesIO()
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(lines), model_writer=model, model_type=name, vocab_size=vocab_size,
            byte_fallback=True, normalization_rule_name="identity", add_dummy_prefix=False,
            remove_extra_whitespaces=False, allow_whitespace_only_pieces=True, character_coverage=0.9995,
            minloglevel=2,
        )  # fmt: skip
        usual = sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())
        made = PieceTokenizer.train(name, [text], vocab_size)
        rates: list[list[float]] = [[], [], []]
        for _ in range(rounds):
            new = PieceTokenizer(name, made.model)
            for own in rates:
                before = processor_seconds()
                if own is rates[2]:
                    usual.encode(lines)
                else:
                    new.encode(text)
                own.append(len(text) / (processor_seconds() - before) / 1e6)
        usual_tokens = sum(map(len, usual.encode([line + "\n" for line in lines])))
        lengths = (f"{len(text) / count:.3f}" for count in (len(made.encode(text)), usual_tokens))
        rows.append((name, *map(spread, rates), *lengths))
    headers = [
        "MB a processor second",
        "new text",
        "the same again",
        "SentencePiece",
        "bytes per token",
        "SentencePiece",
    ]
    return format_table(headers, rows)


def spread(values: list[float]) -> str:
    """The least, the median and the most."""
    return f"{min(values):.1f} / {statistics.median(values):.1f} / {max(values):.1f}"


def trainer(name: str) -> TokenizerTrainer:
    """The trainer of the tokenizer `name`, with 1,024 tokens where the vocabulary size can be set."""
    return build(DataConfig, {"tokenizer": name, f"{name}.vocab_size": 1024, "train": ""}).tokenizer


def memory(directory: Path, gigabytes: int, tokenizer: str, processes: int) -> str:
    """Measure the peak memory of preparing a corpus that is made up as it is read."""
    sample = directory / "sample.py"
    sample.write_text(GENERATOR.format(size=1 << 24))
    data = DataConfig(train=str(sample), tokenizer=trainer(tokenizer), prepared="")
    (directory / "tokenizer.json").write_text(json.dumps(train_tokenizer(data).to_json()))
    (directory / "corpus.py").write_text(GENERATOR.format(size=gigabytes * 10**9))
    began, peak = time.monotonic(), [0]

    def watch() -> None:
        while True:
            processes = [os.getpid(), *(child.pid for child in multiprocessing.active_children())]
            pages = 0
            for process in processes:
                with suppress(OSError):
                    pages += int(Path(f"/proc/{process}/statm").read_text().split()[1])
            peak[0] = max(peak[0], pages * os.sysconf("SC_PAGE_SIZE"))
            time.sleep(0.5)

    threading.Thread(target=watch, daemon=True).start()
    split = prepare(
        DataConfig(
            train=str(directory / "corpus.py"),
            tokenizer_file=str(directory / "tokenizer.json"),
            prepared=str(directory / "prepared"),
            processes=processes,
        )
    ).split("train")
    seconds = time.monotonic() - began
    return (
        f"{tokenizer}: {split.bytes / 1e9:.2f} GB, {split.documents:,} documents in {seconds:.0f} s "
        f"({split.bytes / seconds / 1e6:.1f} MB/s); peak memory {peak[0] / 1e6:.0f} MB"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--processes", type=int, default=0, help="0: one a core")
    parser.add_argument("--text", type=Path)
    parser.add_argument("--vocab-size", type=int, default=1024, help="with --text")
    parser.add_argument("--gigabytes", type=int, default=0)
    parser.add_argument("--tokenizer", choices=("bytes", "unigram", "bpe"), default="bytes")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        if args.gigabytes:
            print(memory(Path(directory), args.gigabytes, args.tokenizer, args.processes))
        elif args.text:
            print(encoders(args.text.read_bytes()[: 1 << 24], args.vocab_size, args.rounds))
        else:
            print(speed(Path(directory), args.rounds, args.processes))
            print(encoders(b"".join(library())[: 1 << 24], 1024, args.rounds))


if __name__ == "__main__":
    main()
