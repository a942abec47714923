"""Compares this project with google-research/simclr on cases that are not recorded, and prints the largest differences.

Run by hand from the repository's root, in two environments because no TensorFlow runs both:

  SIMCLR_REFERENCE=<checkout>/tf2 python -m tests.golden.beyond_recorded record <file.npz> [ops forward steps] [word]
  python -m tests.golden.beyond_recorded compare <file.npz> [ops forward steps] [word]

The first needs the reference's (see reference.py), the second this project's. Words choose among the architectures and
steps those whose names hold one of them. docs/parity.md tells what came out.
"""

import collections
import importlib
import itertools
import sys

import numpy as np

from tests.golden.fill import fill, image_batch
from tests.golden.recorded import training_batch

# --- Cases ---------------------------------------------------------------------------------------------------------
NT_XENT = list(itertools.product((1, 2, 3, 17, 64), (0.05, 0.1, 0.5, 1.0, 5.0), (True, False), (1e-3, 1.0, 30.0)))
LARS_SHAPES = {
    "base_model/conv2d/kernel": (3, 3, 4, 8), "base_model/batch_normalization/gamma": (8,),
    "base_model/batch_normalization/beta": (8,), "head_contrastive/nl_0/dense/kernel": (8, 6),
    "head_supervised/linear_layer/dense/kernel": (8, 10), "head_supervised/linear_layer/dense/bias": (10,),
    "base_model/conv2d_1/kernel": (1, 1, 8, 8),
}
LARS = [  # learning rate, momentum, weight decay, Nesterov, classic momentum, eeta, excluded
    (0.3, 0.9, 1e-4, False, True, 1e-3, ["batch_normalization", "bias"]),
    (0.3, 0.9, 1e-4, False, True, 1e-3, ["batch_normalization"]), (0.3, 0.9, 1e-2, True, True, 1e-3, []),
    (0.3, 0.0, 1e-2, True, False, 1e-3, ["head_supervised"]),
    (5.0, 0.99, 0.0, False, False, 1e-2, ["batch_normalization", "bias", "head_supervised"]),
    (1.0, 1.0, 0.5, True, False, 1.0, ["kernel"]), (0.1, 0.5, 1.0, False, True, 10.0, ["conv2d_1"]),
    (0.0, 0.9, 1e-4, False, True, 1e-3, ["bias"]),
]
SCHEDULES = [  # batch size, epochs, steps, epochs of warm-up, examples
    (512, 100, 0, 10, 50000), (16, 1, 0, 0, 640), (16, 1, 0, 0.05, 640), (64, 0, 3, 0, 10), (64, 0, 1, 0, 1000),
    (256, 2, 0, 2, 1000), (256, 2, 0, 5, 1000), (7, 3, 0, 0.5, 100), (4096, 90, 0, 0, 1281167),
    (1024, 60, 0, 5, 12811), (100, 1, 0, 0.333, 1000), (8, 0, 10, 1, 80), (32, 1, 0, 1, 32), (64, 1, 0, 1, 32),
]
EVALUATION = [  # height, width, image_size, crop
    (1, 1, 8, True), (2, 3, 8, True), (7, 500, 32, True), (500, 7, 32, True), (33, 32, 32, True),
    (224, 224, 224, True), (225, 301, 224, True), (301, 225, 96, True), (9, 9, 33, True), (40, 41, 40, True),
    (4, 4, 4, True), (31, 57, 64, True), (96, 96, 96, True), (100, 75, 33, True), (1, 50, 16, True),
    (17, 16, 224, True), (3, 3, 2, True), (5, 12, 1, True), (32, 32, 32, False), (8, 8, 8, False), (17, 17, 17, False),
]
BLUR = list(itertools.product(((5, 5), (32, 32), (33, 20), (1, 9)), (0, 1, 2, 3, 4, 9, 22), (0.1, 0.5, 1, 2, 10)))
COLOUR = {
    "brightness_v1": (-1, -0.8, -0.01, 0, 0.3, 1), "brightness_v2": (0, 0.2, 1, 1.8, 2, 5),
    "contrast": (0, 0.2, 1, 1.8, 5, 50), "saturation": (0, 1e-3, 0.2, 1, 1.8, 5, 100),
    "hue": (-1, -0.5, -0.2, -1 / 6, 0, 0.05, 1 / 3, 0.5, 1), "grayscale": (0,),
}
FORWARD = {  # flags; the last is the image size
    "r18 width 2": "--resnet_depth=18 --width_multiplier=2 --image_size=32",
    "r18 SK": "--resnet_depth=18 --sk_ratio=0.0625 --image_size=64",
    "r34 SE": "--resnet_depth=34 --se_ratio=0.25 --image_size=32",
    "r18 SE SK": "--resnet_depth=18 --se_ratio=0.1 --sk_ratio=0.5 --image_size=50",
    "r50 SE SK": "--resnet_depth=50 --sk_ratio=0.25 --se_ratio=0.1 --image_size=40",
    "r50 width 2": "--resnet_depth=50 --width_multiplier=2 --image_size=32",
    "r50 SK CIFAR stem": "--resnet_depth=50 --sk_ratio=0.0625 --image_size=32",
    "r50 width 2 SK": "--resnet_depth=50 --width_multiplier=2 --sk_ratio=0.0625 --image_size=65",
    "r101 SK": "--resnet_depth=101 --sk_ratio=0.0625 --image_size=33",
    "r152": "--resnet_depth=152 --image_size=32",
    "r200": "--resnet_depth=200 --image_size=32",
    "1 projection layer": "--resnet_depth=18 --num_proj_layers=1 --proj_out_dim=64 --image_size=32",
    "4 layers, selector 4": "--resnet_depth=18 --num_proj_layers=4 --ft_proj_selector=4 --image_size=32",
    "2 layers, selector -1": "--resnet_depth=18 --num_proj_layers=2 --ft_proj_selector=-1 --image_size=32",
    "97 pixels": "--resnet_depth=18 --image_size=97",
    "local batch norm": "--resnet_depth=50 --global_bn=False --image_size=64",
}
IN_TRAINING = ("r18 width 2", "r18 SK", "r34 SE", "r18 SE SK", "r50 SE SK", "4 layers, selector 4", "local batch norm")
SMALL = "--resnet_depth=18 --image_size=32 --use_blur=False --train_batch_size=16 --train_epochs=1 --warmup_epochs=0 "
MOMENTUM, ADAM = "--optimizer=momentum --learning_rate=0.1 ", "--optimizer=adam --learning_rate=0.01 "
FINETUNE, PRETRAIN = "--train_mode=finetune " + SMALL, "--train_mode=pretrain " + SMALL
STEPS = {
    **{f"finetune momentum after block {block}":
       FINETUNE + MOMENTUM + f"--weight_decay=1e-3 --fine_tune_after_block={block}" for block in (-1, 0, 1, 2, 3)},
    **{f"finetune LARS after block {block}":
       FINETUNE + f"--learning_rate=1 --weight_decay=1e-3 --fine_tune_after_block={block}" for block in (0, 1, 3)},
    **{f"finetune LARS selector {k}":
       FINETUNE + f"--learning_rate=1 --weight_decay=1e-4 --ft_proj_selector={k}" for k in (2, 3, -1)},
    "finetune momentum selector 2 after block 1":
        FINETUNE + MOMENTUM + "--weight_decay=1e-3 --ft_proj_selector=2 --fine_tune_after_block=1",
    "finetune Adam": FINETUNE + ADAM + "--weight_decay=1e-3",
    "finetune Adam after block 2": FINETUNE + ADAM + "--weight_decay=0 --fine_tune_after_block=2",
    "finetune LARS local batch norm": FINETUNE + "--warmup_epochs=0.1 --learning_rate=2 --global_bn=False",
    "finetune SE sqrt": FINETUNE + "--se_ratio=0.25 --learning_rate=0.05 --learning_rate_scaling=sqrt",
    "pretrain Adam and linear": PRETRAIN + ADAM + "--weight_decay=1e-4",
    "pretrain without norm": PRETRAIN + MOMENTUM + "--hidden_norm=False --temperature=1 --weight_decay=1e-4",
    "pretrain selector 1": PRETRAIN + "--warmup_epochs=0.1 --learning_rate=1 --weight_decay=1e-4 --ft_proj_selector=1",
    "pretrain SK": PRETRAIN + "--learning_rate=1 --sk_ratio=0.0625 --batch_norm_decay=0.5 --momentum=0.5",
    "pretrain 1 layer": PRETRAIN + "--learning_rate=1 --num_proj_layers=1 --lineareval_while_pretraining=False",
    "pretrain local batch norm SE": PRETRAIN + "--learning_rate=1 --global_bn=False --se_ratio=0.25",
}
CLASSES, EXAMPLES = 10, 640


