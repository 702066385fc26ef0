"""Pictures: a learning curve (bits per byte over tokens evaluated, with the ladder of references), the curves of
several runs, the time of an update by phase, bits per byte by accumulator width, the lengths of a corpus's documents,
and the loss by the position in a document.

Matplotlib is imported inside the function, and never its pyplot: importing intlm stays fast, and no global
backend or figure is touched.
"""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from intlm.errors import replacing
from intlm.tracking.table import human

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TRAIN, HELD_OUT, REFERENCE = "#a9c9e6", "#c1440e", "#5b6470"
COLOURS = (HELD_OUT, TRAIN, REFERENCE)
MANY = 10  # colours, one for each curve; further curves are dashed, then dotted


class Point(NamedTuple):
    """A measurement of a run; tokens_read is None where it was not recorded."""

    tokens_evaluated: float
    seconds: float
    tokens_read: float | None
    bits_per_byte: float


class Curve(NamedTuple):
    """A run's measurements, or those of one configuration with several seeds; `training`: on training text."""

    label: str
    runs: list[list[Point]]
    training: bool = False


def learning_curve(
    metrics: Sequence[Mapping[str, Any]], references: Mapping[str, float], path: Path, title: str
) -> None:
    """Draw the metrics lines of a run to the PNG `path`, 1200 x 750 pixels, replacing it atomically.

    A line gives `tokens_evaluated` with `train_bits_per_byte`, `valid_bits_per_byte` or both. `references`
    (name -> bits per byte on the same held-out text) are drawn as labelled horizontal lines.
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import FuncFormatter, NullFormatter

    def points(name: str) -> tuple[list[float], list[float]]:
        measured = [(line["tokens_evaluated"], line[name]) for line in metrics if line.get(name) is not None]
        return [x for x, _ in measured], [y for _, y in measured]

    train, valid = points("train_bits_per_byte"), points("valid_bits_per_byte")
    figure = Figure(figsize=(12, 7.5), dpi=100)
    axes = figure.add_axes((0.07, 0.09, 0.77, 0.81))
    if train[0]:
        axes.plot(*train, color=TRAIN, linewidth=0.8, label="training text, each update")
    if valid[0]:
        label = f"held-out text, last {valid[1][-1]:.3f}"
        size = 4.5 if len(valid[0]) <= 60 else 2.0
        axes.plot(*valid, color=HELD_OUT, linewidth=1.8, marker="o", markersize=size, label=label, zorder=4)

    tokens = sorted({*train[0], *valid[0]})
    if tokens and tokens[0] > 0 and math.log10(tokens[-1] / tokens[0]) > 1.5:
        axes.set_xscale("log")
        axes.xaxis.set_minor_formatter(NullFormatter())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: human(x)))
    axes.margins(x=0.01)
    heights = [*train[1], *valid[1], *references.values()] or [0.0, 8.0]
    margin = 0.04 * (max(heights) - min(heights)) or 0.1
    low, high = min(heights) - margin, max(heights) + margin
    axes.set_ylim(low, high)

    # A reference's label stands in the right margin at its line's height, or as near as the others allow.
    names = sorted(references, key=lambda name: references[name])
    wanted = [(references[name] - low) / (high - low) for name in names]
    edge: dict[str, Any] = {"transform": axes.transAxes, "color": REFERENCE}
    for name, height, beside in zip(names, wanted, _spread(wanted, gap=0.034), strict=True):
        axes.axhline(references[name], color=REFERENCE, linewidth=1.0, linestyle=(0, (5, 4)), zorder=3)
        axes.plot([1.0, 1.022], [height, beside], clip_on=False, linewidth=0.8, **edge)
        text = f"{name}  {references[name]:.3f}"
        axes.text(1.028, beside, text, va="center", fontsize=11, parse_math=False, **edge)

    axes.set_title(title, fontsize=14, loc="left", pad=34, parse_math=False)
    axes.set_xlabel("tokens evaluated", fontsize=12)
    axes.set_ylabel("bits per byte", fontsize=12)
    axes.tick_params(labelsize=11)
    axes.grid(alpha=0.25, linewidth=0.6)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    if train[0] or valid[0]:
        # Above the axes: inside, it would cover the curve of a run that does not learn.
        axes.legend(loc="lower left", bbox_to_anchor=(-0.01, 1.0), ncols=2, fontsize=11, frameon=False)

    _save(figure, path)


def comparison(curves: Sequence[Curve], references: Mapping[str, float], path: Path) -> None:
    """Draw bits per byte against tokens evaluated, seconds and tokens read to the PNG `path`, replacing it atomically.

    1800 pixels wide, 750 high and higher where the legend needs it. The mean of a curve's seeds is a line, the
    range from the least to the greatest a band; it ends where the shortest seed does. A panel without data is
    left out.
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    longest = max((point.seconds for curve in curves for run in curve.runs for point in run), default=0.0)
    unit, size = ("hours", 3600) if longest > 7200 else ("minutes", 60) if longest > 120 else ("seconds", 1)
    panels = (("tokens evaluated", 1), (f"{unit} of training", size), ("tokens of the text read", 1))
    columns = [
        column for column in range(3)
        if column < 2 or any(point[2] is not None for curve in curves for run in curve.runs for point in run)
    ]  # fmt: skip
    rows = -(-len(curves) // 3)
    height = 6.6 + 0.26 * rows
    figure = Figure(figsize=(18, max(height, 7.5)), dpi=100, layout="constrained")
    all_axes = figure.subplots(1, len(columns), sharey=True, squeeze=False)[0]
    for axes, column in zip(all_axes, columns, strict=True):
        name, size = panels[column]
        extent: list[float] = []
        for number, curve in enumerate(curves):
            length = min(len(run) for run in curve.runs)
            points = [[run[place] for run in curve.runs] for place in range(length)]  # [points][seeds]
            if not points or any(point[column] is None for seeds in points for point in seeds):
                axes.plot([], [], label=curve.label, **_style(number, curve.training))  # for the legend
                continue
            mean = [sum(point[column] for point in seeds) / len(seeds) / size for seeds in points]  # type: ignore[misc]
            bits = [[point.bits_per_byte for point in seeds] for seeds in points]
            middle = [sum(some) / len(some) for some in bits]
            seeds = f" ({len(curve.runs)} seeds)" if len(curve.runs) > 1 else ""
            last = f"{middle[-1]:.3f}{' on training text' if curve.training else ''}{seeds}"
            style = _style(number, curve.training)
            if len(mean) == 1:
                style |= {"marker": "o", "markersize": 5}
            axes.plot(mean, middle, label=f"{curve.label}: {last}", **style)
            if seeds:
                least, most = [min(some) for some in bits], [max(some) for some in bits]
                axes.fill_between(mean, least, most, color=style["color"], alpha=0.15, linewidth=0)
            extent += mean
        for label, level in references.items():
            axes.axhline(level, color=REFERENCE, linewidth=1.0, linestyle=(0, (5, 4)), zorder=1)
            beside: dict[str, Any] = {"transform": axes.get_yaxis_transform(), "ha": "right", "va": "bottom"}
            axes.text(0.995, level, label, fontsize=10, color=REFERENCE, parse_math=False, **beside)
        if extent and min(extent) > 0 and math.log10(max(extent) / min(extent)) > 0.8:
            axes.set_xscale("log")
            if math.log10(max(extent) / min(extent)) < 2:
                axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axes.xaxis.set_minor_formatter(NullFormatter())
        axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: human(x)))
        axes.set_xlabel(name, fontsize=12)
        axes.tick_params(labelsize=11)
        axes.grid(alpha=0.25, linewidth=0.6)
        axes.spines[["top", "right"]].set_visible(False)
    all_axes[0].set_ylabel("held-out bits per byte", fontsize=12)
    handles, labels = all_axes[0].get_legend_handles_labels()
    if handles:
        legend = figure.legend(handles, labels, loc="outside lower left", ncols=3, fontsize=11, frameon=False)
        for text in legend.get_texts():
            text.set_parse_math(False)
    _save(figure, path)


