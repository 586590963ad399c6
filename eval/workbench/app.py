"""Serve the pages of a dataset or a run to this machine alone.

Reports may be under a data use agreement, and a machine may have other users. So the server listens
on 127.0.0.1 only, and answers only who has the key that stands in the address it prints, under no
other host's name (a page elsewhere could point its own name here); browsers keep nothing, and fetch
nothing from anywhere else.
"""

from __future__ import annotations

import hashlib
import secrets
import socket
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlencode

import uvicorn
from jinja2 import Environment, PackageLoader, StrictUndefined
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.base import BaseHTTPMiddleware, RequestResponseEndpoint
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import Request
from starlette.responses import (
    FileResponse,
    HTMLResponse,
    PlainTextResponse,
    RedirectResponse,
    Response,
)
from starlette.routing import BaseRoute, Mount, Route
from starlette.staticfiles import StaticFiles

from cot_builder.bank_changes import differences
from cot_builder.decompose import Decomposer
from cot_builder.errors import UserError
from cot_builder.images import BadImageError, derivative, probe, reduced
from cot_builder.predictions import Prediction, read_predictions
from cot_builder.records import Row
from cot_builder.show import plain
from cot_builder.sources import SourceOptions, image_root
from cot_builder.sources.reading import stays_inside
from cot_builder.vocabulary import ASSERTIONS, REGIONS
from eval.label_agreement import STATES, Disagreement, compare_labels
from eval.workbench.index import SUBJECTS, Index, Query
from eval.workbench.run import curves_of, inside, read_run
from eval.workbench.study import parts, pictures, pieces
from knowledge_banks import load_banks

