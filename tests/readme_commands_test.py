"""Every `python run.py` command of the two READMEs of google-research/simclr, as written there.

Once with `--dry_run`, and once for real on the embedded digits, with steps, sizes, device, paths and data set
substituted by flags put behind the command's own, and nothing else.
"""

import json
import os
import shlex

import numpy as np
import pytest
import tensorflow as tf

from simclr_tf import Config, cli

PRETRAIN_CIFAR = """
python run.py --train_mode=pretrain \
  --train_batch_size=512 --train_epochs=1000 \
  --learning_rate=1.0 --weight_decay=1e-4 --temperature=0.5 \
  --dataset=cifar10 --image_size=32 --eval_split=test --resnet_depth=18 \
  --use_blur=False --color_jitter_strength=0.5 \
  --model_dir=/tmp/simclr_test --use_tpu=False
"""
PRETRAIN_IMAGENET = """
python run.py --train_mode=pretrain \
  --train_batch_size=4096 --train_epochs=100 --temperature=0.1 \
  --learning_rate=0.075 --learning_rate_scaling=sqrt --weight_decay=1e-4 \
  --dataset=imagenet2012 --image_size=224 --eval_split=validation \
  --data_dir=$DATA_DIR --model_dir=$MODEL_DIR \
  --use_tpu=True --tpu_name=$TPU_NAME --train_summary_steps=0
"""
LINEAR_CIFAR = """
python run.py --mode=train_then_eval --train_mode=finetune \
  --fine_tune_after_block=4 --zero_init_logits_layer=True \
  --variable_schema='(?!global_step|(?:.*/|^)Momentum|head)' \
  --global_bn=False --optimizer=momentum --learning_rate=0.1 --weight_decay=0.0 \
  --train_epochs=100 --train_batch_size=512 --warmup_epochs=0 \
  --dataset=cifar10 --image_size=32 --eval_split=test --resnet_depth=18 \
  --checkpoint=/tmp/simclr_test --model_dir=/tmp/simclr_test_ft --use_tpu=False
"""
LINEAR_IMAGENET = """
python run.py --mode=train_then_eval --train_mode=finetune \
  --fine_tune_after_block=4 --zero_init_logits_layer=True \
  --variable_schema='(?!global_step|(?:.*/|^)Momentum|head)' \
  --global_bn=False --optimizer=momentum --learning_rate=0.1 --weight_decay=1e-6 \
  --train_epochs=90 --train_batch_size=4096 --warmup_epochs=0 \
  --dataset=imagenet2012 --image_size=224 --eval_split=validation \
  --data_dir=$DATA_DIR --model_dir=$MODEL_DIR --checkpoint=$CHKPT_DIR \
  --use_tpu=True --tpu_name=$TPU_NAME --train_summary_steps=0
"""
SEMI_SUPERVISED = """
python run.py --mode=train_then_eval --train_mode=finetune \
  --fine_tune_after_block=-1 --zero_init_logits_layer=True \
  --variable_schema='(?!global_step|(?:.*/|^)Momentum|head_supervised)' \
  --global_bn=True --optimizer=lars --learning_rate=0.005 \
  --learning_rate_scaling=sqrt --weight_decay=0 \
  --train_epochs=60 --train_batch_size=1024 --warmup_epochs=0 \
  --dataset=imagenet2012_subset/1pct --image_size=224 --eval_split=validation \
  --data_dir=$DATA_DIR --model_dir=$MODEL_DIR --checkpoint=$CHKPT_DIR \
  --use_tpu=True --tpu_name=$TPU_NAME --train_summary_steps=0 \
  --num_proj_layers=3 --ft_proj_selector=1
"""
# The README of the TF2 code has the two pretraining commands, letter for letter the same.
COMMANDS = {
    "pretrain_cifar": PRETRAIN_CIFAR, "pretrain_imagenet": PRETRAIN_IMAGENET, "linear_cifar": LINEAR_CIFAR,
    "linear_imagenet": LINEAR_IMAGENET, "semi_supervised": SEMI_SUPERVISED,
}
ENVIRONMENT = {
    "$TPU_NAME": "my-tpu", "$DATA_DIR": "/nonexistent/data", "$MODEL_DIR": "/nonexistent/model",
    "$CHKPT_DIR": "/nonexistent/checkpoint",
}
STEPS, DEVICE, DATA = ["--train_steps=2", "--eval_steps=2"], ["--use_tpu=False"], ["--dataset=digits"]
SIZES = ["--train_batch_size=16", "--eval_batch_size=16", "--resnet_depth=18", "--width_multiplier=0.25"]
SUBSTITUTED = {"train_steps", "eval_steps", "use_tpu", "dataset", "train_batch_size", "eval_batch_size",
               "resnet_depth", "width_multiplier", "image_size", "model_dir", "checkpoint"}
