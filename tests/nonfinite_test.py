"""A step whose loss or gradients are not finite makes no update: it stops the run, or is skipped without a trace."""

import json
import os

import numpy as np
import pytest
import tensorflow as tf

from simclr_tf import Config, checkpoint, data, train
from simclr_tf.errors import NonFiniteError
from simclr_tf.summaries import read_history

FEW = (
    "--dataset=digits", "--image_size=8", "--resnet_depth=18", "--width_multiplier=0.0625", "--train_batch_size=8",
    "--warmup_epochs=0", "--use_blur=False", "--proj_out_dim=8", "--num_proj_layers=1", "--train_summary_steps=1",
    "--keep_hub_module_max=-1", "--optimizer=momentum", "--learning_rate=0.1",
)


def weights(model_dir, step):
    reader = tf.train.load_checkpoint(os.path.join(model_dir, f"ckpt-{step}"))
    return {k: reader.get_tensor(k) for k in reader.get_variable_to_shape_map() if k.endswith("VALUE")}


@pytest.fixture
def poison(monkeypatch):
    """`poison(*steps)`: one pixel of the batch of each of these steps (from 1) is NaN."""
    train_batches = data.train_batches

    def choose(*steps):
        def poisoned(source, config, start_step, **options):
            batches = train_batches(source, config, start_step, **options)

            def spoil(i, batch):
                bad = tf.reduce_any(tf.equal(i + start_step + 1, tf.constant(steps, tf.int64)))
                pixel = tf.one_hot(0, tf.size(batch["images"]), on_value=np.nan, off_value=0.0)
                spoilt = batch["images"] + tf.reshape(pixel, tf.shape(batch["images"]))
                return batch | {"images": tf.where(bad, spoilt, batch["images"])}

            return batches.enumerate().map(spoil)

        monkeypatch.setattr(data, "train_batches", poisoned)

    return choose


@pytest.mark.parametrize("steps_per_loop", [1, 4])
def test_stop_before_the_update_with_step_checkpoint_and_examples(poison, tmp_path, steps_per_loop):
    poison(3)
    flags = [*FEW, "--train_steps=4", "--checkpoint_steps=2" if steps_per_loop == 1 else "--checkpoint_steps=9",
             "--train_summary_steps=0", f"--steps_per_loop={steps_per_loop}", f"--model_dir={tmp_path}"]
    with pytest.raises(NonFiniteError, match=r"Step 3: total_loss nan.*no update was made.*nonfinite_3.json") as caught:
        train(Config.from_flags(flags))
    assert ("last good checkpoint is" in str(caught.value)) == (steps_per_loop == 1)
    found = json.loads((tmp_path / "nonfinite_3.json").read_text())
    assert found["step"] == 3 and len(found["examples"]) == 8
    source = data.open_training_source(Config.from_flags(flags))
    due = [int(i) for batch in data.train_batches(source, Config.from_flags(flags), 2).take(1) for i in batch["index"]]
    assert found["examples"] == source.ids(due)


def test_a_skipped_step_leaves_only_its_number(poison, tmp_path):
    """Two runs: skipping step 2 of 2 leaves the weights and moving statistics of step 1, and the counter at 2."""
    flags = [*FEW, "--nan_policy=skip", "--checkpoint_steps=1", "--steps_per_loop=2"]
    poison(2)
    train(Config.from_flags([*flags, "--train_steps=2", f"--model_dir={tmp_path}"]))
    one, two = weights(tmp_path, 1), weights(tmp_path, 2)
    assert two.pop("optimizer/iterations/.ATTRIBUTES/VARIABLE_VALUE") == 2
    for name, value in two.items():
        np.testing.assert_array_equal(value, one[name], err_msg=name)
    assert [line["step"] for line in read_history(tmp_path)] == [1]
    train(Config.from_flags([*flags, "--train_steps=3", f"--model_dir={tmp_path}"]))
    assert [line["step"] for line in read_history(tmp_path)] == [1, 3]


def test_skipping_without_end_is_refused(poison, tmp_path):
    poison(*range(2, 40))
    with pytest.raises(NonFiniteError, match=r"Step 12: .*nor in the 10 steps before it"):
        train(Config.from_flags([
            *FEW, "--nan_policy=skip", "--train_steps=40", "--checkpoint_steps=1", "--steps_per_loop=1",
            f"--model_dir={tmp_path}",
        ]))
    assert checkpoint.latest(str(tmp_path)).endswith("ckpt-11")


def test_replicas_decide_together(poison, tmp_path, monkeypatch):
    """The spoilt pixel is in the first of two replicas' batches only; without global batch norm the other is sound."""
    from simclr_tf import strategy

    monkeypatch.setattr(strategy, "_names", lambda kind: ["CPU:0", "CPU:1"] if kind == "CPU" else [])
    poison(2)
    train(Config.from_flags([
        *FEW, "--nan_policy=skip", "--checkpoint_steps=1", "--train_steps=3", "--strategy=mirrored",
        "--global_bn=False", f"--model_dir={tmp_path}",
    ]))
    one, two = weights(tmp_path, 1), weights(tmp_path, 2)
    name = "model/base_model/conv2d/kernel/.ATTRIBUTES/VARIABLE_VALUE"
    np.testing.assert_array_equal(one[name], two[name])
    assert np.isfinite(weights(tmp_path, 3)[name]).all()
    assert (weights(tmp_path, 3)[name] != two[name]).any()
