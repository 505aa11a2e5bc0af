"""Items of a STAC catalogue: which file holds which band, in which unit, of which day and place."""

from __future__ import annotations

import datetime as dt
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit

from geomed.bands import band_name
from geomed.io.dates import days_since_epoch
from geomed.io.geotiff import is_remote

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from pathlib import Path

_TILES = ("s2:mgrs_tile", "grid:code", "sentinel:mgrs_tile", "landsat:wrs_tile")
_PICTURES = {"thumbnail", "overview", "visual", "metadata"}


@dataclass(frozen=True, kw_only=True)
class AssetBand:
    """One band of an asset, by the extensions eo and raster or the ``bands`` of STAC 1.1."""

    name: str
    """Its name, "" where it has none."""

    common: str
    """Its common name, as red, "" where it has none."""

    scale: float | None
    """Factor to values; None: not said."""

    offset: float | None
    """Summand to values; None: not said."""

    nodata: float | None
    """Number that means "no observation"; None: not said."""


@dataclass(frozen=True, kw_only=True)
class Asset:
    """One file of an item."""

    key: str
    """Its key."""

    href: str
    """A path on this machine, or an address as GDAL takes it."""

    bands: tuple[AssetBand, ...]
    """At least one."""

    metres: float | None
    """Ground sampling distance; None: not said."""


@dataclass(frozen=True, kw_only=True)
class Item:
    """One acquisition of one place."""

    name: str
    """Its id."""

    day: int | None
    """Days since 1970-01-01; None: it does not say."""

    tile: str | None
    """The place, which items of other days share: its tile or the corner of its grid; None: it does not say."""

    assets: tuple[Asset, ...]
    """Its files, pictures and metadata left out."""

    version: str
    """When it was written last, "" where it does not say."""

    offset_applied: bool
    """Whether the offset is added to the numbers already (``earthsearch:boa_offset_applied``)."""

    def find(self, band: str) -> tuple[Asset, int]:
        """The asset with a band and the band's number in it, from 1.

        Looked for are, in this order, keys of assets of one band, names of bands, both by the agency's names (blue is
        B02), and common names. Of several files of a band the one of the smallest pixels is taken.

        Raises:
            ValueError: there is no such band, or several of which none has smaller pixels.
        """
        wanted = _agency(band)
        rules: tuple[Callable[[Asset, AssetBand], bool], ...] = (
            lambda asset, _: len(asset.bands) == 1 and asset.key == band,
            lambda _, held: held.name == band,
            lambda asset, _: len(asset.bands) == 1 and _agency(asset.key) == wanted,
            lambda _, held: _agency(held.name) == wanted,
            lambda _, held: held.common == band,
            lambda _, held: _agency(held.common) == wanted,
        )
        for rule in rules:
            found = [
                (asset, number)
                for asset in self.assets
                for number, held in enumerate(asset.bands, start=1)
                if rule(asset, held)
            ]
            if found:
                return self._finest(found, band)
        names = ", ".join(asset.key for asset in self.assets) or "none"
        raise ValueError(f"item {self.name}: no asset holds band {band}, its assets are {names}; leave the item out")

    def mask(self, name: str) -> Asset:
        """The asset of a scene classification.

        Raises:
            ValueError: there is none.
        """
        found = [asset for asset in self.assets if asset.key.lower().partition("_")[0] == name.lower()]
        if not found:
            raise ValueError(
                f"item {self.name}: it has no asset {name} that says where it is clear; leave the item out, or say "
                "that there is no scene classification (--scl none)"
            )
        return self._finest([(asset, 1) for asset in found], name)[0]

    def _finest(self, found: Sequence[tuple[Asset, int]], what: str) -> tuple[Asset, int]:
        if len(found) == 1:
            return found[0]
        sizes = [asset.metres if asset.metres is not None else float("inf") for asset, _ in found]
        if sizes.count(min(sizes)) > 1:
            raise ValueError(
                f"item {self.name}: {what} stands in several assets ({', '.join(asset.key for asset, _ in found)}); "
                "leave one of them in the item"
            )
        return found[sizes.index(min(sizes))]


