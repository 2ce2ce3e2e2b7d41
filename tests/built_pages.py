"""What README.md and results/*.md say in numbers, built from the records: `python tests/built_pages.py` writes it.

A block lies between `<!-- built: NAME -->` and `<!-- end -->`. `test_results` builds each again and compares."""
import re
import textwrap
from functools import cache
from pathlib import Path

import pandas as pd

from fer_bench.core import write_text
from fer_bench.record import load_runs
from fer_bench.report.comparison import gain_tests, readable
from fer_bench.report.exports import compact, to_markdown
from fer_bench.report.scores import warm_up_note
from fer_bench.report.summary import difference, summarise
from fer_bench.speed.tables import as_table, read_rows

ROOT = Path(__file__).parent.parent
RESULTS = ROOT/"results"
RECORDS = load_runs(RESULTS)
BLOCK = re.compile(r"(<!-- built: (\S+) -->\n)(.*?)(<!-- end -->)", re.DOTALL)

def chosen(**fields): return [r for r in RECORDS if all(r.config.get(k, 0) == v for k, v in fields.items())]

def of_all_labels(dataset, method):
    backbone = {"drawn": "small_resnet", "ferplus": "resnet10t"}[dataset]
    return next(r for r in chosen(dataset=dataset, labels_per_class=None, method=method, init="scratch", dedupe="none")
                if r.config["seed"] == 0 and r.config["backbone"] == backbone)

def percent(record, name):
    test = record.metrics.test
    return f"{100 * test[name]:.1f} [{100 * test[name + '_ci'][0]:.1f}, {100 * test[name + '_ci'][1]:.1f}]"

def over(record, other): return difference(record, other)["difference"].tolist()

def markdown(rows): return to_markdown(pd.DataFrame(rows))

# ---- few labels

FEW = chosen(dataset="ferplus", labels_per_class=50, min_map=0, dedupe="none")  # without those of results/studies

def names(found): return ", ".join(f"`{n}`" for n in found) or "none"

def few_labels(): return compact(summarise(FEW))

@cache
def few_shown():
    "Which gains are shown, and which differences between two methods."
    tests, pairs = gain_tests(FEW), between()
    above = lambda m, low: names(r["method"] for r in tests[tests["measure"] == m].to_dict("records") if r[low] > 0)
    alone, together = ({m: above(m, low) for m in ("WAR", "UAR")} for low in ("low", "dunnett_low"))
    holm = names(tests[(tests["p_holm"] < 0.05) & (tests["measure"] == "WAR")]["method"])
    apart = [f"`{r['method']}` over `{r['against']}` by {r['gain']} [{r['low']}, {r['high']}]" for r in pairs]
    n = len({r.config["method"] for r in FEW} - {"supervised"})
    text = (f"Student's interval of the gain in WAR lies above zero for {alone['WAR']}; after correction for the "
            f"number of rows (Holm) for {holm}. In UAR it does for {alone['UAR']}. Dunnett's, which hold for all rows "
            f"together if these have the same spread, do for {together['WAR']} in WAR and {together['UAR']} in UAR. "
            f"{warm_up_note(FEW)} Of the {n * (n - 1) // 2} pairs of semi-supervised methods these have an interval "
            f"without zero in WAR: {'; '.join(apart) or 'none'}.")
    return textwrap.fill(text, 140, break_on_hyphens=False) + "\n"

def between() -> list[dict]:
    "The differences in WAR between two semi-supervised methods whose interval over draws lies above zero."
    methods, rows = sorted({r.config["method"] for r in FEW} - {"supervised"}), []
    for against in methods:
        tests = gain_tests(FEW, against)
        better = tests[(tests["measure"] == "WAR") & tests["method"].isin(methods) & (tests["low"] > 0)]
        rows += readable(better).to_dict("records")
    return rows

# ---- all labels, and none

def all_labels():
    one, two = (of_all_labels("drawn", m) for m in ("supervised", "eac"))
    return (f"On drawn faces, all labels, {one.config['epochs'] * one.config['steps_per_epoch']} steps from scratch: "
            f"`supervised` {percent(one, 'WAR')} % WAR, `eac` {percent(two, 'WAR')}.\n")

def base():
    "The runs of `results/studies` on all labels, the longest first."
    runs = chosen(dataset="ferplus", labels_per_class=None, method="supervised", targets="soft", dedupe="cross_split")
    name = lambda c: c["backbone"] + (f", stem 3×3/{c['small_stem']}" if c["small_stem"] else "")
    return markdown([{"backbone": name(r.config), "params (M)": f"{r.metrics.parameters / 1e6:.2f}",
                      "faces seen": f"{r.metrics.images_seen:,}", "view": f"geometric {r.config['view_strength']}",
                      "prior": "as trained" if r.config["logit_adjustment"] == "none" else "shares to the power 3/4",
                      "validation WAR": f"{100 * r.history['val_WAR'].iloc[-1]:.1f}",
                      "WAR": percent(r, "WAR"), "UAR": percent(r, "UAR"), "seed": r.config["seed"]}
                     for r in sorted(runs, key=lambda r: (-r.metrics.images_seen, -r.metrics.test.WAR))])

