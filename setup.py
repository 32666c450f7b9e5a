"""Map the folder `configs` to the package `sppdet.configs`; all else is in pyproject.toml."""

from setuptools import find_packages, setup

setup(
    packages=[*find_packages(include=["sppdet*"]), "sppdet.configs"],
    package_dir={"sppdet.configs": "configs"},
)
