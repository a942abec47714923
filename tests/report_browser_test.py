"""Reports in a real browser: headless Chromium lays them out, and a screenshot is looked at."""

import html
import itertools
import json
import re
import shutil
import subprocess

import numpy as np
import pytest
from PIL import Image

from simclr_tf import Config, health, metrics, report
from simclr_tf import representation as representations
from simclr_tf.report import compare

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed: apt-get install chromium")
WIDTH = 1200

# Runs in the page once it is laid out, and leaves what it saw in the title.
INSPECT = """<script>
addEventListener("load", () => {
  const box = e => { const r = e.getBoundingClientRect(); return [r.x, r.y, r.width, r.height].map(Math.round); };
  const all = s => [...document.querySelectorAll(s)];
  const report = {
    height: document.documentElement.scrollHeight,
    overflow: document.documentElement.scrollWidth > innerWidth,
    wide: all("main *").filter(e => !e.closest(".scroll") && e.getBoundingClientRect().right > innerWidth + 1)
      .map(e => e.tagName),
    scrolling: all(".scroll").filter(e => e.scrollWidth > e.clientWidth).length,
    images: all("img").map(e => ({alt: e.alt, loaded: e.complete && e.naturalWidth > 0, box: box(e)})),
    sections: all("section").map(e => ({id: e.id, title: e.querySelector("h2").innerText, box: box(e)})),
    fetched: performance.getEntriesByType("resource").map(e => e.name).filter(n => !n.startsWith("data:")),
    scripts: all("script").length, bold: all("td b, th b").length,
  };
  document.title = "SEEN" + JSON.stringify(report) + "END";
});
</script></head>"""


def chromium(*arguments):
    return subprocess.run(
        [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--hide-scrollbars",
         "--force-device-scale-factor=1", "--host-resolver-rules=MAP * ~NOTFOUND", *arguments],
        capture_output=True, timeout=240, check=True,
    ).stdout.decode(errors="replace")


def look(path, tmp_path, width=WIDTH):
    """What the page is made of when laid out, and its screenshot, uint8 [H, W, 3]."""
    copy = tmp_path / "inspected.html"
    copy.write_text(path.read_text().replace("</head>", INSPECT, 1))
    dom = chromium(f"--user-data-dir={tmp_path / 'profile'}", f"--window-size={width},1000", "--dump-dom",
                   copy.as_uri())
    seen = json.loads(html.unescape(re.search(r"<title>SEEN(.*?)END</title>", dom, re.S)[1]))
    shot = tmp_path / "shot.png"
    chromium(f"--user-data-dir={tmp_path / 'profile'}", f"--window-size={width},{seen['height']}",
             f"--screenshot={shot}", path.as_uri())
    return seen, np.asarray(Image.open(shot).convert("RGB"))


def nothing_is_broken(seen, picture, width=WIDTH):
    assert not seen["overflow"] and not seen["wide"] and not seen["fetched"]
    assert width < WIDTH or not seen["scrolling"]  # on a screen tables are seen whole
    assert picture.shape[:2] == (seen["height"], width)
    for image in seen["images"]:
        x, y, w, h = image["box"]
        assert image["loaded"] and w > 100 and h > 40, image
        shown = picture[max(y, 0) : y + h, max(x, 0) : x + w]
        assert len(np.unique(shown.reshape(-1, 3)[::7], axis=0)) > 5, f"{image['alt']} is blank"
    boxes = [section["box"] for section in seen["sections"]]
    for (_, y, _, h), (_, below, _, _) in itertools.pairwise(boxes):
        assert y + h <= below + 1, "sections overlap"
    for section in seen["sections"]:
        x, y, w, h = section["box"]
        assert h > 30 and (picture[y : y + h, x : x + w] < 128).any(), f"{section['id']} is empty"


