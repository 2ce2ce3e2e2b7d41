"""Shared by the tests of figures: a made record, the texts of a figure, and whether they can be read."""
import io
import json
import warnings
from types import SimpleNamespace

import numpy as np
import pandas as pd
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.text import Text

from fer_bench.schema import Metrics, example_metrics


def made_record(columns: dict, without, config: dict, metrics: dict):
    """A record with a history of `columns`, name → a value an epoch, that was JSON once.

    `without`: names that the history or the metrics lack; `metrics`: changes to `example_metrics`."""
    columns = {name: np.asarray(c).tolist() for name, c in columns.items() if name not in without}
    rows = (dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True))
    missing = {name: None for name in without if name in Metrics.model_fields}
    return SimpleNamespace(config=config, metrics=example_metrics(**metrics | missing),
                           history=pd.read_json(io.StringIO("\n".join(map(json.dumps, rows))), lines=True))


def texts(fig): return list(dict.fromkeys(fig.findobj(Text)))  # it finds those of a legend twice


def said(fig): return " ".join(t.get_text() for t in texts(fig)).replace("\n", " ")


def legend(ax): return [t.get_text() for t in ax.get_legend().get_texts()]


def undrawn(fig):
    "Labels of ticks that lie beyond their axis."
    for axis in (axis for ax in fig.axes for axis in (ax.xaxis, ax.yaxis)):
        low, high = axis.get_view_interval()
        yield from (t.label1 for t in [*axis.get_major_ticks(), *axis.get_minor_ticks()]
                    if not low <= t.get_loc() <= high)


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


def assert_readable(fig):
    "`fig` is drawn without a warning, without texts that cover each other or are cut off, and without an empty panel."
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = faults(fig)
    assert not found and all(ax.has_data() for ax in fig.axes), found


def assert_says_what_it_is_of(figure, record, title: str, long: dict):
    "The title of `figure`, and its warnings of drawn faces and oracle selection, also with the long title of `long`."
    plain = said(figure(record()))
    assert title in plain and "substitute" not in plain, plain
    assert "no substitute for real ones" in said(figure(record(metrics=dict(drawn=True))))
    fig = figure(record(config=long, metrics=dict(select="oracle", dataset="affectnet-8")))
    found = faults(fig)
    assert "oracle selection" in said(fig) and not found, found
