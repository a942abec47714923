"""The training step of every mode as XLA has to have it, which is what a TPU runs: compiled whole, shapes known.

`jit_compile=True` refuses an operation that has no XLA kernel, one that runs on the host included. XLA also refuses to
guess shapes on a TPU, where the CPU's is more lenient, so that those are checked in the graph.
"""

import os

import numpy as np
import pytest
import tensorflow as tf

from simclr_tf import Config, distillation, losses, make_model, make_optimizer
from simclr_tf.step import update
from simclr_tf.strategy import mirrored

BATCH, SIZE, CLASSES = 8, 16, 10

MODES = {
    "pretrain": ["--lineareval_while_pretraining=False"],
    "pretrain with linear evaluation": [],
    "finetune": ["--train_mode=finetune", "--optimizer=momentum"],
    "linear": ["--train_mode=finetune", "--fine_tune_after_block=4", "--optimizer=adam"],
    "distill": ["--train_mode=distill", "--teacher={pretrained}", "--distill_weight=0.5"],
}
if "micro_batch_size" in Config.__dataclass_fields__:
    MODES["pretrain in pieces"] = ["--micro_batch_size=4"]
# float32 adds up in another order under XLA; bfloat16 has 8 bits and rounds at other places.
TOLERANCE = {"float32": 1e-4, "mixed_bfloat16": 2e-2}


@pytest.fixture(scope="module", autouse=True)
def quick_compiler():
    """XLA without its optimizations of machine code, which take most of a minute a step here and are not looked at."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XLA_FLAGS", f"{os.environ.get('XLA_FLAGS', '')} --xla_backend_optimization_level=0".strip())
        yield


def parts(flags, tiny, pretrained, strategy=None):
    """Config, model, optimizer, teacher and a batch."""
    flags = [f.replace("{pretrained}", pretrained) for f in flags]
    fixed = [f"--train_batch_size={BATCH}", "--learning_rate=0.05", "--train_steps=5"]
    config = Config.from_flags([*tiny, *fixed, *flags])
    with (strategy or tf.distribute.get_strategy()).scope():
        teacher = distillation.load_teacher(config) if config.teacher else None
        model = make_model(config, CLASSES if config.linear_eval else None)
        optimizer = make_optimizer(config, model, 100)
    channels = 6 if config.train_mode == "pretrain" else 3
    rng = np.random.default_rng(0)
    images = rng.random((BATCH, SIZE, SIZE, channels)).astype(np.float32)
    batch = {"images": tf.constant(images), "labels": tf.constant(rng.integers(0, CLASSES, BATCH), tf.int32)}
    return config, model, optimizer, teacher, batch


def one_step(config, model, optimizer, teacher):
    """The training step of the loop: losses and metrics, gradients, the optimizer's update, moving statistics."""

    @tf.autograph.experimental.do_not_convert
    def step(batch):
        terms, metrics = update(
            model, optimizer, batch["images"], batch["labels"] if model.supervised_head else None, config, teacher
        )
        return terms | metrics

    return step


def compiled(step):
    return tf.function(step, jit_compile=True, autograph=False)


def unknown_shapes(graph) -> list[str]:
    """Tensors of a graph, functions within it included, whose shapes are known only when they are computed."""
    found = []
    for part in [graph, *(f.graph for f in graph._functions.values() if hasattr(f, "graph"))]:
        for op in part.get_operations():
            found += [f"{t.name} {t.shape}" for t in op.outputs
                      if t.dtype not in (tf.resource, tf.variant) and not t.shape.is_fully_defined()
                      and "redundant_placeholder" not in t.name]  # inputs of a loop's condition that it does not read
    return found


@pytest.mark.parametrize("name", MODES)
@pytest.mark.parametrize("precision", [
    "float32", pytest.param("mixed_bfloat16", marks=pytest.mark.long),
])
def test_step_compiles_and_computes_the_same(name, precision, tiny, pretrained):
    check_compiled(name, precision, tiny, pretrained)


def test_bfloat16_step_compiles_and_computes_the_same(tiny, pretrained):
    """One of the long ones, always."""
    check_compiled("pretrain with linear evaluation", "mixed_bfloat16", tiny, pretrained)


def check_compiled(name, precision, tiny, pretrained):
    losses_of = {}
    for how in (compiled, tf.function):
        config, model, optimizer, teacher, batch = parts([*MODES[name], f"--precision={precision}"], tiny, pretrained)
        step = one_step(config, model, optimizer, teacher)
        step = how(step)
        losses_of[how] = [step(batch) for _ in range(2)]  # the second sees the first's update
    for here, there in zip(losses_of[compiled], losses_of[tf.function], strict=True):
        for term in ("contrastive", "supervised", "distillation", "weight_decay", "total"):
            np.testing.assert_allclose(here[term], there[term], rtol=TOLERANCE[precision], atol=1e-7, err_msg=term)
        assert np.isfinite(here["total"])


@pytest.mark.parametrize("replicas", [1, 2])
@pytest.mark.parametrize("name", MODES)
def test_shapes_are_known_beforehand(name, replicas, tiny, pretrained):
    """Also of what replicas say to each other."""
    strategy = mirrored(("CPU:0", "CPU:1")) if replicas == 2 else tf.distribute.get_strategy()
    config, model, optimizer, teacher, batch = parts(MODES[name], tiny, pretrained, strategy)
    step = one_step(config, model, optimizer, teacher)

    @tf.function(autograph=False)
    def run():
        return strategy.run(step, (batch,))

    assert unknown_shapes(run.get_concrete_function().graph) == []


# --- What the tests above are worth: each of these has to make them fail ---------------------------------------------


def host_op(labels, logits):
    return tf.numpy_function(lambda x: np.float32(x.mean()), [logits], tf.float32) + tf.reduce_mean(logits)


def string_op(labels, logits):
    return tf.strings.to_number(tf.strings.as_string(tf.reduce_mean(logits)))


def data_dependent_shape(labels, logits):
    return tf.reduce_mean(tf.boolean_mask(logits, logits > 0))


@pytest.mark.parametrize("planted", [host_op, string_op])
def test_an_uncompilable_op_is_noticed(planted, tiny, pretrained, monkeypatch):
    config, model, optimizer, teacher, batch = parts(MODES["linear"], tiny, pretrained)
    monkeypatch.setattr(losses, "supervised_loss", planted)
    step = one_step(config, model, optimizer, teacher)
    with pytest.raises(tf.errors.InvalidArgumentError, match="unsupported operations"):
        compiled(step)(batch)


def test_an_unknown_shape_is_noticed(tiny, pretrained, monkeypatch):
    config, model, optimizer, teacher, batch = parts(MODES["linear"], tiny, pretrained)
    monkeypatch.setattr(losses, "supervised_loss", data_dependent_shape)
    step = one_step(config, model, optimizer, teacher)
    graph = tf.function(step, autograph=False).get_concrete_function(batch).graph
    assert unknown_shapes(graph)
