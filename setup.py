"""Package facts come from settings.ini; `pip install -e .` for users, `pip install -e .[dev]` for developers."""
from configparser import ConfigParser
from glob import glob
from pathlib import Path

from setuptools import find_packages, setup

config = ConfigParser(delimiters=["="])
config.read("settings.ini", encoding="utf-8")
facts = config["DEFAULT"]

def lines(key: str) -> list[str]: return facts[key].split("\n")[1:]

def exported(notebook: str) -> bool: return Path("fer_bench", Path(notebook).stem).with_suffix(".py").exists()

setup(
    name=facts["lib_name"],
    version=facts["version"],
    description=facts["description"],
    long_description=Path("README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license=facts["license"],
    python_requires=f">={facts['min_python']},<{facts['max_python']}",
    packages=find_packages(include=["fer_bench", "fer_bench.*"]),
    package_data={"fer_bench": ["py.typed"], "fer_bench.report": ["published.csv"],
                  "fer_bench.runs": ["cards/*.yaml"]},
    # the tour, and what papermill runs
    data_files=[("share/fer_bench/nbs", [n for n in sorted(glob("nbs/*.ipynb")) if not exported(n)])],
    install_requires=lines("requirements"),
    extras_require={extra: lines(f"{extra}_requirements")
                    for extra in ("dev", "ray", "tensorboard", "onnx", "peers", "site")},
    entry_points={"console_scripts": lines("console_scripts")},
)
