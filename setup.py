"""The packages: all of lora_rlhf, and demo/, which is imported as lora_rlhf_demo. The rest is in pyproject.toml."""

from setuptools import find_packages, setup

setup(
    packages=[*find_packages(include=["lora_rlhf", "lora_rlhf.*"]), "lora_rlhf_demo"],
    package_dir={"lora_rlhf_demo": "demo"},
)
