"""What a study tells of nearest neighbours; that they are the nearest is `neighbours_test.py`'s matter."""

import numpy as np
import pytest

from simclr_tf import Config, study_neighbours


def test_the_section_shows_queries_of_as_many_classes(pretrained, tiny):
    config = Config.from_flags([*tiny, f"--model_dir={pretrained}", "--mode=train"])
    section = study_neighbours.section(config)
    table = section.tables[0]
    assert len({row[0] for row in table.rows}) == len(table.rows) == study_neighbours.QUERIES
    assert all(len(row[1].split(", ")) == study_neighbours.NEIGHBOURS for row in table.rows)
    assert section.pictures[0].source.startswith("data:image/png")
    assert "of the same class" in section.note and "by chance" in section.note


def test_nothing_is_told_of_a_run_without_a_checkpoint(tiny, tmp_path):
    assert study_neighbours.section(Config.from_flags([*tiny, f"--model_dir={tmp_path}"])) is None


@pytest.mark.parametrize("labels", [[3, 3, 1, 0, 1], list(range(20))])
def test_queries_are_of_different_classes(labels):
    found = study_neighbours._first_of_each_class(np.array(labels))
    assert len(set(np.array(labels)[found])) == len(found) == min(study_neighbours.QUERIES, len(set(labels)))
