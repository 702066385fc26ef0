"""Cycles, traffic and energy of a token on described hardware, by ZigZag (Mei et al., IEEE Trans. Comput. 2021).

ZigZag is given each of the model's matrix products and the description as its own kind of accelerator: a weight in
each multiplier, accumulators below each column, the on-chip and the off-chip memory. It tries the orders of the loops
and answers for the one with the fewest cycles; here its answers are only added up. Everything else (norms, gates,
residuals, the embedding's row) is left out.
"""

import importlib.util
import json
import logging
import math
import tempfile
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from tqdm import tqdm

from intlm.errors import IntlmError, MissingPackage
from intlm.model.parameters import Architecture, Kind, specifications
from intlm.simulate.hardware import Hardware

LEVELS = ("on_chip", "off_chip")
INPUT, WEIGHT, OUTPUT = "I1", "I2", "O"  # ZigZag's names of a memory's operands
OUTPUT_BITS = 16  # a sum is rescaled to int16 as it leaves the accumulator (docs/numerics.md, section 2)


class Product(NamedTuple):
    """A matrix product of the model."""

    name: str
    fan_out: int
    fan_in: int
    times: int  # the number of such products per token


def products(a: Architecture) -> list[Product]:
    """The matrix products of a token, each shape once."""
    matrices = [s for s in specifications(a) if s.kind is Kind.MATRIX and s.name != "embedding"]
    times = Counter(s.shape for s in matrices)
    names = {s.shape: s.name.rpartition(".")[2] for s in reversed(matrices)}
    return [Product(names[shape], shape[0], shape[1], count) for shape, count in times.items()]


@dataclass
class Cost:
    """The cost of a token."""

    weights_kept: bool  # whether weights stay on chip from token to token
    activations_kept: bool
    multiply_accumulates: int
    cycles: float = 0.0
    bytes_read: dict[str, float] = field(default_factory=lambda: dict.fromkeys(LEVELS, 0.0))
    bytes_written: dict[str, float] = field(default_factory=lambda: dict.fromkeys(LEVELS, 0.0))
    picojoules: dict[str, float] = field(default_factory=lambda: dict.fromkeys(("array", *LEVELS), 0.0))


def check_installed() -> None:
    """Raises MissingPackage where ZigZag is not there."""
    for module, package in (("zigzag", "zigzag-dse"), ("six", "six")):  # it imports six, and does not ask for it
        if importlib.util.find_spec(module) is None:
            raise MissingPackage(package, "--on model")


