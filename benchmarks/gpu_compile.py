"""Compiles the gpu engine for an H100, without one, and shows registers, spills, instructions and memory.

    python benchmarks/gpu_compile.py [--hidden 256 --pairs 65536 --tokens 100 …]

Needs `jax[cuda12]` (its compiler runs on any machine) beside the package. Prints a row for each kernel that uses the
matrix units, and the memory that evaluation and accumulation need.
"""

import argparse
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

DUMP = tempfile.TemporaryDirectory()
os.environ |= {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": f"--xla_dump_to={DUMP.name}"}

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
from jax.experimental import topologies  # noqa: E402
from jax.sharding import Mesh, NamedSharding, PartitionSpec  # noqa: E402

from intlm.estimators.member import Member  # noqa: E402
from intlm.fitness import FITNESS  # noqa: E402
from intlm.model.parameters import Architecture, specifications  # noqa: E402
from intlm.population import Population, gpu, xla  # noqa: E402
from intlm.tracking.table import format_table  # noqa: E402

H100 = """
gpu_device_info {
  threads_per_block_limit: 1024 threads_per_warp: 32 threads_per_core_limit: 2048 core_count: 132 fpus_per_core: 128
  shared_memory_per_block: 49152 shared_memory_per_block_optin: 232448 shared_memory_per_core: 233472
  block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
  registers_per_core_limit: 65536 registers_per_block_limit: 65536
  memory_bandwidth: 3352320000000 l2_cache_size: 52428800 clock_rate_ghz: 1.98 device_memory_size: 84978434048
  cuda_compute_capability { major: 9 minor: 0 }
}
platform_name: "CUDA"
dnn_version_info { major: 9 minor: 8 }
runtime_version { major: 12 minor: 9 }
device_description_str: "NVIDIA H100 80GB HBM3"
"""
SPILLS = re.compile(r"(\d+) bytes spill stores, (\d+) bytes spill loads")


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--engine", choices=("gpu", "xla"), default="gpu")
    parser.add_argument("--nonlinearity", default="clip")
    sizes = {"hidden": 256, "inner": 1024, "layers": 6, "vocabulary": 256, "rank": 1, "pairs": 1 << 16, "tokens": 100}
    parser.add_argument("--fitness", choices=("sign", "normalised"), default="sign")
    for name, default in (*sizes.items(), ("targets", 1)):
        parser.add_argument(f"--{name}", type=int, default=default)
    args = parser.parse_args()

    architecture = Architecture(args.vocabulary, args.hidden, args.layers, args.inner, args.nonlinearity)
    population = Population(architecture, Member(rank=args.rank, fitness=FITNESS[args.fitness]()), 2 * args.pairs, 7)
    # The free memory that the engines would find on such a device.
    gpu.spare_bytes = xla.spare_bytes = lambda a: (1 << 29) * -(-a.hidden_size // 256)  # type: ignore[assignment]
    engine = gpu.GpuEngine(population) if args.engine == "gpu" else xla.XlaEngine(population)
    described = topologies.get_topology_desc("h100", "cuda", target_config=H100, topology="1x1x1")
    device = NamedSharding(Mesh(described.devices[:1], ("d",)), PartitionSpec())

    def like(shape: tuple[int, ...], dtype: Any) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(shape, dtype, sharding=device)

    weights = {s.name: like(s.shape, jnp.int8) for s in specifications(architecture)}
    text, update = (args.pairs, args.tokens), like((), jnp.uint32)
    states = like((args.pairs, 2, args.layers, args.hidden), jnp.int8)
    calls: dict[str, tuple[Any, tuple[Any, ...]]] = {
        "evaluate": (
            engine.evaluate,
            (weights, like(text, jnp.uint16), like((*text, args.targets), jnp.uint16), states, update),
        ),
        "accumulate": (engine.accumulate, (like((args.pairs,), jnp.int8), update)),
    }
    print(f"{args.engine}, {engine.chunk} pairs in a chunk")
    memory = []
    for name, (function, arguments) in calls.items():
        compiled = jax.jit(function).trace(*arguments).lower(lowering_platforms=("cuda",)).compile()
        analysis = compiled.memory_analysis()
        given = analysis.argument_size_in_bytes, analysis.output_size_in_bytes, analysis.temp_size_in_bytes
        memory.append((name, *(f"{size / 1e6:,.0f}" for size in given)))
    print(format_table(["MB", "arguments", "results", "all else"], memory))
    rows = {row for path in Path(DUMP.name).glob("*.ptx") for row in kernel(path)}
    print(format_table(["kernel", "registers", "bytes spilled and read", "products"], sorted(rows)))


def kernel(path: Path) -> list[tuple[str, ...]]:
    """A row for the kernel of a file, if it has products."""
    code = path.read_text()
    products = re.findall(r"(?:wgmma\.mma_async|mma)\.sync\.aligned\.(m\d+n\d+k\d+)\.\S*s8", code)
    if not products:
        return []
    tools = [Path(p) / "nvidia" / "cuda_nvcc" / "bin" / "ptxas" for p in sys.path]
    ptxas = next((str(tool) for tool in tools if tool.exists()), "ptxas")
    report = subprocess.run(
        [ptxas, "-v", "-arch=sm_90a", str(path), "-o", os.devnull], capture_output=True, text=True, check=True
    ).stderr
    name = re.search(r"\.entry (\w+)", code)
    registers, spills = re.search(r"Used (\d+) registers", report), SPILLS.search(report)
    kinds = ", ".join(f"{products.count(kind)} {kind}" for kind in dict.fromkeys(products))
    return [
        (name[1] if name else "", registers[1] if registers else "", " ".join(spills.groups()) if spills else "", kinds)
    ]


if __name__ == "__main__":
    main()