def real_faces():
    runs = [r for r in chosen(dataset="ferplus", labels_per_class=None, backbone="resnet18", targets="hard")]
    says = {"none": ("supervised", "all"), "cross_split": ("supervised, `--dedupe cross_split`", "all but copies")}
    rows = [{"method": says[r.config["dedupe"]][0],
             "labels": f"{says[r.config['dedupe']][1]} ({r.metrics.n['labelled']:,})",
             **{heading: percent(r, name) for name, heading in
                {"WAR": "WAR", "UAR": "UAR", "macro_F1": "macro-F1"}.items()}, "run": f"`{r.id}`"}
            for r in sorted(runs, key=lambda r: r.config["dedupe"], reverse=True)]
    return markdown(rows)

def random_backbone(dataset): return of_all_labels(dataset, "linear_probe")

def probed(dataset):
    "Each pretrained backbone under a linear probe on all labels, beside a random one."
    random, rows = random_backbone(dataset), []
    for name in ("byol", "simfle", *["simfle_random"] * (dataset == "ferplus")):
        run = of_all_labels(dataset, name)
        war, uar, _ = over(run, random)
        rows.append({"backbone": name, "WAR": percent(run, "WAR"), "UAR": percent(run, "UAR"),
                     "WAR over the random backbone": war, "UAR over it": uar})
    rows.append({"backbone": "random weights", "WAR": percent(random, "WAR"), "UAR": percent(random, "UAR"),
                 "WAR over the random backbone": "", "UAR over it": ""})
    return markdown(rows)

def semantic_masks():
    simfle, byol, masks = (of_all_labels("ferplus", m) for m in ("simfle", "byol", "simfle_random"))
    war, uar, _ = over(simfle, masks)
    return (f"`simfle` over `byol`: WAR {over(simfle, byol)[0]}. Semantic masks over random ones (`simfle` over "
            f"`simfle_random`):\nWAR {war}, UAR {uar}.\n")

def at_fifty(method, baseline):
    return compact(summarise(chosen(dataset="ferplus", labels_per_class=50, min_map=4, method=method), baseline))

def by_epoch(record, column, form="{:.1f}", times=100):
    values = record.history[column].dropna()
    return " ".join(form.format(times * v) for v in values)

def neighbours():
    runs = {name: of_all_labels("ferplus", name) for name in ("byol", "simfle")}
    lines = [f"- `{name}`: {by_epoch(r, 'val_WAR')}\n" for name, r in runs.items()]
    spread = {name: r.history["feature_std"].iloc[-1] for name, r in runs.items()}
    grouping, painting = (runs["simfle"].history[c].dropna() for c in ("g", "val_reconstruction"))
    return ("".join(lines) + f"\nThe spread of the features ends at {spread['byol']:.2f} and {spread['simfle']:.2f}. "
            f"The grouping loss\ng of `simfle` goes from {grouping.iloc[0]:.1f} to {grouping.iloc[-1]:.1f}, its error "
            f"of painting on held-out faces from {painting.iloc[0]:.3f} to {painting.iloc[-1]:.3f}.\n")

def painting():
    return f"{by_epoch(of_all_labels('drawn', 'simfle'), 'val_reconstruction', '{:.2f}', 1)}\n"

# ---- speed

def speed():
    "The rows of 128 faces a step, the newest of each."
    rows = as_table(read_rows(RESULTS/"throughput"))
    rows = rows[(rows["along"] == "") & (rows["faces"] > 120) & rows["method"].isin(["supervised", "dtm"])]
    rows = rows.sort_values(["image_size", "method"], ascending=[True, False])
    return markdown([{"method": r.method, "px": r.image_size, "images/s": f"{r.images_a_second:.0f}",
                      "of the limit": f"{r.of_limit:.0%}", "over the usual way, 2 loaders": f"{r.over_usual:.2f} ×"}
                     for r in rows.itertuples()])

BLOCKS = {
    "README.md": {"all-labels": all_labels, "few-labels": few_labels, "few-shown": few_shown, "real-faces": real_faces,
                  "probed-ferplus": lambda: probed("ferplus"), "probed-drawn": lambda: probed("drawn"), "speed": speed,
                  "base": base},
    "results/ferplus-50.md": {"few-labels": few_labels, "few-shown": few_shown},
    "results/pretraining.md": {
        "probed-ferplus": lambda: probed("ferplus"), "probed-drawn": lambda: probed("drawn"),
        "semantic-masks": semantic_masks, "painting": painting, "neighbours": neighbours,
        "frozen": lambda: at_fifty("linear_probe", "linear probe of random weights"),
        "fine-tuned": lambda: at_fifty("supervised", "supervised")},
}

def built(page: str) -> str:
    "The text of `page` with its blocks built again."
    return BLOCK.sub(lambda m: f"{m[1]}{BLOCKS[page][m[2]]().strip()}\n{m[4]}", (ROOT/page).read_text(encoding="utf-8"))

if __name__ == "__main__":
    for page in BLOCKS: write_text(ROOT/page, built(page))
