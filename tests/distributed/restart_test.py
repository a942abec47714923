"""Two workers over loopback that are stopped, killed and started again: the run goes on and ends as an unbroken one."""

import signal

import numpy as np
import pytest

from tests.distributed.job import GENTLE, Job, steps_saved, variables

STEPS = 60  # of 90 in an epoch: all of it is in the middle of one


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("restart")


def command(folder, name):
    flags = [*GENTLE, "--mode=train", f"--train_steps={STEPS}", "--checkpoint_steps=5", f"--model_dir={folder / name}"]
    return ["run.py", *flags]


@pytest.fixture(scope="module")
def unbroken(folder):
    with Job(folder / "unbroken_logs", command(folder, "unbroken")) as job:
        assert job.end() == [0, 0], job.story()
    return variables(folder / "unbroken", STEPS, "")


@pytest.mark.long  # minutes: the processes start four times
def test_stopped_together_then_one_killed(folder, unbroken):
    model_dir = folder / "broken"
    # SIGTERM to the one that is not the chief: both stop at the same step, which is saved.
    with Job(folder / "stopped", command(folder, "broken")) as job:
        job.until(lambda: steps_saved(model_dir))
        job.kill(1, signal.SIGTERM)
        assert job.end() == [143, 143], job.story()
        said = [job.log(worker).read_text() for worker in (0, 1)]
    stopped = steps_saved(model_dir)[-1]
    assert stopped < STEPS
    for text in said:
        assert f"SIGTERM: saved a checkpoint at step {stopped} of {STEPS}" in text

    # kill -9, and a scheduler that starts again whatever ended badly.
    with Job(folder / "killed", command(folder, "broken"), restarts=3) as job:
        job.until(lambda: steps_saved(model_dir)[-1] > stopped)
        job.kill(1, signal.SIGKILL)
        assert job.end() == [0, 0], job.story()
        assert job.codes[1][0] == -signal.SIGKILL and job.codes[0][0] == 6, (job.codes, job.story())
        assert "Another worker is gone" in job.log(0, 0).read_text()
        assert "Resuming from" in job.log(0, 1).read_text()

    ended = variables(model_dir, STEPS, "")
    assert ended.keys() == unbroken.keys()
    for name, value in unbroken.items():
        np.testing.assert_array_equal(ended[name], value, err_msg=name)
