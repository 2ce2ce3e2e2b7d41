"""Tables and pictures of measured speed, and the notebook that measures."""
from pathlib import Path

import numpy as np
import papermill
import pytest

from fer_bench.core import BenchError
from fer_bench.report.figures import save_figure
from fer_bench.speed import tables
from fer_bench.speed.figures import growth_curves, roofline, step_shares
from fer_bench.speed.step import SECTIONS
from fer_bench.speed.tables import as_table, by_place, growth_table, page, slope, speed_table

ROOT = Path(__file__).parent.parent
NOTEBOOK = ROOT/"nbs/throughput.ipynb"

def made(method="supervised", **changes):
    shares = {f"share_{n}": v for n, v in zip(SECTIONS, (0.1, 0.1, 0.3, 0.4, 0.06, 0.04), strict=True)}
    setting = dict(device="Toy, 2 cores", method=method, backbone="resnet18", image_size=48, batch_size=8, faces=8,
                   threads=2, precision="fp32", deterministic=False)
    times = dict(images_a_second=80.0, step_ms=100.0, step_ms_low=90.0, step_ms_high=110.0, passes_ms=90.0,
                 of_limit=0.9)
    work = dict(memory_mib=200.0, gflops=5.0, flops_a_byte=20.0, flops_a_second=5e10, of_peak=0.25, peak_matmul=2e11,
                peak_convolution=1e11, peak_copy=1e10)
    return setting | times | work | shares | changes

USUAL = dict(usual_ms=150.0, over_usual=1.5, usual_of_limit=0.6, workers=2)

def grown(along, values, cost):
    return [made(along=along, value=v, step_ms=cost(v), passes_ms=cost(v) / 2, memory_mib=10 * cost(v)) for v in values]

def test_the_later_of_equal_rows_counts():
    table = as_table([made(step_ms=1.0), made("dtm"), made(step_ms=2.0)])
    assert table["method"].tolist() == ["dtm", "supervised"] and table["step_ms"].tolist() == [100, 2]
    assert set(tables.SAME) <= set(table) and (table["along"] == "").all()

def test_rows_of_growth_are_no_rows_of_comparison():
    table = as_table([made(), *grown("batch_size", (8, 16), float)])
    assert len(speed_table(table)) == 1 and len(growth_table(table)) == 1

def test_table_says_what_was_measured():
    line, bare = speed_table(as_table([made(**USUAL), made("dtm")])).to_dict("records")
    assert (line["step, ms"], line["of limit"], line["over usual"], line["usual, of limit"], line["loaders"]) == (
        "100 [90, 110]", "90%", "1.50 ×", "60%", "2")
    assert (line["GFLOP/s"], line["of peak"], line["backward"]) == ("50", "25%", "40.0%")
    assert bare["over usual"] == bare["loaders"] == ""

@pytest.mark.parametrize("power", [-1, 0, 0.5, 1, 2])
def test_slope_of_a_power(power):
    x = np.array([2.0, 5, 30, 400])
    assert slope(x, 7 * x**power) == pytest.approx(power, abs=1e-6)

def test_slope_passes_over_what_is_missing():
    assert slope([1, 2, 4], [1, np.nan, 4]) == pytest.approx(1) and np.isnan(slope([1, 2], [1, np.nan]))

def test_growth_of_all_and_of_the_largest():
    "A fixed cost flattens the small end: 100 + v."
    line, = growth_table(as_table(grown("batch_size", (64, 8, 16, 32), lambda v: 100 + v))).to_dict("records")
    whole, last = slope([8, 16, 32, 64], [108, 116, 132, 164]), slope([32, 64], [132, 164])
    assert line["step"] == f"{whole:.2f} [{last:.2f}]" and (line["expected"], line["values"]) == (1, "8 to 64")

def test_processes_have_no_passes():
    rows = [{k: v for k, v in r.items() if k != "passes_ms"} for r in grown("processes", (1, 2), lambda v: 100 / v)]
    line, = growth_table(as_table(rows)).to_dict("records")
    assert line["step"].startswith("-1.00") and "passes alone" not in line