def normal(seed, shape, scale=1.0):
    return (scale * np.random.default_rng(seed).standard_normal(shape)).astype(np.float32)


def pictures():
    """Random ones, and those where colours meet their limits."""
    rng = np.random.default_rng(3)
    shape = (12, 9, 3)
    plane = rng.random(shape[:2])
    found = dict(
        random=rng.random(shape), black=np.zeros(shape), white=np.ones(shape), gray=np.full(shape, 0.5),
        grayscale=np.repeat(plane[..., None], 3, -1), corners=rng.integers(0, 2, shape), dim=1e-3 * rng.random(shape),
        one_pixel=rng.random((1, 1, 3)), grey_levels=rng.integers(0, 256, shape) / 255,
        two_equal=np.stack([plane, plane, rng.random(shape[:2])], -1),
    )
    return {name: picture.astype(np.float32) for name, picture in found.items()}


def steps_of(total):
    return sorted({*range(6), *np.linspace(0, total + 3, 40).astype(int).tolist(), total - 1, total, total + 1})


def evaluation_image(case):
    return np.random.default_rng(sum(case)).integers(0, 256, (*case[:2], 3)).astype(np.uint8)


def schedule_flags(scaling, case):
    batch_size, epochs, steps, warmup, _ = case
    return [f"--learning_rate_scaling={scaling}", f"--train_batch_size={batch_size}", f"--train_epochs={epochs}",
            f"--train_steps={steps}", f"--warmup_epochs={warmup}"]


