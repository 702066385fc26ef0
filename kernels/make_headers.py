"""Write kernels/tables.h and kernels/ranges.h, the lookup tables as C++ and the ranges of settings as C."""

from pathlib import Path

import numpy as np

from intlm import config, generation
from intlm.arithmetic.tables import SHA256, tables
from intlm.estimators import token
from intlm.estimators.member import MAX_PAIRS

CTYPES = {"int8": "int8_t", "int16": "int16_t", "int32": "int32_t"}
# The kernels' names of settings, and the configuration keys that have their ranges.
RANGED = {
    "hidden": "model.hidden_size",
    "layers": "model.num_layers",
    "feed_forward": "model.feed_forward_size",
    "rank": "eggroll.member.rank",
    "sigma_shift": "eggroll.member.sigma_shift",
    "threads": "threads",
}


def key(name: str) -> dict:
    """The configuration's description of a key."""
    return dict(config.keys()[name].field.metadata)


# The same for the estimator `token`.
RANGED_TOKEN = {"noisy": "eggroll.token.members", "credit": "eggroll.token.credit"}


def tables_header() -> str:
    """The text of kernels/tables.h."""
    lines = [
        "/* Made by kernels/make_headers.py from intlm.arithmetic.tables (docs/numerics.md, section 3).",
        f" * SHA-256 of the tables: {SHA256} */",
        "#ifndef INTLM_TABLES_H",
        "#define INTLM_TABLES_H",
        "#include <stdint.h>",
    ]
    for name, table in tables()._asdict().items():
        lines.append(f"constexpr {CTYPES[str(table.dtype)]} intlm_{name}[{len(table)}] = {{")
        for row in np.array_split(table, -(-len(table) // 16)):
            lines.append("    " + ", ".join(map(str, row)) + ",")
        lines.append("};")
    return "\n".join([*lines, "#endif", ""])


def ranges_header() -> str:
    """The text of kernels/ranges.h."""

    def ranges(names: dict[str, str]) -> dict[str, tuple[int, int, int]]:
        found = {name: key(where) for name, where in names.items()}
        return {name: (one["low"], one["high"], one["multiple"]) for name, one in found.items()}

    rows = {"vocab": (config.MIN_VOCAB, config.MAX_VOCAB, 1), **ranges(RANGED), "pairs": (1, MAX_PAIRS, 1)}
    sigmas = {f"sigma_{kind}": (0, token.MOST_SIGMA, 1) for kind in token.KINDS}
    of_token = {"texts": (1, token.MOST_TEXTS, 1), **ranges(RANGED_TOKEN), **sigmas}
    longest = {
        "TOKENS": config.MAX_TOKENS_PER_UPDATE,
        "TARGETS": key("next_token.targets")["high"],
        "INVERSE": generation.MAX_INVERSE_TEMPERATURE,
        "TEXT_TOKENS": token.MOST_TEXT_TOKENS,
        "MEAN": 8 * 36_865,  # the largest |R|: no token's loss is larger than 36,865
    }

    def listed(name: str, rows: dict[str, tuple[int, int, int]]) -> str:
        parts = [f"  X({setting}, {', '.join(map(str, row))})" for setting, row in rows.items()]
        return " \\\n".join([f"#define {name}(X)", *parts])

    return "\n".join(
        [
            "/* Made by kernels/make_headers.py from intlm.config and intlm.generation (docs/numerics.md, 11). */",
            "#ifndef INTLM_RANGES_H",
            "#define INTLM_RANGES_H",
            "/* X(name, low, high, what it is a multiple of) */",
            listed("INTLM_RANGES", rows),
            listed("INTLM_TOKEN_RANGES", of_token),
            *(f"#define INTLM_MAX_{name} {value}" for name, value in longest.items()),
            "#endif",
            "",
        ]
    )


HEADERS = {"tables.h": tables_header, "ranges.h": ranges_header}

if __name__ == "__main__":
    for name, made in HEADERS.items():
        Path(__file__).with_name(name).write_text(made(), "utf-8")
