"""`cot-builder review`: chains to Label Studio and back."""

from __future__ import annotations

import json
import os
import signal
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final
from urllib.parse import urlsplit

import typer
from rich.console import Console
from rich.progress import Progress

from cot_builder.cli.options import BankFolder, Dataset, extra
from cot_builder.errors import UserError
from cot_builder.paths import beside

if TYPE_CHECKING:
    from annotation.reviews import Review
    from annotation.studio import Studio
    from cot_builder.records import Row

FOLDER: Final = Path("label-studio")
TOKEN: Final = "LABEL_STUDIO_API_KEY"

ReviewFolder = Annotated[
    Path | None,
    typer.Option(
        metavar="DIR", show_default=False,
        help="Where tasks sent and annotations pulled are kept; DATASET-reviews unless given, in "
        "the working folder where that is an address.",
    ),
]  # fmt: skip
Url = Annotated[
    str | None,
    typer.Option(
        metavar="URL", show_default=False,
        help=f"A Label Studio of your own; its token is read from {TOKEN}.",
    ),
]  # fmt: skip
ServerFolder = Annotated[
    Path, typer.Option("--server", metavar="DIR", help="The folder of `review serve`.")
]


def serve(
    images: Annotated[
        Path,
        typer.Option(
            metavar="DIR", show_default=False, help="The folder at which the image paths start."
        ),
    ],
    folder: Annotated[
        Path, typer.Option(metavar="DIR", help="Keep database, account and log here.")
    ] = FOLDER,
    port: Annotated[int, typer.Option(metavar="N", min=1, max=65535, help="On 127.0.0.1.")] = 8080,
) -> None:
    """Start Label Studio on this machine, and print its address and login; Ctrl-C ends it.

    The first time it is installed into an environment of its own. It listens on 127.0.0.1 alone,
    sends nothing out, and lets nobody sign up without the link that `review push` prints.
    Readers elsewhere come by SSH: `ssh -L 8080:127.0.0.1:8080 this-machine`.

    For example:

    - `cot-builder review serve --images /data/physionet/mimic-cxr-jpg/2.1.0`
    """
    from annotation.server import serving

    console = Console()
    # Ended by a job scheduler or by `kill`, it must not leave the server behind.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        with serving(folder, images, port=port, tell=console.print) as (account, process):
            console.print(f"{account.url}\nlogin     {account.email}")
            console.print(f"password  {account.password}", markup=False, highlight=False)
            process.wait()
    except KeyboardInterrupt:
        console.print("Label Studio was stopped")
        return
    raise UserError(f"Label Studio ended by itself; its log is in {folder}")