# --- Two implementations of the same questions: each yields (what, case, array) ------------------------------------
def reference_ops():
    reference = importlib.import_module("tests.golden.reference")  # first: it makes the others importable
    import data_util
    import lars_optimizer
    import model as model_lib
    import objective
    import tensorflow as tf

    for case in NT_XENT:
        pairs, temperature, norm, scale = case
        z = tf.constant(normal(pairs, (2 * pairs, 16), scale))
        with tf.GradientTape() as tape:
            tape.watch(z)
            loss, logits, labels = objective.add_contrastive_loss(z, norm, temperature)
        p = tf.nn.softmax(logits)
        hits = tf.equal(tf.argmax(labels, 1), tf.argmax(logits, 1))
        yield "NT-Xent loss", case, loss
        yield "NT-Xent gradient", case, tape.gradient(loss, z)
        yield "NT-Xent logits", case, logits
        yield "contrastive accuracy", case, tf.reduce_mean(tf.cast(hits, tf.float32))
        yield "contrastive entropy", case, -tf.reduce_mean(tf.reduce_sum(p * tf.math.log(p + 1e-8), -1))
    for i, (rate, momentum, decay, nesterov, classic, eeta, excluded) in enumerate(LARS):
        optimizer = lars_optimizer.LARSOptimizer(
            rate, momentum, nesterov, decay, excluded, classic_momentum=classic, eeta=eeta,
        )
        variables = [tf.Variable(lars_start(j, name), name=name) for j, name in enumerate(LARS_SHAPES)]
        for k in range(6):
            optimizer.apply_gradients(zip(map(tf.constant, lars_gradients(k)), variables, strict=True))
            for variable, name in zip(variables, LARS_SHAPES, strict=True):
                yield "LARS", (i, k, name), variable
    for scaling, case in itertools.product(("linear", "sqrt"), SCHEDULES):
        reference.set_flags(schedule_flags(scaling, case))
        schedule = model_lib.WarmUpAndCosineDecay(0.3, case[-1])
        total = model_lib.get_train_steps(case[-1])
        yield "total steps", (scaling, case), total
        yield "learning rate", (scaling, case), [float(schedule(float(k))) for k in steps_of(total)]
    for case in EVALUATION:
        yield "evaluation", case, data_util.preprocess_image(
            tf.constant(evaluation_image(case)), case[2], case[2], is_training=False, test_crop=case[3])
    for case in BLUR:
        image = np.random.default_rng(1).random((*case[0], 3)).astype(np.float32)
        yield "blur", case, data_util.gaussian_blur(tf.constant(image), case[1], case[2])
    operations = dict(
        brightness_v1=tf.image.adjust_brightness, brightness_v2=lambda image, factor: image * factor,
        contrast=tf.image.adjust_contrast, saturation=tf.image.adjust_saturation, hue=tf.image.adjust_hue,
        grayscale=lambda image, _: data_util.to_grayscale(image),
    )
    for name, operation in operations.items():
        for factor, (kind, picture) in itertools.product(COLOUR[name], pictures().items()):
            yield name, (factor, kind), tf.clip_by_value(operation(tf.constant(picture), float(factor)), 0, 1)