def test_pictures(tmp_path):
    growing = [*grown("batch_size", (8, 16), float), *grown("faces", (10, 1000), lambda v: 5.0)]
    rows = as_table([made(**USUAL), made("dtm", image_size=112), *growing])
    for name, figure in (("roof", roofline(rows)), ("shares", step_shares(rows)), ("growth", growth_curves(rows))):
        save_figure(figure, tmp_path/f"{name}.png")
        assert (tmp_path/f"{name}.png").stat().st_size > 5000
    assert len(growth_curves(rows).axes) == 2
    bars = step_shares(rows).axes[0].patches
    assert len(bars) == 2 * 6 and sum(b.get_width() for b in bars) == pytest.approx(200)

def test_the_roof_is_the_measured_one():
    ax = roofline(as_table([made(**USUAL)])).axes[0]
    matmul = next(line for line in ax.lines if "matmul" in line.get_label())
    assert max(matmul.get_ydata()) == pytest.approx(200) and min(matmul.get_ydata() / matmul.get_xdata()) <= 10 + 1e-9
    step, passes, usual = (line.get_ydata()[0] for line in ax.lines[2:])
    assert (step, passes, usual) == (pytest.approx(50), pytest.approx(5 / 0.09), pytest.approx(5 / 0.15))

def test_what_cannot_be_drawn():
    with pytest.raises(BenchError, match="one device"): roofline(as_table([made(), made(device="Other")]))
    with pytest.raises(BenchError, match="belongs to a growth"): growth_curves(as_table([made()]))
    with pytest.raises(BenchError, match="fer-bench bench"): as_table([])

def test_places():
    rows = [made(), made(threads=1), made(device="NVIDIA H200", precision="bf16")]
    titles = [title for title, _ in by_place(as_table(rows))]
    assert titles == ["Toy, 2 cores, 2 threads, fp32", "Toy, 2 cores, 1 thread, fp32", "NVIDIA H200, bf16"]

def test_page(tmp_path):
    stamp = dict(date="2026-01-02", versions={"torch": "2.9"}, commit="0123456789abcdef", dirty=True)
    text = page(as_table([made(**USUAL, **stamp), *grown("batch_size", (8, 16), float)]))
    assert "## Toy, 2 cores, 2 threads, fp32" in text and "2026-01-02, torch 2.9, commit 0123456789+" in text
    assert text.count("| --- |") >= 2 and "1.50 ×" in text
    with pytest.raises(BenchError, match="no rows"): tables.write_page(tmp_path)

def test_rows_saved_before_are_read():
    "The rows of results/throughput, whose keys are those of their day, give tables with all sections."
    table = as_table(tables.read_rows(ROOT/"results/throughput"))
    assert tables.sections(table) == list(SECTIONS) and table["passes_ms"].notna().any()
    assert (speed_table(table)[list(SECTIONS)] != "").all(axis=None)

def test_notebook_measures_and_keeps(tmp_path):
    given = dict(methods="supervised", preset="tiny", backbone="test_resnet", image_sizes="32", faces="16",
                 device="cpu",
                 threads=1, workers=0, repeats=1, growth="batch_size", growth_backbone="test_resnet", growth_batch=8,
                 output_dir=str(tmp_path/"rows"))
    papermill.execute_notebook(NOTEBOOK, tmp_path/"out.ipynb", given, progress_bar=False, kernel_name="python3")
    rows = tables.read_rows(tmp_path/"rows")
    assert [r.get("along", "") for r in rows] == ["", *["batch_size"] * 5] and (tmp_path/"rows/README.md").exists()

def test_notebook_refuses_a_misspelt_parameter(tmp_path):
    with pytest.raises(papermill.PapermillExecutionError, match="Did you mean 'methods'"):
        papermill.execute_notebook(NOTEBOOK, tmp_path/"out.ipynb", {"metods": "dtm"}, progress_bar=False,
                                   kernel_name="python3")