def push(
    dataset: Dataset,
    sample: Annotated[
        int | None,
        typer.Option(metavar="N", min=1, show_default=False, help="How many studies; else all."),
    ] = None,
    strategy: Annotated[
        str,
        typer.Option(
            help="Which studies: random, stratified (by label), disagreement, confidence."
        ),
    ] = "random",
    against: Annotated[
        Path | None,
        typer.Option(
            metavar="CSV|DATASET",
            show_default=False,
            help="With disagreement: another labeller's table, or a dataset that an LLM drafted; "
            "else the release's own labels.",
        ),
    ] = None,
    overlap: Annotated[int, typer.Option(metavar="N", min=1, help="Readers of each study.")] = 1,
    annotator: Annotated[
        list[str] | None,
        typer.Option(
            metavar="E-MAIL",
            show_default=False,
            help="Assign the studies to these readers in turn; each gets a tab of the project.",
        ),
    ] = None,
    blind: Annotated[
        bool, typer.Option(help="A project for each reader: nobody sees another's work.")
    ] = False,
    plant: Annotated[
        float,
        typer.Option(
            metavar="SHARE",
            min=0,
            max=1,
            help="Make one chain wrong in this share of the studies, to score the readers.",
        ),
    ] = 0.0,
    adjudicate: Annotated[
        bool, typer.Option(help="Send the studies whose readers differ, with their versions.")
    ] = False,
    title: Annotated[
        str | None,
        typer.Option(
            metavar="TEXT", show_default=False, help="The project; the dataset's name unless given."
        ),
    ] = None,
    images: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            show_default=False,
            help="The folder at which image paths start, on the server's machine; as served "
            "unless given.",
        ),
    ] = None,
    image_url: Annotated[
        str | None,
        typer.Option(
            metavar="PREFIX", show_default=False, help="Or where images are fetched by readers."
        ),
    ] = None,
    seed: Annotated[int, typer.Option(metavar="N", help="Of what is drawn at random.")] = 0,
    url: Url = None,
    server: ServerFolder = FOLDER,
    reviews: ReviewFolder = None,
    banks: BankFolder = None,
) -> None:
    """Send studies to Label Studio, their chains as proposals to accept or correct.

    Pushing again sends only what is not there yet, so a push that broke off is simply repeated.

    For example:

    - `cot-builder review push out/mimic --sample 200 --strategy stratified`
    - `cot-builder review push out/mimic --sample 100 --overlap 2 --blind --annotator a@h.org --annotator b@h.org`
    - `cot-builder review push out/mimic --adjudicate`
    """  # noqa: E501
    from annotation.batch import Images, adjudication_batch, by_project, review_batch
    from annotation.interface import interface
    from annotation.log import PROJECTS, TASKS, append, known_lines
    from knowledge_banks import load_banks

    with extra("review", "review push"):
        from annotation import studio as label_studio

    folder = _review_folder(dataset, reviews)
    if adjudicate:
        tasks = adjudication_batch(_read_reviews(dataset, reviews))
    else:
        tasks = review_batch(
            dataset, strategy=strategy, sample=sample, seed=seed, plant=plant,
            other=_other_labels(dataset, against) if against else None,
        )  # fmt: skip
    readers = tuple(annotator or ())
    name = f"{title or dataset.resolve().name}{' adjudication' if adjudicate else ''}"
    projects = by_project(tasks, name, readers, overlap=overlap, blind=blind)
    _refuse_third_parties(dataset, url)
    studio, served = _connect(url, server)
    label_studio.check_readers(studio, readers)
    place = Images.of(dataset, images or served, image_url)
    place.check(task.image.path for task in tasks if task.image)
    # Known before they are sent: an answer to a task that is not known here could not be read.
    append(folder / TASKS, (t.to_row() for t in tasks), known=known_lines(folder / TASKS))
    console = Console()
    for project_title, batch in projects.items():
        project = label_studio.open_project(
            studio, project_title, interface(load_banks(banks)), overlap=overlap,
            by_score=strategy == "confidence",
        )  # fmt: skip
        row = {"url": studio.url, "project": project, "title": project_title}
        append(folder / PROJECTS, [row], known=known_lines(folder / PROJECTS))
        if place.folder:
            label_studio.serve_images(studio, project, str(place.folder))
        if readers and not blind:
            label_studio.assign_views(studio, project, readers)
        shown = [task.image.path for task, _ in batch if task.image]
        for path in {*shown[:1], *shown[-1:]}:
            label_studio.check_image(studio, place.url(path))
        requests = {task.key: partial(task.request, place.url, **data) for task, data in batch}
        with Progress(console=Console(stderr=True)) as bar:
            step = bar.add_task(project_title, total=len(requests))
            sent = label_studio.push(
                studio, project, requests, model_version=batch[0][0].model_version,
                progress=lambda done, step=step: bar.update(step, completed=done),  # type: ignore[misc]
            )  # fmt: skip
        console.print(
            f"{project_title}: {sent.new} tasks sent, {sent.known} were there; "
            f"{studio.url}/projects/{project}/data",
            highlight=False,
        )


