"""`cot-builder publish`, `versions`, `diff` and `rehydrate`."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table

from cot_builder.cli.options import BankFolder, Dataset, extra, spinner
from cot_builder.errors import UserError
from cot_builder.paths import beside

if TYPE_CHECKING:
    from cot_builder.publish.hub import Target
    from cot_builder.publish.version import Manifest

Repo = Annotated[
    str,
    typer.Option(metavar="ORG/NAME", help="A data set on the Hub.", show_default=False),
]


class ImageChoice(StrEnum):
    """How images are published: embedded where they may be, always, or by relative path."""

    auto = "auto"
    embed = "embed"
    paths = "paths"


def publish(
    dataset: Dataset,
    version: Annotated[
        str, typer.Option(metavar="X.Y.Z", help="The version to publish.", show_default=False)
    ],
    repo: Annotated[
        str | None,
        typer.Option(
            metavar="ORG/NAME",
            help="The data set on the Hub to publish to. Without it: a local folder.",
            show_default=False,
        ),
    ] = None,
    to: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="The local folder to write (and keep). Without --repo: DATASET-vX.Y.Z.",
            show_default=False,
        ),
    ] = None,
    root: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="Where image paths start, to embed the images of a dataset without reduced ones.",
            show_default=False,
        ),
    ] = None,
    images: Annotated[
        ImageChoice,
        typer.Option(help="Embed the images, where they may go out, or name their paths."),
    ] = ImageChoice.auto,
    public: Annotated[
        bool, typer.Option("--public", help="Make a new repository public; else it is private.")
    ] = False,
    i_may_redistribute: Annotated[
        bool,
        typer.Option(
            "--i-may-redistribute",
            help="Publish text and pixels of a source that does not allow it: you have the right "
            "to, and all who can read the private repository have it too.",
        ),
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what would go where and to whom; send nothing.")
    ] = False,
    banks: BankFolder = None,
) -> None:
    """Publish a dataset as a version that never changes: configs, card, and a tag.

    Credentialed reports stay at home: ids, offsets, labels, boxes and hashes go out, and whoever
    holds the release puts the words back with `rehydrate`. The token is that of HF_TOKEN or of `hf
    auth login`. A run that was cut off goes on when it is started again.

    For example:

    - `cot-builder publish out/demo --version 1.0.0 --repo org/demo-chains --public --dry-run`
    - `cot-builder publish out/iu --version 1.2.0 --repo org/iu-chains --root /data/iu_xray`
    - `cot-builder publish out/mimic --version 1.0.0 --to mimic-cxr-ext-chains`
    """
    from knowledge_banks import load_banks

    with extra("scale", "publish"):
        from cot_builder.publish import hub
        from cot_builder.publish.version import (
            VersionOptions,
            check_version,
            terms,
            version_in,
            write_version,
        )
    check_version(version)
    kept = to or (None if repo else beside(dataset, f"{dataset.name}-v{version}"))
    options = VersionOptions(
        dataset=dataset,
        version=version,
        folder=kept or beside(dataset, f".{dataset.name}-v{version}"),
        place=repo or (kept or dataset).name,
        banks=load_banks(banks),
        root=root,
        images=images.value,
        may_redistribute=i_may_redistribute,
        draw=_pictures(dataset),
    )
    how = terms(options)
    private = how.private_only or not public
    if public and how.private_only:
        raise UserError(f"--public: {how.why}; it may go to a private repository only")
    target = hub.look_at(repo, version) if repo else None
    if target:
        hub.refuse(target, None, private_only=how.private_only)
    if dry_run:
        options = options.rehearsed()
    console = Console()
    if options.folder != kept:  # what a killed run left
        shutil.rmtree(options.folder, ignore_errors=True)
    try:
        manifest = write_version(options)
        _print_version(console, manifest)
        if target:
            hub.refuse(target, manifest, private_only=how.private_only)
            _print_target(console, target, private)
        if dry_run:
            if kept:
                version_in(kept, manifest)
            console.print("nothing was sent or kept (--dry-run)")
        elif target:
            done = hub.upload(
                options.folder, target, private=private, private_only=how.private_only
            )
            said = "published" if done.done else "was there already, with the same content"
            console.print(
                f"{repo} v{version} {said}: commit {done.commit}", highlight=False, soft_wrap=True
            )
        if kept and not dry_run:
            console.print(f"folder: {kept}", highlight=False, soft_wrap=True)
    finally:
        if options.folder != kept:
            shutil.rmtree(options.folder, ignore_errors=True)


def versions(repo: Repo) -> None:
    """List the versions of a data set on the Hub: content, counts, banks.

    For example:

    - `cot-builder versions --repo org/iu-chains`
    """
    with extra("scale", "versions"):
        from cot_builder.publish.hub import versions as list_versions

    table = Table("version", "content", "studies", "chains", "banks", "text", "configs")
    for name, manifest in list_versions(repo).items():
        table.add_row(
            name,
            manifest["content_sha256"][:12],
            f"{sum(manifest['configs']['chains']['rows'].values()):,}",
            f"{sum(sum(of.values()) for of in manifest['dataset']['chains'].values()):,}",
            manifest["dataset"]["banks"]["version"],
            "no" if manifest["text_free"] else "yes",
            ", ".join(manifest["configs"]),
        )
    Console().print(table)


def diff(
    before: Annotated[
        str, typer.Argument(help="A version (v1.1.0) or a published folder.", show_default=False)
    ],
    after: Annotated[
        str, typer.Argument(help="The version or folder to compare with.", show_default=False)
    ],
    repo: Annotated[
        str | None,
        typer.Option(
            metavar="ORG/NAME", help="The data set that has the versions.", show_default=False
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(metavar="JSONL", help="Write every change here.", show_default=False),
    ] = None,
) -> None:
    """Show the chains that two versions of a data set do not share.

    For example:

    - `cot-builder diff v1.1.0 v1.2.0 --repo org/iu-chains`
    - `cot-builder diff out/iu-v1.1.0 out/iu-v1.2.0 --out changes.jsonl`
    """
    from cot_builder.bank_changes import changes_table, write_changes

    with extra("scale", "diff"):
        from cot_builder.publish.changes import changed_versions

    folders = [_published(name, repo, files=("chains/*",)) for name in (before, after)]
    changes = list(changed_versions(*folders))
    if out:
        write_changes(out, changes)
    Console().print(changes_table(changes))


def rehydrate(
    place: Annotated[
        str,
        typer.Argument(
            metavar="REPO_OR_FOLDER",
            help="A data set of the Hub, or its folder.",
            show_default=False,
        ),
    ],
    out: Annotated[
        Path, typer.Option(metavar="DIR", help="The dataset folder to write.", show_default=False)
    ],
    root: Annotated[
        Path | None,
        typer.Option(
            metavar="PATH",
            help="Your own copy of the release, as for `build`; a version with text needs none.",
            show_default=False,
        ),
    ] = None,
    mimic_root: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR", help="Where MIMIC-CXR-JPG lies, as for `build`.", show_default=False
        ),
    ] = None,
    version: Annotated[
        str | None,
        typer.Option(metavar="X.Y.Z", help="The last one, unless given.", show_default=False),
    ] = None,
    banks: BankFolder = None,
) -> None:
    """Make a published dataset whole again, with the words of your own copy of its release.

    Every report is checked by its hash; those that are not as they were published are named, and
    nothing is written.

    For example:

    - `cot-builder rehydrate org/mimic-chains --root /data/physionet --out out/mimic`
    - `cot-builder rehydrate mimic-cxr-ext-chains --root /data/physionet --out out/mimic`
    """
    from knowledge_banks import load_banks

    with extra("scale", "rehydrate"):
        from cot_builder.publish.rehydrate import rehydrate as run

    folder = _published(place, None, version=version, files=("chains/*", "rejects.jsonl"))
    with spinner("studies") as progress:
        done = run(
            folder, out, banks=load_banks(banks), root=root, mimic_root=mimic_root,
            progress=progress,
        )  # fmt: skip
    console = Console()
    console.print(f"{done.studies:,} studies → {out}", highlight=False, soft_wrap=True)
    if done.images_missing:
        console.print(
            f"{done.images_missing:,} reduced images were not made again: their originals are not "
            "below --root"
        )
    same = "every file has the bytes of its author's"
    console.print(
        f"not the bytes of its author's: {', '.join(done.differing)}" if done.differing else same,
        highlight=False, soft_wrap=True,
    )  # fmt: skip


def _published(
    place: str, repo: str | None, *, files: tuple[str, ...], version: str | None = None
) -> Path:
    """Return the folder of a version: a local one, or what is fetched from the Hub."""
    if Path(place).is_dir():
        return Path(place)
    from cot_builder.publish.hub import download

    if repo:
        return download(repo, place.removeprefix("v"), files=files)
    if "/" not in place:
        raise UserError(f"{place}: no such folder; a version (v1.0.0) needs --repo")
    return download(place, version and version.removeprefix("v"), files=files)


def _pictures(dataset: Path) -> Callable[[Path], Iterator[Path]]:
    """Return what draws the card's pictures; without the eval extra the card has none."""

    def draw(folder: Path) -> Iterator[Path]:
        from eval.dataset_statistics import dataset_statistics

        try:
            from eval.plots import write_plots
        except ModuleNotFoundError as error:
            typer.echo(f"the card has no pictures: {error.name} is not installed", err=True)
            return
        yield from write_plots(dataset_statistics(dataset), folder)

    return draw


def _print_version(console: Console, manifest: Manifest) -> None:
    table = Table("config", "split", "rows", title=f"version {manifest['version']}")
    for name, config in manifest["configs"].items():
        for split, rows in config["rows"].items():
            table.add_row(name, split, f"{rows:,}")
    console.print(table)
    size = sum(config["bytes"] for config in manifest["configs"].values())
    text = "text-free" if manifest["text_free"] else "with its text"
    console.print(
        f"{text}, images {manifest['images']}; content {manifest['content_sha256']}; "
        f"{len(manifest['files']) + 1} files, {size:,} bytes of Parquet",
        highlight=False, soft_wrap=True,
    )  # fmt: skip


def _print_target(console: Console, target: Target, private: bool) -> None:
    new = target.private is None
    hidden = private if new else bool(target.private)
    console.print(
        f"to {target.repo} ({'new, ' if new else ''}{'private' if hidden else 'public'}) as "
        f"{target.user}; it is seen by {target.seen_by(private=hidden)}",
        highlight=False, soft_wrap=True,
    )  # fmt: skip
