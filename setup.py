"""Package metadata: name, version, dependencies and extras."""

import ast
from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).resolve().parent


def version() -> str:
    """The string assigned to __version__ in the package, read without importing it (its dependencies may be absent)."""
    tree = ast.parse((ROOT / "megatron_chimed/__init__.py").read_text(encoding="utf-8"))
    for node in tree.body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__version__":
            return ast.literal_eval(node.value)
    raise RuntimeError("megatron_chimed/__init__.py: no __version__; expected a line like __version__ = '0.1.0'")


README = ROOT / "README.md"

setup(
    name="megatron-chimed",
    version=version(),
    description="The full training regime of ChiMed-GPT as an extension of Megatron-LM",
    long_description=README.read_text(encoding="utf-8") if README.exists() else "",
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.12",
    packages=find_packages(include=["megatron_chimed", "megatron_chimed.*"]),
    package_data={"megatron_chimed.evaluation": ["tasks/*.yaml", "readers/scales/*.yaml", "reports/form.html"]},
    # requirements.lock holds the versions that the tests run with (torch 2.11.0).
    install_requires=[
        "torch>=2.11,<3",
        "megatron-core[training]==0.19.2",  # exact: the adapter mends faults of this version
        "numpy",
        "sentencepiece>=0.2.3",  # returns arrays
        "nltk",
        "safetensors",
        "transformers",
        "PyYAML",
        "tqdm",
        "matplotlib",
        "datasketch",
        "orjson",
        "openai",
    ],
    extras_require={
        # Both compile against the installed torch and need nvcc: pip install --no-build-isolation -e '.[gpu]'.
        # apex is not on the package index; CONTRIBUTING.md says how to build it from source.
        "gpu": ["transformer-engine[pytorch]", "flash-attn"],
        "vllm": ["vllm"],  # pins a torch of its own: give it a virtual environment of its own
        "tracking": ["tensorboard", "wandb"],  # for --tensorboard-dir and --wandb-project
        "eval": ["lm-eval", "rouge-score", "jieba", "scikit-learn"],
        "serve": ["transformers[serving]"],  # the server behind tools/chat.py --serve, where there is no vllm
        "dev": ["pytest>=9", "pytest-timeout", "pytest-xdist", "hypothesis", "ruff", "import-linter"],
    },
    classifiers=[
        "Development Status :: 3 - Alpha",
        "Environment :: GPU :: NVIDIA CUDA",
        "Intended Audience :: Science/Research",
        "Natural Language :: Chinese (Simplified)",
        "Operating System :: MacOS",
        "Operating System :: POSIX :: Linux",
        "Programming Language :: Python :: 3",
        "Programming Language :: Python :: 3.12",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
    ],
)
