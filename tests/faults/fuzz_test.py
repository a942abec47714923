"""Whatever flags, flagfiles and image bytes are given: a documented exit code, no traceback, no hang."""

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import HealthCheck, given, settings

from simclr_tf import Config, cli, images
from simclr_tf.errors import ConfigError, DataError
from tests.faults import fuzz

QUICK = settings(max_examples=150, deadline=None, derandomize=True, database=None,
                 suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])


@pytest.mark.fault("random flag combinations", "exit 0 or 2 to 5 with a message")
def test_random_flags_parse_or_say_why(record_property):
    @QUICK
    @given(fuzz.command_lines(most=8))
    def check(argv):
        try:
            config = Config.from_flags(argv)
        except ConfigError as error:
            assert "--" in str(error)  # names a flag
        else:
            assert config == Config.from_flags(argv)

    check()
    record_property("tried", QUICK.max_examples)


@pytest.mark.fault("random flag combinations", "exit 0 or 2 to 5 with a message")
def test_random_commands_end_with_a_documented_code(tmp_path, monkeypatch, capfd, record_property):
    few = settings(QUICK, max_examples=12)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "images").mkdir()
    for i in range(4):
        (tmp_path / "images" / f"{i}.png").write_bytes(tf.io.encode_png(np.full([9, 9, 3], 60 * i, np.uint8)).numpy())
    runs = []

    @few
    @given(fuzz.command_lines(most=4))
    def check(argv):
        runs.append(argv)
        code = cli.main([*argv, f"--model_dir=run{len(runs)}"])
        said = capfd.readouterr().err
        assert code in fuzz.DOCUMENTED, (code, argv, said)
        assert "Traceback" not in said

    check()
    record_property("tried", len(runs))


@pytest.mark.fault("random bytes as flagfile", "read, or exit 2 naming file and line")
def test_random_flagfiles(tmp_path, record_property):
    @QUICK
    @given(fuzz.flagfiles())
    def check(content):
        (tmp_path / "it.flags").write_bytes(content)
        try:
            Config.from_flags([f"--flagfile={tmp_path / 'it.flags'}"])
        except ConfigError as error:
            assert str(error)

    check()
    record_property("tried", QUICK.max_examples)


@pytest.mark.fault("random bytes as image", "decoded to a picture, or named as unreadable")
def test_random_images(record_property):
    decode = tf.function(images.decode, input_signature=[tf.TensorSpec([], tf.string)])

    @QUICK
    @given(fuzz.images())
    def check(content):
        try:
            picture = decode(content).numpy()
        except (tf.errors.OpError, DataError):
            return
        assert picture.dtype == np.uint8 and picture.ndim == 3 and picture.shape[2] == 3 and picture.size

    check()
    record_property("tried", QUICK.max_examples)
