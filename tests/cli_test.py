"""Exit codes and messages of the command, in this process; start-up in a process of its own."""

import subprocess
import sys

import pytest

from simclr_tf import cli


def run(capfd, *argv):
    code = cli.main(list(argv))
    captured = capfd.readouterr()
    assert "Traceback" not in captured.err
    return code, captured.out, captured.err


def test_help_answers_without_tensorflow():
    script = "import sys; from simclr_tf.cli import main; assert main(['--help']) == 0"
    script += "; assert 'keras' not in sys.modules"
    script += "; assert 'tensorflow' not in sys.modules and 'jax' not in sys.modules"
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert "--train_batch_size" in result.stdout


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["--use_tpu", "False"], "--use_tpu=False"),
        (["--temperature=0"], "--temperature must be above 0"),
        (["--dataset=digits"], "--model_dir"),
        (["--dataset=digits", "--use_tpu=True", "--model_dir={tmp}"], "TPU"),
        (["--dataset=digits", "--strategy=gpu", "--model_dir={tmp}"], "GPU"),
        (["--dataset=digits", "--strategy=multi_worker", "--model_dir={tmp}"], "TF_CONFIG"),
        (["--dataset=folder:/nonexistent", "--model_dir={tmp}"], "/nonexistent"),
        (["--dataset=no_such_set", "--model_dir={tmp}"], "no_such_set"),
        (["--dataset=digits", "--train_split=holdout", "--model_dir={tmp}"], "holdout"),
    ],
)
def test_usage_errors_are_exit_2(capfd, tmp_path, argv, words):
    code, _, err = run(capfd, *(a.replace("{tmp}", str(tmp_path)) for a in argv))
    assert code == 2
    assert words in err


def test_another_backend_of_keras_is_exit_2(capfd, tmp_path, monkeypatch):
    monkeypatch.setenv("KERAS_BACKEND", "torch")
    code, _, err = run(capfd, "--dataset=digits", f"--model_dir={tmp_path}")
    assert code == 2
    assert "KERAS_BACKEND must be tensorflow or jax. Received: KERAS_BACKEND=torch" in err


def test_a_model_dir_that_is_a_file_is_exit_2(capfd, tmp_path):
    (tmp_path / "file").write_text("")
    code, _, err = run(capfd, "--dataset=digits", f"--model_dir={tmp_path / 'file'}")
    assert code == 2 and "there is a file" in err
    code, _, err = run(capfd, "--dataset=digits", f"--model_dir={tmp_path / 'file' / 'below'}")
    assert code == 2


def test_a_missing_checkpoint_is_exit_3(capfd, tmp_path, tiny):
    flags = [*tiny, "--train_mode=finetune", f"--model_dir={tmp_path}"]
    code, _, err = run(capfd, *flags, "--checkpoint=/nonexistent/run")
    assert code == 3 and "/nonexistent/run" in err


def test_dry_run_tells_and_writes_nothing(capfd, tmp_path, tiny):
    code, out, _ = run(capfd, *tiny, "--dry_run", f"--model_dir={tmp_path / 'run'}")
    assert code == 0
    for words in ("--resnet_depth=18", "parameters", "base_model/conv2d/kernel (3, 3, 3, 16)  decay, adapt",
                  "head_supervised/linear_layer/dense/kernel (128, 10)  decay\n", "per epoch"):
        assert words in out
    assert not (tmp_path / "run").exists()


def test_a_bug_is_exit_1_with_its_traceback(capfd, monkeypatch, tmp_path):
    monkeypatch.setitem(cli.MODES, "train", ("simclr_tf.errors", "no_such_function"))
    assert cli.main(["--dataset=digits", f"--model_dir={tmp_path}"]) == 1
    assert "this is a bug" in capfd.readouterr().err


def test_running_out_of_memory_is_exit_2_and_says_what_to_lower(capfd, monkeypatch, tmp_path):
    import tensorflow as tf

    from simclr_tf import training

    def too_large(config):
        raise tf.errors.ResourceExhaustedError(None, None, "OOM when allocating tensor with shape[4096,224,224,64]")

    monkeypatch.setattr(training, "train", too_large)
    code, _, err = run(capfd, "--dataset=digits", f"--model_dir={tmp_path}")
    assert code == 2
    assert "shape[4096,224,224,64]" in err and "--train_batch_size" in err
