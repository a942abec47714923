"""SimCLR v1 and v2 on today's TensorFlow and Keras. See README.md, or `python run.py --help`.

The public names below are imported when first used: `import simclr_tf` itself loads neither TensorFlow nor Keras.
"""

import importlib

__version__ = "0.1.0"

# name -> module that defines it ("" where the name is the module). No public function shares its name with a module:
# importing the module would silently replace the function.
_PUBLIC = {
    "Config": "config",
    "LARS": "lars",
    "SimCLR": "model",
    "WarmupCosine": "schedule",
    "embed": "embedding",
    "evaluate": "evaluation",
    "export": "exports",
    "make_model": "model",
    "make_optimizer": "step",
    "nt_xent": "losses",
    "preprocess_for_eval": "augment",
    "released": "",
    "set_from_tf1": "model",
    "train": "training",
    "train_step": "step",
    "two_views": "augment",
}
__all__ = [*_PUBLIC, "__version__"]


def __getattr__(name):
    if name not in _PUBLIC:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = importlib.import_module(f"{__name__}.{_PUBLIC[name] or name}")
    return getattr(module, name) if _PUBLIC[name] else module
