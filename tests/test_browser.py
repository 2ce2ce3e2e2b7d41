"""In a real browser: JupyterLab runs the tour, the explorer answers clicks, a benchmark equals one of papermill."""
import importlib.util
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import nbformat
import numpy as np
import pytest

from fer_bench.record import load_runs

ROOT = Path(__file__).parent.parent
SCREENSHOTS = ROOT/"build/browser"
PATIENCE = 300  # seconds; a machine with other work is slow, and the figures of the test are not about speed
TINY = {"preset": '"tiny"', "device": '"cpu"'}

pytestmark = [pytest.mark.browser, pytest.mark.nightly]

def chromium() -> str | None:
    "A Chromium of the system, else the one that Playwright has installed."
    from playwright.sync_api import sync_playwright
    if found := shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome"):
        return found
    with sync_playwright() as p: own = p.chromium.executable_path
    return own if Path(own).exists() else None

@pytest.fixture(scope="module")
def browser():
    if importlib.util.find_spec("playwright") is None: pytest.skip("no playwright: pip install playwright")
    if not (path := chromium()): pytest.skip("no Chromium: `make browser` installs one")
    from playwright.sync_api import sync_playwright
    with sync_playwright() as p:
        yield (found := p.chromium.launch(executable_path=path, args=["--no-sandbox"] if os.geteuid() == 0 else []))
        found.close()

@pytest.fixture(scope="module")
def project(tmp_path_factory):
    "A newcomer's folder of notebooks that were never run; the parameters cell of run_benchmark has the preset tiny."
    folder = tmp_path_factory.mktemp("home")/"a project"
    (folder/"nbs").mkdir(parents=True)
    for name in ("index", "run_benchmark"):
        notebook = nbformat.read(ROOT/f"nbs/{name}.ipynb", as_version=4)
        for cell in notebook.cells:
            if cell.cell_type == "code": cell.outputs = []
            if cell.source.startswith("# The parameters"): cell.source = with_values(cell.source, TINY)
        nbformat.write(notebook, folder/f"nbs/{name}.ipynb")
    return folder

def with_values(source: str, values: dict) -> str:
    "The parameters cell `source` with other `values`, as a person would type them."
    lines = source.splitlines()
    for i, line in enumerate(lines):
        name, colon, rest = line.partition(":")
        if colon and name in values:
            lines[i] = f"{name}:{rest.split('=')[0]}= {values[name]}  # {line.split('  # ')[1]}"
    return "\n".join(lines)

def papermill(project, folder: str, cwd) -> subprocess.Popen:
    "The same through papermill, started in `cwd`, with `folder` for its records."
    command = [sys.executable, "-m", "papermill", str(ROOT/"nbs/run_benchmark.ipynb"), str(project/f"{folder}.ipynb"),
               "-p", "preset", "tiny", "-p", "device", "cpu", "-p", "results_dir", folder, "-k", "python3",
               "--no-progress-bar"]
    return subprocess.Popen(command, cwd=cwd, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)

@pytest.fixture(scope="module")
def lab(project, browser):
    "(address, token) of our own JupyterLab in `project`, with our settings only, which asks the network for nothing."
    home = project.parent
    (home/"config/labconfig").mkdir(parents=True)
    off = {"disabledExtensions": {"@jupyterlab/apputils-extension:announcements": True}}
    (home/"config/labconfig/page_config.json").write_text(json.dumps(off))
    settings = home/"settings/@jupyterlab/notebook-extension/tracker.jupyterlab-settings"
    settings.parent.mkdir(parents=True)
    settings.write_text(json.dumps({"windowingMode": "none"}))  # cells that are not in sight stay in the page
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port, token = s.getsockname()[1], "0123456789abcdef"
    places = {"HOME": home, "JUPYTER_CONFIG_DIR": home/"config", "JUPYTER_DATA_DIR": home/"data",
              "JUPYTER_RUNTIME_DIR": home/"runtime", "JUPYTERLAB_SETTINGS_DIR": home/"settings",
              "JUPYTERLAB_WORKSPACES_DIR": home/"workspaces", "IPYTHONDIR": home/"ipython"}
    env = {k: v for k, v in os.environ.items() if k != "FER_BENCH_PROGRESS"} | {k: str(v) for k, v in places.items()}
    command = [sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root", f"--ServerApp.root_dir={project}",
               "--ServerApp.ip=127.0.0.1", f"--ServerApp.port={port}", "--ServerApp.port_retries=0",
               f"--IdentityProvider.token={token}", "--LabApp.extension_manager=readonly"]
    with open(home/"jupyter.log", "w") as log:
        server = subprocess.Popen(command, cwd=project, env=env, stdout=log, stderr=subprocess.STDOUT)
    address, start = f"http://127.0.0.1:{port}", time.monotonic()
    while not answers(f"{address}/api/status?token={token}"):
        assert server.poll() is None and time.monotonic() - start < PATIENCE, (home/"jupyter.log").read_text()
        time.sleep(0.2)
    yield address, token
    server.terminate()
    server.wait(30)

def answers(url: str) -> bool:
    try: return urllib.request.urlopen(url, timeout=5).status == 200
    except OSError: return False

@pytest.fixture
def open_notebook(lab, browser):
    "open_notebook(path) → the page, when its kernel is there. A page may talk to our own server and to nobody else."
    pages, strangers = [], []
    def only_ours(route):
        ours = route.request.url.startswith(lab[0])
        if not ours: strangers.append(route.request.url)
        return route.continue_() if ours else route.abort()
    def opened(path):
        pages.append(page := browser.new_page(viewport={"width": 1280, "height": 1000}))
        page.set_default_timeout(1000 * PATIENCE)
        page.route("**/*", only_ours)
        page.goto(f"{lab[0]}/lab/tree/{path}?reset&token={lab[1]}")
        page.locator("#jp-main-statusbar").get_by_text("| Idle").wait_for()
        return page
    yield opened
    for page in pages: page.close()
    assert strangers == []

