"""The command line and flagfiles: every mistake is named, and the command line wins."""

import pytest

from simclr_tf import options
from simclr_tf.config import Config, flag_fields
from simclr_tf.errors import ConfigError


def write(path, text):
    path.write_text(text)
    return str(path)


def test_flags_become_settings():
    c = options.parse(["--train_batch_size=64", "--nouse_blur", "--use_tpu=False", "--width_multiplier=0.25"])
    assert (c.train_batch_size, c.use_blur, c.use_tpu, c.width_multiplier) == (64, False, False, 0.25)


def test_defaults_are_those_of_config():
    assert options.parse([]) == Config()


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["--use_tpu", "False"], ["'False'", "--use_tpu=False"]),
        (["train"], ["'train'", "flag"]),
        (["--batch_size=3"], ["Unknown command line flag 'batch_size'", "--help"]),
        (["--train_batch_size=many"], ["train_batch_size", "many"]),
        (["--train_batch_size=1.5"], ["train_batch_size", "1.5"]),
        (["--temperature=nan"], ["finite", "nan"]),
        (["--mode=fly"], ["mode", "fly"]),
        (["--use_blur=perhaps"], ["use_blur", "perhaps"]),
        (["--flagfile="], ["--flagfile"]),
        (["--flagfile"], ["--flagfile"]),
        (["--flagfile=/nonexistent/x.flags"], ["/nonexistent/x.flags"]),
    ],
)
def test_mistakes_are_config_errors_that_name_the_value(argv, words):
    with pytest.raises(ConfigError) as caught:
        options.parse(argv)
    for word in words:
        assert word in str(caught.value)


@pytest.mark.parametrize("file_first", [True, False])
def test_the_command_line_wins_over_a_flagfile_on_either_side_of_it(tmp_path, file_first):
    path = write(tmp_path / "a.flags", "--seed=1\n--train_epochs=2\n")
    argv = [f"--flagfile={path}", "--seed=5"]
    config = options.parse(argv if file_first else argv[::-1])
    assert (config.seed, config.train_epochs) == (5, 2)


def test_nested_flagfiles_are_relative_to_the_file_that_names_them(tmp_path, monkeypatch):
    (tmp_path / "deep").mkdir()
    write(tmp_path / "deep" / "base.flags", "--seed=3\n")
    text = "  # indented comment\n\n// another\n--flagfile=base.flags\n--momentum=0.5\n"
    path = write(tmp_path / "deep" / "top.flags", text)
    monkeypatch.chdir("/")
    config = options.parse([f"--flagfile={path}"])
    assert (config.seed, config.momentum) == (3, 0.5)


def test_flagfiles_that_include_each_other_are_an_error(tmp_path):
    a = write(tmp_path / "a.flags", "--flagfile=b.flags\n")
    write(tmp_path / "b.flags", "--flagfile=a.flags\n")
    with pytest.raises(ConfigError, match="include itself"):
        options.parse([f"--flagfile={a}"])


@pytest.mark.parametrize("content", [b"seed=3\n", b"\xff\xfe\x00binary", b"--seed=3 # trailing\n"])
def test_a_flagfile_that_is_none_is_an_error(tmp_path, content):
    path = tmp_path / "x.flags"
    path.write_bytes(content)
    with pytest.raises(ConfigError):
        options.parse([f"--flagfile={path}"])


def test_a_resolved_flagfile_repeats_the_config(tmp_path):
    config = Config(seed=7, use_blur=False, width_multiplier=0.25, dataset="folder:/a b", model_dir="/tmp/x y")
    path = write(tmp_path / "flags.flags", options.to_flagfile(config))
    assert options.parse([f"--flagfile={path}"]) == config


def test_help_names_every_flag_under_its_topic():
    text = options.help_text()
    for field in flag_fields():
        assert f"  --{field.name}\n" in text
        assert f"{field.metadata['topic']}:\n" in text
