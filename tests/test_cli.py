"""The command line, and the notebook through papermill: what is checked before they start, and what they leave."""
import contextlib
import io
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pandas as pd
import papermill
import pytest
from PIL import Image
from typer.testing import CliRunner

from fer_bench import run
from fer_bench.cli import app, main
from fer_bench.config import RunConfig, notebook_parameters
from fer_bench.core import BenchError
from fer_bench.data.labels import VOTED
from fer_bench.data.sources.fixtures import fake
from fer_bench.record import load_runs

ROOT = Path(__file__).parent.parent
NOTEBOOK = ROOT/"nbs/run_benchmark.ipynb"

def fer_bench(*words, cwd="."):
    "The command, in this process: (exit code, standard output, standard error)."
    out, err = io.StringIO(), io.StringIO()
    with (contextlib.chdir(cwd), contextlib.redirect_stdout(out), contextlib.redirect_stderr(err),
          pytest.raises(SystemExit) as ended): main([str(word) for word in words])
    return ended.value.code or 0, out.getvalue(), err.getvalue()

def test_as_a_shell_runs_it(tmp_path):
    code = "from fer_bench.cli import main; main()"
    done = subprocess.run([sys.executable, "-c", code, "run", "--preset", "tinny"], cwd=tmp_path, capture_output=True,
                          text=True)
    assert done.returncode == 1 and done.stdout == "" and "Did you mean 'tiny'" in done.stderr
    assert "Traceback" not in done.stderr

@pytest.mark.parametrize("how, says", [(">&-", "Standard output is closed"), (">/dev/full", "No space left on device"),
                                       ("| true", "")])
def test_output_that_nobody_can_read(how, says):
    done = subprocess.run(["bash", "-o", "pipefail", "-c", f"{sys.executable} -c "
                           f"'from fer_bench.cli import main; main()' methods {how}"], capture_output=True, text=True)
    assert says in done.stderr and done.stderr.count("\n") <= 1 and done.returncode == 1

@pytest.mark.parametrize("field, value", [
    ("seed", 2**64), ("label_seed", 2**32), ("lr", 1e300), ("batch_size", 10**9), ("epochs", 10**9), ("threads", 10**6),
    ("steps_per_epoch", 10**9), ("processes", 10**6), ("mu", 10**6), ("weight_decay", 1e300)])
def test_a_number_that_no_run_can_have_is_refused(field, value):
    with pytest.raises(BenchError, match=f"Parameter '{field}' = .* less than"):
        RunConfig(preset="tiny", method="dtm", **{field: value})

def test_run_then_compare(tmp_path):
    code, out, err = fer_bench("run", "--preset", "tiny", "--device", "cpu", "--results-dir", tmp_path/"my results",
                               cwd=tmp_path)
    assert code == 0, err
    record, = load_runs(tmp_path/"my results")
    assert "supervised" in out and record.id in out and "drawn faces" in out.lower()
    assert {p.name for p in (record.folder/"figures").iterdir()} == {
        f"{name}.png" for name in ("views", "training_curve", "confusion_matrix", "grad_cam", "landmarks")}
    code, out, _ = fer_bench("compare", "--results-dir", tmp_path/"my results")
    assert code == 0 and "supervised" in out
    code, out, _ = fer_bench("look", record.id, "--score", "share", "--results-dir", tmp_path/"my results")
    assert code == 0 and "mouth" in out and "over random weights" in out
    code, out, _ = fer_bench("difference", record.id, record.id, "--results-dir", tmp_path/"my results")
    assert code == 0 and "+0.0 [0.0, 0.0]" in out and "macro_F1" in out

@pytest.mark.parametrize("words, says", [
    (["run", "--preset", "tinny"], "Did you mean 'tiny'"),
    (["run", "--metod", "supervised"], "Did you mean 'method'"),
    (["run", "--lr", "fast"], "number"),
    (["run", "--labels-per-class", "0"], "labels_per_class"),
    (["run", "--dataset", "ferplus"], "needs data_root"),
    (["run", "--method", "supervise", "--preset", "tiny"], "Did you mean 'supervised'"),
    (["compare", "--results-dir", "nothing here"], "no finished run"),
    (["compare", "--run-id", "x"], "no finished run"),
    (["data", "build", "folder", "out", "--data-root", "nowhere"], "nowhere"),
    (["data", "build", "flder", "out", "--data-root", "x"], "Did you mean 'folder'"),
    (["data", "verify", "nowhere"], "nowhere"),
], ids=lambda v: " ".join(v) if isinstance(v, list) else "")
def test_mistakes_end_in_a_sentence(tmp_path, words, says):
    code, out, err = fer_bench(*words, cwd=tmp_path)
    assert code != 0 and "Traceback" not in out + err
    assert says in " ".join((out + err).split())
    assert not list(tmp_path.rglob("*.part")) and load_runs(tmp_path/"results") == []

def test_data_build_verify_list(tree, tmp_path):
    target = tmp_path/"set"
    code, out, err = fer_bench("data", "build", "folder", target, "--data-root", tree)
    assert code == 0 and "32 faces" in out, err
    assert fer_bench("data", "verify", target)[0] == 0
    assert fer_bench("data", "build", "folder", target, "--data-root", tree)[0] != 0  # never over what is there
    with open(target/"images.npy", "r+b") as f:
        f.seek(-1, 2); byte = f.read(1); f.seek(-1, 2); f.write(bytes([byte[0] ^ 1]))
    code, _, err = fer_bench("data", "verify", target)
    assert code == 1 and "happiness" in err  # names the face
    assert fer_bench("data", "list", "--cache-dir", tmp_path)[0] == 0