HOST: Final = "127.0.0.1"
LISTED: Final = 25  # studies on a page
LARGEST: Final = 1400  # pixels of an image's longer side, as it is sent
_HEADERS: Final = {
    "Content-Security-Policy": "default-src 'none'; style-src 'self'; script-src 'self'; "
    "img-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}
# What of a run's folder is sent, and as what. A sheet holds its style and images within it.
_SENT: Final = {".png": "image/png", ".html": "text/html"}
_SHEET: Final = "sandbox; default-src 'none'; img-src data:; style-src 'unsafe-inline'"


@dataclass(frozen=True, slots=True, kw_only=True)
class Workbench:
    """All that the pages stand on.

    `rules` made the dataset, `edit` holds other banks to compare with; `images` is where the
    paths of the dataset's images start.
    """

    index: Index
    rules: Decomposer
    edit: Decomposer | None = None
    images: Path
    predictions: Mapping[str, Prediction] = field(default_factory=dict)
    disagreements: Mapping[str, list[Disagreement]] = field(default_factory=dict)
    against: str = ""
    notes: tuple[str, ...] = ()


def open_workbench(
    dataset: Path,
    *,
    root: Path | None = None,
    predictions: Path | None = None,
    against: Path | None = None,
    banks: Path | None = None,
    old: Path | None = None,
) -> Workbench:
    """Read a dataset folder, and what is to be shown beside it, for the pages.

    `banks` are an edit to compare with, `old` the banks that made the dataset if not the shipped
    ones.
    """
    index, made_by = Index(dataset), load_banks(old)
    notes = []
    if made_by.sha256 != index.manifest["banks"]["sha256"]:
        notes.append(
            f"the dataset was built with banks {index.manifest['banks']['version']}, reasons are "
            f"those of {made_by.folder} ({made_by.version}); --old names others"
        )
    disagreements: dict[str, list[Disagreement]] = {}
    if against:
        for found in compare_labels(dataset, against).disagreements:
            disagreements.setdefault(found.study_id, []).append(found)
        pairs = ((d.study_id, d.label) for differing in disagreements.values() for d in differing)
        index.mark_differing(pairs)
    said = read_predictions(predictions).by_study if predictions else {}
    if predictions:
        index.mark("predicted", said)
    return Workbench(
        index=index,
        rules=Decomposer(made_by),
        edit=Decomposer(load_banks(banks)) if banks else None,
        images=image_root(SourceOptions(banks=made_by, root=root)),
        predictions=said,
        disagreements=disagreements,
        against=against.name if against else "",
        notes=tuple(notes),
    )


def application(bench: Workbench, key: str) -> Starlette:
    """Return the pages of a dataset as an ASGI application that wants `key` of everyone."""
    page = _pages(
        where=bench.index.folder.name, holds=f"{len(bench.index):,} studies",
        bench=bench, states=STATES, address=_address,
    )  # fmt: skip

    def studies(request: Request) -> Response:
        query = _query(request)
        first = max(_number(request.query_params.get("from", "0")), 0)
        found = bench.index.find(query)
        return page(
            "studies.html", query=query, total=len(found), first=first, listed=LISTED,
            hits=[
                (hit, _snippet(hit.text, query))
                for hit in bench.index.hits(found[first : first + LISTED])
            ],
            subjects=SUBJECTS, assertions=ASSERTIONS, regions=REGIONS,
        )  # fmt: skip

    def study(request: Request) -> Response:
        place, query = request.path_params["place"], _query(request)
        row = bench.index.row(place)
        found = bench.index.find(query)
        at = int(found.search_sorted(place))
        inside = at < len(found) and found[at] == place
        following = at + inside
        prediction = bench.predictions.get(row["study_id"])
        shown = parts(row, bench.rules.lexicon)
        spans = [(s.start, s.end) for s in prediction.sentences] if prediction else []
        return page(
            "study.html", row=row, place=place, query=query, total=len(found),
            at=at + 1 if inside else None,
            before=found[at - 1] if at else None,
            after=found[following] if following < len(found) else None,
            parts=shown, kinds=[mention.kind for part in shown for mention in part.mentions],
            pictures=pictures(row, shown, prediction), prediction=prediction,
            said=pieces(prediction.report or "", spans) if prediction else (),
            differing=bench.disagreements.get(row["study_id"], []),
            changes=_changes(bench, row),
        )  # fmt: skip

    def image(request: Request) -> Response:
        images = bench.index.row(request.path_params["place"])["images"]
        try:
            path = images[request.path_params["number"]]["path"]
            return Response(_jpeg(bench, path), media_type="image/jpeg")
        except (BadImageError, IndexError, OSError) as error:
            return PlainTextResponse(f"no image: {error}", status_code=404)

    routes = [
        Route("/", studies),
        Route("/study/{place:int}", study),
        Route("/study/{place:int}/image/{number:int}", image),
    ]
    return _guarded(routes, page, key)


def run_application(folder: Path, key: str) -> Starlette:
    """Return the pages of a run, and of the runs below it, as an application that wants `key`."""
    folder = folder.resolve()
    page = _pages(where=folder.name, holds=read_run(folder).kind)

    def run(request: Request) -> Response:
        below = request.path_params.get("below", "")
        told = read_run(inside(folder, below))
        return page("run.html", run=told, below=f"{below}/" if below else "")

    def file(request: Request) -> Response:
        path = inside(folder, request.path_params["below"])
        if path.suffix not in _SENT or not path.is_file():
            raise KeyError(path)
        headers = {"Content-Security-Policy": _SHEET} if path.suffix == ".html" else None
        return FileResponse(path, media_type=_SENT[path.suffix], headers=headers)

    def curves(request: Request) -> Response:
        below = inside(folder, request.path_params["below"])
        return Response(curves_of(below), media_type="image/png")

    routes = [
        Route("/", run),
        Route("/run/{below:path}", run),
        Route("/file/{below:path}", file),
        Route("/curves/{below:path}", curves),
    ]
    return _guarded(routes, page, key)


def _pages(**told: Any) -> Callable[..., HTMLResponse]:
    """Return what makes a page of a template; `told` is said to all of them."""
    pages = Environment(
        loader=PackageLoader("eval.workbench"), autoescape=True, undefined=StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    pages.filters.update(pair=lambda name: (name, name), counted=_counted)
    pages.globals.update(plain=plain, **told)

    def page(name: str, **more: Any) -> HTMLResponse:
        return HTMLResponse(pages.get_template(name).render(more))

    return page


def _guarded(routes: Sequence[BaseRoute], page: Callable[..., HTMLResponse], key: str) -> Starlette:
    # Cookies know no port: two pages open at once must not share a name.
    cookie = f"cot-builder-{hashlib.sha256(key.encode()).hexdigest()[:8]}"

    async def guard(request: Request, answer: RequestResponseEndpoint) -> Response:
        if secrets.compare_digest(request.query_params.get("key", "").encode(), key.encode()):
            response: Response = RedirectResponse(request.url.path, status_code=303)
            response.set_cookie(cookie, key, httponly=True, samesite="strict")
        elif secrets.compare_digest(request.cookies.get(cookie, "").encode(), key.encode()):
            response = await answer(request)
        else:
            text = "Open the address that `cot-builder browse` printed: it holds the key.\n"
            response = PlainTextResponse(text, status_code=403)
        for name, value in _HEADERS.items():
            response.headers.setdefault(name, value)
        return response

    def failed(_: Request, error: Exception) -> Response:
        wrong = isinstance(error, UserError)
        response = page("error.html", message=str(error) if wrong else "There is no such page.")
        response.status_code = 400 if wrong else 404
        return response

    return Starlette(
        routes=[
            *routes,
            Mount("/static", StaticFiles(packages=[("eval.workbench", "static")])),
        ],
        middleware=[
            Middleware(TrustedHostMiddleware, allowed_hosts=[HOST, "localhost"]),
            Middleware(BaseHTTPMiddleware, dispatch=guard),
        ],
        exception_handlers={404: failed, KeyError: failed, OSError: failed, UserError: failed},
    )


def serve(pages: Callable[[str], Starlette], *, port: int, ready: Callable[[str], None]) -> None:
    """Serve the pages that a key gives until interrupted; port 0 takes any free one.

    `ready` is told the address, once it answers.
    """
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    with listener:
        try:
            listener.bind((HOST, port))
        except OSError as error:
            raise UserError(
                f"--port {port}: {error.strerror}; leave it out to take a free one"
            ) from None
        listener.listen()
        key = secrets.token_urlsafe(16)
        ready(f"http://{HOST}:{listener.getsockname()[1]}/?key={key}")
        # No log of requests: they hold words of reports.
        config = uvicorn.Config(pages(key), log_level="warning", access_log=False)
        uvicorn.Server(config).run(sockets=[listener])


def _query(request: Request) -> Query:
    given = request.query_params
    return Query(**{name: given.get(name, "").strip() for name in Query._fields})


def _number(text: str) -> int:
    return int(text) if text.isdecimal() and len(text) < 10 else 0


def _address(path: str, query: Query, **more: int) -> str:
    """Return a path with a query's filled fields, so that a list is found again from a study."""
    filled = {name: value for name, value in query._asdict().items() if value} | more
    return f"{path}?{urlencode(filled)}" if filled else path


def _counted(counts: Mapping[str, int]) -> list[tuple[str, str]]:
    return [(name, f"{name} ({count:,})") for name, count in counts.items()]


def _snippet(text: str, query: Query) -> list[tuple[str, bool]]:
    """Return a short stretch of text around the first of the words looked for."""
    found = query.pattern().search(text) if query.text else None
    start = max(found.start() - 60, 0) if found else 0
    stretch = text[start : start + 220]
    cut: list[tuple[str, bool]] = [("… ", False)] if start else []
    last = 0
    for match in query.pattern().finditer(stretch) if query.text else ():
        cut += [(plain(stretch[last : match.start()]), False), (plain(match.group()), True)]
        last = match.end()
    return [*cut, (plain(stretch[last:]), False), ("…" if start + 220 < len(text) else "", False)]


def _changes(bench: Workbench, row: Row) -> list[Any]:
    if bench.edit is None:
        return []
    sections = bench.index.manifest["options"]["sections"]
    return list(differences([row], bench.rules, bench.edit, sections=sections))


def _jpeg(bench: Workbench, path: str) -> bytes:
    """Return an image upright, grey and small enough for a page, whatever its file is.

    Only a path below the dataset's or the release's folder is opened.
    """
    if not stays_inside(path):
        raise BadImageError("path_outside_root", f"{path} leaves the folder of images")
    kept = bench.index.folder / derivative(path)
    file = kept if kept.exists() else bench.images / path
    if not file.exists():
        raise BadImageError("image_missing", f"{file} does not exist; --root names the release")
    scale = min(1.0, LARGEST / max(probe(file)))
    buffer = BytesIO()
    reduced(file, scale=scale).save(buffer, "JPEG", quality=85)
    return buffer.getvalue()
