"""How Sphinx builds the static site from notebooks, README and pages of results, where they lie (`make site`)."""
import ast
import json
import re
import shutil
from graphlib import TopologicalSorter
from pathlib import Path

from docutils import nodes
from docutils.utils.math.latex2mathml import tex2mathml
from sphinx.util.logging import getLogger
from sphinx.util.nodes import make_refnode

ROOT, logger = Path(__file__).parents[2], getLogger(__name__)
project = "fer_bench"
extensions = ["myst_nb"]
root_doc = "README"  # the source folder is the project's, so that every link holds here as it does in a checkout
PROJECT = ("CHANGELOG", "CONTRIBUTING")
include_patterns = ["README.md", *(f"{name}.md" for name in PROJECT), "nbs/**.ipynb", "results/*.md",
                    "results/throughput/README.md"]
exclude_patterns = ["**/.ipynb_checkpoints"]
nb_execution_mode = "off"  # outputs are those that are committed
myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 4
html_math_renderer = "mathml"  # built into browsers, whereas MathJax would be loaded from the network
add_module_names, toc_object_entries_show_parents = False, "hide"
html_theme, html_title = "furo", "fer_bench"
html_static_path, html_css_files = ["site.css"], ["site.css"]
html_copy_source = html_show_sourcelink = html_show_sphinx = html_show_copyright = False

# Reading order: the layers from below; within a layer, a module after those it imports. What has no layer comes last.
GUIDES = ("index", "run_benchmark", "compare_methods", "own_data", "own_method", "paper_figures", "throughput")
LAYERS = {"Foundation": "core catalogue config record distributed", "Data": "data", "Networks": "models",
          "Methods": "methods", "Training": "train", "Evaluation": "evaluate", "One run": "runs",
          "Many runs": "sweeps store", "Reports": "report", "Interactive": "show", "Speed": "speed",
          "Entry points": "api cli doctor"}


def modules() -> dict[str, Path]:
    "Dotted name below fer_bench → notebook, for each notebook that exports a module."
    found = {}
    for path in sorted((ROOT/"nbs").rglob("*.ipynb")):
        name = ".".join(path.relative_to(ROOT/"nbs").with_suffix("").parts)
        exports = "#| default_exp" in path.read_text(encoding="utf-8")
        if exports and "checkpoints" not in name: found[name] = path
    return found


def code_cells(path: Path) -> list[str]:
    "Sources of the exported cells of the notebook `path`."
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    return ["".join(c["source"]) for c in cells if c["cell_type"] == "code" and "#| export" in "".join(c["source"])]


def reading_order(names) -> list[str]:
    "`names` of modules so that each comes after those it imports."
    paths, names = modules(), sorted(names)
    code = {name: "\n".join(code_cells(paths[name])) for name in names}
    imports = {name: [n for n in names if n != name and f"fer_bench.{n} import" in code[name]] for name in names}
    return list(TopologicalSorter(imports).static_order())


def navigation() -> str:
    "The tables of contents that are appended to the README and fill the sidebar."
    left, parts = set(modules()), {}
    for title, layer in LAYERS.items():
        names = [n for word in layer.split() for n in reading_order(m for m in left if m.split(".")[0] == word)]
        parts[title] = [f"nbs/{n.replace('.', '/')}" for n in names]
        left -= set(names)
    notebooks = {p.stem for p in (ROOT/"nbs").glob("*.ipynb")} - set(modules())
    guides = [g for g in GUIDES if g in notebooks] + sorted(notebooks - set(GUIDES))
    pages = [*sorted((ROOT/"results").glob("*.md")), *(ROOT/"results").glob("throughput/README.md")]
    results = [p.relative_to(ROOT).with_suffix("").as_posix() for p in pages]
    parts = {"Guides": [*(f"nbs/{g}" for g in guides), "All names <genindex>"], "Results": results, **parts,
             "More": [f"nbs/{n.replace('.', '/')}" for n in reading_order(left)],
             "Project": [name for name in PROJECT if (ROOT/f"{name}.md").exists()]}
    tree = lambda title, pages: "\n".join(["\n```{toctree}", ":hidden:", f":caption: {title}", "", *pages, "```\n"])
    return "".join(tree(*part) for part in parts.items() if part[1])


def public(node) -> bool:
    return isinstance(node, (ast.FunctionDef, ast.ClassDef)) and not node.name.startswith("_")