def cost(hardware: Hardware, a: Architecture, streams: int) -> Cost:
    """The cost of a token where `streams` texts are read side by side."""
    work = products(a)
    # The states, and what goes into the widest product and comes out of it.
    widest = max(p.fan_in + p.fan_out * OUTPUT_BITS // 8 for p in work)
    activations = streams * (a.num_layers * a.state_size + widest)
    weights = sum(math.prod(s.shape) for s in specifications(a))
    room = hardware.on_chip.bytes
    total = Cost(
        hardware.on_chip.keeps_weights and weights + activations <= room,
        hardware.on_chip.keeps_activations and activations <= room,
        sum(p.fan_in * p.fan_out * p.times for p in work),
    )
    machine = accelerator(hardware, total.weights_kept, total.activations_kept)
    for product in tqdm(work, desc="cycles", unit="product", delay=1, leave=False, disable=None):
        _add(total, ask_zigzag(hardware, machine, product, streams), hardware, product.times / streams)
    return total


def accelerator(hardware: Hardware, weights_kept: bool, activations_kept: bool) -> dict[str, Any]:
    """The description as an accelerator of ZigZag. Operands that stay on chip have no memory behind it."""
    array, bits = hardware.array, hardware.accumulator.bits

    def memory(
        size: int, operands: list[str], ports: list[dict[str, Any]], word: int = 0, per_byte: float = 0.0, **more: Any
    ) -> dict[str, Any]:
        energy = per_byte * word  # of a word; that of registers is the multiply-accumulate's
        served = {"served_dimensions": ["D1", "D2"], **more}
        costs = {"r_cost": energy, "w_cost": energy, "area": 0.0, "latency": 1}
        return {"size": size, **costs, "operands": operands, "ports": ports, **served}

    def port(kind: str, number: int, width: int, operands: list[str], *directions: str) -> dict[str, Any]:
        # From and to the higher level, from and to the lower: only sums come from below.
        moves = [f"{o}, {d}" for o in operands for d in directions if o == OUTPUT or d in ("fh", "tl")]
        name = {"read": "r", "write": "w", "read_write": "rw"}[kind] + f"_port_{number}"
        return {"name": name, "type": kind, "bandwidth_min": width, "bandwidth_max": width, "allocation": moves}

    all_three = [INPUT, WEIGHT, OUTPUT]
    near, far = hardware.on_chip, hardware.off_chip
    width = 8 * near.bytes_per_cycle
    memories = {
        "weight": memory(
            8,
            [WEIGHT],
            [port("read", 1, 8, [WEIGHT], "tl"), port("write", 1, 8, [WEIGHT], "fh")],
            served_dimensions=[],
        ),
        "accumulator": memory(
            bits * hardware.accumulator.per_column,
            [OUTPUT],
            [
                port(kind, number, bits, [OUTPUT], way)
                for kind, number, way in (("read", 1, "tl"), ("read", 2, "th"), ("write", 1, "fh"), ("write", 2, "fl"))
            ],
            served_dimensions=["D1"],
        ),
        "on_chip": memory(
            8 * near.bytes,
            all_three,
            [port("read", 1, width, all_three, "tl", "th"), port("write", 1, width, all_three, "fh", "fl")],
            near.bytes_per_cycle,
            near.picojoules_per_byte,
        ),
    }
    behind = [o for o in all_three if not (weights_kept if o == WEIGHT else activations_kept)]
    if behind:
        memories["off_chip"] = memory(
            2**60,
            behind,
            [port("read_write", 1, 8 * far.bytes_per_cycle, behind, "fh", "tl", "fl", "th")],
            far.bytes_per_cycle,
            far.picojoules_per_byte,
        )
    operational = {
        "unit_energy": array.picojoules,
        "unit_area": 0.0,
        "dimensions": ["D1", "D2"],
        "sizes": [array.rows, array.columns],
        "systolic_dimensions": ["D1", "D2"] if array.systolic else [],
        "bit_serial_precision": None,
    }
    return {"name": hardware.name, "memories": memories, "operational_array": operational}


def ask_zigzag(hardware: Hardware, machine: dict[str, Any], product: Product, streams: int) -> Any:
    """ZigZag's CostModelEvaluation of one product with `streams` inputs."""
    from zigzag.mapping.temporal_mapping import TemporalMappingType
    from zigzag.opt.loma.engine import NoValidLoopOrderingFoundException
    from zigzag.stages.evaluation.cost_model_evaluation import CostModelStage
    from zigzag.stages.main import MainStage
    from zigzag.stages.mapping.spatial_mapping_generation import SpatialMappingGeneratorStage
    from zigzag.stages.mapping.temporal_mapping_generator_stage import TemporalMappingGeneratorStage
    from zigzag.stages.parser.accelerator_parser import AcceleratorParserStage
    from zigzag.stages.parser.workload_parser import WorkloadParserStage
    from zigzag.stages.results.reduce_stages import MinimalLatencyStage
    from zigzag.stages.workload_iterator import WorkloadStage

    logging.getLogger("zigzag").setLevel(logging.ERROR)
    layer = {
        "id": 0,
        "name": product.name,
        "operator_type": "Gemm",
        "equation": "O[b][k]+=I[b][c]*W[k][c]",
        "dimension_relations": [],
        "loop_dims": ["B", "K", "C"],
        "loop_sizes": [streams, product.fan_out, product.fan_in],
        "operand_precision": {"I": 8, "W": 8, "O": hardware.accumulator.bits, "O_final": OUTPUT_BITS},
        "operand_source": {"I": 0, "W": 0},
    }
    rows, columns = min(hardware.array.rows, product.fan_in), min(hardware.array.columns, product.fan_out)
    mapping = {
        "name": "default",
        "spatial_mapping": {"D1": [f"C, {rows}"], "D2": [f"K, {columns}"]},
        "memory_operand_links": {"O": OUTPUT, "W": WEIGHT, "I": INPUT},
    }
    with tempfile.TemporaryDirectory(prefix="intlm-") as work:
        files = {"accelerator": machine, "mapping": [mapping]}
        for name, value in files.items():
            Path(work, f"{name}.yaml").write_text(json.dumps(value), "utf-8")  # JSON is YAML
        stages: list[Any] = [
            WorkloadParserStage,
            AcceleratorParserStage,
            WorkloadStage,
            SpatialMappingGeneratorStage,
            MinimalLatencyStage,
            TemporalMappingGeneratorStage,
            CostModelStage,
        ]
        paths: dict[str, Any] = {name: str(Path(work, f"{name}.yaml")) for name in files}
        try:
            # As zigzag.api does it, without the files and pictures that it leaves.
            answers = MainStage(
                stages,
                workload=[layer],
                **paths,
                loma_lpf_limit=6,
                loma_show_progress_bar=False,
                temporal_mapping_type=TemporalMappingType.UNEVEN,
                access_same_data_considered_as_no_access=True,
            ).run()
        except NoValidLoopOrderingFoundException:
            shape = f"{product.name} [{product.fan_out}, {product.fan_in}]"
            raise IntlmError(
                f"{hardware.name}: ZigZag finds no way to compute {shape} with {streams} streams: "
                f"on_chip.bytes = {hardware.on_chip.bytes} may be too few"
            ) from None
    return answers[0][0]


def _add(total: Cost, answer: Any, hardware: Hardware, times: float) -> None:
    """Add ZigZag's answer for one product."""
    from zigzag.hardware.architecture.memory_port import DataDirection as Way

    total.cycles += times * answer.latency_total2
    total.picojoules["array"] += times * answer.mac_energy
    words = {level: getattr(hardware, level).bytes_per_cycle for level in LEVELS}
    for operand, accesses in answer.memory_word_access.items():
        memory_operand = answer.layer.memory_operand_links.layer_to_mem_op(operand)
        for depth, count in enumerate(accesses):
            level = answer.accelerator.get_memory_level(memory_operand, depth).memory_instance.name
            if level in LEVELS:
                for moved, ways in (
                    (total.bytes_read, (Way.RD_OUT_TO_LOW, Way.RD_OUT_TO_HIGH)),
                    (total.bytes_written, (Way.WR_IN_BY_LOW, Way.WR_IN_BY_HIGH)),
                ):
                    moved[level] += times * words[level] * sum(count.get(way) for way in ways)
                total.picojoules[level] += times * answer.mem_energy_breakdown[operand][depth]
