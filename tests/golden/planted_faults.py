"""Plants faults one at a time in a scratch copy of the repository and shows which golden test catches each.

Run by hand from the repository's root, `python tests/golden/planted_faults.py [name ...]`; docs/parity.md lists the
outcome. A fault whose text is no longer found in the source is an error, so that the list cannot go stale.
"""

import dataclasses
import pathlib
import shutil
import subprocess
import sys
import tempfile

ROOT = pathlib.Path(__file__).parents[2]


@dataclasses.dataclass(frozen=True)
class Fault:
    """Replace `old` by `new` in `file`; `tests` (arguments of pytest) should fail."""

    name: str
    file: str
    old: str
    new: str
    tests: str


FORWARD = "tests/golden/forward_test.py -k r18"
TRAJECTORY = "tests/golden/trajectories_test.py -k "
FAULTS = [
    Fault("sign: the mask is added to the similarity of an example with itself", "losses.py",
          "logits_aa = similarity(a, all_a) - own", "logits_aa = similarity(a, all_a) + own",
          "tests/golden/ntxent_golden_test.py"),
    Fault("temperature multiplies", "losses.py", "_products(x, y) / temperature", "_products(x, y) * temperature",
          "tests/golden/ntxent_golden_test.py"),
    Fault("stack order: views interleaved instead of view 1 first", "step.py",
          "images = ops.concatenate(ops.split(images, 2, axis=-1), 0)",
          "images = tf.reshape(tf.stack(tf.split(images, 2, axis=-1), 1), [-1, *images.shape[1:3], 3])",
          TRAJECTORY + "pretrain_lars-or-adam"),
    Fault("epsilon of batch norm 1e-3", "batch_norm.py", "EPSILON = 1e-5", "EPSILON = 1e-3", FORWARD),
    Fault("biased variance replaced by the unbiased one", "batch_norm.py",
          "variance = total_of_squares / count - tf.square(mean)",
          "variance = (total_of_squares / count - tf.square(mean)) * count / (count - 1)",
          TRAJECTORY + "after_block2"),
    Fault("decay of the moving averages used the wrong way round", "batch_norm.py",
          "moving * self.decay + ops.stop_gradient(batch) * (1 - self.decay)",
          "moving * (1 - self.decay) + ops.stop_gradient(batch) * self.decay", TRAJECTORY + "after_block2"),
    Fault("exclusion: LARS adapts the supervised head", "step.py",
          "return item.is_norm or item.is_bias or item.in_supervised_head", "return item.is_norm or item.is_bias",
          TRAJECTORY + "finetune_lars_all"),
    Fault("exclusion: LARS adapts and decays batch norm", "step.py",
          "return item.is_norm or item.is_bias or item.in_supervised_head",
          "return item.is_bias or item.in_supervised_head", TRAJECTORY + "finetune_lars_all"),
    Fault("weight decay of batch norm in the loss", "step.py", "return not item.is_norm", "return True",
          TRAJECTORY + "selector1"),
    Fault("weight decay halved", "step.py", "return config.weight_decay * tf.add_n",
          "return config.weight_decay / 2 * tf.add_n", TRAJECTORY + "selector1"),
    Fault("momentum form: LARS's learning rate after the buffer", "lars.py", "        if self.classic_momentum:",
          "        if not self.classic_momentum:", "tests/golden/lars_golden_test.py"),
    Fault("decay after the trust ratio", "lars.py", "ratio = self._trust_ratio(variable, gradient) if adapt else 1.0",
          "ratio = self._trust_ratio(variable, gradient - self.l2_decay * variable) if adapt else 1.0",
          "tests/lars_test.py -k after_the_decay"),
    Fault("momentum SGD without Nesterov", "step.py", "momentum=config.momentum, nesterov=True",
          "momentum=config.momentum, nesterov=False", TRAJECTORY + "after_block2"),
    Fault("padding: strided convolutions pad as TensorFlow's SAME", "resnet.py", "before = (kernel_size - 1) // 2",
          "before = (kernel_size - 1) // 2 - (kernel_size > 2)", FORWARD),
    Fault("SK softmax over channels instead of streams", "resnet.py", "axis=-1)), axis=0)", "axis=-1)), axis=-1)",
          "tests/golden/forward_test.py -k r50_1x_sk1"),
    Fault("SE with a hard sigmoid", "resnet.py", "return ops.sigmoid(gate) * x", "return ops.hard_sigmoid(gate) * x",
          "tests/golden/forward_test.py -k se25"),
    Fault("numbering: shortcut after the main path", "model.py", "for layer in model.resnet.layers:",
          "for layer in sorted(model.resnet.layers, key=lambda layer: 'shortcut' in layer.name):",
          "tests/golden/variables_test.py -k r50_1x_sk0"),
    Fault("no stop_gradient before linear evaluation", "step.py", "hidden = ops.stop_gradient(hidden)",
          "hidden = tf.identity(hidden)", TRAJECTORY + "pretrain_lars-or-adam"),
    Fault("linear evaluation moves batch-norm statistics", "step.py",
          "training = pretraining or config.fine_tune_after_block < 4", "training = True",
          TRAJECTORY + "linear_evaluation"),
    Fault("freezing one block too few", "model.py", "layer.trainable = stage > after_block",
          "layer.trainable = stage >= after_block", TRAJECTORY + "after_block2"),
    Fault("supervised head reads the wrong projection layer", "step.py",
          "hidden = hiddens[model.ft_proj_selector]", "hidden = hiddens[0]", TRAJECTORY + "selector1"),
    Fault("warm-up rounded up", "config.py", "round(self.warmup_epochs * num_examples // self.train_batch_size)",
          "-int(-self.warmup_epochs * num_examples // self.train_batch_size)",
          "tests/golden/schedule_golden_test.py"),
    Fault("sqrt scaling by batch / 256", "schedule.py", "math.sqrt(batch_size)", "math.sqrt(batch_size / 256)",
          "tests/golden/schedule_golden_test.py"),
    Fault("gradients averaged twice over replicas", "step.py",
          'terms["total"] / tf.distribute.get_strategy().num_replicas_in_sync',
          'terms["total"] / tf.distribute.get_strategy().num_replicas_in_sync**2', TRAJECTORY + "2replicas_global"),
    Fault("local negatives only", "losses.py", "    if _replicas() == 1:\n        return a, b, 0",
          "    if True:\n        return a, b, 0", TRAJECTORY + "2replicas_global"),
    Fault("crop bound: boxes from 20 % of the area", "augment.py", "CROP_AREA = (0.08, 1.0)", "CROP_AREA = (0.2, 1.0)",
          "tests/golden/augment_golden_test.py -k crop"),
    Fault("crop bound: aspect ratios up to 3/2", "augment.py", "CROP_ASPECT = (3 / 4, 4 / 3)",
          "CROP_ASPECT = (2 / 3, 3 / 2)", "tests/golden/augment_golden_test.py -k crop"),
    Fault("evaluation crop of 0.9", "augment.py", "EVAL_CROP_PROPORTION = 0.875", "EVAL_CROP_PROPORTION = 0.9",
          "tests/golden/augment_golden_test.py -k eval"),
]


