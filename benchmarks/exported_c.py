"""Times generation of one stream by the exported C and the native engine in turn, and checks that their texts agree.

    python benchmarks/exported_c.py RUN [--rounds 9]

Both read a separator and then draw tokens at temperature 1 and read each. The C is compiled as the
export's Makefile compiles it (cc -O3 -march=native).
"""

import argparse
import ctypes
import statistics
import subprocess
import tempfile
import time
from pathlib import Path

import jax.numpy as jnp
import numpy as np

from intlm.arithmetic.random_bits import Domain, seed_key
from intlm.export import FORMATS, export
from intlm.language_model import WRITTEN
from intlm.model import SEPARATOR
from intlm.run import load
from intlm.tracking.table import format_table

TOKENS = 200 * WRITTEN
LOOP = """
#include "intlm.h"
static intlm_model_t model;
void written(uint16_t *out, uint32_t count) {
  uint32_t i;
  intlm_step(&model, 0);
  for (i = 0; i < count; ++i) {
    out[i] = intlm_draw(&model, 0, i, 256, INTLM_VOCAB);
    intlm_step(&model, out[i]);
  }
}
"""


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--rounds", type=int, default=9)
    args = parser.parse_args()
    model = load(args.run, "native")
    key = jnp.array(seed_key(0, Domain.SAMPLING), jnp.uint32)
    with tempfile.TemporaryDirectory() as work:
        source = export(args.run, FORMATS["c"](), Path(work, "c"))
        (source / "loop.c").write_text(LOOP)
        files = [str(source / name) for name in ("loop.c", "intlm.c", "weights.c")]
        command = ["cc", "-std=c99", "-O3", "-march=native", "-shared", "-fPIC", *files, "-o", f"{work}/loop.so"]
        subprocess.run(command, check=True)
        library = ctypes.CDLL(f"{work}/loop.so")

    def native() -> np.ndarray:
        read, states = model.read(np.array([[SEPARATOR]]), model.start(1))
        now, states, drawn_tokens = jnp.asarray(read[0, -1]), states[0], []
        for position in range(0, TOKENS, WRITTEN):
            drawn, now, states = model.write(now, states, key, position, 256, model.architecture.vocab_size)
            drawn_tokens.append(drawn)
        return np.concatenate(drawn_tokens)

    def exported() -> np.ndarray:
        drawn_tokens = np.empty(TOKENS, np.uint16)
        library.written(drawn_tokens.ctypes.data_as(ctypes.c_void_p), ctypes.c_uint32(TOKENS))
        return drawn_tokens

    np.testing.assert_array_equal(exported(), native().reshape(-1))
    speeds: dict[str, list[float]] = {"exported C": [], "native engine": []}
    for _ in range(args.rounds):
        for name, write in zip(speeds, (exported, native), strict=True):
            began = time.perf_counter()
            write()
            speeds[name].append(TOKENS / (time.perf_counter() - began))
    ratios = [c / n for c, n in zip(*speeds.values(), strict=True)]

    def row(name: str, values: list[float], digits: int) -> tuple[str, ...]:
        return name, *(f"{v:,.{digits}f}" for v in (min(values), statistics.median(values), max(values)))

    rows = [row(f"{name}, tokens/s", values, 0) for name, values in speeds.items()]
    print(format_table([f"{TOKENS:,} tokens", "min", "median", "max"], [*rows, row("ratio", ratios, 3)]))


if __name__ == "__main__":
    main()