def pieces(source: str):
    "(function or class or None, code) of a cell, cut before each public definition."
    tree, lines = ast.parse(source), source.splitlines()
    starts = [(min([n.lineno, *(d.lineno for d in n.decorator_list)]) - 1, n) for n in tree.body if public(n)]
    for (start, node), (end, _) in zip([(0, None), *starts], [*starts, (len(lines), None)], strict=True):
        if code := "\n".join(lines[start:end]).strip("\n"): yield node, code


def signature(node) -> str:
    "A Sphinx directive that makes the definition `node` known to index and search, and heads its code."
    kind = "class" if isinstance(node, ast.ClassDef) else "function"
    given = f"({ast.unparse(node.args)})" if kind == "function" else ""
    return f"```{{py:{kind}}} {node.name}{given}\n```"


def shown(cell: dict, module: str | None) -> list[dict]:
    "The cells that a page shows for `cell`: no directives; of a module no imports, a signature above each definition."
    source = "".join(cell["source"])
    if cell["cell_type"] == "raw": return []
    if cell["cell_type"] == "markdown": return [cell]
    for output in cell["outputs"]: output.get("data", {}).pop("application/vnd.jupyter.widget-view+json", None)
    exported = "#| export" in source
    code = "\n".join(line for line in source.splitlines() if not line.startswith("#|")).strip("\n")
    try: only_imports = all(isinstance(n, (ast.Import, ast.ImportFrom)) for n in ast.parse(code).body)
    except SyntaxError: return [cell | {"source": code}]  # a magic or shell line of IPython
    if only_imports and module: return []
    if not (exported and module): return [cell | {"source": code}]
    out = []
    for node, piece in pieces(code):
        if node: out.append({"cell_type": "markdown", "metadata": {}, "source": signature(node)})
        out.append(cell | {"source": piece})
    return out


def on_read(app, docname: str, source: list[str]) -> None:
    "Before Sphinx reads a page: append the navigation to the README, and turn a notebook into what the page shows."
    if docname == root_doc: source[0] += navigation()
    if not docname.startswith("nbs/"): return
    notebook, name = json.loads(source[0]), docname.removeprefix("nbs/").replace("/", ".")
    module = name if name in modules() else None
    cells = [c for cell in notebook["cells"] for c in shown(cell, module)]
    if module:
        package = "fer_bench" if module == "api" else f"fer_bench.{module}"
        title = f"Module `{package}`\n\n```{{py:currentmodule}} {package}\n```"
        cells.insert(1, {"cell_type": "markdown", "metadata": {}, "source": title})
    source[0] = json.dumps(notebook | {"cells": [c | {"id": f"cell-{i}"} for i, c in enumerate(cells)]})


def exported(app) -> dict[str, list]:
    "Name, with and without its module → what is exported under it."
    names = {}
    for full, entry in app.env.domains["py"].objects.items():
        for name in (full, full.removeprefix("fer_bench."), full.rsplit(".", 1)[-1]):
            names.setdefault(name, []).append(entry)
    return names


def on_resolved(app, page, docname: str) -> None:
    "Code words that name a page or an exported object become links; a notebook that does not exist is an error."
    names = exported(app)
    def link(word, *target): word.replace_self(make_refnode(app.builder, docname, *target, word.deepcopy()))
    for word in list(page.findall(nodes.literal)):
        text = word.astext()
        if isinstance(word.parent, (nodes.title, nodes.reference)): continue
        if found := re.fullmatch(r"([\w/-]+)\.(ipynb|md)", text):
            near = (Path(docname).parent/found[1]).as_posix()
            if there := next((p for p in (found[1], near) if p in app.env.found_docs), None): link(word, there, "")
            elif text.startswith("nbs/"): logger.warning("there is no page %r", text, location=word)
        elif re.search(r"[_.(]|^[A-Z]", text) and len(entries := names.get(text.split("(")[0], [])) == 1:
            link(word, entries[0].docname, entries[0].node_id)


def math(self, node) -> None:
    formula = re.sub(r"\\[bB]ig+(?![a-z])", "", node.astext())  # tex2mathml does not know it
    self.body.append(tex2mathml(formula, as_block=isinstance(node, nodes.math_block)))
    raise nodes.SkipNode


def finished(app, error) -> None:
    out = Path(app.outdir)
    if not error and app.builder.name == "html": shutil.copy(out/f"{root_doc}.html", out/"index.html")


def setup(app) -> None:
    app.connect("source-read", on_read)
    app.connect("build-finished", finished)
    app.connect("doctree-resolved", on_resolved)
    app.add_html_math_renderer("mathml", (math, None), (math, None))
