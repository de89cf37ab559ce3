"""The packages of miniclip: pyproject.toml cannot name those that it finds and one that lies elsewhere."""

from setuptools import find_packages, setup

setup(packages=[*find_packages(include=["miniclip*"]), "miniclip.configs"])
