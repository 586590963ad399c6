"""`cot-builder browse`: a real server, asked over HTTP, and looked at in a real browser."""

from __future__ import annotations

import http.client
import json
import re
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from http.cookies import SimpleCookie
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from cot_builder.boxes import Box
from cot_builder.dataset import MANIFEST, read_studies, write_shard
from cot_builder.errors import UserError
from cot_builder.pipeline import build
from cot_builder.records import Row
from cot_builder.shards import BuildOptions
from cot_builder.sources import SourceOptions
from cot_builder.sources.demo import CORPUS
from eval.workbench.index import Index, Query
from eval.workbench.study import pieces
from knowledge_banks import load_banks
from tests.browser import WIDTHS, chromium, go, look, started

HOSTILE = "No edema. <script>document.title='owned'</script><img src=x onerror=alert(1)> Effusion."
REPORTS = {
    "s1": ("train", "Small left pleural effusion. No pneumothorax. Hiatal hernia."),
    "s2": ("train", "Right apical pneumothorax. The left lung is clear."),
    "s3": ("test", HOSTILE),
    "<b>s4</b>": ("test", "Batwing pattern. Possible pneumonia. Résumé: x+y (50%)."),
}
PICTURE = "images/00015090_006.png"
SENTENCE = "There is a left effusion."


def image(path: str) -> Row:
    return {"path": path, "image_id": "a", "view": "PA", "width": 512, "height": 512}


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A build whose first study has a box, and whose others name images they must not reach."""
    root, out = tmp_path_factory.mktemp("release"), tmp_path_factory.mktemp("built") / "data-set"
    (root / "studies.jsonl").write_text(
        "".join(
            json.dumps({"study_id": name, "split": split, "report": f"FINDINGS: {text}"}) + "\n"
            for name, (split, text) in REPORTS.items()
        )
    )
    release = SourceOptions(banks=load_banks(), root=root)
    manifest = build(BuildOptions(source="demo", release=release, out=out))
    box = Box(
        300, 320, 420, 460, image_id="a", width=512, height=512, source="reader", kind="manual"
    )
    paths = {"s1": PICTURE, "s2": "../../../../etc/passwd", "s3": "images/none.png"}
    for shard in manifest["shards"]:
        rows = [row for row in read_studies(out) if row["split"] == shard["split"]]
        for row in rows:
            if row["study_id"] in paths:
                row["images"] = [image(paths[row["study_id"]])]
            if row["study_id"] == "s1":
                row["chains"][0]["boxes"] = [box.to_row()]
        write_shard(out / shard["file"], rows, scratch=out)
    return out


@pytest.fixture(scope="module")
def beside(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with predictions, another labeller's table, and an edit of the banks."""
    folder = tmp_path_factory.mktemp("beside")
    sentence = {
        "text": SENTENCE,
        "start": 0,
        "end": len(SENTENCE),
        "think": "<i>It is blunted.</i>",
    }
    sentence["boxes"] = [[290, 300, 400, 450]]  # type: ignore[assignment]
    said = {"study_id": "s1", "image_id": "a", "report": SENTENCE, "sentences": [sentence]}
    said["phrases"] = [{"text": "Hiatal hernia", "boxes": []}]
    (folder / "predictions.jsonl").write_text(json.dumps(said) + "\n")
    (folder / MANIFEST).write_text("{}")
    (folder / "chexpert.csv").write_text("study_id,Pleural Effusion,Edema\ns1,0.0,\ns2,,1.0\n")
    (folder / "banks").mkdir()
    edit = 'version = "9.0.0"\nextends = true\n[[sign]]\nid = "batwing"\ndisease = "Edema"\n'
    edit += 'concepts = ["fluid"]\nphrases = ["batwing pattern"]\nsite = "lung"\n'
    (folder / "banks" / "signs.toml").write_text(edit)
    return folder


class Served(NamedTuple):
    address: str
    get: Callable[..., tuple[int, str, http.client.HTTPMessage]]


@pytest.fixture(scope="module")
def served(dataset: Path, beside: Path) -> Iterator[Served]:
    arguments = (dataset, "--root", CORPUS, "--predictions", beside, "--banks", beside / "banks")
    with started(*arguments, "--against", beside / "chexpert.csv") as address:
        found = re.search(r":(\d+)/\?key=(\S+)", address)
        assert found
        yield Served(address, getter(int(found[1]), found[2]))


def getter(port: int, key: str) -> Callable[..., tuple[int, str, http.client.HTTPMessage]]:
    def ask(path: str, headers: dict[str, str]) -> tuple[int, str, http.client.HTTPMessage]:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
        connection.putrequest("GET", path, skip_host="Host" in headers)
        for name, value in headers.items():
            connection.putheader(name, value)
        connection.endheaders()
        answer = connection.getresponse()
        return answer.status, answer.read().decode("utf-8", "replace"), answer.headers

    status, _, headers = ask(f"/?key={key}", {})
    assert status == 303
    ((name, morsel),) = SimpleCookie(headers["Set-Cookie"]).items()
    assert morsel["httponly"]
    assert morsel["samesite"] == "strict"
    cookie = {"Cookie": f"{name}={morsel.value}"}
    return lambda path, headers=cookie: ask(path, headers)


