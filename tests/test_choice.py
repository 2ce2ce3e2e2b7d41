"""Which runs a figure takes: by kind and flags of their methods, whatever the order, and what is lacking is said."""
import random
from types import SimpleNamespace

import pytest

from fer_bench.catalogue import METHODS, method_entry, methods_of
from fer_bench.config import RunConfig
from fer_bench.core import BenchError
from fer_bench.report.choice import ABLATED, MOST_RUNS
from fer_bench.schema import example_metrics
from fer_bench.show.gallery import FIGURES, choose


def made(method, metrics=None, kind=None, **config):
    "A record of `method` as a choice sees it."
    values = dict(RunConfig(method=method if method in METHODS else "supervised", preset="quick",
                            **config)) | {"method": method}
    kind = kind or method_entry(method).kind
    return SimpleNamespace(id=f"{method}-{config}", config=values,
                           metrics=example_metrics(kind=kind, drawn=True, **metrics or {}))


def methods(runs): return [r.config["method"] for r in runs]


FOUR = [made(m, labels_per_class=25) for m in ("supervised", "byol", "simfle", "dtm")]


@pytest.mark.parametrize("figure, expected, lacking", [
    ("attention", ["supervised", "dtm", "simfle", "byol"], []), ("masks", ["simfle"], []), ("thresholds", ["dtm"], []),
    ("pretraining", ["simfle", "byol"], [])])
def test_a_run_of_each_method_that_a_figure_can_show_in_the_order_of_the_catalogue(figure, expected, lacking):
    runs = [*FOUR, *(made(m, labels_per_class=25, seed=1) for m in methods(FOUR))]
    random.Random(0).shuffle(runs)
    chosen, found = choose(runs, figure)
    assert methods(chosen) == expected and found == lacking and {r.config["seed"] for r in chosen} == {0}


@pytest.mark.parametrize("figure, flag, kinds", [
    ("masks", "reconstructs", ()), ("thresholds", "thresholds", ()), ("pretraining", "", ("self-supervised",)),
    ("attention", "", ("supervised",)), ("budget", "", ("supervised",))])
def test_what_is_lacking_is_a_method_of_the_catalogue_that_would_do(figure, flag, kinds):
    lacking = choose([], figure)[1]
    assert lacking[0] == f"--method {methods_of(*kinds, flag=flag)[0]}"
    assert figure != "attention" or len(lacking) == 3  # supervised, semi-supervised, self-supervised


def test_runs_of_many_methods_are_of_all_kinds_and_not_too_many():
    runs = [made(m, labels_per_class=25) for m in METHODS]
    chosen, lacking = choose(runs, "confusion")
    assert len(chosen) == MOST_RUNS and not lacking
    assert {r.metrics.kind for r in chosen} == {entry.kind for entry in METHODS.values()}


def test_labels_that_most_methods_have_go_first():
    runs = [made("supervised", labels_per_class=100), made("supervised", labels_per_class=25),
            made("dtm", labels_per_class=25)]
    assert [r.config["labels_per_class"] for r in choose(runs, "attention")[0]] == [25, 25]


def test_own_methods_come_after_those_of_the_catalogue():
    assert methods(choose([made("mylab.Mixup", kind="supervised"), *FOUR], "reliability")[0])[-1] == "mylab.Mixup"


def test_oracle_runs_stay_out_and_other_faces_too():
    oracle = made("eac", metrics=dict(select="oracle"))
    other = made("eac", metrics=dict(data_hash="0" * 64))
    assert sorted(methods(choose([oracle, other, *FOUR], "budget")[0])) == sorted(methods(FOUR))


@pytest.mark.parametrize("option", ABLATED)
def test_an_ablation_is_the_largest_group_that_differs_in_one_option(option):
    method = next(m for m in methods_of() if option in METHODS[m].options.model_fields)
    lacking = choose([made(method)], f"ablation_{option}")
    assert lacking[0] == [] and lacking[1][0].endswith(f"--{option.replace('_', '-')} {ABLATED[option]}")
    name = lacking[1][0].split()[1]
    runs = [made(name), made(name, **{option: ABLATED[option]}), made(name, lr=0.3), *FOUR]
    chosen, lacking = choose(runs, f"ablation_{option}")
    assert {r.id for r in chosen} == {r.id for r in runs[:2]} and not lacking


def test_every_figure_has_a_choice_and_an_unknown_one_is_refused():
    assert all(callable(f.draw) and callable(f.choose) for f in FIGURES.values())
    with pytest.raises(BenchError, match="Did you mean 'attention'"): choose(FOUR, "atention")
