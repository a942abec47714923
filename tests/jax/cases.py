"""Recipes that are run on several backends: named here for the process that runs one and the tests that judge it."""

# Recorded from the reference: forward passes, and trainings that do not amplify rounding (tests/golden).
ARCHITECTURES = ("r18_1x_sk0_32px", "r18_1x_sk1_64px", "r34_1x_sk0_64px", "r34_1x_sk1_64px", "r50_1x_se25",
                 "r50_1x_sk0", "r50_1x_sk1", "r101_1x_sk0")
TRAJECTORIES = ("pretrain_lars", "finetune_lars_all", "finetune_momentum_after_block2")

_TINY = ("--resnet_depth=18", "--width_multiplier=0.25", "--image_size=16", "--train_batch_size=16", "--train_epochs=2",
         "--warmup_epochs=0", "--learning_rate=0.02", "--temperature=0.5", "--weight_decay=1e-4", "--proj_out_dim=16")
# They do not amplify rounding: the learning rate is small and the temperature high.
GENTLE = {
    "float32": _TINY, "bfloat16": (*_TINY, "--precision=mixed_bfloat16"), "cached": (*_TINY, "--micro_batch_size=8"),
}
RUN_ON = {1: ("float32", "bfloat16", "cached"), 2: ("float32", "cached"), 8: ("float32",)}  # number of devices
STEPS = 10