def our_ops():
    import keras
    import tensorflow as tf

    import simclr_tf
    from simclr_tf import Config, augment, color_ops, losses
    from simclr_tf.step import make_schedule

    for case in NT_XENT:
        pairs, temperature, norm, scale = case
        z = tf.constant(normal(pairs, (2 * pairs, 16), scale))
        with tf.GradientTape() as tape:
            tape.watch(z)
            loss, logits = losses.nt_xent_and_logits(z, temperature, norm)
        accuracy, entropy = losses.contrastive_metrics(logits)
        yield "NT-Xent loss", case, loss
        yield "NT-Xent gradient", case, tape.gradient(loss, z)
        yield "NT-Xent logits", case, logits
        yield "contrastive accuracy", case, accuracy
        yield "contrastive entropy", case, entropy
    for i, (rate, momentum, decay, nesterov, classic, eeta, words) in enumerate(LARS):
        variables = {name: keras.Variable(lars_start(j, name)) for j, name in enumerate(LARS_SHAPES)}
        excluded = {id(v) for name, v in variables.items() if any(word in name for word in words)}
        optimizer = simclr_tf.LARS(
            rate, momentum, decay, nesterov, classic, eeta, lambda v, excluded=excluded: id(v) in excluded,
        )
        for k in range(6):
            optimizer.apply_gradients(zip(map(tf.constant, lars_gradients(k)), variables.values(), strict=True))
            for name, variable in variables.items():
                yield "LARS", (i, k, name), variable.numpy()
    for scaling, case in itertools.product(("linear", "sqrt"), SCHEDULES):
        config = Config.from_flags(["--learning_rate=0.3", *schedule_flags(scaling, case)])
        schedule, total = make_schedule(config, case[-1]), config.total_steps(case[-1])
        yield "total steps", (scaling, case), total
        yield "learning rate", (scaling, case), [float(schedule(k)) for k in steps_of(total)]
    for case in EVALUATION:
        yield "evaluation", case, augment.preprocess_for_eval(evaluation_image(case), case[2], case[3])
    for case in BLUR:
        image = np.random.default_rng(1).random((*case[0], 3)).astype(np.float32)
        yield "blur", case, color_ops.gaussian_blur(image, case[1], case[2])
    operations = dict(
        brightness_v1=color_ops.brightness_add, brightness_v2=color_ops.brightness_multiply,
        contrast=color_ops.contrast, saturation=color_ops.saturation, hue=color_ops.hue,
        grayscale=lambda image, _: color_ops.grayscale(image),
    )
    for name, operation in operations.items():
        for factor, (kind, picture) in itertools.product(COLOUR[name], pictures().items()):
            yield name, (factor, kind), np.clip(operation(picture, float(factor)), 0, 1)


def lars_start(j, name):
    return np.zeros(LARS_SHAPES[name], np.float32) if name.endswith("conv2d_1/kernel") else normal(j, LARS_SHAPES[name])


def lars_gradients(k):
    """Of step k; those of the third are zero."""
    return [normal(500 + 10 * k + j, shape, scale=k != 2) for j, shape in enumerate(LARS_SHAPES.values())]


def reference_forward():
    import tensorflow as tf

    from tests.golden import reference

    for name, flags in FORWARD.items():
        size = int(flags.rpartition("=")[2])
        arguments = ["--train_mode=finetune", *flags.split()]
        model, variables = reference.build(arguments, CLASSES, tf.distribute.get_strategy())

        def outputs(images, training, model=model):
            h = model.resnet_model(images, training=training)
            z, selected = model._projection_head(h, training)
            return {"h": h, "z": z, "logits": model.supervised_head(selected, training)}

        yield from forward_answers(name, size, outputs, lambda v=variables: {k: v[k].numpy() for k in v})


