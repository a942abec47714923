"""The command line: absl flags made from `Config`'s fields, and `Config` made from parsed flags.

The only module besides `cli.py` that knows of flags. Flagfiles are expanded here, not by absl: absl lets a
flagfile win over flags typed before it, resolves nested files against the working directory, and
takes an indented comment for a positional argument. Here the command line always wins over files, nested files are
relative to the file that names them, and comments may be indented.
"""

from __future__ import annotations

import dataclasses
import os
import textwrap
import typing

from absl import flags

from simclr_tf.config import Config, flag_fields
from simclr_tf.errors import ConfigError

HELP_FLAGS = ("--help", "-h", "-help", "--helpshort", "--helpfull", "-?")
MAX_FLAGFILE_BYTES = 1 << 20


def parse(argv: list[str]) -> Config:
    """Makes the config of a command line (program name left out).

    Raises:
      ConfigError: an unknown flag, an illegal value, a positional argument, or an unreadable flagfile.
    """
    values = _define_flags()
    try:
        leftover = values(["simclr-tf", *_expand(argv)])[1:]
    except flags.Error as error:
        raise ConfigError(f"{error}. See --help for the flags there are.") from error
    if leftover:
        raise ConfigError(
            f"Every argument must be a flag with its value after '='. Received: {leftover[0]!r}. Write for example "
            "--use_tpu=False, not --use_tpu False."
        )
    given = frozenset(f.name for f in flag_fields() if values[f.name].present)
    return Config(**{f.name: values[f.name].value for f in flag_fields()}, given=given)


def help_text() -> str:
    """All flags, grouped by topic, with type, default and range."""
    lines = ["usage: run.py --flag=value ...      (also installed as simclr-tf)", ""]
    topics: dict[str, list] = {}
    for field in flag_fields():
        topics.setdefault(field.metadata["topic"], []).append(field)
    topics["Running"].append("  --flagfile=<path>\n      Read flags from a file, one a line; flags given here win.")
    for topic, fields in topics.items():
        lines.append(f"{topic}:")
        lines.extend(f if isinstance(f, str) else _help_entry(f) for f in fields)
        lines.append("")
    return "\n".join(lines)


def to_flagfile(config: Config) -> str:
    """`config` as the text of a flagfile that `parse` turns into an equal config."""
    lines = []
    for field in flag_fields():
        value = getattr(config, field.name)
        if value is not None and field.name != "dry_run":
            lines.append(f"--{field.name}={str(value).lower() if isinstance(value, bool) else value}")
    return "\n".join(lines) + "\n"


def _help_entry(field: dataclasses.Field) -> str:
    meta = field.metadata
    notes = [f"default: {'none' if field.default is None else field.default}"]
    if meta["choices"]:
        notes.append("one of " + ", ".join(meta["choices"]))
    for key in ("above", "at_least", "at_most"):
        if meta[key] is not None:
            notes.append(f"{key.replace('_', ' ')} {meta[key]}")
    text = textwrap.fill(f"{meta['help']} ({'; '.join(notes)})", 100, initial_indent="      ",
                         subsequent_indent="      ")
    return f"  --{field.name}\n{text}"


def _define_flags() -> flags.FlagValues:
    values = flags.FlagValues()
    types = typing.get_type_hints(Config)
    for field in flag_fields():
        kinds = set(typing.get_args(types[field.name]) or (types[field.name],)) - {type(None)}
        common = dict(name=field.name, default=field.default, help=field.metadata["help"], flag_values=values)
        if field.metadata["choices"]:
            flags.DEFINE_enum(enum_values=list(field.metadata["choices"]), **common)
        elif kinds == {bool}:
            flags.DEFINE_bool(**common)
        elif kinds == {int}:
            flags.DEFINE_integer(**common)
        elif kinds == {float}:
            flags.DEFINE_float(**common)
        else:
            flags.DEFINE_string(**common)
    return values


def _expand(argv: list[str]) -> list[str]:
    """Replaces `--flagfile` arguments by what the files hold, put first so that the command line wins."""
    from_files: list[str] = []
    typed: list[str] = []
    arguments = iter(argv)
    for argument in arguments:
        name, equals, path = argument.partition("=")
        if name in ("--flagfile", "-flagfile"):
            path = path if equals else next(arguments, "")
            from_files += _read_flagfile(path, "", ())
        else:
            typed.append(argument)
    return from_files + typed


def _read_flagfile(path: str, folder: str, parents: tuple[str, ...]) -> list[str]:
    """The flags in the file `path`, relative to `folder`, with the files it names in their place."""
    if not path:
        raise ConfigError("--flagfile needs a path. Write --flagfile=flags/demo.flags.")
    full = os.path.normpath(os.path.join(folder, os.path.expanduser(path)))
    if full in parents:
        raise ConfigError(f"A flagfile must not include itself. Received: {' -> '.join([*parents, full])}.")
    try:
        if os.path.getsize(full) > MAX_FLAGFILE_BYTES:
            raise ConfigError(f"A flagfile must be a short text. Received: {full}, over {MAX_FLAGFILE_BYTES} bytes.")
        with open(full, encoding="utf-8") as file:
            lines = file.read().splitlines()
    except (OSError, ValueError) as error:
        named = f" (named in {parents[-1]})" if parents else ""
        raise ConfigError(f"A flagfile must be a readable text. Received: {full}{named}: {error}.") from error
    arguments: list[str] = []
    for number, line in enumerate(lines, 1):
        line = line.strip()
        if not line or line.startswith(("#", "//")):
            continue
        if not line.startswith("-"):
            raise ConfigError(f"Each line of a flagfile must be a flag or a comment. Received: {full}:{number}: {line}")
        name, _, value = line.partition("=")
        if name in ("--flagfile", "-flagfile"):
            arguments += _read_flagfile(value, os.path.dirname(full), (*parents, full))
        else:
            arguments.append(line)
    return arguments
