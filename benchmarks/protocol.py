"""Measures the cost of cutting documents into segments: bits per byte of a run's held-out text, cut and whole.

python benchmarks/protocol.py RUN
"""

import sys
from pathlib import Path

from intlm import evaluation
from intlm.run import load, open_corpus, open_run
from intlm.tracking.table import format_table


def main(run: Path) -> None:
    """Print a row for each segment length."""
    model, split = load(run), open_corpus(*open_run(run)).split("valid")
    rows = []
    for segment, warm_up in ((256, 64), (evaluation.SEGMENT, evaluation.WARM_UP), (1 << 40, 0)):
        evaluation.SEGMENT, evaluation.WARM_UP = segment, warm_up
        result = evaluation.evaluate(model, evaluation.split_documents(split))
        name = "whole documents" if warm_up == 0 else f"segments of {segment}, warm-up {warm_up}"
        rows.append((name, f"{result.summary()['bits_per_byte']:.5f}"))
    print(format_table(["read as", "bits per byte"], rows))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
