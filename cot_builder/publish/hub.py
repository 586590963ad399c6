"""Versions on the Hugging Face Hub: one commit for all configs, then a tag that is never moved.

The token is the one of `HF_TOKEN` or `hf auth login`; it is read by the client and nowhere else.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, NamedTuple

from httpx2 import HTTPError
from huggingface_hub import (
    CommitOperationAdd,
    CommitOperationDelete,
    HfApi,
    get_token,
    hf_hub_download,
    snapshot_download,
)
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from cot_builder.dataset import MANIFEST
from cot_builder.errors import UserError
from cot_builder.publish.version import Manifest, other_content, read_version

_KIND: Final = "dataset"
_REPO: Final = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*", re.ASCII)
_TAG: Final = re.compile(r"v(\d+)\.(\d+)\.(\d+)")
_TRIES: Final = 4
_UNREACHED: Final = (HTTPError, ConnectionError, LocalEntryNotFoundError, OfflineModeIsEnabled)
_LOG_IN: Final = "set HF_TOKEN or run `hf auth login`"


class Target(NamedTuple):
    """A repository as it stands before an upload: who asks, who will see it, what is there.

    `private` is None where there is no repository yet. `head` is its last commit, and `published`
    the version in it; `tagged` the version that has our tag already.
    """

    repo: str
    user: str
    private: bool | None
    head: str | None = None
    published: Manifest | None = None
    tagged: Manifest | None = None

    def seen_by(self, *, private: bool) -> str:
        """Say who can read what is uploaded."""
        owner = self.repo.partition("/")[0]
        if not private:
            return "everyone"
        return f"{self.user} alone" if owner == self.user else f"the members of {owner}"


class Uploaded(NamedTuple):
    """What an upload did: `done` is False when the version was there already."""

    commit: str
    done: bool


def check_repo(repo: str) -> None:
    """Refuse what is no name of a repository."""
    if not _REPO.fullmatch(repo):
        raise UserError(f"--repo {repo!r}: expected org/name")


def look_at(repo: str, version: str) -> Target:
    """Ask the Hub who we are and what is in a repository; nothing is sent or changed."""
    check_repo(repo)
    if get_token() is None:
        raise UserError(f"publishing to {repo} needs a token of the Hub: {_LOG_IN}")
    api = HfApi()
    with _told(repo):
        user = api.whoami()["name"]
        try:
            info = api.repo_info(repo, repo_type=_KIND)
        except RepositoryNotFoundError as error:
            if isinstance(error, GatedRepoError):
                raise
            return Target(repo, user, None)
        refs = api.list_repo_refs(repo, repo_type=_KIND).tags
        tag = next((ref.target_commit for ref in refs if ref.name == f"v{version}"), None)
        tagged = (_manifest(repo, tag) or {}) if tag else None
        head = str(info.sha)
        return Target(repo, user, bool(info.private), head, _manifest(repo, head), tagged)


def refuse(target: Target, manifest: Manifest | None, *, private_only: bool) -> None:
    """Raise UserError where an upload must not be: seen by too many, or over another version.

    Without a manifest, before there is one, only the first is asked.
    """
    if private_only and target.private is False:
        raise UserError(
            f"{target.repo} exists and is public; these data may only go to a private repository: "
            "name another one, or make it private on the Hub first"
        )
    if manifest is None:
        return
    if target.tagged == {}:
        raise UserError(
            f"{target.repo} has a tag v{manifest['version']} that no `cot-builder publish` made; "
            "choose the next version"
        )
    if target.tagged and target.tagged["content_sha256"] != manifest["content_sha256"]:
        raise UserError(other_content(target.repo, target.tagged, manifest))


def upload(folder: Path, target: Target, *, private: bool, private_only: bool) -> Uploaded:
    """Put a version's folder on the Hub: one commit, then its tag.

    A new repository is made `private`; `private_only` data go to no other, new or old. Cut off and
    run again, it sends only what did not arrive, and tags a commit that lacks its tag.
    """
    manifest = read_version(folder)
    refuse(target, manifest, private_only=private_only)
    api, repo = HfApi(), target.repo
    if target.tagged:
        return Uploaded(str(target.head), False)
    with _told(repo):
        if target.private is None:
            api.create_repo(repo, repo_type=_KIND, private=private, exist_ok=True)
        for attempt in range(_TRIES):
            # What an organisation makes of `private` is looked at before a byte is sent.
            target = look_at(repo, manifest["version"])
            refuse(target, manifest, private_only=private_only)
            if target.published and _same(target.published, manifest):
                commit = str(target.head)
                break
            try:
                commit = _commit(api, folder, target, manifest)
                break
            except HfHubHTTPError as error:
                if error.response.status_code not in (409, 412) or attempt == _TRIES - 1:
                    raise
        api.create_tag(
            repo, repo_type=_KIND, tag=f"v{manifest['version']}", revision=commit,
            tag_message=f"content {manifest['content_sha256']}",
        )  # fmt: skip
    return Uploaded(commit, True)


def _commit(api: HfApi, folder: Path, target: Target, manifest: Manifest) -> str:
    names = [*manifest["files"], MANIFEST]
    add = [CommitOperationAdd(name, str(folder / name)) for name in names]
    # Of what is there, only files of ours go: the last version's.
    old = (target.published or {}).get("files", {})
    gone = [CommitOperationDelete(name) for name in old if name not in names]
    done = api.create_commit(
        target.repo, [*add, *gone], repo_type=_KIND, parent_commit=target.head,
        commit_message=f"Version {manifest['version']}",
        commit_description=f"content {manifest['content_sha256']}",
    )  # fmt: skip
    return str(done.oid)


def _same(one: Manifest, other: Manifest) -> bool:
    return all(one[key] == other[key] for key in ("version", "content_sha256"))


def versions(repo: str) -> dict[str, Manifest]:
    """Return the manifests of a repository's versions, by version, the first one first."""
    check_repo(repo)
    with _told(repo):
        refs = HfApi().list_repo_refs(repo, repo_type=_KIND).tags
        found = {ref.name: _manifest(repo, ref.target_commit) for ref in refs if _order(ref.name)}
    return {
        name.removeprefix("v"): manifest
        for name, manifest in sorted(found.items(), key=lambda item: _order(item[0]))
        if manifest
    }