def pull(
    dataset: Dataset,
    from_file: Annotated[
        Path | None,
        typer.Option(
            "--from", metavar="JSON", show_default=False, help="A Label Studio export instead."
        ),
    ] = None,
    project: Annotated[
        list[int] | None,
        typer.Option(metavar="ID", show_default=False, help="These projects; else all pushed to."),
    ] = None,
    url: Url = None,
    server: ServerFolder = FOLDER,
    reviews: ReviewFolder = None,
) -> None:
    """Bring annotations into the review log, which only grows, and tell how far the review is.

    What cannot be read is told with its reason and stands in rejects.jsonl; it is read once it is
    corrected in Label Studio and pulled again.

    For example:

    - `cot-builder review pull out/mimic`
    - `cot-builder review pull out/mimic --from export.json`
    """
    from annotation.log import PROJECTS, read_lines, read_reviews, read_tasks, record, write_rejects
    from annotation.readers import decide
    from annotation.reviewed import progress_tables
    from annotation.server import purge

    folder = _review_folder(dataset, reviews)
    tasks = read_tasks(folder)
    if not tasks:
        raise UserError(f"nothing was pushed: {folder} holds no tasks; --reviews names another")
    if from_file:
        new, rejects = record(folder, _export(from_file), tasks)
    else:
        with extra("review", "review pull"):
            from annotation import studio as label_studio

        studio, _ = _connect(url, server)
        pushed = [row for row in read_lines(folder / PROJECTS) if row["url"] == studio.url]
        wanted = project or [row["project"] for row in pushed]
        if not wanted:
            raise UserError(f"nothing was pushed to {studio.url}; --project names a project there")
        names = label_studio.reader_names(studio)
        new, rejects = 0, []
        for number in wanted:
            exported = label_studio.pull(studio, number)
            added, refused = record(folder, exported, tasks, readers=names)
            new += added
            rejects += refused
        purge(server)
    read, unreadable = read_reviews(folder)
    rejects += unreadable
    write_rejects(folder, rejects)
    console = Console()
    console.print(f"{new} new annotations in {folder}")
    for rejected in rejects:
        console.print(
            f"not used: {rejected.study_id}, {rejected.file}: {rejected.detail}", markup=False
        )
    for review in read:
        for note in review.notes:
            console.print(f"look at {review.study_id} ({review.reader}): {note}", markup=False)
    console.print(progress_tables(tasks.values(), read, decide(read)))


def apply(
    dataset: Dataset,
    out: Annotated[
        Path, typer.Option(metavar="DIR", help="The reviewed dataset.", show_default=False)
    ],
    reviews: ReviewFolder = None,
) -> None:
    """Write a new dataset with the readers' chains; the old one stays as it is.

    Studies that readers accepted or edited take their chains, rejected ones become rejects. Where
    readers differ, nothing changes until `review push --adjudicate` settles it.

    For example:

    - `cot-builder review apply out/mimic --out out/mimic-reviewed`
    """
    from annotation.readers import decide
    from annotation.reviewed import apply_reviews, review_view

    with extra("review", "review apply"):
        from annotation.agreement import summary

    read = _read_reviews(dataset, reviews)
    manifest = apply_reviews(dataset, decide(read), out, agreement=summary(read))
    Console().print(review_view(manifest["review"]), f"→ {out}")


def diff(
    dataset: Dataset,
    first: Annotated[int, typer.Option(metavar="N", min=0, help="How many edits to list.")] = 20,
    out: Annotated[
        Path | None,
        typer.Option(metavar="JSONL", help="Write every edit here.", show_default=False),
    ] = None,
    reviews: ReviewFolder = None,
) -> None:
    """Show what the reviews change: chains kept, changed, deleted and added, by label and by rule.

    For example:

    - `cot-builder review diff out/mimic --out edits.jsonl`
    """
    from annotation.readers import decide
    from annotation.reviewed import diff_tables, edit_rows
    from cot_builder.dataset import json_lines

    decisions = decide(_read_reviews(dataset, reviews)).values()
    Console().print(diff_tables(decisions, first=first))
    if out:
        _write(out, json_lines(edit_rows(decisions)))


