"""Exported tables: nothing lost or executed, bold only where the difference is shown, ours and others' apart."""
import html
import io
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fer_bench.core import BenchError
from fer_bench.record import load_runs
from fer_bench.report.exports import compact, plain, save_tables, shared, to_csv, to_html, to_latex, to_markdown
from fer_bench.report.leaderboard import leaderboard
from fer_bench.report.published import published
from fer_bench.report.rows import column_notes, leaderboard_table
from fer_bench.report.scores import MEASURES
from fer_bench.report.summary import measured
from fer_bench.report.tables import notes
from fer_bench.report.tasks import tasks

RESULTS = Path(__file__).parent.parent/"results"
TABLE = pd.DataFrame({"method": ["dtm", "a_b & <script>alert(1)</script> | 100 % #1 $x$ {y} ~z ^n \\input{x}"],
                      "labels": ["50", "50"],
                      "WAR": ["**44.6** [42.3, 46.8]", "9.3"], "WAR gain": ["+5.2 [2.1, 8.3]", ""]})
NOTE = "100 % of C:\\faces_{1} & <b>more</b> ± × é"


# --- formats ---

class Page(HTMLParser):
    "Tags, and the addresses that a browser would load."
    def __init__(self, text):
        super().__init__()
        self.tags, self.loads = [], []
        self.feed(text)
    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.loads += [v for k, v in attrs if k in ("src", "data") or (k == "href" and tag == "link")]

def test_the_html_needs_no_network_and_runs_nothing_of_a_cell():
    text = to_html(TABLE, [NOTE], "a <b> title")
    assert Page(text).loads == []
    assert not re.search(r"import\s*\(?['\"]https?:|from ['\"]https?:|url\(['\"]?https?:", text)
    assert "<script>alert" not in text and "alert(1)" in text and html.escape(NOTE) in text
    assert "<title>a &lt;b&gt; title</title>" in text
    assert Page(to_html(TABLE.iloc[:1])).tags.count("script") == Page(text).tags.count("script")
    assert to_html(TABLE, [NOTE]) == to_html(TABLE, [NOTE]), "the same table is the same file"

def test_the_html_holds_every_row():
    many = pd.concat([TABLE] * 600, ignore_index=True).assign(labels=[f"row {i:04d} of them" for i in range(1200)])
    text = to_html(many)
    assert all(f"row {i:04d} of them" in text for i in range(1200))

LATEX = r"""\documentclass{article}\usepackage[T1]{fontenc}\usepackage{booktabs}\usepackage{graphicx}
\begin{document}\input{table.tex}\end{document}"""

