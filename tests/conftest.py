"""Shared by all tests: quiet TensorFlow on four logical CPUs, and tiny runs on the embedded digits."""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("KERAS_BACKEND", "tensorflow")
os.environ["CUDA_VISIBLE_DEVICES"] = ""

import pytest
import tensorflow as tf

# Several replicas on one machine; must be said before TensorFlow starts.
tf.config.set_logical_device_configuration(
    tf.config.list_physical_devices("CPU")[0], [tf.config.LogicalDeviceConfiguration()] * 4
)

TINY = (
    "--dataset=digits", "--image_size=16", "--resnet_depth=18", "--width_multiplier=0.25", "--train_batch_size=16",
    "--eval_split=test[:40]", "--eval_batch_size=16", "--warmup_epochs=0", "--use_blur=False", "--proj_out_dim=16",
    "--num_proj_layers=2", "--train_summary_steps=1", "--keep_hub_module_max=-1",
    "--report_images=0",
)


@pytest.fixture(scope="session")
def tiny():
    """Flags of a run that takes seconds: `Config.from_flags([*tiny, "--train_steps=3", ...])`."""
    return TINY


@pytest.fixture(scope="session")
def pretrained(tmp_path_factory):
    """The folder of a finished pretraining of four steps with `TINY`, to start from and never to write to."""
    from simclr_tf import Config, train

    model_dir = tmp_path_factory.mktemp("pretrained")
    train(Config.from_flags([*TINY, "--train_steps=4", "--checkpoint_steps=2", f"--model_dir={model_dir}"]))
    return str(model_dir)
