"""Package facts come from settings.ini; `pip install -e .` for users, `pip install -e .[dev]` for developers."""
from configparser import ConfigParser
from glob import glob
from pathlib import Path

from setuptools import find_packages, setup

config = ConfigParser(delimiters=["="])
config.read("settings.ini", encoding="utf-8")
facts = config["DEFAULT"]
lines = lambda key: facts[key].split("\n")[1:]  # noqa: E731

setup(
    name=facts["lib_name"],
    version=facts["version"],
    description=facts["description"],
    long_description=Path("README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license=facts["license"],
    python_requires=f">={facts['min_python']},<{facts['max_python']}",
    packages=find_packages(include=["fer_bench", "fer_bench.*"]),
    package_data={"fer_bench.report": ["published.csv"]},
    data_files=[("share/fer_bench/nbs", glob("nbs/*.ipynb"))],  # the notebooks that papermill runs
    install_requires=lines("requirements"),
    extras_require={extra: lines(f"{extra}_requirements") for extra in ("dev", "ray", "tensorboard", "onnx", "site")},
    entry_points={"console_scripts": lines("console_scripts")},
)
