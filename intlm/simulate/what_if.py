"""A model on hardware that may not exist: the bits by our own arithmetic, cycles and energy by ZigZag."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from intlm import pictures
from intlm.errors import ConfigError
from intlm.evaluation import documents_of
from intlm.run import load
from intlm.simulate import hardware as descriptions
from intlm.simulate.accumulator import Curve, measure, proved_bits
from intlm.simulate.comparison import first_tokens
from intlm.simulate.cost import Cost, check_installed, cost
from intlm.simulate.hardware import Hardware
from intlm.tracking.table import format_table


@dataclass
class Report:
    """The result of a simulation on described hardware."""

    hardware: Hardware
    streams: int
    tokens: int
    exact: float  # bits per byte
    curves: dict[str, Curve]
    proved: int  # bits of an accumulator that no text can overflow
    cost: Cost  # of a token
    drawing: Path | None  # the picture of the curves

    @property
    def bits_per_byte(self) -> float:
        """Bits per byte with the description's accumulator, which is exact from `proved` bits on."""
        own = self.hardware.accumulator
        return self.curves[own.overflow].bits_per_byte[own.bits] if own.bits < self.proved else self.exact

    @property
    def same_bits(self) -> bool:
        """Whether the description's accumulator changed no bit."""
        own = self.hardware.accumulator
        return own.bits >= self.curves[own.overflow].narrowest

    @property
    def tokens_per_second(self) -> float:
        """Tokens per second of all streams together, at the description's clock."""
        return 1e6 * self.hardware.clock_mhz / self.cost.cycles

    @property
    def utilisation(self) -> float:
        """The share of the array's multiplications that are the model's."""
        array = self.hardware.array
        return self.cost.multiply_accumulates / (self.cost.cycles * array.rows * array.columns)

    def summary(self) -> dict[str, Any]:
        """The report as a dictionary, for --json."""
        return {
            "hardware": asdict(self.hardware),
            "streams": self.streams,
            "tokens": self.tokens,
            "same_bits": self.same_bits,
            "bits_per_byte": self.bits_per_byte,
            "bits_per_byte_exact": self.exact,
            "bits_per_byte_lost": self.bits_per_byte - self.exact,
            "narrowest_bits": {kind: curve.narrowest for kind, curve in self.curves.items()},
            "narrowest_bits_of_any_text": self.proved,
            "bits_per_byte_by_width": {kind: curve.bits_per_byte for kind, curve in self.curves.items()},
            "per_token": asdict(self.cost),
            "tokens_per_second": self.tokens_per_second,
            "utilisation": self.utilisation,
        }

    def text(self) -> str:
        """The report as a table for a terminal."""
        own, array, c = self.hardware.accumulator, self.hardware.array, self.cost
        kind = {"saturate": "saturating", "wrap": "wrapping"}
        kept = [name for name, kept in (("weights", c.weights_kept), ("activations", c.activations_kept)) if kept]
        rows = [
            ("accumulator", f"{own.bits} bits, {kind[own.overflow]}"),
            ("bits", "the same" if self.same_bits else "DIFFER"),
            ("tokens compared", f"{self.tokens:,}"),
            ("bits per byte", f"{self.bits_per_byte:.4f}"),
            ("lost to the accumulator", f"{self.bits_per_byte - self.exact:.4f}"),
            *((f"narrowest that changed no bit, {kind[k]}", f"{c.narrowest} bits") for k, c in self.curves.items()),
            ("narrowest that no text can bring to overflow", f"{self.proved} bits"),
            ("streams", f"{self.streams:,}"),
            ("stay on chip", " and ".join(kept) or "nothing"),
            ("cycles per token", f"{c.cycles:,.0f}"),
            (f"tokens/s at {self.hardware.clock_mhz:,g} MHz", f"{self.tokens_per_second:,.0f}"),
            (f"use of {array.rows} x {array.columns} multipliers", f"{self.utilisation:.2%}"),
        ]
        for level, name in (("on_chip", "on-chip"), ("off_chip", "off-chip")):
            moved = f"{c.bytes_read[level]:,.0f}, {c.bytes_written[level]:,.0f}"
            rows.append((f"{name} bytes read, written per token", moved))
        rows.append(("energy per token", f"{sum(c.picojoules.values()) / 1000:,.2f} nJ"))
        for part, name in (("array", "multipliers"), ("on_chip", "on-chip memory"), ("off_chip", "off-chip memory")):
            rows.append((f"  {name}", f"{c.picojoules[part] / 1000:,.2f} nJ"))
        picture = f"\npicture: {self.drawing}" if self.drawing else ""
        return format_table([self.hardware.name, ""], rows) + picture


def what_if(run: Path, description: Path, text: Path | None, tokens: int, streams: int, drawing: Path | None) -> Report:
    """The model of a run (or of an export) on described hardware, over the first `tokens` tokens of a text.

    text: a file; None: the run's held-out split. streams: texts that the hardware reads side by side.
    drawing: where to draw bits per byte against accumulator width, as a PNG. Raises MissingPackage where ZigZag is not
    installed.
    """
    if drawing and (drawing.is_dir() or not drawing.parent.is_dir()):
        raise ConfigError(f"--picture = {drawing}: expected a file in an existing directory")
    hardware = descriptions.load(description)
    check_installed()
    documents, what, _ = documents_of(run, text)
    model = load(run)
    texts = [document[1:] for document in first_tokens(documents, tokens) if len(document) > 1]
    size = sum(map(len, texts))
    if not any(len(model.tokenizer.decode(document)) for document in texts):
        raise ConfigError(f"{what}: nothing to simulate: no whole byte in its first {tokens} tokens")
    costs = cost(hardware, model.architecture, streams)
    proved = proved_bits(model.parameters, model.architecture)
    report = Report(hardware, streams, size, *measure(model, texts, proved), proved, costs, drawing)
    if drawing:
        own = hardware.accumulator
        pictures.accumulator_widths(
            {kind: curve.bits_per_byte for kind, curve in report.curves.items()},
            report.exact,
            (own.overflow, own.bits),
            drawing,
            f"{run.resolve().name} on {hardware.name}: {size:,} tokens",
        )
    return report
