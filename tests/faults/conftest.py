"""A tiny run to break, and the command in this process."""

import shutil

import pytest

from simclr_tf import cli

FEW = (
    "--dataset=digits", "--image_size=8", "--resnet_depth=18", "--width_multiplier=0.0625", "--train_batch_size=8",
    "--warmup_epochs=0", "--use_blur=False", "--proj_out_dim=8", "--num_proj_layers=1", "--train_summary_steps=1",
    "--keep_hub_module_max=-1", "--optimizer=momentum", "--learning_rate=0.1", "--eval_split=test[:16]",
    "--eval_batch_size=16",
)


@pytest.fixture(scope="session")
def few():
    """Flags of the smallest training there is."""
    return FEW


@pytest.fixture(scope="session")
def finished(tmp_path_factory):
    """The folder of a training of 4 steps with checkpoints at 2 and 4; not to be written to."""
    folder = tmp_path_factory.mktemp("finished") / "run"
    assert cli.main([*FEW, "--train_steps=4", "--checkpoint_steps=2", f"--model_dir={folder}"]) == 0
    return folder


@pytest.fixture
def run_dir(finished, tmp_path):
    """A copy of `finished` to break."""
    return shutil.copytree(finished, tmp_path / "run")


@pytest.fixture
def command(capfd, caplog):
    """`command(*flags) -> (exit code, what it said)`; never a traceback."""
    def run(*argv):
        capfd.readouterr()
        caplog.clear()
        with caplog.at_level("INFO"):
            code = cli.main([str(argument) for argument in argv])
        said = capfd.readouterr().err + caplog.text
        assert "Traceback" not in said
        return code, said

    return run