def run_all(page) -> None:
    page.get_by_role("menuitem", name="Run", exact=True).click()
    page.get_by_role("menuitem", name="Run All Cells", exact=True).click()

PROMPTS = "[...document.querySelectorAll('.jp-CodeCell .jp-InputArea-prompt')].map(e => e.innerText.trim())"

def wait_until_run(page) -> None:
    "Every code cell has its number, or one has failed; then the test fails with what it says."
    page.wait_for_function(f"() => {{ const p = {PROMPTS}; return p.length && p.every(t => /^\\[\\d+\\]/.test(t))"
                           " || document.querySelector('[data-mime-type=\"application/vnd.jupyter.error\"]') }")
    errors = page.locator("[data-mime-type='application/vnd.jupyter.error']").all_inner_texts()
    assert errors == []

def keep(page, name: str) -> None:
    SCREENSHOTS.mkdir(parents=True, exist_ok=True)
    page.screenshot(path=SCREENSHOTS/f"{name}.png")

def test_tour(open_notebook, project):
    "The tour runs to its end, shows how far it is, and its explorer answers clicks."
    page = open_notebook("nbs/index.ipynb")
    run_all(page)
    bar = page.locator(".jp-OutputArea .widget-hprogress:visible").first
    bar.wait_for()
    keep(page, "progress")
    wait_until_run(page)
    pages = page.locator(".jp-OutputArea-output", has=page.locator(".fb-page"))
    browse, mistakes, face_off = (pages.nth(i) for i in range(3))
    assert [w.locator(".fb-card").count() for w in (browse, mistakes)] == [24, 12]
    assert face_off.locator("img").count() > 2
    turn_the_page(page, browse)
    choose_a_cell(page, mistakes)
    switch_the_method(page, mistakes)
    face_off.scroll_into_view_if_needed()
    keep(page, "face_off")
    assert len(load_runs(project/"results/tour")) == 3

def turn_the_page(page, browse) -> None:
    browse.scroll_into_view_if_needed()
    first = browse.locator(".fb-card").first
    before = first.get_attribute("title")
    browse.get_by_role("button", name="next").click()
    browse.get_by_text("faces 25 to 48").wait_for()
    assert first.get_attribute("title") != before
    keep(page, "browse")

def choose_a_cell(page, mistakes) -> None:
    "A click on a cell of the confusion matrix leaves the faces of that cell, each beside its map."
    cells = mistakes.locator("button[title*=' are predicted as ']:enabled").all()
    said = [re.fullmatch(r"(\d+) of the \d+ faces of (\w+) are predicted as (\w+)", c.get_attribute("title")).groups()
            for c in cells]
    cell, (count, true, named) = next((c, words) for c, words in zip(cells, said, strict=True) if words[1] != words[2])
    mistakes.scroll_into_view_if_needed()
    cell.click()
    mistakes.get_by_text(f"faces 1 to {min(12, int(count))} of {count}", exact=True).wait_for()
    titles = mistakes.locator(".fb-card b").all_inner_texts()
    assert titles == [f"{true} → {named}"] * min(12, int(count))
    assert mistakes.locator("img").count() == 2 * len(titles)
    keep(page, "mistakes")

CELL = "button[title*=' are predicted as ']"
CHANGED = "([widget, before]) => widget.querySelector('.fb-page').innerHTML !== before"

def switch_the_method(page, mistakes) -> None:
    "Each cell of the confusion matrix shows the count that its tooltip says, after every switch between two methods."
    seen = []
    for number in (1, 0, 1):  # the faces are sent after the cells
        before = mistakes.locator(".fb-page").inner_html()
        mistakes.locator("select").first.select_option(index=number)
        page.wait_for_function(CHANGED, arg=[mistakes.element_handle(), before])
        titles = [cell.get_attribute("title") for cell in mistakes.locator(CELL).all()]
        counts = [re.match(r"\d+", title).group() for title in titles]
        assert [c.strip() or "0" for c in mistakes.locator(CELL).all_inner_texts()] == counts
        seen.append(counts)
    assert seen[0] == seen[2] and "0" in [a for a, b in zip(*seen[:2], strict=True) if b != "0"], "no cell was emptied"
    keep(page, "methods")

def test_benchmark_by_hand_is_that_of_papermill(open_notebook, project):
    "The same record, to the last bit, in JupyterLab and by papermill, started in the project's folder and in `nbs`."
    started = [papermill(project, "of the root", project), papermill(project, "of nbs", project/"nbs")]
    page = open_notebook("nbs/run_benchmark.ipynb")
    run_all(page)
    wait_until_run(page)
    page.locator(".jp-OutputArea img").last.scroll_into_view_if_needed()
    keep(page, "run_benchmark")
    for process in started: assert process.wait(PATIENCE) == 0, process.stderr.read()
    by_hand, *others = ([*load_runs(project/folder)] for folder in ("results/own", "of the root", "of nbs"))
    for other in others:
        (a,), (b,) = by_hand, other
        assert a.id == b.id and numbers(a) == numbers(b)
        assert np.array_equal(np.stack(a.predictions["logits"]), np.stack(b.predictions["logits"]))

def numbers(record) -> dict:
    return {k: v for k, v in record.metrics if k not in ("train_seconds", "cpu_seconds", "peak_memory_mb")}