def main(wanted):
    missed = 0
    with tempfile.TemporaryDirectory() as scratch:
        copy = pathlib.Path(scratch) / "copy"
        shutil.copytree(ROOT, copy, ignore=shutil.ignore_patterns(".*", "runs", "build"))
        for fault in FAULTS:
            if wanted and not any(word in fault.name for word in wanted):
                continue
            path = copy / "simclr_tf" / fault.file
            text = path.read_text()
            count = text.count(fault.old)
            assert count == 1, f"{fault.name}: {fault.old!r} is in {fault.file} {count} times"
            path.write_text(text.replace(fault.old, fault.new))
            try:
                caught = failures(copy, fault.tests)
            finally:
                path.write_text(text)
            missed += not caught
            print(f"{'caught' if caught else 'MISSED'}  {fault.name} ({fault.file}): {', '.join(caught)}", flush=True)
    return missed


def failures(copy, tests):
    """Names of the tests that fail in `copy`."""
    arguments = tests.split(" -k ")
    arguments[1:] = ["-k", arguments[1].replace("-or-", " or ")] if arguments[1:] else []
    ran = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "--no-header", "-x", "-p", "no:cacheprovider", *arguments], cwd=copy,
        capture_output=True, text=True, check=False,
    )
    assert ran.returncode in (0, 1), ran.stdout + ran.stderr
    return [line.split()[1].removeprefix("tests/") for line in ran.stdout.splitlines() if line.startswith("FAILED")]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