def agree(
    dataset: Dataset,
    out: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Write tables and a plot here.", show_default=False),
    ] = None,
    reviews: ReviewFolder = None,
) -> None:
    """Measure how far readers agree, with each other and with the machine.

    Cohen's and Fleiss' kappa and Krippendorff's alpha per label and per assertion, span F1, IoU of
    boxes, and how many of the chains planted wrong each reader found.

    For example:

    - `cot-builder review agree out/mimic --out agreement`
    """
    with extra("review", "review agree"):
        from annotation.agreement import agreement_tables, measure, write_tables
    if out:
        with extra("eval", "review agree --out"):
            from annotation.plots import write_plot

    measured = measure(_read_reviews(dataset, reviews))
    Console().print(agreement_tables(measured))
    if out:
        write_tables(measured, out)
        write_plot(measured, out / "kappa.png")


def learn(
    dataset: Dataset,
    out: Annotated[
        Path | None,
        typer.Option(metavar="TOML", help="Write the proposals here.", show_default=False),
    ] = None,
    least: Annotated[
        int, typer.Option(metavar="N", min=1, help="Edits that are made fewer times are left out.")
    ] = 2,
    reviews: ReviewFolder = None,
    banks: BankFolder = None,
) -> None:
    """List the edits that repeat as proposed bank edits, for a clinician to take over or not.

    For example:

    - `cot-builder review learn out/mimic --out proposals.toml`
    """
    from annotation.learning import proposals
    from annotation.readers import decide
    from annotation.reviewed import edits
    from knowledge_banks import load_banks

    decisions = decide(_read_reviews(dataset, reviews)).values()
    text = proposals(edits(decisions), load_banks(banks), least=least)
    if out:
        _write(out, text.encode())
    else:
        typer.echo(text)


# -- what they share


def _review_folder(dataset: Path, reviews: Path | None) -> Path:
    resolved = dataset.resolve()
    return reviews or beside(resolved, f"{resolved.name}-reviews")


def _read_reviews(dataset: Path, reviews: Path | None) -> list[Review]:
    from annotation.log import read_reviews

    folder = _review_folder(dataset, reviews)
    read, unreadable = read_reviews(folder)
    if not read:
        raise UserError(
            f"no reviews in {folder} ({len(unreadable)} annotations unreadable): "
            "`cot-builder review pull` brings them"
        )
    return read


def _connect(url: str | None, server: Path) -> tuple[Studio, Path | None]:
    """Return the server, and the folder whose images it serves where it is our own."""
    from annotation.server import read_account
    from annotation.studio import connect

    if url:
        return connect(url, os.environ.get(TOKEN, "")), None
    account = read_account(server)
    return connect(account.url, account.token), Path(account.images)


def _refuse_third_parties(dataset: Path, url: str | None) -> None:
    """Raise UserError where reports of a credentialed source would leave the user's network."""
    from cot_builder.dataset import read_manifest
    from cot_builder.llm import is_own

    source = read_manifest(dataset)["source"]
    host = urlsplit(url or "").hostname
    if host and source["credentialed"] and not is_own(host):
        raise UserError(
            f"--url {url}: reports of {source['name']} may not go to third parties (PhysioNet's "
            "data use agreement); use `review serve`, or a server of your own network"
        )


def _export(path: Path) -> list[Row]:
    try:
        exported = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"--from {path}: cannot be read as JSON: {error}") from None
    if not isinstance(exported, list):
        raise UserError(f"--from {path}: expected the list of tasks of a Label Studio JSON export")
    return exported


def _other_labels(dataset: Path, against: Path) -> dict[str, dict[str, int | None]]:
    from cot_builder.dataset import read_studies
    from eval.label_agreement import plain_id, read_label_table

    if against.is_dir():
        rows = read_studies(against, columns=["study_id", "labels"])
        return {row["study_id"]: row["labels"] for row in rows}
    table = read_label_table(against)
    studies = (row["study_id"] for row in read_studies(dataset, columns=["study_id"]))
    return {study: dict(table.get(plain_id(study), {})) for study in studies}


def _write(path: Path, content: bytes) -> None:
    try:
        path.write_bytes(content)
    except OSError as error:
        raise UserError(f"--out {path}: cannot be written: {error.strerror}") from None
