"""The house as a whole: imports run one way, flags are read in one place, and the README's map names every module."""

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "simclr_tf"
MODULES = {".".join(p.relative_to(PACKAGE).with_suffix("").parts).removesuffix(".__init__"): p
           for p in PACKAGE.rglob("*.py") if p.parent != PACKAGE or p.stem != "__init__"}  # fmt: skip
FLOORS = [text.split() for text in (
    # What a run is.
    "errors config_checks config options",
    # Mathematics, layers, pixels, devices: each for itself.
    """initializers batch_norm resnet heads color_ops augment images losses tiled_ntxent lars schedule loss_scaling
       bootstrap metrics neighbours health classifiers lock interrupts tracking strategy workers jax_devices""",
    # Data and model.
    """sources splits folder_source digits_source tfds_source label_subsets data model architecture stock_model
       torch_file step gradient_caching jax_step jax_gradient_caching""",
    # Files of models.
    """checkpoint archives tf1_names formats catalog download location released restore saved_model saved_model_process
       summaries nonfinite""",
    # A model in use.
    "evaluation embedding embedding_files probe prediction distillation representation exports",
    "training",
    """report report.elements report.numbers report.page report.parts report.pictures report.run report.compare
       report.probe_parts report.representation_parts""",
    "baseline study study_neighbours study_plan study_report study_runs demo doctor dry_run",
    "cli",
)]  # fmt: skip
UPWARDS = {("strategy", "jax_step")}  # inside a function, for one backend only
FLOOR = {module: floor for floor, modules in enumerate(FLOORS) for module in modules}


def imports(module):
    """Pairs of an imported module of ours and whether the import is at the top of the file."""
    tree = ast.parse(MODULES[module].read_text())
    for node in ast.walk(tree):
        names = []
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "simclr_tf":
            base = node.module.removeprefix("simclr_tf").removeprefix(".")
            names = [f"{base}.{alias.name}".strip(".") for alias in node.names]
            names = [name if name in MODULES else base for name in names]
        elif isinstance(node, ast.Import):
            names = [alias.name.removeprefix("simclr_tf.") for alias in node.names if "simclr_tf." in alias.name]
        for name in filter(None, names):
            yield name, node in tree.body


def test_every_module_has_its_floor():
    assert sorted(FLOOR) == sorted(MODULES)


def test_imports_lead_down_or_along():
    up = {(module, name) for module in MODULES for name, _ in imports(module) if FLOOR[name] > FLOOR[module]}
    assert up == UPWARDS


def test_no_import_at_the_top_of_a_file_leads_in_a_circle():
    above = {module: {name for name, top in imports(module) if top} - {module} for module in MODULES}
    while free := [module for module, names in above.items() if not names]:
        above = {module: names - set(free) for module, names in above.items() if module not in free}
    assert not above


def test_flags_are_read_in_options_only():
    reads_flags = re.compile(r"(from absl import .*\bflags|import absl\.flags|from absl\.flags import)")
    assert [module for module, path in MODULES.items() if reads_flags.search(path.read_text())] == ["options"]


def test_the_readme_names_every_module():
    told = (ROOT / "README.md").read_text().split("## Where things are")[1].split("\n## ")[0]
    patterns = [re.escape(name).replace(r"\*", r"\w*") for name in re.findall(r"`(?:simclr_tf/)?([\w*]+)\.py`", told)]
    unnamed = [m for m in MODULES if "." not in m and m != "report" and not any(re.fullmatch(p, m) for p in patterns)]
    assert not unnamed and "`report/`" in told
