"""A folder of image files as a source."""

import collections
import logging
import os
import re
from pathlib import Path

from simclr_tf import sources, splits
from simclr_tf.errors import DataError
from simclr_tf.sources import Source

log = logging.getLogger(__name__)

FOLDER_PREFIX = "folder:"
IMAGE_SUFFIXES = frozenset(
    ".jpg .jpeg .jpe .jfif .png .gif .bmp .webp .tif .tiff .ppm .pgm .pbm .pnm .jp2 .avif .ico .tga".split()
)


def open_folder(path: str, split: str) -> Source:
    """A tree of image files: [train/ test/ validation/ and in them] one folder per class, or images without classes.

    Raises:
      DataError: there is no such folder or split, a class has no images, or there are none at all.
    """
    name = FOLDER_PREFIX + path
    root = Path(os.path.abspath(os.path.expanduser(path)))
    if not root.is_dir():
        problem = "is a file, not a folder" if root.exists() else "does not exist"
        raise DataError(f"--dataset={name}: {root} {problem}. Give the folder that holds the images or their classes.")
    parts = _split_folders(root)
    classes = {key: _visible_folders(part) for key, part in parts.items()}
    used = splits.other_test_name(split, parts if len(parts) > 1 or "train" not in parts else ("train", "test"))
    ignored = collections.Counter()
    records_of = {key: [] for key in parts}
    for key, part in parts.items():  # only those that are used are listed: the others may be large, or broken
        if _mentions(used, key) or len(parts) == 1:
            records_of[key] = splits.by_hash(_records(root, part, classes[key], ignored))
    notes = []
    if set(parts) == {"train"}:
        records_of = splits.stratified(records_of["train"])
        notes.append(splits.OWN_SPLIT)
        log.info("%s has no test folder: %s.", name, splits.OWN_SPLIT)
    notes += splits.alias_note(split, used)
    if ignored:
        notes.append(f"{ignored.total()} other files ignored ({', '.join(sorted(ignored))})")
        log.warning("%s: ignoring %d files that are not images: %s", name, ignored.total(), ", ".join(sorted(ignored)))

    records = splits.take_slices(name, used, records_of)
    labelled = any(record.class_name is not None for record in records)
    class_names = sorted(set().union(*classes.values())) if labelled else None
    number = {class_name: label for label, class_name in enumerate(class_names or ())}
    paths = [os.path.join(root, record.path) for record in records]
    return sources.held(
        name, split, class_names, [number.get(record.class_name, sources.UNKNOWN_LABEL) for record in records],
        paths, [os.fsencode(path) for path in paths], contents_are_paths=True, notes=notes,
    )  # fmt: skip


def open_images(path: str) -> Source:
    """An image file, or all images in and below a folder, without labels, in the order of their names.

    Raises:
      DataError: there is no such file or folder, or no image in it.
    """
    root = Path(os.path.abspath(os.path.expanduser(path)))
    if not root.exists():
        raise DataError(f"{path} does not exist. Give an image file or a folder of images.")
    paths = sorted(_image_files(root, collections.Counter(), recurse=True)) if root.is_dir() else [root]
    if not paths:
        raise DataError(f"{path} holds no images ({', '.join(sorted(IMAGE_SUFFIXES))}).")
    keys = [str(p) for p in paths]
    return sources.held(
        path, "all", None, [sources.UNKNOWN_LABEL] * len(keys), keys, [os.fsencode(key) for key in keys],
        contents_are_paths=True,
    )  # fmt: skip


def _split_folders(root: Path) -> dict[str, Path]:
    """Folder of each split; `train` is the root itself where there are no split folders."""
    folders = _visible_folders(root)
    named = [folder for folder in folders if folder in splits.SPLIT_NAMES]
    others = len(folders) - len(named)
    # A class may be called "train", between "bus" and "tram": split folders come in twos or alone.
    if not named or (others and not ("train" in named and len(named) > 1)):
        return {"train": root}
    if others:
        log.warning("%s: ignoring the folders beside %s", root, ", ".join(named))
    return {"validation" if folder in splits.VALIDATION_NAMES else folder: root / folder for folder in named}


def _mentions(spec: str, split: str) -> bool:
    return re.search(rf"\b({split}|all)\b", spec) is not None


def _is_hidden(name: str) -> bool:
    return name.startswith(".") or name == "__MACOSX"


def _visible_folders(folder: Path) -> list[str]:
    with os.scandir(folder) as entries:
        return sorted(entry.name for entry in entries if entry.is_dir() and not _is_hidden(entry.name))


def _records(root: Path, part: Path, classes: list[str], ignored: collections.Counter) -> list[splits.Record]:
    """Every image of one split; `ignored` counts other files by suffix."""
    loose = _image_files(part, ignored, recurse=False)
    if not classes:
        if not loose:
            raise DataError(f"{part} holds no images. Known are files that end in {' '.join(sorted(IMAGE_SUFFIXES))}.")
        return [splits.Record(path.relative_to(root).as_posix(), None) for path in loose]
    if loose:
        ignored["images beside the class folders"] += len(loose)
    records = []
    for class_name in classes:
        files = _image_files(part / class_name, ignored, recurse=True)
        if not files:
            raise DataError(
                f"{part / class_name} is the folder of a class and holds no images. Add some or remove the folder."
            )
        records += [splits.Record(path.relative_to(root).as_posix(), class_name) for path in files]
    return records


def _image_files(folder: Path, ignored: collections.Counter, *, recurse: bool) -> list[Path]:
    files, seen = [], set()
    for parent, folders, names in os.walk(folder, followlinks=True):
        real = os.path.realpath(parent)
        if real in seen:  # links that lead in a circle
            folders.clear()
            continue
        seen.add(real)
        folders[:] = [name for name in folders if recurse and not _is_hidden(name)]
        for name in names:
            suffix = os.path.splitext(name)[1].lower()
            if _is_hidden(name):
                continue
            if suffix in IMAGE_SUFFIXES:
                files.append(Path(parent, name))
            else:
                ignored[suffix or name] += 1
    return files
