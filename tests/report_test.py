"""The report: complete, self-contained, escaped, and right in its numbers."""

import html.parser
import json
import os

import numpy as np
import pytest

from simclr_tf import Config, report


def leave(folder, names, labels, guesses):
    """A folder as an evaluation leaves it."""
    n, k = len(names), min(5, len(names))
    top = np.stack([(np.array(guesses) + i) % n for i in range(k)], 1).astype(np.int32)
    np.savez_compressed(
        os.path.join(folder, "predictions.npz"), index=np.arange(len(labels)), labels=np.array(labels, np.int32),
        top=top, probabilities=np.full(np.shape(top), 0.1, np.float32), ids=np.array(["id"] * len(labels)),
        class_names=np.array(names), step=7,
    )


def page_of(folder, **options):
    path = report.write_report(Config(mode="eval", dataset="digits", model_dir=str(folder), **options))
    with open(path, encoding="utf-8") as file:
        return file.read()


class Addresses(html.parser.HTMLParser):
    """Collects tags and everything that would be fetched."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.fetched = [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.fetched += [value for name, value in attributes if name in ("src", "href", "srcset", "data")]


def test_a_finished_run_has_every_part(pretrained, tmp_path):
    config = Config.from_flags([f"--flagfile={pretrained}/flags.flags", f"--model_dir={tmp_path}"])
    with open(os.path.join(pretrained, "history.jsonl")) as file:
        (tmp_path / "history.jsonl").write_text(file.read())
    leave(tmp_path, list("0123456789"), [0, 1, 2], [0, 1, 3])
    with open(report.write_report(config)) as file:
        page = file.read()
    for anchor in ("accuracy", "training", "augmentation", "confusion", "configuration"):
        assert f'id="{anchor}"' in page
    for title in ("Loss", "Contrastive accuracy", "Contrastive entropy", "Learning rate", "Images per second"):
        assert f'alt="{title}"' in page


def test_nothing_is_fetched_from_elsewhere(tmp_path):
    leave(tmp_path, ["a", "b"], [0, 1], [0, 0])
    found = Addresses(page_of(tmp_path))
    assert found.fetched and all(address.startswith("data:image/") for address in found.fetched)
    assert not {"script", "link", "iframe"} & set(found.tags)


def test_class_names_and_paths_are_escaped(tmp_path):
    folder = tmp_path / "<script>alert(1)<&"
    folder.mkdir()
    leave(folder, ["<b>cat", 'dog" onload="x', "$x_1$ mouse"], [0, 1, 2], [1, 0, 2])
    page = page_of(folder)
    assert "script" not in Addresses(page).tags
    assert "<b>cat" not in page and "&lt;b&gt;cat" in page
    assert "&lt;script&gt;" in page


def test_an_empty_folder_gives_a_report_without_figures(tmp_path):
    page = page_of(tmp_path)
    assert "<img" not in page and 'id="configuration"' in page and "Repeat" not in page


def test_damaged_predictions_are_left_out_and_named(tmp_path, caplog):
    (tmp_path / "predictions.npz").write_bytes(b"PK\x03\x04 nothing")
    assert 'id="confusion"' not in page_of(tmp_path)
    assert "predictions.npz" in caplog.text


def test_absent_data_leave_out_the_sample_images(tmp_path, caplog):
    config = Config(dataset=f"folder:{tmp_path}/nowhere", model_dir=str(tmp_path))
    with open(report.write_report(config)) as file:
        assert 'id="augmentation"' not in file.read()
    assert "sample images" in caplog.text


@pytest.mark.parametrize("classes", [2, 10, 100, 300])
def test_any_number_of_classes(tmp_path, classes):
    labels = np.arange(3 * classes) % classes
    leave(tmp_path, [f"class {i} with a rather long name" for i in range(classes)], labels, (labels + 1) % classes)
    page = page_of(tmp_path)
    assert ("top-5" in page) == (classes > 5)
    assert len(page) < 1_000_000
    assert page.count('class="bar"') == min(classes, report.LISTED)


def test_confusion_and_pairs_follow_the_counts():
    counts = report.confusion_counts(np.array([0, 0, 0, 1, 1, 2]), np.array([0, 2, 2, 1, 0, 2]), 3)
    np.testing.assert_array_equal(counts, [[1, 0, 2], [1, 1, 0], [0, 0, 1]])
    assert report.most_confused(counts) == [(0, 2), (1, 0)]


def test_wilson_interval_is_the_published_one():
    # Newcombe (1998), Statistics in Medicine 17, table I: 81 of 263 and 0 of 20.
    np.testing.assert_allclose(report.wilson_interval(81 / 263, 263), (0.2553, 0.3662), atol=5e-5)
    np.testing.assert_allclose(report.wilson_interval(0.0, 20), (0.0, 0.1611), atol=5e-5)


def test_long_curves_are_averaged_and_gaps_left_out():
    history = [{"step": i, "a": float(i)} for i in range(1, 4001)] + [{"step": 4001, "b": 1.0}]
    history.append(json.loads('{"step": 4002, "a": NaN}'))
    x, y = report.points(history, "a")
    assert len(x) == report.MAX_POINTS
    np.testing.assert_allclose(x, y)
    assert x.mean() == np.arange(1, 4001).mean()
    assert len(report.points(history, "absent")[0]) == 0


def test_views_show_originals_of_any_shape_above_their_views():
    originals = [np.full([20, 10, 3], 200, np.uint8), np.full([5, 50, 3], 100, np.uint8)]
    views = [np.zeros([2, 16, 16, 3], np.float32), np.ones([2, 16, 16, 3], np.float32)]
    picture = report.view_grid(originals, views)
    assert picture.source.startswith("data:image/png;base64,") and picture.width % 33 == 0


@pytest.mark.parametrize(("name", "label"), [
    ("n02085936-maltese_dog", "maltese dog"), ("n02099601", "n02099601"), ("n0208-x", "n0208-x"), ("7", "7"),
    ("n02086240-shih-tzu", "shih-tzu"),
])
def test_classes_are_named_without_their_wordnet_number(name, label):
    assert report.class_label(name) == label