# -- finding studies


@pytest.mark.parametrize(
    ("query", "found"),
    [
        (Query(), ["s1", "s2", "s3", "<b>s4</b>"]),
        (Query(text="EFFUSION"), ["s1", "s3"]),
        (Query(text="left clear"), ["s2"]),
        (Query(text='"left clear"'), []),
        (Query(text='"left pleural'), ["s1"]),
        (Query(text="x+y (50%)"), ["<b>s4</b>"]),
        (Query(text="RÉSUMÉ"), ["<b>s4</b>"]),
        (Query(text="s2"), ["s2"]),
        (Query(label="Pneumothorax"), ["s1", "s2"]),
        (Query(label="Pneumothorax", assertion="positive"), ["s2"]),
        # Both hold of the study, but of no one mention.
        (Query(label="Pneumothorax", region="left lung"), []),
        (Query(label="Pneumothorax", region="right apical zone"), ["s2"]),
        (Query(label="unmapped"), ["s1"]),
        (Query(assertion="uncertain", split="test"), ["<b>s4</b>"]),
        (Query(only="boxes"), ["s1"]),
    ],
)
def test_a_query_finds(dataset: Path, query: Query, found: list[str]) -> None:
    index = Index(dataset)
    hits = index.hits(index.find(query))
    assert sorted(hit.study_id for hit in hits) == sorted(found)
    assert [index.row(hit.place)["study_id"] for hit in hits] == [hit.study_id for hit in hits]


@pytest.mark.parametrize(
    ("query", "said"),
    [
        (Query(label="Oedema"), "unknown label 'Oedema'; known: No Finding, "),
        (Query(differs="Edema"), "unknown differs 'Edema'; known: none"),
        (Query(only="boxxes"), "known: boxes"),
    ],
)
def test_an_unknown_value_lists_the_known_ones(dataset: Path, query: Query, said: str) -> None:
    with pytest.raises(UserError, match=said):
        Index(dataset).find(query)


def test_places_beyond_the_dataset_are_none(dataset: Path) -> None:
    index = Index(dataset)
    for place in (-1, len(index)):
        with pytest.raises(KeyError):
            index.row(place)


def test_a_shard_that_is_gone_or_broken_is_told(dataset: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(dataset, tmp_path / "copy")
    shard = next(copy.glob("train*.parquet"))
    shard.write_bytes(b"PAR1 no PAR1")
    with pytest.raises(UserError, match="is not a shard"):
        Index(copy)
    shard.unlink()
    with pytest.raises(UserError, match="is missing"):
        Index(copy)
    (copy / MANIFEST).unlink()
    with pytest.raises(UserError, match="not complete"):
        Index(copy)


@pytest.mark.parametrize("spans", [[], [(0, 5)], [(0, 9), (2, 4), (3, 7)], [(-5, 99)], [(4, 2)]])
def test_pieces_keep_the_text(spans: list[tuple[int, int]]) -> None:
    text = "one\ttwo six"
    cut = pieces(text, spans)
    assert "".join(piece.text for piece in cut) == text
    for start, end in spans:
        inside = text[max(start, 0) : end] if end > start else ""
        number = spans.index((start, end))
        assert "".join(piece.text for piece in cut if number in piece.marks) == inside


# -- over HTTP


@pytest.mark.server
def test_only_this_machine_with_the_key_is_answered(served: Served) -> None:
    status, text, headers = served.get("/", {})
    assert (status, "study" in text) == (403, False)
    assert served.get("/", {"Cookie": "cot-builder-00000000=x"})[0] == 403
    assert served.get("/static/workbench.css", {})[0] == 403
    assert served.get("/?key=wrong", {})[0] == 403
    # DNS rebinding: another name for this address.
    assert served.get("/", {"Host": "evil.example"})[0] == 400
    status, text, headers = served.get("/")
    assert status == 200
    assert headers["Cache-Control"] == "no-store"
    assert headers["Content-Security-Policy"].startswith("default-src 'none'")
    assert set(re.findall(r'(?:src|href)="(\w+:)?//', text)) == set()


@pytest.mark.server
def test_text_of_reports_ids_and_models_is_inert(served: Served) -> None:
    for path in ("/", "/?text=script", "/?text=%3Cscript%3Ealert(1)%3C/script%3E", "/study/0",
                 "/study/1", "/study/2", "/study/3"):  # fmt: skip
        status, text, _ = served.get(path)
        assert status == 200
        assert re.findall(r"<script(?! src=)|<img src=x|<b>s4|<i>It", text) == []
    assert "&lt;script&gt;document.title" in served.get("/study/2")[1]


@pytest.mark.server
def test_images_come_from_the_release_alone(served: Served) -> None:
    status, _, headers = served.get("/study/0/image/0")
    assert (status, headers["Content-Type"]) == (200, "image/jpeg")
    for path in ("/study/1/image/0", "/study/2/image/0", "/study/0/image/9", "/study/3/image/0"):
        status, text, _ = served.get(path)
        assert status == 404
        assert "root:" not in text
    assert "leaves the folder" in served.get("/study/1/image/0")[1]


@pytest.mark.server
@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/static/../app.py", 404),
        ("/static/%2e%2e/app.py", 404),
        ("/static/..%2fapp.py", 404),
        ("/study/99", 404),
        ("/study/-1", 404),
        ("/study/99999999999999999999999", 404),
        ("/study/1/image/99999999999999999999999", 404),
        ("/?label=Oedema", 400),
        ("/study/0?label=Oedema", 400),
        ("/?from=-5", 200),
        ("/?from=x", 200),
        ("/?from=999999999", 200),
        ("/?text=%22%22%22(((%5B", 200),
        ("/?text=%00%ff", 200),
        ("/?text=" + "a+" * 5000, 200),
        ("/nowhere", 404),
    ],
)
def test_odd_addresses_are_answered(served: Served, path: str, status: int) -> None:
    assert served.get(path)[0] == status


