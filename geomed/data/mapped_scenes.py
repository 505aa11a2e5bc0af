"""Which scenes there are to map: from patterns, files, folders, a list of paths, or items of a catalogue."""

from __future__ import annotations

import glob
import hashlib
import itertools
import json
import os
import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING
from xml.sax.saxutils import unescape

from geomed.data.image import BAND
from geomed.data.mapping_settings import Settings
from geomed.data.opening import ImagePlace, MappedScene, Nowhere, Place, SeriesPlace
from geomed.data.products import ENDINGS, images_in, is_mask
from geomed.data.stac_scenes import StacImage, StacSeries
from geomed.io.geotiff import is_remote
from geomed.io.stac_items import read_items

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from geomed.io.stac_items import Item

__all__ = ["SceneFile", "Settings", "find_scenes"]

_MAGIC = re.compile(r"[*?\[]")
_BESIDE = (".msk", ".aux.xml", ".ovr")  # what GDAL reads with a file
_SHOWN = 5


@dataclass(frozen=True, kw_only=True)
class SceneFile:
    """One thing to map, not opened yet; it pickles."""

    name: str
    """Unique, and fit for a file."""

    identity: str
    """SHA-256 over names, sizes and times of change of its files; where they lie makes no difference."""

    place: Place
    """Where its files lie."""

    settings: Settings
    """What is known of them."""

    def open(self) -> MappedScene:
        """Read the heads of its files.

        Raises:
            ValueError: they are not as they must be; the message names the file, the rule and the way out.
        """
        return self.place.open(self.name, self.settings)


@dataclass(frozen=True, kw_only=True)
class _Found:
    """A scene before its name is known to be unique."""

    names: tuple[str, ...]
    """Its name, and those of the folders that it lies in, the innermost first."""

    place: Place
    files: tuple[str, ...]
    about: str = ""

    @property
    def key(self) -> object:
        """The same for the same scene, whichever links lead to it."""
        return tuple(file if is_remote(file) else os.path.realpath(file) for file in self.files) or self.place

    def named(self, parents: int) -> str:
        """With this many names of folders in front."""
        return _fit_for_a_file("_".join(reversed(self.names[: parents + 1])))


def find_scenes(inputs: Sequence[str], listed: Path | None, stac: Path | None, settings: Settings) -> list[SceneFile]:
    """All scenes, each once, by name.

    Nothing is opened, so that one broken file is the matter of one scene. Of a model of single images each file is a
    scene, or, with ``{band}`` in a path, each set of files of one band; of a model of series each folder or stack is.
    A scene is called by its file or folder; where two would be called the same, by their folders too.

    Args:
        inputs: paths of files or folders, or patterns (``*``, ``?``, ``[…]``, and ``**`` for any folders).
        listed: a text file with one of these on each line, after ``#`` comments; relative ones count from where the
            program is started or, if nothing is there, from the list's folder. A line without a match is a scene that
            cannot be opened.
        stac: STAC items; see ``read_items``. Series are made of the items of one tile.
        settings: what is known of all scenes.

    Raises:
        ValueError: an input matches nothing, the list or the items cannot be read, or there is no scene at all.
    """
    found: list[_Found] = []
    for text in inputs:
        matches = list(_matching(text, settings))
        if not matches:
            raise ValueError(f"{text}: {_what_is_there(text, settings)}; correct the pattern")
        found += matches
    if listed is not None:
        found += _listed(listed, settings)
    if stac is not None:
        found += _items(stac, settings)
    if not found:
        raise ValueError("there is nothing to map; name images, a list that is not empty, or STAC items")
    unique = list({one.key: one for one in found}.values())
    scenes = [
        SceneFile(name=name, identity=_identity(one), place=one.place, settings=settings)
        for name, one in zip(_names(unique), unique, strict=True)
    ]
    return sorted(scenes, key=lambda scene: scene.name)


def _matching(text: str, settings: Settings) -> Iterator[_Found]:
    """The scenes of one path or pattern."""
    if BAND in text:
        if settings.series:
            raise ValueError(
                f"{text}: a model of series reads folders of dates, each date a file of all bands, so {BAND} has no "
                "place in a path; name the folders"
            )
        yield from _by_band(text, settings)
        return
    if is_remote(text):
        yield _file(text, settings)
        return
    pattern = _MAGIC.search(text) is not None and not Path(text).exists()
    for path in sorted(map(Path, glob.glob(text, recursive=True))) if pattern else [Path(text)]:  # noqa: PTH207  (absolute patterns too)
        if path.is_dir() and settings.series:
            if not pattern or images_in(path, settings.masks):
                yield _file(str(path), settings)
        elif path.is_dir() and not pattern:
            yield from (_file(str(one), settings) for one in images_in(path, settings.masks))
        elif path.is_file() and (not pattern or (path.suffix.lower() in ENDINGS and not is_mask(path, settings.masks))):
            yield _file(str(path), settings)


