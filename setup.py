"""Packaging. TensorFlow comes with an extra, so that installing on Colab never replaces its own build."""

import pathlib
import re

from setuptools import find_packages, setup

HERE = pathlib.Path(__file__).parent
VERSION = re.search(r'__version__ = "(.+)"', (HERE / "simclr_tf" / "__init__.py").read_text())[1]

setup(
    name="simclr_tf",
    version=VERSION,
    description="SimCLR v1 and v2 on today's TensorFlow and Keras",
    long_description=(HERE / "README.md").read_text(),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    packages=find_packages(include=["simclr_tf", "simclr_tf.*"]),
    package_data={"simclr_tf": ["*.html", "templates/*"]},
    python_requires=">=3.11",
    # Each one's reason is in README.md, "Dependencies".
    install_requires=[
        "absl-py",
        "importlib_resources",
        "jinja2",
        "keras>=3.10",
        "matplotlib",
        "numpy",
        "pillow",
        "pyarrow",
        "safetensors",
        "scikit-learn",
        "tensorboard",
        "tensorflow-datasets",
    ],
    extras_require={
        "cpu": ["tensorflow-cpu>=2.18"],
        "cuda": ["tensorflow[and-cuda]>=2.18"],
        "tpu": ["tensorflow-tpu>=2.18"],
        "jax": ["jax>=0.7", "tensorflow-cpu>=2.18"],  # for KERAS_BACKEND=jax: TensorFlow then reads data and files
        "wandb": ["wandb"],
        "torch": ["torch==2.13.0"],  # for the tests of exports to it
        "test": ["hypothesis", "ipykernel", "nbclient", "pytest", "pytest-xdist", "ruff", "scipy"],
    },
    entry_points={"console_scripts": ["simclr-tf = simclr_tf.cli:main"]},
)
