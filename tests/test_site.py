"""The static site: what it shows of a notebook, that it needs no network, and that no broken link is published."""
import importlib.util
import json
import re
import shutil
from pathlib import Path

import pytest

for needed in ("sphinx", "furo", "myst_nb"):
    pytest.importorskip(needed, reason=f"{needed} is not installed: pip install 'fer_bench[site]'")

from sphinx.cmd.build import build_main

ROOT = Path(__file__).parent.parent
pytestmark = pytest.mark.filterwarnings("ignore:.*is deprecated")  # of MyST, by Sphinx
README = "# A part\n\nSee `make_split`, [the rules](nbs/data/splits.ipynb#the-rules) and `nbs/methods/eac.ipynb`.\n"

@pytest.fixture(scope="module")
def conf():
    spec = importlib.util.spec_from_file_location("conf", ROOT/"nbs/site/conf.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module

def build(root: Path, readme: str, *notebooks: str) -> tuple[int, Path]:
    "(exit code, folder) of the site in `root` with a `readme` and copies of `notebooks`."
    shutil.copytree(ROOT/"nbs/site", root/"nbs/site", ignore=shutil.ignore_patterns("__pycache__"))
    (root/"README.md").write_text(readme, encoding="utf-8")
    for name in notebooks:
        (root/"nbs"/name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT/"nbs"/name, root/"nbs"/name)
    out = root/"build/site"
    options = ["-E", "-W", "--keep-going", "-q", "-c", str(root/"nbs/site"), "-d", str(root/"cache")]
    return build_main([*options, str(root), str(out)]), out

@pytest.fixture(scope="module")
def site(tmp_path_factory):
    notebooks = "data/splits.ipynb", "methods/eac.ipynb", "compare_methods.ipynb"
    code, out = build(tmp_path_factory.mktemp("site"), README, *notebooks)
    assert code == 0
    return out

def test_page_of_a_module(site):
    page = (site/"nbs/data/splits.html").read_text(encoding="utf-8")
    assert 'id="fer_bench.data.splits.make_split"' in page, "no signature of an exported function"
    text = re.sub(r"<[^>]+>", "", page)
    assert "#|" not in page and "import numpy as np" not in text, "directives and imports are shown"
    assert "<math" in (site/"nbs/methods/eac.html").read_text(encoding="utf-8")

def test_guide_keeps_its_imports_but_no_front_matter(site):
    page = re.sub(r"<[^>]+>", "", (site/"nbs/compare_methods.html").read_text(encoding="utf-8"))
    assert "from fer_bench.record import load_runs" in page and "skip_exec" not in page

def test_words_in_prose_become_links(site):
    page = (site/"index.html").read_text(encoding="utf-8")
    assert 'href="nbs/data/splits.html#fer_bench.data.splits.make_split"' in page
    assert 'href="nbs/methods/eac.html"' in page
    guide, data, method = (page.index(f">{title}<") for title in ("Compare methods", "Splits and budgets", "EAC"))
    assert guide < data < method, "guides, then layers from below"

def test_search_knows_names_and_words(site):
    index = (site/"searchindex.js").read_text(encoding="utf-8")
    assert "make_split" in index and "manifest" in index and (site/"search.html").exists()

def test_nothing_comes_from_a_network(site):
    remote = re.compile(r"""<(?:script|link|img|iframe|source)\b[^>]*(?:src|href)=["']?(?:https?:)?//"""
                        r"""|@import|url\(["']?(?:https?:)?//""")
    texts = {p: p.read_text(encoding="utf-8") for kind in ("html", "css") for p in site.rglob(f"*.{kind}")}
    assert len(texts) > 5 and not [str(p) for p, text in texts.items() if remote.search(text)]

@pytest.mark.parametrize("broken", [
    "[gone](results/gone.md)", "[gone](nbs/data/splits.ipynb#gone)", "![gone](gone.png)", "`nbs/gone.ipynb`"])
def test_a_broken_link_fails_the_build(tmp_path, broken, capfd):
    code, _ = build(tmp_path, f"# A part\n\n{broken}\n", *(["data/splits.ipynb"] if "#" in broken else []))
    assert code != 0 and "gone" in capfd.readouterr().err

def test_every_notebook_has_its_place_after_what_it_imports(conf):
    pages = re.findall(r"^nbs/(\S+)$", conf.navigation(), re.MULTILINE)
    paths = [p for p in (ROOT/"nbs").rglob("*.ipynb") if "checkpoints" not in str(p)]
    assert sorted(pages) == sorted(p.relative_to(ROOT/"nbs").with_suffix("").as_posix() for p in paths)
    assert pages.index("data/shards") < pages.index("data/faceset") < pages.index("train/batches")
    assert pages.index("sweeps/plan") < pages.index("sweeps/scheduler") < pages.index("sweeps/sweep")

def test_definitions_are_headed_by_signatures(conf):
    cell = {"cell_type": "code", "metadata": {}, "outputs": [],
            "source": "#| export\nA = 1\n\ndef f(x, *, y=(1, 2)): return x\ndef _g(): pass\n\n"
                      "@decorated\nclass B: pass"}
    assert [c["source"] for c in conf.shown(cell, "data.x")] == [
        "A = 1", "```{py:function} f(x, *, y=(1, 2))\n```", "def f(x, *, y=(1, 2)): return x\ndef _g(): pass",
        "```{py:class} B\n```",
        "@decorated\nclass B: pass"]

def test_widgets_leave_their_text(conf):
    data = {"application/vnd.jupyter.widget-view+json": {}, "text/plain": ["VBox()"]}
    outputs = [{"output_type": "display_data", "data": data}]
    cell = {"cell_type": "code", "metadata": {}, "source": "%time browse()", "outputs": outputs}
    assert json.dumps(conf.shown(cell, None)[0]["outputs"][0]["data"]) == '{"text/plain": ["VBox()"]}'