def our_forward():
    from simclr_tf import Config, make_model, set_from_tf1
    from simclr_tf.model import named_variables

    for name, flags in FORWARD.items():
        size = int(flags.rpartition("=")[2])
        model = make_model(Config.from_flags(["--train_mode=finetune", *flags.split()]), CLASSES)
        set_from_tf1(model, fill)

        def outputs(images, training, model=model):
            found = model(images, training=training)
            return {"h": found["final_avg_pool"], "z": found["proj_head_output"], "logits": found["logits_sup"]}

        yield from forward_answers(
            name, size, outputs, lambda m=model: {i.name: i.variable.numpy() for i in named_variables(m)})


def forward_answers(name, size, outputs, variables):
    yield "names and shapes", name, [f"{k} {v.shape}" for k, v in sorted(variables().items())]
    for key, value in outputs(image_batch(2, size, seed=7), False).items():
        yield f"inference: {key}", name, value
    if name in IN_TRAINING:
        for key, value in outputs(image_batch(8, size, seed=8), True).items():
            yield f"training: {key}", name, value
        for key, value in variables().items():
            if "moving" in key:
                yield "training: moving statistics", (name, key), value


def reference_steps():
    import tensorflow as tf

    from tests.golden import reference

    tf.config.run_functions_eagerly(True)  # one step does not pay for compiling it
    for name, flags in STEPS.items():
        case = dict(flags=flags.split(), replicas=1, num_classes=CLASSES, num_examples=EXAMPLES, steps=1)
        _, after, losses = next(reference.trajectories(case, [0]))
        yield from first_step_answers(name, after, losses[0])


def our_steps():
    import tensorflow as tf

    from simclr_tf import Config, make_model, make_optimizer, set_from_tf1, train_step
    from simclr_tf.model import named_variables

    for name, flags in STEPS.items():
        config = Config.from_flags(flags.split())
        model = make_model(config, CLASSES)
        set_from_tf1(model, fill)
        optimizer = make_optimizer(config, model, EXAMPLES)
        images, labels = training_batch(0, config.train_batch_size, config.image_size, "pretrain" in flags)
        losses = train_step(model, optimizer, tf.constant(images), tf.constant(labels), config)
        after = {item.name: item.variable.numpy() for item in named_variables(model)}
        yield from first_step_answers(name, after, losses)


def first_step_answers(name, after, losses):
    for term in ("contrastive", "supervised", "weight_decay"):
        yield f"first step: {term}", name, losses[term]
    for key, value in after.items():
        yield "first step: changes", (name, key), value - fill(key, value.shape)


# --- Comparison ----------------------------------------------------------------------------------------------------
REFERENCE = dict(ops=reference_ops, forward=reference_forward, steps=reference_steps)
OURS = dict(ops=our_ops, forward=our_forward, steps=our_steps)
ABSOLUTE = {"evaluation", "blur", *COLOUR, "contrastive accuracy", "contrastive entropy"}


def difference(what, found, expected):
    """Absolute where values are within [0, 1], else of the largest value."""
    if expected.dtype.kind == "U":
        return 0.0 if found.tolist() == expected.tolist() else np.inf
    error = np.nanmax(np.abs(found.astype(np.float64) - expected))
    return error if what in ABSOLUTE else error / max(np.nanmax(np.abs(expected)), 1e-7)


def main(action, path, *words):
    parts = [word for word in words if word in REFERENCE]
    if words := [word for word in words if word not in REFERENCE]:
        for cases in (FORWARD, STEPS):
            for name in [name for name in cases if not any(word in name for word in words)]:
                del cases[name]
    answers = {
        f"{what}|{case}": np.asarray(value)
        for part in parts or REFERENCE
        for what, case, value in {"record": REFERENCE, "compare": OURS}[action][part]()
    }
    if action == "record":
        return np.savez_compressed(path, **answers)
    recorded, errors = np.load(path), collections.defaultdict(list)
    for key, found in answers.items():
        what, _, case = key.partition("|")
        errors[what].append((difference(what, found, recorded[key]), case))
        if recorded[key].dtype.kind == "f" and np.isnan(recorded[key]).any():
            print(f"{key}: the reference's is partly not a number")
    for what, found in errors.items():
        largest, case = max(found)
        print(f"{what}: {len(found)} compared, largest difference {largest:.1e} ({case})")


if __name__ == "__main__":
    main(*sys.argv[1:])