@pytest.mark.server
def test_a_study_tells_its_reasons_and_what_lies_beside(served: Served) -> None:
    _, text, _ = served.get("/study/0?label=Pleural+Effusion")
    for told in ("diseases.effusion@", "negative by &#39;no&#39;", "unmapped", "It is blunted",
                 "Differs from chexpert.csv", 'aria-label="predicted: There is a left effusion.',
                 "nothing there", "1 of 2", "label=Pleural+Effusion"):  # fmt: skip
        assert told in text
    assert "changes nothing" in text
    edited = served.get("/study/3")[1]
    assert re.search(r"<ins>Batwing pattern · Edema · positive", edited)
    found = served.get("/?differs=Edema")[1]
    assert re.findall(r'class="hit"[^>]*>([^<]+)', found) == ["s2"]
    assert re.findall(r'class="hit"[^>]*>([^<]+)', served.get("/?only=predicted")[1]) == ["s1"]


# -- in a browser


@pytest.fixture(scope="module")
def browser(served: Served) -> Iterator[Any]:
    with chromium(served.address) as browser:
        yield browser


def seen(browser: Any, selector: str) -> list[Any]:
    return [one for one in browser.find_elements("css selector", selector) if one.is_displayed()]


@pytest.mark.server
@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize(
    "path", ["/", "/?text=effusion&label=Pleural+Effusion", "/study/0#m0", "/study/2"]
)
def test_pages_fit_and_are_accessible(browser: Any, width: int, path: str) -> None:
    look(browser, path, width, name=re.sub(r"\W+", "-", path).strip("-") or "studies")
    assert browser.title != "owned"


def soon(holds: Callable[[], bool]) -> None:
    """Wait until a page has answered to a key: an element may be gone or not there before."""
    from selenium.common.exceptions import WebDriverException

    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        with suppress(WebDriverException, IndexError):
            if holds():
                return
        time.sleep(0.05)
    assert holds()


@pytest.mark.server
def test_keys_alone_are_enough(browser: Any) -> None:
    from selenium.webdriver.common.keys import Keys

    go(browser, "/")
    active = lambda: browser.switch_to.active_element  # noqa: E731
    active().send_keys("/")
    active().send_keys("effusion", Keys.ENTER)
    soon(lambda: [one.text for one in seen(browser, ".hit")] == ["s1", "s3"])
    seen(browser, ".hit")[0].send_keys(Keys.ENTER)
    soon(lambda: browser.title.startswith("s1"))
    active().send_keys("j")
    soon(lambda: browser.title.startswith("s3"))
    active().send_keys("k")
    soon(lambda: browser.title.startswith("s1"))
    mention = seen(browser, "a.mark.negative")[0]
    mention.send_keys(Keys.ENTER)
    soon(lambda: "negative by 'no'" in seen(browser, "details[open]")[0].text)
    box = seen(browser, "a.box.true")[0]
    browser.execute_script("arguments[0].focus()", box)
    box.send_keys(Keys.ENTER)
    soon(lambda: "reader" in seen(browser, "details.chosen")[0].text)
    assert len(seen(browser, "a.box.predicted")) == 1
    seen(browser, ".show-predicted")[0].send_keys(Keys.SPACE)
    soon(lambda: seen(browser, "a.box.predicted") == [])


@pytest.mark.server
def test_the_browser_asks_nobody_else(browser: Any, served: Served) -> None:
    go(browser, "/study/0")
    sent = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    asked = [
        m["params"]["request"]["url"] for m in sent if m["method"] == "Network.requestWillBeSent"
    ]
    assert any(url.endswith("/study/0/image/0") for url in asked)
    home = served.address.partition("/?")[0]
    assert [url for url in asked if not url.startswith((home, "chrome", "data:"))] == []