def _file(path: str, settings: Settings) -> _Found:
    """The scene of one file or, of series, one folder."""
    place: Place = SeriesPlace(path=path) if settings.series else ImagePlace(path=path)
    if is_remote(path):
        address = path.partition("?")[0]
        return _Found(names=_without_ending(Path(address).parts), place=place, files=(path,))
    whole = Path(os.path.abspath(path))  # noqa: PTH100  (links keep their names)
    if whole.is_dir():
        inside = sorted(str(one) for one in whole.iterdir() if one.is_file())
        return _Found(names=tuple(reversed(whole.parts[1:])), place=place, files=tuple(inside))
    beside = [*(whole.with_name(whole.name + ending) for ending in _BESIDE), *_sources(whole)]
    if settings.series:
        beside += [whole.with_suffix(".csv"), *_masks_of(whole, settings)]
    files = (str(whole), *(str(one) for one in beside if one.is_file()))
    return _Found(names=_without_ending(whole.parts), place=place, files=files)


def _sources(path: Path) -> Iterator[Path]:
    """The files that a VRT is made of."""
    if path.suffix.lower() == ".vrt":
        for name in re.findall(r"<SourceFilename[^>]*>([^<]+)<", path.read_text(encoding="utf-8", errors="replace")):
            yield path.parent / unescape(name)  # an absolute one stays what it is


def _masks_of(path: Path, settings: Settings) -> Iterator[Path]:
    for pattern in (settings.masks.scl, settings.masks.bad):
        if pattern is not None and "{stem}" in pattern:
            yield path.parent / pattern.replace("{stem}", path.stem)


def _by_band(text: str, settings: Settings) -> Iterator[_Found]:
    """One scene for each match of a pattern with the first band in place of ``{band}``."""
    if is_remote(text):
        yield _bands_of(text, settings)
        return
    first = settings.bands[0]
    matches = glob.glob(text.replace(BAND, glob.escape(first)), recursive=True)  # noqa: PTH207  (absolute patterns too)
    if _MAGIC.search(text.replace(BAND, "")) is None and not matches:
        matches = [path for path in (text.replace(BAND, band) for band in settings.bands) if Path(path).is_file()]
        if matches:  # the first band's file is missing, which opening tells
            yield _bands_of(text, settings)
        return
    form = _with_groups(text, first)
    for match in sorted(matches):
        groups = form.fullmatch(match)
        if groups is None or not Path(match).is_file():
            continue
        path, end = "", 0
        for number in range(1, form.groups + 1):
            path, end = path + match[end : groups.start(number)] + BAND, groups.end(number)
        yield _bands_of(path + match[end:], settings)


def _bands_of(path: str, settings: Settings) -> _Found:
    """The scene of a path with ``{band}``."""
    remote = is_remote(path)
    whole = Path(path.partition("?")[0] if remote else os.path.abspath(path))  # noqa: PTH100  (links keep their names)
    parts = [re.sub(r"[-_. ]*\{band\}", "", part).strip("-_. ") for part in (*whole.parts[:-1], whole.stem)]
    each = [(path if remote else str(whole)).replace(BAND, band) for band in settings.bands]
    beside = [one + ending for one in each for ending in _BESIDE if not remote and Path(one + ending).is_file()]
    names = tuple(part for part in reversed(parts[1:]) if part)
    return _Found(names=names or ("scene",), place=ImagePlace(path=path), files=(*each, *beside))


def _with_groups(pattern: str, band: str) -> re.Pattern[str]:
    """A glob pattern as a regular expression in which each ``{band}`` is a group."""
    made = ""
    for token in re.findall(r"\{band\}|\*\*/|\*|\?|\[!?\]?[^\]]*\]|.", pattern, flags=re.DOTALL):
        if token == BAND:
            made += f"({re.escape(band)})"
        elif token == "**/":  # noqa: S105  (no password)
            made += "(?:.*/)?"
        elif token == "*":  # noqa: S105
            made += "[^/]*"
        elif token == "?":  # noqa: S105
            made += "[^/]"
        elif token.startswith("[") and len(token) > 1:
            made += "[^" + token[2:].replace("\\", "\\\\") if token[1] == "!" else token.replace("\\", "\\\\")
        else:
            made += re.escape(token)
    return re.compile(made)