STARTS_FROM = {"linear_cifar": "pretrain_cifar", "linear_imagenet": "pretrain_imagenet",
               "semi_supervised": "pretrain_imagenet"}


def arguments(name):
    command = COMMANDS[name]
    for variable, value in ENVIRONMENT.items():
        command = command.replace(variable, value)
    words = shlex.split(command)
    assert words[:2] == ["python", "run.py"]
    return words[2:]


@pytest.mark.parametrize("name", COMMANDS)
def test_dry_run_as_written(name, capfd):
    assert cli.main([*arguments(name), "--dry_run"]) == 0
    captured = capfd.readouterr()
    report = captured.out
    assert "Traceback" not in captured.err
    config = Config.from_flags(arguments(name))
    for part in (f"ResNet-{config.resnet_depth}", f"--train_batch_size={config.train_batch_size}",
                 f"--weight_decay={config.weight_decay}", "head_supervised/linear_layer/dense/kernel"):
        assert part in report
    absent = report.partition("Not here")[2].partition("\n\n")[0]
    if config.use_tpu:
        assert "device: TPU 'my-tpu'" in absent
        assert "data set: " in absent
    if config.checkpoint:
        assert f"checkpoint: {config.checkpoint}" in absent


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Runs a command on the digits, after the one it starts from, once; returns its config."""
    done = {}

    def run(name):
        if name in done:
            return done[name]
        argv = arguments(name)
        sizes = [*SIZES, "--image_size=16" if "cifar" in name else "--image_size=40"]
        paths = [f"--model_dir={tmp_path_factory.mktemp(name)}"]
        if name in STARTS_FROM:
            paths.append(f"--checkpoint={run(STARTS_FROM[name]).model_dir}")
        argv_here = [*argv, *STEPS, *DEVICE, *DATA, *sizes, *paths]
        assert cli.main(argv_here) == 0
        done[name] = Config.from_flags(argv_here)
        return done[name]

    return run


@pytest.mark.parametrize("name", COMMANDS)
def test_runs(name, run):
    written, config = Config.from_flags(arguments(name)), run(name)
    for flag, value in vars(written).items():
        if flag not in SUBSTITUTED | {"given"}:
            assert getattr(config, flag) == value, flag
    newest = tf.train.latest_checkpoint(config.model_dir)
    assert newest.endswith("ckpt-2")
    if config.mode == "train_then_eval":
        with open(os.path.join(config.model_dir, "result.json"), encoding="utf-8") as file:
            result = json.load(file)
        assert result["global_step"] == 2
        assert 0 <= result["eval/label_top_1_accuracy"] <= result["eval/label_top_5_accuracy"] <= 1


@pytest.mark.parametrize("name", ["linear_cifar", "linear_imagenet"])
def test_linear_evaluation_leaves_the_encoder_as_it_was_pretrained(name, run):
    folders = [run(name).model_dir, run(STARTS_FROM[name]).model_dir]
    after, before = (tf.train.load_checkpoint(folder) for folder in folders)
    keys = [key for key in before.get_variable_to_shape_map() if key.startswith("model/base_model/")]
    assert len(keys) > 100
    for key in keys:
        np.testing.assert_array_equal(after.get_tensor(key), before.get_tensor(key), err_msg=key)
