"""Shared by the tests of the figures of one run: a made record, what a figure says, and whether all of it can be read."""
import io
import json
import warnings
from types import SimpleNamespace

import numpy as np
import pandas as pd
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.text import Text


def made_record(columns: dict, without, config: dict, metrics: dict):
    "A record with a history of `columns`, name → a value an epoch, that was JSON once; `without` names what it lacks."
    columns = {name: np.asarray(c).tolist() for name, c in columns.items() if name not in without}
    rows = (dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True))
    return SimpleNamespace(config=config, history=pd.read_json(io.StringIO("\n".join(map(json.dumps, rows))), lines=True),
                           metrics={name: v for name, v in metrics.items() if name not in without})


def texts(fig): return list(dict.fromkeys(fig.findobj(Text)))  # it finds those of a legend twice


def said(fig): return " ".join(t.get_text() for t in texts(fig)).replace("\n", " ")


def legend(ax): return [t.get_text() for t in ax.get_legend().get_texts()]


def undrawn(fig):
    "Labels of ticks that lie beyond their axis."
    for axis in (axis for ax in fig.axes for axis in (ax.xaxis, ax.yaxis)):
        low, high = axis.get_view_interval()
        yield from (t.label1 for t in [*axis.get_major_ticks(), *axis.get_minor_ticks()] if not low <= t.get_loc() <= high)


def faults(fig):
    "Texts of the figure that cover each other, and whether anything is cut off at its edge."
    canvas = FigureCanvasAgg(fig)
    canvas.draw()
    page = fig.get_tightbbox(canvas.get_renderer())  # inches
    beyond = set(undrawn(fig))
    there = [t for t in texts(fig) if t.get_text().strip() and t.get_visible() and t not in beyond]
    boxes = [(t.get_text(), t.get_window_extent().shrunk(0.96, 0.8)) for t in there]
    over = [(a, b) for i, (a, one) in enumerate(boxes) for b, two in boxes[i + 1:] if one.overlaps(two)]
    cut = min(page.min) < -0.01 or (page.max > fig.get_size_inches() + 0.01).any()
    return [*over, "cut off"] if cut else over


def assert_readable(figures: dict):
    "Every one of `figures`, name → figure, is drawn without a complaint, an overlap or an empty panel, a column wide."
    for name, fig in figures.items():
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            found = faults(fig)
        assert not found, f"{name}: {found}"
        assert fig.get_figwidth() == 3.5 and all(ax.has_data() for ax in fig.axes), name


def assert_says_what_it_is_of(figure, record, title: str, long: dict):
    "Its title, and when it must not be believed: drawn faces and, in a title as long as that of the config `long`, an oracle."
    plain = said(figure(record()))
    assert title in plain and "substitute" not in plain, plain
    assert "no substitute for real ones" in said(figure(record(metrics=dict(drawn=True))))
    fig = figure(record(config=long, metrics=dict(select="oracle")))
    found = faults(fig)
    assert "oracle selection" in said(fig) and not found, found
