"""From sections to one self-contained page. The template escapes every text it is given."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Sequence

import jinja2
import tensorflow as tf

import simclr_tf
from simclr_tf import checkpoint
from simclr_tf.config import Config
from simclr_tf.report.elements import Section
from simclr_tf.report.parts import PARTS
from simclr_tf.report.run import describe, read_run

log = logging.getLogger(__name__)

NAME = "report.html"


def write_report(
    config: Config, *, title: str | None = None, lead: str | None = None, parts: Sequence[Callable] | None = None,
) -> str:
    """Writes `report.html` into `config.model_dir` from what is there, and returns its path.

    Args:
      config: the run's, as it was after following its checkpoint.
      title, lead: heading and line below it; default the folder's name and what was run on what.
      parts: functions Run -> Section | None; default `PARTS`.

    Raises:
      StorageError: the file cannot be written.
    """
    run = read_run(config)
    sections = [section for part in parts or PARTS if (section := part(run)) is not None]
    path = os.path.join(config.model_dir, NAME)
    name = os.path.basename(os.path.normpath(config.model_dir))
    flagfile = os.path.join(config.model_dir, "flags.flags")
    flagfile = flagfile if tf.io.gfile.exists(flagfile) else None  # an evaluation alone leaves none
    text = render(title or name, lead or describe(config), sections, flagfile)
    try:
        with tf.io.gfile.GFile(path, "w") as file:
            file.write(text)
    except (OSError, tf.errors.OpError) as error:
        raise checkpoint.storage_error(error, path) from error
    log.info("Report: %s", path)
    return path


def render(title: str, lead: str, sections: Sequence[Section], flagfile: str | None = None) -> str:
    """The HTML of a report; `flagfile` repeats the run. Every argument is plain text, never markup."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("simclr_tf"), autoescape=True, undefined=jinja2.StrictUndefined,
    )
    return environment.get_template(NAME).render(
        title=title, lead=lead, sections=sections, flagfile=flagfile, version=simclr_tf.__version__,
    )
