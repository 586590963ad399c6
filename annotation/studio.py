"""Label Studio over its API: projects, tasks in, annotations out; the only room of its SDK."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from typing import Any, Final, NamedTuple

import httpx
from label_studio_sdk.client import LabelStudio
from label_studio_sdk.core.api_error import ApiError

from annotation.interface import INSTRUCTIONS
from cot_builder.errors import UserError
from cot_builder.records import Row

# Tasks a request: more do not go faster, and a request has to end before its timeout.
BATCH: Final = 500
TIMEOUT: Final = 600
# A write is never sent twice by itself: the server may have kept the first one.
_WRITE: Final[Any] = {"max_retries": 0, "timeout_in_seconds": TIMEOUT}
# By this title a pull knows the snapshot of one that was killed.
_SNAPSHOT: Final = "cot-builder review pull"
_CONTROLS: Final = ("disease", "assertion", "anatomy", "box", "verdict")
_TITLE: Final = (3, 50)
_LabelStudio: Any = LabelStudio  # its constructor has no types


class Studio(NamedTuple):
    """A server by its address, and the token by which it is asked."""

    url: str
    client: LabelStudio
    token: str


class Sent(NamedTuple):
    """How many tasks a push sent, and how many the project had already."""

    new: int
    known: int


def connect(url: str, token: str) -> Studio:
    """Return a server after asking it who the token's user is; UserError tells what is wrong."""
    if not token:
        raise UserError(f"no token for {url}: put one in the environment as LABEL_STUDIO_API_KEY")
    if not url.startswith(("http://", "https://")):
        raise UserError(f"--url {url}: expected http:// or https:// and a host")
    url = url.rstrip("/")
    with _telling(url, token, "logging in"):  # an expired token fails before it is used
        client: LabelStudio = _LabelStudio(base_url=url, api_key=token, timeout=TIMEOUT)
        client.users.whoami(request_options={"max_retries": 0})
    return Studio(url, client, token)


def _asking(studio: Studio, doing: str) -> AbstractContextManager[None]:
    return _telling(studio.url, studio.token, doing)


@contextmanager
def _telling(url: str, token: str, doing: str) -> Iterator[None]:
    """Turn what the SDK raises into a UserError; its own words may hold pages and cookies.

    A server may repeat the token, which is not said again.
    """
    try:
        yield
    except ApiError as error:
        status, body = error.status_code, error.body
        told = body if isinstance(body, dict) else {}
        detail = str(told.get("validation_errors") or told.get("detail") or "")
        detail = detail.replace(token, "***")[:400]
        if status == 401:
            raise UserError(
                f"{url} does not take the token ({detail or 'unauthorized'}): make a new one in "
                "Label Studio under Account & Settings, and put it in LABEL_STUDIO_API_KEY"
            ) from None
        if status == 404:
            raise UserError(
                f"{doing}: {url} has no such thing; a deleted project cannot be had back, but what "
                "was pulled from it is kept. --project ID pulls another one"
            ) from None
        raise UserError(f"{doing}: {url} answered {status}: {detail or 'no reason'}") from None
    except httpx.ConnectError:
        raise UserError(
            f"{doing}: nothing answers at {url}; start it with `cot-builder review serve`"
        ) from None
    except httpx.HTTPError as error:
        raise UserError(
            f"{doing}: the connection to {url} broke ({type(error).__name__}); run the same "
            "command again: what is there already is not sent twice"
        ) from None


# -- projects


def open_project(
    studio: Studio, title: str, interface: str, *, overlap: int = 1, by_score: bool = True
) -> int:
    """Return the id of the project of a title, which is made where there is none.

    Each task is given to `overlap` readers; with `by_score`, the least confident ones first.
    UserError where a project of that title has another interface.
    """
    low, high = _TITLE
    if not low <= len(title) <= high:
        raise UserError(f"project title {title!r}: Label Studio wants {low} to {high} characters")
    with _asking(studio, f"opening project {title!r}"):
        for project in studio.client.projects.list(title=title):
            if project.title == title:
                config = str(project.label_config)
                if missing := [name for name in _CONTROLS if f'name="{name}"' not in config]:
                    raise UserError(
                        f"project {title!r} (id {project.id}) has another interface, without "
                        f"{', '.join(missing)}; choose another title with --title"
                    )
                return int(project.id or 0)
        made = studio.client.projects.create(
            title=title, label_config=interface, maximum_annotations=overlap,
            sampling="Uncertainty sampling" if by_score else "Sequential sampling",
            expert_instruction=INSTRUCTIONS, show_instruction=True, show_collab_predictions=True,
            enable_empty_annotation=True, request_options=_WRITE,
        )  # fmt: skip
    return int(made.id or 0)


def serve_images(studio: Studio, project: int, folder: str) -> None:
    """Let a project show the images of a folder of the server; it is never synced into tasks."""
    with _asking(studio, f"opening {folder} to project {project}"):
        if not studio.client.import_storage.local.list(project=project):
            studio.client.import_storage.local.create(
                project=project, path=folder, title="images", use_blob_urls=True,
                request_options=_WRITE,
            )  # fmt: skip


