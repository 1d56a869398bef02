"""Commands on models and checkpoints: fetch."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from marble_core.cli.options import AsJson, File, Set, load, print_json

if TYPE_CHECKING:
    from marble_core.storage.artifacts import Remote
    from marble_core.storage.catalogue import Asset


def fetch(
    preset: Annotated[str, typer.Argument(help="The preset that the configuration starts from.")] = "demo",
    config: File = None,
    set_: Set = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what is here and what is missing.")] = False,
    json_: AsJson = False,
) -> None:
    """Download the model and the rewards' checkpoints of a configuration into the model cache. A run then works offline.

    The cache is the hub's own. HF_HOME says where it is; HF_TOKEN opens gated models.
    """
    settings, _ = load(preset, config, set_)
    from rich.console import Console

    from marble_core.rewards.cards import cards_of
    from marble_core.storage.catalogue import assets_of
    from marble_core.storage.uri import find
    from marble_core.types import MarbleError

    console = Console(highlight=False, soft_wrap=True, stderr=json_)
    missing: list[tuple[Remote, dict[str, Any]]] = []
    listed: list[dict[str, Any]] = []
    for asset in assets_of(settings, cards_of(settings.measured)):
        place = find(asset.uri, asset.part, asset.revision)
        path = place if isinstance(place, Path) else place.cached()
        if isinstance(place, Path):
            where, size = "here", _size(place)
        elif path:
            where, size = "in the cache", _size(path)
        else:
            where, size = "to fetch", _announced(asset, place)
        known = asset.known
        listed.append({"uri": asset.uri, "where": where, "size": size, "users": asset.users, "licence": known.licence})
        if not isinstance(place, Path) and not path:
            missing.append((place, listed[-1]))
        console.print(f"{where:12}  {size:>9}  {asset.uri}", markup=False)
        console.print(
            f"{'':25}for {', '.join(asset.users)}; licence: {known.licence}{known.note and '; '}{known.note}", markup=False
        )
    refused = []
    for remote, entry in [] if dry_run else missing:
        try:
            path = remote.fetch()
            entry["where"] = "in the cache"
            console.print(f"Fetched {_size(path)} to {path}", markup=False)
        except MarbleError as error:  # the others come all the same
            refused.append(str(error))
    if json_:
        print_json(listed)
    if refused:
        raise MarbleError("\n".join(refused))
    if not dry_run:
        console.print("All of it is here: a run of this configuration works offline.")


def _announced(asset: Asset, remote: Remote) -> str:
    """The published size, or else the server's own word."""
    from marble_core.storage.catalogue import UNKNOWN
    from marble_core.types import MarbleError

    if asset.known.size != UNKNOWN:
        return asset.known.size
    try:
        return _decimal(remote.size() or 0)
    except MarbleError:
        return UNKNOWN


def _size(path: Path) -> str:
    files = [path] if path.is_file() else path.rglob("*")
    return _decimal(sum(file.stat().st_size for file in files if file.is_file()))


def _decimal(count: int) -> str:
    from rich.filesize import decimal

    return decimal(count)