def download(repo: str, version: str | None, *, files: tuple[str, ...]) -> Path:
    """Fetch files of a version (the last one, if none is named) and return their folder."""
    check_repo(repo)
    if version is None:
        known = versions(repo)
        if not known:
            raise UserError(f"{repo} has no version of `cot-builder publish`")
        version = list(known)[-1]
    return fetch(repo, f"v{version}", files=(MANIFEST, *files))


def fetch(repo: str, revision: str | None = None, *, files: tuple[str, ...] = ("*",)) -> Path:
    """Fetch files of a tag, branch or commit (of main, if none is named); return their folder."""
    with _told(repo, revision):
        return Path(
            snapshot_download(repo, repo_type=_KIND, revision=revision, allow_patterns=[*files])
        )


def _order(tag: str) -> tuple[int, ...]:
    match = _TAG.fullmatch(tag)
    return tuple(map(int, match.groups())) if match else ()


def _manifest(repo: str, revision: str) -> Manifest | None:
    """Return the manifest of a version in a commit; None where there is none."""
    try:
        path = hf_hub_download(repo, MANIFEST, repo_type=_KIND, revision=revision)
        manifest: Any = json.loads(Path(path).read_text(encoding="utf-8"))
    except (EntryNotFoundError, ValueError) as error:
        if isinstance(error, LocalEntryNotFoundError):
            raise  # not an answer of the Hub: it could not be asked
        return None
    return manifest if isinstance(manifest, dict) and "content_sha256" in manifest else None


@contextmanager
def _told(repo: str, revision: str | None = None) -> Iterator[None]:
    """Turn what the Hub answers into one line: what it means, and what to do."""
    try:
        yield
    except GatedRepoError:
        raise UserError(
            f"{repo} is gated and this account has no access: ask for it on the repository's page"
        ) from None
    except RepositoryNotFoundError as error:
        if error.response.status_code == 401 and get_token():
            raise UserError(f"the Hub refuses the token (401): {_LOG_IN}") from None
        raise UserError(
            f"the Hub has no data set {repo}, or it is private and not yours: {_LOG_IN}"
        ) from None
    except RevisionNotFoundError:
        raise UserError(
            f"{repo} has no revision {revision}; `cot-builder versions --repo {repo}` lists its "
            "versions"
        ) from None
    except (HTTPError, OSError, RuntimeError) as error:
        # What went wrong with one file of many is the cause of a RuntimeError.
        cause = error.__cause__ if isinstance(error, RuntimeError) else error
        if isinstance(cause, HfHubHTTPError):
            raise UserError(_meaning(repo, cause)) from None
        if not isinstance(cause, _UNREACHED):
            raise
        raise UserError(
            f"the Hub cannot be reached ({type(cause).__name__}): run the command again, what has "
            "arrived is not sent or fetched twice; a version is published once its tag is there"
        ) from None


def _meaning(repo: str, error: HfHubHTTPError) -> str:
    status = error.response.status_code
    again = "run the command again, what has arrived is not sent twice"
    return {
        401: f"the Hub refuses the token (401): {_LOG_IN}",
        403: f"this account may not write to {repo} (403): ask its owners, or use a token that may",
        409: f"{repo} changed while this was uploaded (409): {again}",
        412: f"{repo} changed while this was uploaded (412): {again}",
        429: f"the Hub asks to slow down (429): wait a few minutes, then {again}",
    }.get(status, f"the Hub failed ({status}) on {repo}: {again}")