def assign_views(studio: Studio, project: int, readers: Iterable[str]) -> None:
    """Give each reader a tab of the project with the tasks assigned to them."""
    with _asking(studio, "making the readers' views"):
        views = studio.client.views.list(project=project)
        titles = {(view.data or {}).get("title") for view in views}
        for reader in readers:
            if reader not in titles:
                assigned = {
                    "filter": "filter:tasks:data.assigned", "operator": "contains",
                    "type": "String", "value": reader,
                }  # fmt: skip
                data: Any = {
                    "title": reader, "filters": {"conjunction": "and", "items": [assigned]},
                    # The proposal is long, and is in the task itself.
                    "hiddenColumns": {"explore": ["tasks:data.proposal"], "labeling": []},
                }  # fmt: skip
                studio.client.views.create(project=project, data=data, request_options=_WRITE)


def check_readers(studio: Studio, readers: Sequence[str]) -> None:
    """Raise UserError when a reader has no account, with the link by which they make one."""
    with _asking(studio, "looking for the readers' accounts"):
        missing = sorted(set(readers) - set(_users(studio).values()))
        if missing:
            answer = httpx.get(f"{studio.url}/api/invite", headers=_headers(studio))
            invite = answer.raise_for_status().json()["invite_url"]
            raise UserError(
                f"no account on {studio.url} for {', '.join(missing)}: they sign up at "
                f"{studio.url}{invite} (pass it on to them alone), then push again"
            )


def _users(studio: Studio) -> dict[int, str]:
    return {user.id: user.email or f"user {user.id}" for user in studio.client.users.list()}


def _headers(studio: Studio) -> dict[str, str]:
    return dict(studio.client._client_wrapper.get_headers())


def check_image(studio: Studio, url: str) -> None:
    """Raise UserError when the server does not show an image to a reader."""
    headers = {}
    if url.startswith("data:"):
        return
    with _asking(studio, "looking at an image"):
        if url.startswith("/"):
            headers = _headers(studio)  # never to another host
            url = studio.url + url
        with httpx.stream("GET", url, headers=headers, timeout=60) as answer:
            kind = answer.headers.get("content-type", "")
            if answer.status_code != 200 or not kind.startswith("image/"):
                raise UserError(
                    f"{url} answers {answer.status_code} ({kind or 'nothing'}), not an image, and "
                    "readers would see none. `review serve --images DIR` serves the folder at "
                    "which the image paths start; for images elsewhere give --image-url"
                )


# -- tasks in, annotations out


def push(
    studio: Studio,
    project: int,
    requests: Mapping[str, Callable[[], Row]],
    *,
    model_version: str,
    progress: Callable[[int], None] = lambda done: None,
) -> Sent:
    """Send the tasks that the project does not have, by their key, in batches.

    Pushing again after anything goes on where it stopped: what is there is asked for first.
    """
    with _asking(studio, f"asking project {project} for its tasks"):
        there = _keys(studio, project)
    new = [key for key in requests if key not in there]
    done = len(requests) - len(new)
    progress(done)
    for start in range(0, len(new), BATCH):
        keys = new[start : start + BATCH]
        batch: Any = [requests[key]() for key in keys]
        with _asking(studio, f"pushing to project {project}, {done} of {len(requests)} there"):
            answer = studio.client.projects.import_tasks(
                project, request=batch, request_options=_WRITE
            )
        if answer.task_count != len(keys):
            raise UserError(
                f"project {project} took {answer.task_count} of {len(keys)} tasks; push again, and "
                "look at the project's tasks in Label Studio"
            )
        done += len(keys)
        progress(done)
    with _asking(studio, f"showing the proposals of project {project}"):
        studio.client.projects.update(project, model_version=model_version, request_options=_WRITE)
    return Sent(len(new), len(requests) - len(new))


def _keys(studio: Studio, project: int) -> set[str]:
    if not studio.client.projects.get(project).task_number:
        return set()
    tasks = studio.client.tasks.list(
        project=project, fields="task_only", include="id,data", page_size=500
    )
    return {str((task.data or {}).get("task")) for task in tasks}


def pull(studio: Studio, project: int) -> list[Row]:
    """Return the tasks of a project that somebody answered, with their annotations.

    The snapshot that Label Studio makes for it is removed again, and those that killed pulls left:
    they hold the reports.
    """
    exports = studio.client.projects.exports
    with _asking(studio, f"pulling project {project}"):
        for left in exports.list(project):
            if left.title == _SNAPSHOT:
                exports.delete(id=project, export_pk=left.id)
        options: Any = {"only_with_annotations": True}
        snapshot = exports.create(
            project, title=_SNAPSHOT, task_filter_options=options, request_options=_WRITE
        ).id
        try:
            while (state := exports.get(id=project, export_pk=snapshot).status) in (
                "created", "in_progress",
            ):  # fmt: skip
                time.sleep(0.5)
            if state != "completed":
                raise UserError(f"Label Studio could not export project {project} ({state})")
            parts = exports.download(
                id=project, export_pk=snapshot, request_options={"timeout_in_seconds": TIMEOUT}
            )
            tasks: list[Row] = json.loads(b"".join(parts))
        finally:
            with suppress(ApiError, httpx.HTTPError):
                exports.delete(id=project, export_pk=snapshot)
    return tasks


def reader_names(studio: Studio) -> dict[int, str]:
    """Return the e-mail of each user, by id."""
    with _asking(studio, "asking for the readers"):
        return _users(studio)