def compiled(folder, text) -> tuple[str, str]:
    "(log, text on the pages) of a document with the table `text`."
    if not shutil.which("pdflatex"):
        pytest.skip("pdflatex is not installed, so nobody knows whether the table compiles")
    (folder/"table.tex").write_text(text, encoding="utf-8")
    (folder/"main.tex").write_text(LATEX)
    done = subprocess.run(["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "-no-shell-escape", "main.tex"],
                          cwd=folder,
                          capture_output=True, text=True, errors="replace")
    assert done.returncode == 0, done.stdout[-2000:]
    read = lambda: subprocess.run(["pdftotext", "main.pdf", "-"], cwd=folder, capture_output=True, text=True,
                                  check=True).stdout
    return done.stdout, read() if shutil.which("pdftotext") else ""

def test_the_latex_compiles_with_every_special_character(tmp_path):
    log, page = compiled(tmp_path, to_latex(TABLE, [NOTE], "A_caption & more"))
    assert "Output written" in log
    if page: assert "44.6" in page and "<script>" in page and "100 %" in page and "{y}" in page and "\\input{x}" in page

def test_the_widest_table_fits_the_page(tmp_path):
    records = tasks(load_runs(RESULTS))["ferplus, 8 classes, 50 labels a class, 48 px"]
    text = to_latex(leaderboard_table(measured(records)), notes(records), "FERPlus")
    log, _ = compiled(tmp_path, text)
    assert "Overfull" not in log and r"\textbf{44.6}" in text
    assert text.count(r"\begin{table}") == text.count(r"method & ")

def test_latex_says_once_what_all_rows_share_and_keeps_every_cell():
    text = to_latex(TABLE, [NOTE])
    assert "All rows: labels 50." in text and r"\textbf{44.6}\\\scriptsize [42.3, 46.8]" in text
    assert r"a\_b \& <script>" in text
    assert r"\toprule" in text and "**" not in text

@settings(max_examples=50, deadline=None)
@given(st.lists(st.text(st.characters(codec="utf-8", exclude_categories=["C"]), max_size=12), min_size=1, max_size=4))
def test_latex_leaves_no_command_of_a_cell_alive(texts):
    "Whatever a cell holds, the only commands are ours and pandas' escapes, and braces are balanced."
    text = to_latex(pd.DataFrame({"method": ["\\x{", *texts], "b": [*texts, "}"]}), texts)
    ours = ("begin|end|centering|footnotesize|scriptsize|resizebox|ifdim|width|linewidth|else|fi|toprule|midrule|"
            "bottomrule|raggedright|"
            "parbox|par|smallskip|textbf|textbackslash|textasciitilde|textasciicircum|space")
    rest = re.sub(rf"\\\\|\\[&%$#_{{}}]|\\({ours})\b", "", text)
    assert "\\" not in re.sub(r"^%.*$", "", rest, flags=re.M)
    unescaped = re.sub(r"\\[{}]", "", text)
    assert unescaped.count("{") == unescaped.count("}")

def test_csv_comes_back_as_it_was():
    numbers = pd.DataFrame({"method": ["a, \"b\"", "ü"], "WAR": [0.4455424503240888, np.nan], "runs": [3, 4]})
    pd.testing.assert_frame_equal(pd.read_csv(io.StringIO(to_csv(numbers))), numbers)
    assert to_csv(TABLE).splitlines()[1] == 'dtm,50,"44.6 [42.3, 46.8]","+5.2 [2.1, 8.3]"'

def test_markdown_keeps_bold_and_shows_tags_as_text():
    line = to_markdown(TABLE).splitlines()
    assert line[2] == "| dtm | 50 | **44.6** [42.3, 46.8] | +5.2 [2.1, 8.3] |" and "&lt;script>" in line[3]
    assert "\\| 100" in line[3]

def test_all_formats_are_saved(tmp_path):
    paths = save_tables(TABLE, tmp_path/"new", "ferplus-50", [NOTE], numbers=pd.DataFrame({"WAR": [0.5]}))
    assert [p.name for p in paths] == ["ferplus-50.md", "ferplus-50.tex", "ferplus-50.html", "ferplus-50.csv"]
    assert all(p.parent == tmp_path/"new" and p.stat().st_size for p in paths) and paths[3].read_text() == "WAR\n0.5\n"
    assert save_tables(TABLE, tmp_path, "x")[3].read_text() == to_csv(TABLE)

def test_what_is_shared():
    assert shared(TABLE) == {"labels": "50"} and shared(TABLE.iloc[:1]) == {}
    assert shared(TABLE.iloc[:1], ["method"], 1)["WAR"] == "44.6 [42.3, 46.8]"
    assert plain("**a** **b** *c*") == "a b *c*"


# --- the table of settings ---

def setting(method="dtm", gain=(0.05, 0.02, 0.08), measures=MEASURES, **facts) -> pd.DataFrame:
    "A row as `measured` gives it."
    ends = [f"{of}{end}" for of in ("", "_gain", "_dunnett") for end in ("", "_low", "_high")]
    values = (0.446, 0.423, 0.468, *gain, 0.051, 0.03, 0.07)
    rates = {f"{m}{end}": v for m in measures for end, v in zip(ends, values, strict=True)}
    return pd.DataFrame([dict(
        method=method, kind="semi-supervised", backbone="resnet10t", start="scratch", data="ferplus", drawn=False,
        classes=8, labels="50",
        images_seen=144_000, labelled_seen=48_000, pool=24_055, pool_in_use=0.256,
        parameters=4_926_592, device="cpu", seconds=974.4, draws=3, seeds=1,
        runs=3, repeats=3,
        select="last", audit=1, commits="0123456", interval="draws", against="supervised") | rates | facts])

def test_a_setting_is_written_out():
    assert leaderboard_table(setting()).iloc[0].to_dict() == {
        "method": "dtm", "kind": "semi-supervised", "backbone": "resnet10t", "start": "scratch", "labels": "50",
        "images seen": "144,000", "pool in use": "26 % of 24,055",
        "params (M)": "4.93", "seconds": "974 (cpu)", "draws": 3, "seeds": 1, "runs": 3,
        "WAR": "**44.6** [42.3, 46.8]", "WAR gain": "+5.0 [2.0, 8.0]",
        "WAR gain, Dunnett": "+5.1 [3.0, 7.0]", "UAR": "**44.6** [42.3, 46.8]",
        "UAR gain": "+5.0 [2.0, 8.0]",
        "macro-F1": "**44.6** [42.3, 46.8]", "macro-F1 gain": "+5.0 [2.0, 8.0]",
        "95 % over": "3 draws", "gain over": "supervised", "select": "last", "audit": "1 failure"}

@pytest.mark.parametrize("gain, bold, text", [
    ((0.05, 0.001, 0.09), True, "+5.0 [0.1, 9.0]"), ((0.05, 0.0, 0.1), False, "+5.0 [0.0, 10.0]"),
    ((0.05, -0.01, 0.1), False, "+5.0 [-1.0, 10.0]"),
    ((-0.05, -0.08, -0.02), False, "-5.0 [-8.0, -2.0]"), ((0.3, np.nan, np.nan), False, "+30.0"),
    ((np.nan,) * 3, False, "")])
def test_bold_only_where_the_interval_of_the_gain_lies_above_zero(gain, bold, text):
    row = leaderboard_table(setting(gain=gain)).iloc[0]
    assert row["WAR"] == ("**44.6**" if bold else "44.6") + " [42.3, 46.8]" and row["WAR gain"] == text

@pytest.mark.parametrize("facts, expected", [
    (dict(interval="faces"), {"95 % over": "faces"}), (dict(interval="seeds", repeats=4), {"95 % over": "4 seeds"}),
    (dict(interval="folds", repeats=10), {"95 % over": "10 folds"}),
    (dict(audit=0), {"audit": "passed"}), (dict(audit=2), {"audit": "2 failures"}),
    (dict(pool=0, pool_in_use=np.nan), {"pool in use": ""}), (dict(pool_in_use=np.nan), {"pool in use": "24,055"}),
    (dict(WAR_dunnett_low=np.nan), {"WAR gain, Dunnett": ""}),
    (dict(device="cuda", seconds=1234.5), {"seconds": "1,234 (cuda)"})])
def test_what_a_column_says(facts, expected):
    assert leaderboard_table(setting(**facts)).iloc[0][list(expected)].to_dict() == expected

@pytest.mark.parametrize("facts, words", [(dict(classes=7), "numbers of classes"), (dict(data="raf-db"), "data sets"),
                                          (dict(drawn=True), "drawn and real"),
                                          (dict(select="oracle"), "oracle and honest")])
def test_what_must_not_be_mixed_is_refused(facts, words):
    with pytest.raises(BenchError, match=words): leaderboard_table(pd.concat([setting(), setting("b", **facts)]))
    leaderboard_table(pd.concat([setting(**facts), setting("b", **facts)]))

def test_a_class_balanced_budget_has_uar_first_and_war_twice():
    "Also where a record has no adjusted result: then a dash, which the compact table says once if it is in every row."
    table = setting(measures=("UAR", "WAR", "WAR_adjusted", "macro_F1"))
    lacking = table.assign(**{c: np.nan for c in table if c.startswith("WAR_adjusted")})
    both = leaderboard_table(pd.concat([table, lacking]))
    rates = [c for c in both if c.split(" ")[0] in ("UAR", "WAR", "macro-F1")]
    assert rates == ["UAR", "UAR gain", "UAR gain, Dunnett", "WAR", "WAR gain", "WAR adjusted", "WAR adjusted gain",
                     "macro-F1", "macro-F1 gain"]
    assert both["WAR adjusted"].tolist() == ["**44.6** [42.3, 46.8]", "–"] and both["WAR adjusted gain"].iloc[1] == ""
    assert "WAR adjusted –" in compact(leaderboard_table(lacking)).split("|")[0]
    assert [n.split(":")[0] for n in column_notes(table)] == ["Gain, Dunnett", "WAR adjusted"]
    assert column_notes(setting(WAR_dunnett_low=np.nan, UAR_dunnett_low=np.nan, macro_F1_dunnett_low=np.nan)) == []
    for text in (to_csv(both), to_latex(both), to_html(both), to_markdown(both)): assert "WAR adjusted" in text

def test_last_and_val_may_stand_side_by_side():
    assert len(leaderboard_table(pd.concat([setting(), setting("b", select="val")]))) == 2


# --- the leaderboard ---

def test_the_committed_leaderboard_is_what_the_committed_records_say(tmp_path):
    tracked = subprocess.run(["git", "ls-files", "runs"], cwd=RESULTS, capture_output=True, text=True).stdout.split()
    (tmp_path/"runs").mkdir()  # whoever ran something here has more records than the page
    for name in {path.split("/")[1] for path in tracked}: (tmp_path/"runs"/name).symlink_to(RESULTS/"runs"/name)
    made = leaderboard(tmp_path if tracked else RESULTS)
    remedy = "fer-bench results leaderboard --results-dir results"
    assert (RESULTS/"leaderboard.md").read_text(encoding="utf-8") == made, remedy

def test_every_task_has_its_table_and_published_rows_stand_apart():
    text, found = leaderboard(RESULTS), tasks(load_runs(RESULTS))
    sections = dict(s.split("\n", 1) for s in text.split("\n## ")[1:])
    real_first = sorted(found, key=lambda t: t.startswith("drawn"))
    assert [t for t in sections if not t.startswith("Published")] == real_first
    for title, records in found.items():
        ours, _, theirs = sections[title].partition("\n### Models of others")
        assert ours.count("\n| ") - 2 == len(measured(records)), "a row a setting"
        assert bool(theirs) == title.startswith("ferplus") and "fer_mini_xception" not in ours
        assert "published" not in sections[title]
    ours = [t for t in sections if t.startswith("Published")]
    assert ours == ["Published on ferplus, number of classes not stated"]
    assert all("(published)" in line for line in sections[ours[0]].splitlines() if re.match(r"\| (?!method|---)", line))
    assert sections[ours[0]].count("(published)") == len(published("ferplus"))

def test_gains_are_over_what_is_fair():
    for records in tasks(load_runs(RESULTS)).values():
        for row in measured(records).to_dict("records"):
            frozen = row["kind"] in ("probe", "self-supervised")
            assert row["against"] == "" or row["against"].startswith("linear probe of random weights"
                                                                     if frozen else "supervised")

def test_no_record_is_no_leaderboard(tmp_path):
    with pytest.raises(BenchError, match="no finished run"): leaderboard(tmp_path)