def _listed(path: Path, settings: Settings) -> Iterator[_Found]:
    """The scenes of a list of paths and patterns."""
    if not path.is_file():
        raise ValueError(f"{path}: there is no such file; correct the path of the list")
    lines = (line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines())
    for line in (line for line in lines if line and not line.startswith("#")):
        found: list[_Found] = []
        for text in dict.fromkeys((line, str(path.parent / line))):
            found = [one for one in _matching(text, settings) if not isinstance(one.place, Nowhere)]
            if found or is_remote(line):
                break
        if found:
            yield from found
        else:
            reason = f"{line}: {_what_is_there(line, settings)}; correct the line of {path.name}"
            yield _Found(names=_without_ending(Path(line).parts), place=Nowhere(reason=reason), files=(), about=line)


def _items(path: Path, settings: Settings) -> Iterator[_Found]:
    """The scenes of STAC items: each item, or of series the items of each tile."""
    items = read_items(path)
    if not settings.series:
        for item in items:
            yield _Found(names=(item.name,), place=StacImage(item=item), files=_hrefs([item]), about=_about([item]))
        return
    tiles: dict[str | None, list[Item]] = {}
    for item in items:
        tiles.setdefault(item.tile, []).append(item)
    for tile, group in tiles.items():
        if tile is None:
            names = [item.name for item in group]
            reason = (
                f"{path}: items of a series are put together by their tile (grid:code, s2:mgrs_tile, or proj:code and "
                f"proj:transform), which {_few(names)} do not say; complete them"
            )
            yield _Found(names=(path.stem,), place=Nowhere(reason=reason), files=(), about=" ".join(names))
            continue
        dated = sorted(group, key=lambda item: (item.day if item.day is not None else 0, item.name))
        yield _Found(names=(tile,), place=StacSeries(items=tuple(dated)), files=_hrefs(dated), about=_about(dated))


def _hrefs(items: Iterable[Item]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(asset.href for item in items for asset in item.assets))


def _about(items: Iterable[Item]) -> str:
    """What items say besides where their files are."""
    return json.dumps(
        [
            (item.name, item.day, item.version, [(asset.key, repr(asset.bands)) for asset in item.assets])
            for item in items
        ]
    )


def _identity(found: _Found) -> str:
    told: list[object] = [found.about]
    for file in found.files:
        address = file.partition("?")[0]  # a signature changes from day to day
        if is_remote(file):
            told.append(address)
            continue
        path = Path(file)
        try:
            stat = path.stat()
        except OSError:
            told.append((path.name, "missing"))
        else:
            told.append((path.name, stat.st_size, stat.st_mtime_ns))
    return hashlib.sha256(json.dumps(told).encode()).hexdigest()


def _names(found: Sequence[_Found]) -> list[str]:
    """A name for each scene: its own, with as many names of folders in front as tell all of that name apart."""
    names = [one.named(0) for one in found]
    for parents in itertools.count(1):
        count = Counter(name.casefold() for name in names)  # some file systems do not tell A and a apart
        doubled = {index for index, name in enumerate(names) if count[name.casefold()] > 1}
        if not doubled or parents > max(len(found[index].names) for index in doubled):
            break
        names = [one.named(parents) if index in doubled else names[index] for index, one in enumerate(found)]
    taken: set[str] = set()
    for index, name in enumerate(names):
        free = (name if number == 1 else f"{name}-{number}" for number in itertools.count(1))
        names[index] = next(one for one in free if one.casefold() not in taken)
        taken.add(names[index].casefold())
    return names


def _fit_for_a_file(name: str) -> str:
    return re.sub(r"[^\w.-]+", "_", name).strip("._-")[:160] or "scene"


def _without_ending(parts: Sequence[str]) -> tuple[str, ...]:
    folders = (part for part in parts[:-1] if part not in {"/", "\\"})
    return (Path(parts[-1]).stem, *reversed(tuple(folders))) if parts else ("scene",)


def _what_is_there(text: str, settings: Settings) -> str:
    """What lies where a path or pattern without a match looks."""
    shown = text.replace(BAND, settings.bands[0])
    folder = Path(*itertools.takewhile(lambda part: not _MAGIC.search(part), Path(shown).parts[:-1]))
    rule = f"nothing matches (with {settings.bands[0]} for {BAND})" if BAND in text else "nothing matches"
    if _MAGIC.search(text) is None and BAND not in text:
        if Path(text).is_dir():
            return f"the folder holds no image; images end in {', '.join(sorted(ENDINGS))}"
        rule = "there is no such file"
    while not folder.is_dir() and folder != folder.parent:
        folder = folder.parent
    names = sorted(path.name + "/" * path.is_dir() for path in folder.iterdir())
    return f"{rule}; {folder} holds {_few(names) if names else 'nothing'}"


def _few(names: Sequence[str]) -> str:
    more = len(names) - _SHOWN
    return ", ".join(names[:_SHOWN]) + (f" and {more} more" if more > 0 else "")
