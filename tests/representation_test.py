"""The report's look at the representation: computed from a checkpoint, kept, shown, and never in the way."""

import numpy as np
import pytest

from simclr_tf import Config, checkpoint, health, released, report, representation
from simclr_tf.augment import preprocess_for_eval
from simclr_tf.data import open_source


@pytest.fixture(scope="module")
def found(pretrained, tmp_path_factory):
    folder = tmp_path_factory.mktemp("look")
    config = Config(mode="eval", dataset="digits", eval_split="nowhere", train_split="test", eval_batch_size=16,
                    checkpoint=pretrained, report_images=24, model_dir=str(folder))
    representation.record(config)
    return config, representation.read(str(folder))


def test_it_is_the_networks(found, pretrained):
    _, seen = found
    model = released.load(checkpoint.latest(pretrained))
    source = open_source(Config(dataset="digits"), "test")  # there is no split `nowhere`
    images = np.stack([preprocess_for_eval(source.load(i), 16, crop=False) for i in range(24)])
    endpoints = model(images, training=False)
    h, z = endpoints["final_avg_pool"].numpy(), endpoints["proj_head_output"].numpy()
    np.testing.assert_allclose(seen.h, h, rtol=2e-3, atol=2e-3)  # kept in half precision
    np.testing.assert_array_equal(seen.labels, source.labels[:24])
    assert seen.signs["uniformity"] == pytest.approx(health.uniformity(z), abs=1e-3)
    assert seen.signs["effective_rank_h"] == pytest.approx(health.effective_rank(h), rel=1e-3)
    assert seen.signs["images"] == 24 and 0 < seen.signs["alignment"] < 4
    assert seen.pictures.shape == (24, 48, 48, 3) and seen.step == 4


def test_the_report_shows_it(found):
    config, _ = found
    with open(report.write_report(config)) as file:
        page = file.read()
    for anchor in ("health", "neighbours", "map"):
        assert f'id="{anchor}"' in page


def test_what_stands_in_the_way_is_said_and_passed_over(pretrained, tmp_path, caplog):
    config = Config(dataset=f"folder:{tmp_path}/nowhere", checkpoint=pretrained, model_dir=str(tmp_path / "out"))
    assert representation.record(config) is None
    assert "leaves out the look" in caplog.text
    (tmp_path / "representation.npz").write_bytes(b"PK nothing")
    assert representation.read(str(tmp_path)) is None


def test_it_can_be_left_out(pretrained, tmp_path):
    config = Config(dataset="digits", checkpoint=pretrained, model_dir=str(tmp_path), report_images=0)
    assert representation.record(config) is None and not list(tmp_path.iterdir())