def read_items(path: Path) -> tuple[Item, ...]:
    """The items of a file: an ItemCollection, one item, or a list of items. Relative hrefs count from the file.

    Raises:
        ValueError: the file is none of these.
    """
    if not path.is_file():
        raise ValueError(f"{path}: there is no such file; correct the path of the STAC items")
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path}: STAC items are JSON, this is not ({error}); write them anew") from error
    features = found
    if isinstance(found, dict):
        features = found.get("features") if found.get("type") == "FeatureCollection" else [found]
    if not isinstance(features, list) or not features:
        raise ValueError(f"{path}: it must hold a STAC item or a list of them, it holds none; write them anew")
    return tuple(_item(feature, path, number) for number, feature in enumerate(features, start=1))


def _item(feature: object, path: Path, number: int) -> Item:
    if (
        not isinstance(feature, dict)
        or feature.get("type") != "Feature"
        or not isinstance(feature.get("assets"), dict)
        or not isinstance(feature.get("id"), str)
    ):
        raise ValueError(
            f"{path}: entry {number} is no STAC item, which has the type Feature, an id and assets; correct it"
        )
    properties = feature.get("properties") or {}
    return Item(
        name=feature["id"],
        day=_day(properties, f"{path}, item {feature['id']}"),
        tile=_tile(properties, feature),
        assets=tuple(_assets(feature["assets"], properties, path)),
        version=str(properties.get("updated") or ""),
        offset_applied=properties.get("earthsearch:boa_offset_applied") is True,
    )


def _assets(listed: Mapping[str, Any], properties: Mapping[str, Any], path: Path) -> Iterator[Asset]:
    for key, asset in listed.items():
        if not isinstance(asset, dict) or not isinstance(asset.get("href"), str):
            continue
        if set(asset.get("roles") or ()) & _PICTURES:
            continue
        metres = asset.get("gsd") or _entry(asset, "raster:bands", 0).get("spatial_resolution") or properties.get("gsd")
        count = max(len(asset.get(name) or ()) for name in ("bands", "eo:bands", "raster:bands"))
        yield Asset(
            key=key,
            href=_place(asset["href"], path),
            bands=tuple(_band(asset, index) for index in range(max(count, 1))),
            metres=None if metres is None else float(metres),
        )


def _band(asset: Mapping[str, Any], index: int) -> AssetBand:
    told = {**_entry(asset, "eo:bands", index), **_entry(asset, "raster:bands", index), **_entry(asset, "bands", index)}

    def number(what: str) -> float | None:
        # STAC 1.1 lets the asset say what all of its bands have in common
        value = told.get(what, told.get(f"raster:{what}", asset.get(what, asset.get(f"raster:{what}"))))
        return None if value is None else float(value)

    return AssetBand(
        name=str(told.get("name") or ""),
        common=str(told.get("eo:common_name") or told.get("common_name") or asset.get("eo:common_name") or ""),
        scale=number("scale"),
        offset=number("offset"),
        nodata=number("nodata"),
    )


def _entry(asset: Mapping[str, Any], name: str, index: int) -> dict[str, Any]:
    listed = asset.get(name) or ()
    return listed[index] if index < len(listed) and isinstance(listed[index], dict) else {}


def _day(properties: Mapping[str, Any], where: str) -> int | None:
    text = properties.get("datetime") or properties.get("start_datetime")
    if text is None:
        return None
    try:
        return days_since_epoch(dt.datetime.fromisoformat(str(text)).date())
    except ValueError as error:
        raise ValueError(f"{where}: {text!r} is no date and time of RFC 3339; correct it") from error


def _tile(properties: Mapping[str, Any], feature: Mapping[str, Any]) -> str | None:
    for name in _TILES:
        if properties.get(name):
            return str(properties[name])
    code, transform = properties.get("proj:code") or properties.get("proj:epsg"), properties.get("proj:transform")
    if code and transform and len(transform) >= 6:
        return f"{code}_{transform[2]:g}_{transform[5]:g}"
    if code and properties.get("proj:shape") and feature.get("bbox"):
        return "_".join([str(code), *(f"{edge:g}" for edge in feature["bbox"])])
    return None


def _place(href: str, path: Path) -> str:
    """Where GDAL finds an asset."""
    if href.startswith("file://"):
        return unquote(urlsplit(href).path)
    if is_remote(href):
        return href
    return str(path.parent / href)


def _agency(name: str) -> str:
    try:
        return band_name(name)
    except ValueError:
        return name