def _style(number: int, training: bool) -> dict[str, Any]:
    """The line style of a curve by its number."""
    dashes = ("-", (0, (5, 1.5)), (0, (1, 1)), (0, (6, 1.5, 1, 1.5)))[number // MANY % 4]
    return {"color": f"C{number % MANY}", "linestyle": dashes, "linewidth": 0.8 if training else 1.8}


def breakdown(parts: Sequence[tuple[str, str, float]], path: Path, title: str) -> None:
    """Draw shares of a whole to the PNG `path`, 1200 x 750 pixels, replacing it atomically: the largest on top.

    A part is its label, the group that gives its colour (three at most), and its seconds.
    """
    from matplotlib.figure import Figure

    groups = dict(zip(dict.fromkeys(group for _, group, _ in parts), COLOURS, strict=False))
    parts = sorted(parts, key=lambda part: part[2])
    whole = sum(seconds for _, _, seconds in parts) or 1.0
    figure = Figure(figsize=(12, 7.5), dpi=100)
    axes = figure.add_axes((0.34, 0.05, 0.51, 0.81))
    heights = range(len(parts))
    shares = [100 * seconds / whole for _, _, seconds in parts]
    axes.barh(heights, shares, height=0.7, color=[groups[group] for _, group, _ in parts])
    for height, share, (_, _, seconds) in zip(heights, shares, parts, strict=True):
        axes.annotate(
            f"{share:.1f}%  {1000 * seconds:,.1f} ms", (share, height), (6, 0), textcoords="offset points",
            va="center", fontsize=11, color=REFERENCE,
        )  # fmt: skip
    axes.set_yticks(heights, [label for label, _, _ in parts], fontsize=12, parse_math=False)
    axes.set_ylim(len(parts) - max(len(parts), 10) - 0.6, len(parts) - 0.4)  # no bar is thicker than with ten parts
    axes.set_xlim(0, max(shares, default=1.0) or 1.0)
    axes.tick_params(length=0, labelbottom=False)
    axes.set_xticks([])
    for side in ("top", "right", "bottom"):
        axes.spines[side].set_visible(False)
    for group, colour in groups.items():
        of_group = sum(seconds for _, name, seconds in parts if name == group)
        axes.barh([0], [0], color=colour, label=f"{group}, {of_group / whole:.1%}")
    handles = axes.get_legend_handles_labels()  # there may be none
    axes.legend(*handles, loc="lower left", bbox_to_anchor=(-0.01, 1.0), ncols=3, fontsize=11, frameon=False)
    axes.set_title(f"{title} ({1000 * whole:,.1f} ms)", fontsize=14, loc="left", pad=34, parse_math=False)
    _save(figure, path)


def accumulator_widths(
    curves: Mapping[str, Mapping[int, float]], exact: float, own: tuple[str, int], path: Path, title: str
) -> None:
    """Draw bits per byte against accumulator width to the PNG `path`, 1200 x 750 pixels, replacing it atomically.

    curves: for "saturate" and "wrap", bits per byte by width; `exact` is that of all wider ones. own: the kind and
    the width of the described hardware's accumulator, which is marked.
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import MultipleLocator

    kind, bits = own
    figure = Figure(figsize=(12, 7.5), dpi=100)
    axes = figure.add_axes((0.07, 0.09, 0.77, 0.81))
    widest = max(bits, *(max(curve) for curve in curves.values()))
    styles = {"wrap": ("wrapping", TRAIN, "s"), "saturate": ("saturating", HELD_OUT, "o")}
    for name, (label, colour, marker) in styles.items():
        points = sorted(curves[name].items())
        axes.plot(*zip(*points, strict=True), color=colour, marker=marker, linewidth=1.8, markersize=6, label=label)
        axes.plot([points[-1][0], widest], [exact, exact], color=colour, linewidth=1.8)  # exact, by the proof
    axes.axhline(exact, color=REFERENCE, linewidth=1.0, linestyle=(0, (5, 4)), zorder=1)
    axes.axvline(bits, color=REFERENCE, linewidth=1.0, linestyle=(0, (1, 2)), zorder=1)
    value = curves[kind].get(bits, exact)
    label = f"this hardware: {bits} bits, {styles[kind][0]}, {value:.3f}"
    axes.plot([bits], [value], "o", markersize=14, fillstyle="none", color=REFERENCE, label=label)
    edge: dict[str, Any] = {"transform": axes.get_yaxis_transform(), "color": REFERENCE}
    axes.text(1.028, exact, f"exact  {exact:.3f}", va="center", fontsize=11, **edge)
    axes.set_title(title, fontsize=14, loc="left", pad=34, parse_math=False)
    axes.set_xlabel("accumulator, bits", fontsize=12)
    axes.set_ylabel("bits per byte", fontsize=12)
    axes.xaxis.set_major_locator(MultipleLocator(2))
    axes.tick_params(labelsize=11)
    axes.grid(alpha=0.25, linewidth=0.6)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    axes.legend(loc="lower left", bbox_to_anchor=(-0.01, 1.0), ncols=3, fontsize=11, frameon=False)
    _save(figure, path)


def lengths(counts: Mapping[str, Sequence[int]], path: Path, title: str) -> None:
    """Draw how many documents have 2^i to 2^(i+1) - 1 tokens, by split, to the PNG `path`, replacing it atomically."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import FuncFormatter

    figure = Figure(figsize=(12, 7.5), dpi=100)
    axes = figure.add_axes((0.07, 0.12, 0.9, 0.76))
    bins = max(map(len, counts.values()), default=0)
    width = 0.8 / max(len(counts), 1)
    for number, (name, heights) in enumerate(counts.items()):
        places = [place + (number - (len(counts) - 1) / 2) * width for place in range(len(heights))]
        axes.bar(places, heights, width, color=COLOURS[number % len(COLOURS)], label=f"{name}, {human(sum(heights))}")
    axes.set_yscale("symlog", linthresh=1)
    axes.yaxis.set_major_formatter(FuncFormatter(lambda y, _: human(y)))
    axes.set_xticks(range(bins), [f"{human(2**place)}" for place in range(bins)], fontsize=11)
    axes.set_xlabel("tokens of a document, each bin up to twice its first number", fontsize=12)
    axes.set_ylabel("documents", fontsize=12)
    axes.grid(axis="y", alpha=0.25, linewidth=0.6)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    axes.legend(loc="lower left", bbox_to_anchor=(-0.01, 1.0), ncols=3, fontsize=11, frameon=False)
    axes.set_title(title, fontsize=14, loc="left", pad=34, parse_math=False)
    _save(figure, path)


def loss_by_position(
    bins: Sequence[tuple[int, int]],
    tokens: Sequence[int],
    bits: Sequence[float],
    mean: float,
    segment: tuple[int, int],
    path: Path,
    title: str,
) -> None:
    """Draw bits per token by position in the document to the PNG `path`, 1200 x 750 pixels, replacing it atomically.

    bins: the first position of each bin, from 1 on, and the first after it. tokens, bits: how many tokens of the bin
    were measured, and their mean loss. mean: that of all. segment: the lengths of a segment and of the warm-up before
    it (intlm.evaluation).
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import FuncFormatter, NullLocator

    edges = [bins[0][0], *(after for _, after in bins)]
    figure = Figure(figsize=(12, 7.5), dpi=100)
    axes = figure.add_axes((0.07, 0.3, 0.82, 0.58))
    below = figure.add_axes((0.07, 0.09, 0.82, 0.16), sharex=axes)
    axes.stairs(bits, edges, baseline=None, color=HELD_OUT, linewidth=2, label="mean of the tokens at these positions")
    below.stairs(tokens, edges, fill=True, color=TRAIN)
    axes.axhline(mean, color=REFERENCE, linewidth=1.0, linestyle=(0, (5, 4)), zorder=1)
    edge: dict[str, Any] = {"transform": axes.get_yaxis_transform(), "color": REFERENCE}
    axes.text(1.01, mean, f"all  {mean:.3f}", va="center", fontsize=11, **edge)
    length, warm_up = segment
    if edges[-1] > length + 1:
        label = f"from here on each segment of {length:,} begins with {warm_up:,} tokens of warm-up"
        axes.axvline(length + 1, color=REFERENCE, linewidth=1.2, linestyle=(0, (1, 2)), zorder=1, label=label)
    axes.set_xscale("log", base=2)
    axes.set_xlim(edges[0], edges[-1])
    below.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:,.0f}"))
    below.xaxis.set_minor_locator(NullLocator())
    below.set_yscale("log")
    below.yaxis.set_major_formatter(FuncFormatter(lambda y, _: human(y)))
    below.yaxis.set_minor_locator(NullLocator())
    below.set_ylim(0.8, 1.5 * max(tokens))
    below.set_xlabel("position in the document, tokens", fontsize=12)
    below.set_ylabel("tokens", fontsize=12)
    axes.set_ylabel("bits per token", fontsize=12)
    axes.tick_params(labelsize=11, labelbottom=False)
    below.tick_params(labelsize=11)
    for one in (axes, below):
        one.grid(alpha=0.25, linewidth=0.6)
        for side in ("top", "right"):
            one.spines[side].set_visible(False)
    axes.legend(loc="lower left", bbox_to_anchor=(-0.01, 1.0), ncols=2, fontsize=11, frameon=False)
    axes.set_title(title, fontsize=14, loc="left", pad=34, parse_math=False)
    _save(figure, path)


def _save(figure: "Figure", path: Path) -> None:
    with replacing(path) as temporary:
        figure.savefig(temporary, format="png")


def _spread(wanted: Sequence[float], gap: float) -> list[float]:
    """Moves ascending heights in 0..1 so that they are `gap` apart, in one sweep up and one down."""
    placed: list[float] = []
    for height in wanted:
        placed.append(max(height, placed[-1] + gap) if placed else height)
    ceiling = 1.0
    for index in reversed(range(len(placed))):
        placed[index] = min(placed[index], ceiling)
        ceiling = placed[index] - gap
    return placed
