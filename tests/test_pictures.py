"""intlm.pictures: a PNG of the stated size, replaced atomically, with labels that can be read."""

import itertools
import os
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.figure import Figure

from intlm.pictures import (
    Curve,
    Point,
    _spread,
    _style,
    accumulator_widths,
    breakdown,
    comparison,
    learning_curve,
    loss_by_position,
)

REFERENCES = {"unigram": 4.52, "bigram": 3.71, "trigram": 3.08, "gzip -9": 3.11}


def run(updates: int, every: int = 50, first: int = 1) -> list[dict[str, Any]]:
    lines = [
        {"update": n, "tokens_evaluated": n * 131072, "train_bits_per_byte": 3.7 + 4.3 / (1 + n / 8)}
        for n in range(first, updates + 1)
    ]
    for line in lines:
        if line["update"] % every == 0:
            line["valid_bits_per_byte"] = line["train_bits_per_byte"] + 0.05
    return lines


@pytest.fixture
def figures(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    """The figures saved in the test, as they were drawn."""
    saved: list[Figure] = []
    save = Figure.savefig

    def keep(self: Figure, *args: Any, **kwargs: Any) -> None:
        saved.append(self)
        save(self, *args, **kwargs)

    monkeypatch.setattr(Figure, "savefig", keep)
    return saved


def test_the_picture_is_a_png_of_1200_by_750(tmp_path: Path) -> None:
    path = tmp_path / "learning_curve.png"
    learning_curve(run(100), REFERENCES, path, "a run that cost $5 and $6")
    content = path.read_bytes()
    assert content[:8] == b"\x89PNG\r\n\x1a\n"
    assert struct.unpack(">II", content[16:24]) == (1200, 750)
    assert os.listdir(tmp_path) == ["learning_curve.png"]


def test_it_draws_both_curves_and_every_reference(tmp_path: Path, figures: list[Figure]) -> None:
    lines = run(1000)
    learning_curve(lines, REFERENCES, tmp_path / "a.png", "title")
    axes = figures[0].axes[0]
    curves = {str(line.get_label()).split(",")[0]: line for line in axes.lines}
    assert list(curves["training text"].get_ydata()) == [line["train_bits_per_byte"] for line in lines]
    valid = [line for line in lines if "valid_bits_per_byte" in line]
    assert list(curves["held-out text"].get_ydata()) == [line["valid_bits_per_byte"] for line in valid]
    assert list(curves["held-out text"].get_xdata()) == [line["tokens_evaluated"] for line in valid]
    labels = {text.get_text() for text in axes.texts}
    assert labels == {"unigram  4.520", "bigram  3.710", "trigram  3.080", "gzip -9  3.110"}


@pytest.mark.parametrize(
    ("updates", "first", "scale"), [(20, 1, "linear"), (31, 1, "linear"), (32, 1, "log"), (1000, 0, "linear")]
)
def test_tokens_are_on_a_log_scale_beyond_one_and_a_half_decades(
    updates: int, first: int, scale: str, tmp_path: Path, figures: list[Figure]
) -> None:
    learning_curve(run(updates, first=first), REFERENCES, tmp_path / "a.png", "title")
    assert figures[0].axes[0].get_xscale() == scale


def test_labels_do_not_overlap(tmp_path: Path, figures: list[Figure]) -> None:
    close = {"unigram": 4.52, "bigram": 3.101, "trigram": 3.1, "gzip -9": 3.102, "another": 2.0}
    learning_curve(run(100), close, tmp_path / "a.png", "title")
    boxes = [text.get_window_extent() for text in figures[0].axes[0].texts]
    assert len(boxes) == 5
    assert not any(a.overlaps(b) for a in boxes for b in boxes if a is not b)
    assert all(box.x0 > figures[0].axes[0].get_window_extent().x1 and box.x1 < 1200 for box in boxes)


@given(st.lists(st.floats(0, 1), max_size=8).map(sorted))
def test_spread_labels_keep_order_gap_and_ceiling(heights: list[float]) -> None:
    placed = _spread(heights, gap=0.04)
    assert all(b - a >= 0.04 - 1e-9 for a, b in itertools.pairwise(placed))
    assert max(placed, default=0) <= 1
    if all(b - a >= 0.04 for a, b in itertools.pairwise(heights)):
        assert placed == pytest.approx(heights)


def test_a_run_with_nothing_measured_yet(tmp_path: Path) -> None:
    learning_curve([], {}, tmp_path / "a.png", "title")
    learning_curve(run(1), {}, tmp_path / "a.png", "title")
    assert (tmp_path / "a.png").read_bytes()[:4] == b"\x89PNG"


def test_the_old_picture_stays_until_the_new_one_is_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(b"old")
    written: list[bytes] = []
    replace = os.replace

    def watched(source: Path, target: Path) -> None:
        written.append(path.read_bytes())
        assert Path(source).read_bytes()[-8:-4] == b"IEND"
        replace(source, target)

    monkeypatch.setattr(os, "replace", watched)
    learning_curve(run(10), REFERENCES, path, "title")
    assert written == [b"old"]
    assert path.read_bytes()[:4] == b"\x89PNG"


PARTS = [
    ("noise", "evaluation", 0.011),
    ("int8 products, at the machine's peak rate", "evaluation", 0.9),
    ("product overhead: rescale, perturb, gates", "evaluation", 123.4567),
    *((f"part $ {i}", "accumulation", 0.1 * i) for i in range(12)),
    ("fitness and optimizer", "rest of the update", 0.0),
]


def test_a_breakdown_has_a_bar_for_each_part(tmp_path: Path, figures: list[Figure]) -> None:
    """The largest bar is on top; there are three colours; every label is in the picture and covers no other."""
    breakdown(PARTS, tmp_path / "a.png", "what $5 and $6 buy")
    assert struct.unpack(">II", (tmp_path / "a.png").read_bytes()[16:24]) == (1200, 750)
    assert os.listdir(tmp_path) == ["a.png"]
    axes = figures[0].axes[0]
    names = [label.get_text() for label in axes.get_yticklabels()]
    assert names == [name for name, _, _ in sorted(PARTS, key=lambda part: part[2])]
    whole = sum(seconds for _, _, seconds in PARTS)
    assert axes.texts[-1].get_text() == f"{12345.67 / whole:.1f}%  123,456.7 ms"
    assert len({patch.get_facecolor() for patch in axes.patches}) == 3
    legend = axes.get_legend()
    assert legend and [text.get_text().split(",")[0] for text in legend.get_texts()] == [
        "evaluation", "accumulation", "rest of the update",
    ]  # fmt: skip
    boxes = [text.get_window_extent() for text in [*axes.texts, *axes.get_yticklabels(), *legend.get_texts()]]
    assert all(min(box.x0, box.y0) >= 0 and box.x1 <= 1200 and box.y1 <= 750 for box in boxes)
    assert not any(a.overlaps(b) for a, b in itertools.combinations(boxes, 2))


def test_a_breakdown_of_nothing(tmp_path: Path) -> None:
    breakdown([("all of it", "some", 0.0)], tmp_path / "a.png", "title")
    breakdown([], tmp_path / "a.png", "title")
    assert (tmp_path / "a.png").read_bytes()[:4] == b"\x89PNG"


@pytest.mark.parametrize("own", [("saturate", 10), ("wrap", 12), ("wrap", 40)])
def test_narrow_accumulators(own: tuple[str, int], tmp_path: Path, figures: list[Figure]) -> None:
    """The picture has both curves, the hardware's own width where it is on its curve, and every label."""
    curves = {"saturate": {10: 6.0, 11: 4.0, 12: 2.5}, "wrap": {10: 6.5, 11: 7.0, 12: 2.5}}
    accumulator_widths(curves, 2.5, own, tmp_path / "a.png", "what $5 and $6 buy")
    assert struct.unpack(">II", (tmp_path / "a.png").read_bytes()[16:24]) == (1200, 750)
    axes = figures[0].axes[0]
    drawn = {str(line.get_label()): line for line in axes.lines}
    assert list(drawn["saturating"].get_ydata()) == [6.0, 4.0, 2.5]
    assert list(drawn["wrapping"].get_ydata()) == [6.5, 7.0, 2.5]
    (mark,) = (line for label, line in drawn.items() if label.startswith(f"this hardware: {own[1]} bits"))
    assert (list(mark.get_xdata()), list(mark.get_ydata())) == ([own[1]], [curves[own[0]].get(own[1], 2.5)])
    legend = axes.get_legend()
    assert legend
    boxes = [text.get_window_extent() for text in [*axes.texts, *legend.get_texts(), axes.title]]
    assert all(min(box.x0, box.y0) >= 0 and box.x1 <= 1200 and box.y1 <= 750 for box in boxes)
    assert not any(a.overlaps(b) for a, b in itertools.combinations(boxes, 2))


def seeds(count: int, points: int = 5, read: bool = True, faster: float = 1.0) -> list[list[Point]]:
    return [
        [
            Point(1000.0 * n, 7.0 * n / faster, 100.0 * n if read else None, 3 + seed + 1 / n)
            for n in range(1, points + 1)
        ]
        for seed in range(count)
    ]


def test_a_comparison_is_of_tokens_time_and_text(tmp_path: Path, figures: list[Figure]) -> None:
    """Several seeds are a mean in a band; a run measured once is a point; runs not measured are in the legend."""
    curves = [
        Curve("three $ and $ seeds", seeds(3)), Curve("longer", seeds(1, 300)), Curve("old", seeds(1, 3, read=False)),
        Curve("one point", seeds(1, 1), training=True), Curve("nothing yet", [[]]),
    ]  # fmt: skip
    comparison(curves, {"trigram": 3.1}, tmp_path / "a.png")
    assert struct.unpack(">II", (tmp_path / "a.png").read_bytes()[16:24]) == (1800, 750)
    assert os.listdir(tmp_path) == ["a.png"]
    panels = figures[0].axes
    assert [axes.get_xlabel() for axes in panels] == [
        "tokens evaluated",
        "minutes of training",
        "tokens of the text read",
    ]
    assert [axes.get_xscale() for axes in panels] == ["log", "log", "log"]
    for axes, unit in zip(panels, (1000.0, 7 / 60, 100.0), strict=True):
        drawn = {str(line.get_label()): line for line in axes.lines}
        mean = drawn["three $ and $ seeds: 4.200 (3 seeds)"]
        np.testing.assert_allclose(np.asarray(mean.get_xdata(), float), [unit * n for n in range(1, 6)])
        np.testing.assert_allclose(np.asarray(mean.get_ydata(), float), [4 + 1 / n for n in range(1, 6)])
        assert len(axes.collections) == 1  # the band
        assert drawn["one point: 4.000 on training text"].get_marker() == "o"
        assert ("old: 3.333" in drawn) == (axes is not panels[2])
        assert len(drawn["nothing yet"].get_xdata()) == 0  # type: ignore[arg-type]
        assert [text.get_text() for text in axes.texts] == ["trigram"]
    (legend,) = figures[0].legends
    assert [text.get_text().split(":")[0] for text in legend.get_texts()] == [curve.label for curve in curves]
    boxes = [text.get_window_extent() for text in [*legend.get_texts(), *(axes.xaxis.label for axes in panels)]]
    assert all(min(box.x0, box.y0) >= 0 and box.x1 <= 1800 and box.y1 <= 750 for box in boxes)
    assert not any(a.overlaps(b) for a, b in itertools.combinations(boxes, 2))


def test_a_comparison_of_many(tmp_path: Path, figures: list[Figure]) -> None:
    """Curves can be told apart, the legend has room for all, and a panel without data is left out."""
    comparison([Curve(f"variant-{n}", seeds(2, read=False)) for n in range(30)], {}, tmp_path / "a.png")
    panels = figures[0].axes
    assert [axes.get_xlabel() for axes in panels] == ["tokens evaluated", "seconds of training"]
    assert len({str(_style(number, False)) for number in range(40)}) == 40
    (legend,) = figures[0].legends
    boxes = [text.get_window_extent() for text in legend.get_texts()]
    height = struct.unpack(">I", (tmp_path / "a.png").read_bytes()[20:24])[0]
    assert len(boxes) == 30 and all(box.y0 >= 0 and box.y1 < height / 2 and box.x1 <= 1800 for box in boxes)
    assert panels[0].get_window_extent().height > 450


def test_a_comparison_of_nothing(tmp_path: Path) -> None:
    comparison([], {}, tmp_path / "a.png")
    assert (tmp_path / "a.png").read_bytes()[:4] == b"\x89PNG"


def test_seeds_that_go_on_longer_than_others_are_cut(tmp_path: Path, figures: list[Figure]) -> None:
    comparison([Curve("a", [seeds(1, 5)[0], seeds(1, 3)[0]])], {}, tmp_path / "a.png")
    assert list(figures[0].axes[0].lines[0].get_xdata()) == [1000, 2000, 3000]  # type: ignore[arg-type]


@pytest.mark.parametrize(("longest", "is_cut"), [(2, False), (1025, False), (1280, True)])
def test_loss_by_position(longest: int, is_cut: bool, tmp_path: Path, figures: list[Figure]) -> None:
    """Losses and token counts share their positions; the begin of segments is marked if there are several."""
    edges = [edge for edge in (1, 2, 4, 8, 1024, 1025, 1280) if edge <= longest]
    bits, tokens = [4.0 - 0.5 * i for i in range(len(edges) - 1)], [10**i for i in range(len(edges) - 1)]
    loss_by_position(
        list(itertools.pairwise(edges)), tokens, bits, 2.25, (1024, 256), tmp_path / "a.png", "what $5 and $6 buy"
    )
    assert struct.unpack(">II", (tmp_path / "a.png").read_bytes()[16:24]) == (1200, 750)
    above, below = figures[0].axes
    for axes, values in ((above, bits), (below, tokens)):
        (stairs,) = axes.patches
        assert stairs.get_data().values.tolist() == values and stairs.get_data().edges.tolist() == edges
        assert axes.get_xlim() == (1, longest)
    labels = [text.get_text() for text in above.get_legend().get_texts()]
    assert len(labels) == 1 + is_cut and (not is_cut or ("1,024" in labels[1] and "256" in labels[1]))
    assert [text.get_text() for text in above.texts] == ["all  2.250"]
    for box in [text.get_window_extent() for text in (*above.texts, above.get_legend(), above.title)]:
        assert box.x0 >= 0 and box.x1 <= 1200 and box.y0 >= 0 and box.y1 <= 750