def invoke(*words):
    done = CliRunner().invoke(app, [str(w) for w in words], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.output

def test_audit_command(tmp_path):
    root = fake("ferplus", tmp_path, faces_per_class=3)
    shutil.copy(root/"FER2013Test/fer0002000.png", root/"FER2013Train/fer0000000.png")  # a test face in training
    votes = (root/"FER2013Train/label.csv").read_text().splitlines()
    names = [f"Training,{line.split(',')[0]},{','.join(['0'] * 10)}" for line in votes]
    (root/"fer2013new.csv").write_text("\n".join([f"Usage,Image name,{','.join(VOTED)}", *names]) + "\n")
    invoke("data", "build", "ferplus", tmp_path/"set", "--data-root", root)
    report = json.loads(invoke("data", "audit", tmp_path/"set", "--json", "--second-labels", root, "--markdown",
                               tmp_path/"report.md"))
    levels = {f["check"]: f["level"] for f in report["findings"]}
    assert report["failed"] and levels["copies across splits"] == "failure" and levels["second label file"] == "warning"
    assert "copies across splits" in (tmp_path/"report.md").read_text()
    assert "FAILED" in invoke("data", "audit", tmp_path/"set")

def test_evaluate_and_benchmark_commands(tmp_path):
    record = run(RunConfig(preset="tiny", device="cpu", results_dir=str(tmp_path)))
    out = invoke("evaluate", record.id, "--dataset", "affectnet-8", "--data-root", fake("affectnet", tmp_path),
                 "--results-dir", tmp_path)
    assert "16 faces of 8 classes" in out and "UAR" in out
    assert "searching near-copies" in invoke("data", "benchmark", "--faces", 200)
    out = invoke("results", "leaderboard", "--results-dir", tmp_path)
    assert "leaderboard.md" in out and "supervised" in (tmp_path/"leaderboard.md").read_text()

def test_export_and_predict_commands(tmp_path, tree):
    record = run(RunConfig(preset="tiny", device="cpu", results_dir=str(tmp_path)))
    assert "the same answers" in invoke("export", record.id, tmp_path/"model", "--results-dir", tmp_path)
    of_run, of_model = (invoke("predict", what, tree/"test/fear", "--results-dir", tmp_path)
                        for what in (record.id, tmp_path/"model"))
    assert of_run == of_model and of_run.count("fear/") == 4 and "contempt" in of_run.splitlines()[0]
    assert "4 pictures in" in invoke("predict", tmp_path/"model", tree/"test/fear", "--output", tmp_path/"said.csv")
    assert (tmp_path/"said.csv").read_text().count("fear/") == 4

def test_predict_writes_what_can_be_read_and_says_what_cannot(tmp_path, tree):
    run(RunConfig(preset="tiny", device="cpu", results_dir=str(tmp_path)))
    run_id = load_runs(tmp_path)[0].id
    (tree/"test/fear/cut.jpg").write_bytes(b"\xff\xd8\xff")
    Image.new("RGB", (640, 480)).save(tree/"test/fear/holiday.png")
    asked = ("predict", run_id, tree/"test/fear", "--output", tmp_path/"said.csv", "--results-dir", tmp_path)
    code, _, err = fer_bench(*asked, cwd=tmp_path)
    assert code == 0 and "1 of 6 pictures put aside, 1 of 6 pictures hardly cut out" in err
    said = pd.read_csv(tmp_path/"said.csv", index_col="image").fillna({"note": ""})
    assert said["neutral"].notna().sum() == 5 and "picture" in said["note"].iloc[4]
    assert "640x480 pixels, not nearly square" in said["note"].iloc[5] and not said["note"].iloc[:4].any()
    code, _, err = fer_bench("predict", run_id, "", "--results-dir", tmp_path, cwd=tmp_path)
    assert code == 1 and "path of a picture is empty" in err

def test_help_keeps_words_in_brackets():
    "They are no markup."
    code, out, _ = fer_bench("export", "--help")
    assert code == 0 and "fer_bench[onnx]" in out

def test_help_lists_every_field():
    out = CliRunner().invoke(app, ["run", "--help"], env={"COLUMNS": "200"}).output
    assert [n for n in RunConfig.model_fields if f"--{n.replace('_', '-')}" not in out] == []

def test_papermill_refuses_a_misspelt_parameter(tmp_path):
    with pytest.raises(papermill.PapermillExecutionError, match="Did you mean 'method'"):
        papermill.execute_notebook(NOTEBOOK, tmp_path/"out.ipynb", {"metod": "dtm"}, progress_bar=False)

def test_papermill_reaches_the_parameters(tmp_path):
    "`-p` changes the run, and nothing above the injected cell overrules it; from `nbs/` as from anywhere."
    given = dict(preset="tiny", seed=7, device="cpu", labels_per_class=2, cap=True, results_dir=str(tmp_path/"results"))
    papermill.execute_notebook(NOTEBOOK, tmp_path/"out.ipynb", given, cwd=ROOT/"nbs", progress_bar=False)
    record, = load_runs(tmp_path/"results")
    assert {k: record.config[k] for k in given} == given and record.metrics["n"]["labelled"] <= 16

def test_parameters_that_were_not_run():
    with pytest.raises(BenchError, match="Run it first"): notebook_parameters(["import os", "config"], {})

def test_two_commands_at_the_top_of_the_readme():
    top = (ROOT/"README.md").read_text()[:1500]
    assert top.index("make demo") < top.index("make test")
    assert "make test" in (ROOT/".ci/run").read_text()

def test_strict_types():
    for wrong in (dict(seed="0"), dict(lr=float("nan")), dict(epochs=1.5), dict(cap=1), dict(preset=3),
                  dict(epochs=2, warmup_epochs=2)):
        with pytest.raises(BenchError): RunConfig(**wrong)
