"""The progress line, and what it says of an input pipeline that is too slow."""

import logging

import pytest

from simclr_tf.summaries import BOTTLENECK, STEPS_TO_JUDGE, Progress


def progress_after(waited, steps=STEPS_TO_JUDGE + 1):
    progress = Progress(0, 100, 8, 10)
    for step in range(1, steps + 1):
        progress.advance(step, 2.0, waited)
    return progress


@pytest.mark.parametrize(("share", "said"), [(BOTTLENECK + 0.05, True), (BOTTLENECK - 0.05, False)])
def test_a_slow_input_pipeline_is_said_once_and_in_the_line(share, said, caplog):
    with caplog.at_level(logging.WARNING):
        progress = progress_after(2.0 * share, steps=3 * STEPS_TO_JUDGE)
    assert ("waiting for images" in progress.line({})) == said
    assert sum("input pipeline is the bottleneck" in record.message for record in caplog.records) == said
    assert progress.input_share == pytest.approx(share)


def test_the_first_steps_wait_for_buffers_to_fill_and_do_not_count(caplog):
    progress = Progress(0, 100, 8, 10)
    progress.advance(1, 60.0, 59.0)
    assert progress.input_share == 0
    for step in range(2, STEPS_TO_JUDGE + 2):
        progress.advance(step, 1.0, 0.0)
    assert not caplog.records
    assert "8 img/s" in progress.line({}) or "8.0 img/s" in progress.line({})