def leave(folder, classes, mode="train", seed=0):
    """A folder as a run of all there is leaves it, with invented numbers."""
    rng = np.random.default_rng(seed)
    folder.mkdir()
    names = [f"n{10**7 + i}-breed number {i}" for i in range(classes)]
    names[:2] = ["<b>cats & dogs", "a class with a name as long as that of some breeds of dogs $x_1$"]
    n = 600
    labels = rng.integers(0, classes, n).astype(np.int32)
    p = rng.dirichlet(np.full(classes, 0.3), n).astype(np.float32)
    p[np.arange(n), labels] += 0.5
    p /= p.sum(1, keepdims=True)
    top = metrics.top_k(p, 5)
    probabilities = np.take_along_axis(p, top, 1)
    np.savez_compressed(
        folder / "predictions.npz", index=np.arange(n), labels=labels, top=top, probabilities=probabilities,
        ids=np.array(["id"] * n), class_names=np.array(names), step=900)
    history = [
        {"step": step, "train/contrast_loss": 5 + 3 * np.exp(-step / 300), "train/total_loss": 6 + np.exp(-step / 300),
         "train/supervised_loss": 2.0, "train/contrast_acc": 1 - np.exp(-step / 300), "train/supervised_acc": 0.3,
         "train/contrast_entropy": 3 + np.exp(-step / 500), "learning_rate": 1 - step / 900,
         "images_per_second": 80 + rng.normal(), "probe/knn/top_1": 0.2 + step / 9000}
        for step in range(10, 901, 10)
    ]
    (folder / "history.jsonl").write_text("".join(json.dumps(line) + "\n" for line in history))
    summary = metrics.details(labels, top, probabilities[:, 0], names)
    result = {"probe/train_images": 300, "probe/test_images": n, "global_step": 900.0}
    for kind, chosen in (("linear", {"learning_rate": 0.1}), ("logreg", {"l2": 10.0}), ("knn", {"k": 200})):
        result |= {f"probe/{kind}/{k}": v for k, v in chosen.items()}
        result |= {f"probe/{kind}/{k}": summary[k] for k in ("top_1", "top_5", "mean_per_class", "calibration_error")}
        for share, images in (("1%", 10), ("10%", 60), ("100%", 300)):
            result |= {f"probe/{kind}/labels_{share}/top_1": 0.1 + images / 1000,
                       f"probe/{kind}/labels_{share}/images": images}
    result |= {f"probe/knn/k{k}/top_1": 0.3 for k in (200, 20, 1)}
    (folder / "probe.json").write_text(json.dumps({"result": result, "linear": summary, "class_names": names}))
    h = (rng.normal(size=[classes, 32])[labels[:300]] * 2 + rng.normal(size=[300, 32])).astype(np.float32)
    pictures = rng.integers(0, 256, [classes, 48, 48, 3]).astype(np.uint8)[labels[:300]]
    config = Config(mode=mode, dataset="digits", model_dir=str(folder), image_size=32, resnet_depth=18, seed=seed,
                    learning_rate=0.3 + seed)
    representations._write(config, representations.Representation(
        labels[:300], h, pictures, tuple(names), "test", 900, health.measure(h, h, h[:50], h[:50] + 0.1)))
    from simclr_tf import options

    (folder / "flags.flags").write_text(options.to_flagfile(config))
    return config


ALL = ["accuracy", "probes", "training", "augmentation", "health", "neighbours", "map", "confusion", "calibration",
       "configuration"]


@pytest.mark.parametrize("classes", [2, 100])
def test_a_report_has_all_its_parts_and_none_is_broken(tmp_path, classes):
    config = leave(tmp_path / "run <x>", classes)
    report.write_report(config)
    seen, picture = look(tmp_path / "run <x>" / "report.html", tmp_path)
    nothing_is_broken(seen, picture)
    assert [section["id"] for section in seen["sections"]] == ALL
    assert seen["scripts"] == 1 and not seen["bold"]  # the inspection's own; class names are text
    assert {"Loss", "Contrastive accuracy", "Contrastive entropy", "Learning rate", "Images per second"} <= {
        image["alt"] for image in seen["images"]}
    confusion = next(image for image in seen["images"] if image["alt"].startswith("Confusion"))
    assert confusion["box"][2] > (200 if classes == 2 else 700)


def test_a_report_fits_a_telephone(tmp_path):
    report.write_report(leave(tmp_path / "run", 100))
    seen, picture = look(tmp_path / "run" / "report.html", tmp_path, width=500)
    nothing_is_broken(seen, picture, width=500)


def test_a_comparison_has_all_its_parts_and_none_is_broken(tmp_path):
    for i, name in enumerate(("a <i>", "b", "c")):
        leave(tmp_path / name, 5, seed=i)
    runs = ",".join(str(tmp_path / name) for name in ("a <i>", "b", "c"))
    compare.compare(Config(mode="compare", runs=runs, model_dir=str(tmp_path / "out")))
    seen, picture = look(tmp_path / "out" / "compare.html", tmp_path)
    nothing_is_broken(seen, picture)
    assert [section["id"] for section in seen["sections"]] == ["results", "training", "settings", "runs"]
