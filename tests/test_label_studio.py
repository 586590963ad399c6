"""The review against a real Label Studio, started afresh; one server for all tests of a session."""

from __future__ import annotations

import base64
import copy
import json
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import jwt
import pytest
from typer.testing import CliRunner

from annotation.log import read_reviews, read_tasks
from annotation.reviews import Review
from annotation.server import Account, serving
from cot_builder.boxes import Box
from cot_builder.cli import app
from cot_builder.dataset import read_manifest, read_studies, write_shard
from cot_builder.errors import UserError
from cot_builder.pipeline import build
from cot_builder.records import Row
from cot_builder.shards import BuildOptions
from cot_builder.sources import SourceOptions
from cot_builder.sources.demo import CORPUS
from knowledge_banks import load_banks

# `make test` keeps a file on one worker: one server for all of it.
pytestmark = [pytest.mark.slow, pytest.mark.server]

CLI = str(Path(sys.executable).with_name("cot-builder"))
ANN, BOB = "ann@hospital.org", "bob@hospital.org"
PASSWORD = "a-Password-of-tests-1"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Server:
    """The server of the session, which tests may kill and start again on its folder."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.port = folder, free_port()
        self.start()

    def start(self) -> None:
        self.stack = ExitStack()
        running = serving(self.folder, CORPUS, port=self.port, tell=lambda line: None)
        self.account: Account
        self.account, self.process = self.stack.enter_context(running)
        self.lead = httpx.Client(
            base_url=self.account.url, timeout=120,
            headers={"Authorization": f"Token {self.account.token}"},
        )  # fmt: skip


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    server = Server(tmp_path_factory.mktemp("label-studio"))
    yield server
    server.stack.close()


@pytest.fixture(scope="session")
def boxed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo corpus with invented boxes on its effusions and opacities."""
    out = tmp_path_factory.mktemp("boxed") / "demo-boxed"
    build(BuildOptions(source="demo", release=SourceOptions(banks=load_banks()), out=out))
    manifest = read_manifest(out)
    for shard in manifest["shards"]:
        rows = list(read_studies(out, shard=shard["file"]))
        for row in rows:
            for place, chain in enumerate(row["chains"] if row["images"] else ()):
                sides = [r for r in chain["regions"] if r.endswith(" lung")]
                if chain["assertion"] == "positive" and sides and chain["disease"] != "No Finding":
                    left = 290.25 if sides[0] == "left lung" else 60.5
                    top = 140.5 + 35 * (place % 5)
                    box = Box(left, top, left + 90 + 10 * place, top + 120.125, 512, 512,
                              row["images"][0]["image_id"], "invented", "manual")  # fmt: skip
                    chain["boxes"] = [box.to_row()]
        shard["sha256"] = write_shard(out / shard["file"], rows, scratch=out)
    (out / "manifest.json").write_text(json.dumps(manifest))
    return out


def cot(*arguments: str | Path, fails: bool = False, **env: str) -> str:
    """Run the command line; return what it says, and see that it ends as expected."""
    result = CliRunner().invoke(
        app, ["review", *map(str, arguments)], env={"COLUMNS": "500", **env}
    )
    assert result.exit_code == (1 if fails else 0), result.output
    return result.output


class Annotator:
    """A reader with an account of their own, who does what the browser does for them."""

    def __init__(self, server: Server, email: str, invite: str) -> None:
        self.http = httpx.Client(base_url=server.account.url, timeout=120, follow_redirects=True)
        self.http.get(invite)
        self._post(invite, email=email, password=PASSWORD)
        self.http.get("/user/login/")
        self._post("/user/login/", email=email, password=PASSWORD)
        assert self.http.get("/api/current-user/whoami").json()["email"] == email

    def _post(self, path: str, **form: str) -> None:
        form["csrfmiddlewaretoken"] = self.http.cookies["csrftoken"]
        self.http.post(path, data=form, headers={"Referer": str(self.http.base_url)})

    def stream(self, project: int) -> Iterator[Row]:
        """Yield the tasks that the labelling stream gives, as long as it gives any."""
        last = None
        while (answer := self.http.get(f"/api/projects/{project}/next")).status_code == 200:
            assert answer.json()["id"] != last, "the same task again: it was not answered"
            last = answer.json()["id"]
            yield answer.json()

    def submit(self, task: Row, rows: list[Row], *, skip: bool = False) -> None:
        (prediction,) = task["predictions"]
        answer = self.http.post(
            f"/api/tasks/{task['id']}/annotations/",
            json={"result": rows, "lead_time": 12.5, "was_cancelled": skip,
                  "parent_prediction": prediction["id"]},
            headers={"X-CSRFToken": self.http.cookies["csrftoken"]},
        )  # fmt: skip
        assert answer.status_code == 201, answer.text


@pytest.fixture(scope="session")
def readers(server: Server, boxed: Path) -> dict[str, Annotator]:
    """Ann and Bob, who sign up by the link that a push prints when they have no account."""
    out = cot("push", boxed, "--server", server.folder, "--annotator", ANN, fails=True)
    assert f"no account on {server.account.url} for {ANN}" in out
    invite = next(word for word in out.split() if "/user/signup/?token=" in word)
    with httpx.Client(base_url=server.account.url) as stranger:  # without the link
        stranger.get("/user/signup/")
        form = {"csrfmiddlewaretoken": stranger.cookies["csrftoken"], "email": "eve@x.org"}
        answer = stranger.post("/user/signup/", data={**form, "password": PASSWORD})
        assert answer.status_code == 403
    return {who: Annotator(server, who, invite) for who in (ANN, BOB)}


def verdict(value: str, *reasons: str) -> list[Row]:
    said = {"verdict": [value], "reason": list(reasons)}
    return [
        {"id": name, "from_name": name, "to_name": "report", "type": "choices",
         "value": {"choices": choices}}
        for name, choices in said.items() if choices
    ]  # fmt: skip


def relabelled(rows: list[Row], name: str, disease: str) -> list[Row]:
    for row in rows:
        if row.get("id") == name and row["from_name"] == "disease":
            row["value"]["labels"] = [disease]
            row["origin"] = "prediction-changed"
    return rows


def without(rows: list[Row], name: str) -> list[Row]:
    return [row for row in rows if name not in (row.get("id"), row.get("from_id"))]


def with_finding(rows: list[Row], words: str, report: str) -> list[Row]:
    start = report.index(words)
    span = {"start": start, "end": start + len(words), "text": words}
    said = {"disease": "Fracture", "anatomy": "spine", "assertion": "positive"}
    for control, choice in said.items():
        kind = "labels" if control == "disease" else "choices"
        rows.append({"id": "Xy_new-1", "from_name": control, "to_name": "report", "type": kind,
                     "origin": "manual", "value": {**span, kind: [choice]}})  # fmt: skip
    value = {"x": 12.5, "y": 25.0, "width": 30.078125, "height": 10.0, "rotation": 0}
    rows.append({"id": "Bx_new-1", "from_name": "box", "to_name": "image", "origin": "manual",
                 "type": "rectanglelabels", "original_width": 512, "original_height": 512,
                 "value": {**value, "rectanglelabels": ["spine"]}})  # fmt: skip
    rows.append({"type": "relation", "from_id": "Xy_new-1", "to_id": "Bx_new-1",
                 "direction": "right"})  # fmt: skip
    return rows


Act = Callable[[list[Row], Row], list[Row]]
ACTS: dict[str, Act] = {
    "demo-002": lambda rows, data: rows + verdict("accept"),
    "demo-004": lambda rows, data: relabelled(rows, "c1", "Consolidation") + verdict("accept"),
    "demo-006": lambda rows, data: without(rows, "c0") + verdict("accept"),
    "demo-007": lambda rows, data: with_finding(rows, data["report"].split("\n")[1].split()[0],
                                                data["report"]) + verdict("accept"),
    "demo-008": lambda rows, data: rows + verdict("reject", "image and report disagree"),
}  # fmt: skip


def by_study(folder: Path, reader: str) -> dict[str, Review]:
    reviews, _ = read_reviews(folder)
    return {review.study_id: review for review in reviews if review.reader == reader}


def projects(out: str) -> list[int]:
    return [int(part.split("/")[0]) for part in out.split("/projects/")[1:]]


def test_push_annotate_pull_agree_adjudicate_apply(
    server: Server, boxed: Path, readers: dict[str, Annotator], tmp_path: Path
) -> None:
    from annotation import studio

    place = ("--server", server.folder, "--reviews", tmp_path / "log")
    push = ("push", boxed, *place, "--overlap", "2", "--blind", "--annotator", ANN,
            "--annotator", BOB, "--title", "round")  # fmt: skip
    out = cot(*push)
    assert out.count("14 tasks sent, 0 were there") == 2
    assert cot(*push).count("0 tasks sent, 14 were there") == 2
    of = dict(zip((ANN, BOB), projects(out), strict=True))

    # The proposals that the server gives the readers are the dataset's chains, and no names more.
    tasks = {task.study_id: task for task in read_tasks(tmp_path / "log").values()}
    for task in readers[ANN].stream(of[ANN]):
        study, rows = task["data"]["study_id"], copy.deepcopy(task["predictions"][0]["result"])
        assert set(task["data"]) == {"image", "report", "study_id", "task", "proposal"}
        if study == "demo-010":
            readers[ANN].submit(task, rows, skip=True)
        else:
            readers[ANN].submit(task, ACTS.get(study, ACTS["demo-002"])(rows, task["data"]))
    for task in readers[BOB].stream(of[BOB]):
        rows = copy.deepcopy(task["predictions"][0]["result"])
        if task["data"]["study_id"] == "demo-002":
            rows = relabelled(rows, "c0", "Pleural Other")
        readers[BOB].submit(task, rows + verdict("accept"))

    out = cot("pull", boxed, *place)
    assert "28 new annotations" in out
    assert "14 studies pushed, 14 answered" in out
    exports = studio.connect(server.account.url, server.account.token).client.projects.exports
    exports.create(of[ANN], title="cot-builder review pull")  # as a pull that was killed leaves it
    assert "0 new annotations" in cot("pull", boxed, *place)
    assert exports.list(of[ANN]) == []
    log = tmp_path / "log"
    ann, bob = by_study(log, ANN), by_study(log, BOB)
    done = {
        study: [(edit.name, edit.op, edit.fields) for edit in review.edits if edit.op != "kept"]
        for study, review in ann.items()
    }
    assert {study: edits for study, edits in done.items() if edits} == {
        "demo-004": [("c1", "changed", ("disease",))],
        "demo-006": [("c0", "deleted", ())],
        "demo-007": [("Xy_new-1", "added", ())],
    }
    assert {study: r.outcome for study, r in ann.items() if r.outcome != "accepted"} == {
        "demo-004": "edited", "demo-006": "edited", "demo-007": "edited",
        "demo-008": "rejected", "demo-010": "skipped",
    }  # fmt: skip
    assert ann["demo-008"].reasons == ("image and report disagree",)
    assert {review.lead_time for review in ann.values()} == {12.5}
    added = ann["demo-007"].chains["Xy_new-1"]
    assert added.boxes[0].xyxy == pytest.approx((64, 128, 218, 179.2), abs=0.5)
    for row in read_studies(boxed):  # what nobody touched comes back byte for byte
        if row["study_id"] != "demo-002":
            kept = [chain.to_row() for chain in bob[row["study_id"]].chains.values()]
            assert json.dumps(kept) == json.dumps(row["chains"])
    assert sum(len(task.base) > 0 for task in tasks.values()) == 14

    out = cot("agree", boxed, "--reviews", log, "--out", tmp_path / "agreement")
    assert "Agreement by label" in out
    assert (tmp_path / "agreement/kappa.png").stat().st_size > 10_000
    before = read_manifest_of(boxed, log, tmp_path / "before")
    assert before["by_outcome"]["disagreed"] == 5

    # The five studies on which Ann and Bob differ go to an adjudicator, who decides.
    (final,) = projects(cot("push", boxed, *place, "--adjudicate", "--title", "round"))
    for task in readers[BOB].stream(final):
        rows = copy.deepcopy(task["predictions"][0]["result"])
        assert ANN not in json.dumps(task["data"])
        for name in {row.get("id", "") for row in rows if row.get("id", "").endswith("-2")}:
            rows = without(rows, name)
        readers[BOB].submit(task, rows + verdict("accept"))
    cot("pull", boxed, *place)
    assert "3 of 125 chains differ" in cot("diff", boxed, "--reviews", log)
    assert 'after = "Consolidation' in cot("learn", boxed, "--reviews", log, "--least", "1")
    after = read_manifest_of(boxed, log, tmp_path / "after")
    assert (after["adjudicated"], after["settled"]) == (5, 14)
    assert after["agreement"]["units"] == 12 * 14
    left = {row["study_id"]: row for row in read_studies(tmp_path / "after")}
    assert left["demo-004"]["chains"][1]["disease"] == "Consolidation"

    copies = [path for path in server.folder.rglob("*export*/**/*") if path.is_file()]
    assert copies == [], "Label Studio keeps no copies of what was pulled"

    # The same answers out of an export file are the same reviews.
    exported = server.lead.get(f"/api/projects/{of[ANN]}/export", params={"exportType": "JSON"})
    (tmp_path / "export.json").write_bytes(exported.content)
    (tmp_path / "other").mkdir()
    shutil.copy(log / "tasks.jsonl", tmp_path / "other")
    cot("pull", boxed, "--from", tmp_path / "export.json", "--reviews", tmp_path / "other")
    (others,) = {review.reader for review in read_reviews(tmp_path / "other")[0]}
    again = by_study(tmp_path / "other", others)
    assert {s: replace(r, reader=ANN, updated_at="") for s, r in again.items()} == {
        s: replace(r, updated_at="") for s, r in ann.items()
    }


def read_manifest_of(dataset: Path, log: Path, out: Path) -> Row:
    cot("apply", dataset, "--reviews", log, "--out", out)
    return dict(read_manifest(out)["review"])


def test_images_are_shown_to_those_who_are_logged_in_alone(
    server: Server, boxed: Path, tmp_path: Path
) -> None:
    log = ("--reviews", tmp_path / "log", "--server", server.folder, "--title", "images")
    out = cot("push", boxed, *log, "--images", tmp_path, fails=True)
    assert f"12 images are not in {tmp_path}" in out
    wrong = tmp_path / "demo_corpus"  # the files are there, but the server does not serve them
    shutil.copytree(CORPUS, wrong)
    out = cot("push", boxed, *log, "--images", wrong, fails=True)
    assert "must be" in out or "not an image" in out
    cot("push", boxed, *log[:-1], "images 2", "--sample", "14")
    url = "/data/local-files/?d=demo_corpus/images/00000732_005.png"
    assert server.lead.get(url).headers["content-type"] == "image/png"
    assert httpx.get(server.account.url + url).status_code == 401
    outside = "/data/local-files/?d=../../etc/passwd"
    assert server.lead.get(outside).status_code in (403, 404, 500)
    private = (".", "label_studio.sqlite3", "label-studio.log", "account.json", ".env")
    modes = {(server.folder / name).stat().st_mode & 0o077 for name in private}
    assert modes == {0}, "the server's files are their owner's alone"


def test_tokens(server: Server, boxed: Path) -> None:
    url = ("--url", server.account.url, "--images", CORPUS)
    none = cot("push", boxed, *url, fails=True, LABEL_STUDIO_API_KEY="")
    assert "put one in the environment as LABEL_STUDIO_API_KEY" in none
    wrong = cot("push", boxed, *url, fails=True, LABEL_STUDIO_API_KEY="f" * 40)
    assert "does not take the token" in wrong
    key = dict(line.split("=", 1) for line in (server.folder / ".env").read_text().split())
    claims = {"token_type": "refresh", "exp": int(time.time()) - 60, "jti": "1", "user_id": 1}
    old = jwt.encode(claims, key["SECRET_KEY"].strip("'\""), algorithm="HS256")
    expired = cot("push", boxed, *url, fails=True, LABEL_STUDIO_API_KEY=old)
    assert "expired" in expired
    assert "sessionid" not in wrong + expired
    nobody = cot("push", boxed, "--url", "http://127.0.0.1:9", fails=True, LABEL_STUDIO_API_KEY="x")
    assert "nothing answers at http://127.0.0.1:9" in nobody


def test_one_project_with_a_tab_for_each_reader_on_a_server_given_by_its_address(
    server: Server, boxed: Path, readers: dict[str, Annotator], tmp_path: Path
) -> None:
    where = ("--url", server.account.url, "--images", CORPUS, "--reviews", tmp_path / "log")
    chosen = ("--sample", "3", "--strategy", "disagreement", "--against")
    assert "no labels differ" in cot("push", boxed, *where, *chosen, boxed, fails=True)
    others = tmp_path / "others.csv"
    rows = (f"{row['study_id']},1,1\n" for row in read_studies(boxed))
    others.write_text("study_id,Pneumonia,Fracture\n" + "".join(rows))
    to = ("--annotator", ANN, "--annotator", BOB, "--title", "tabs", *chosen, others)
    out = cot("push", boxed, *where, *to, LABEL_STUDIO_API_KEY=server.account.token)
    (project,) = projects(out)
    tabs = {
        view["data"]["title"]: view["id"]
        for view in server.lead.get("/api/dm/views", params={"project": project}).json()
    }
    assert {ANN, BOB} <= tabs.keys()
    shown = [
        server.lead.get("/api/tasks", params={"view": tabs[who]}).json()["total"]
        for who in (ANN, BOB)
    ]
    assert shown == [2, 1]
    assert len(list(read_tasks(tmp_path / "log"))) == 3


def test_tasks_edited_by_hand_foreign_projects_and_deleted_ones(
    server: Server, boxed: Path, readers: dict[str, Annotator], tmp_path: Path
) -> None:
    place = ("--server", server.folder, "--reviews", tmp_path / "log")
    (project,) = projects(cot("push", boxed, *place, "--title", "by hand", "--sample", "3"))
    stream = server.lead.get("/api/tasks", params={"project": project, "fields": "all"}).json()
    one, two, three = stream["tasks"]
    edited = {**one["data"], "report": one["data"]["report"] + " And more."}
    server.lead.patch(f"/api/tasks/{one['id']}/", json={"data": edited})
    broken = copy.deepcopy(two["predictions"][0]["result"])
    broken[0]["value"]["labels"] = ["Influenza"]
    for task, rows in ((one, []), (two, broken), (three, three["predictions"][0]["result"])):
        readers[ANN].submit(task, [*rows, *verdict("accept")])
    out = cot("pull", boxed, *place)
    assert "2 new annotations" in out
    assert "someone edited the task" in out
    assert "disease cannot be Influenza" in out
    rejects = [json.loads(line) for line in (tmp_path / "log/rejects.jsonl").open()]
    assert [row["reason"] for row in rejects] == ["task_edited", "annotation_unreadable"]
    assert list(by_study(tmp_path / "log", ANN)) == [three["data"]["study_id"]]

    # An export of this project, where other tasks were pushed, is told apart as a whole.
    exported = server.lead.get(f"/api/projects/{project}/export", params={"exportType": "JSON"})
    (tmp_path / "export.json").write_bytes(exported.content)
    foreign = ("--reviews", tmp_path / "foreign", "--server", server.folder)
    cot(
        "push",
        boxed,
        *foreign,
        "--title",
        "another",
        "--sample",
        "1",
        "--seed",
        "5",
        "--plant",
        "1",
    )
    out = cot("pull", boxed, "--from", tmp_path / "export.json", *foreign, fails=True)
    assert "none of the 3 exported tasks was pushed from this dataset" in out

    server.lead.delete(f"/api/projects/{project}/")
    gone = cot("pull", boxed, *place, fails=True)
    assert "deleted project cannot be had back, but what was pulled from it is kept" in gone
    assert list(by_study(tmp_path / "log", ANN)) == [three["data"]["study_id"]]


def test_a_server_that_dies_in_the_middle_of_a_push(
    server: Server, boxed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from annotation import studio
    from annotation.batch import Images, review_batch
    from annotation.interface import interface

    monkeypatch.setattr(studio, "BATCH", 40)
    (task, *_) = review_batch(boxed, sample=1)
    tasks = [replace(task, study_id=f"copy-{n}") for n in range(160)]
    images = Images.of(boxed, CORPUS, None)
    requests = {one.key: (lambda one=one: one.request(images.url)) for one in tasks}
    opened = studio.connect(server.account.url, server.account.token)
    project = studio.open_project(opened, "dies in between", interface(load_banks()))

    def kill(done: int) -> None:
        if done == 40:
            threading.Timer(0.15, server.process.kill).start()

    with pytest.raises(UserError, match=r"broke|nothing answers"):
        studio.push(opened, project, requests, model_version=task.model_version, progress=kill)
    server.stack.close()
    # Started as a lead does it; the same folder has the same account.
    serve = ("review", "serve", "--images", str(CORPUS), "--folder", str(server.folder))
    command = [CLI, *serve, "--port", str(server.port)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as served:
        assert served.stdout
        assert f"password  {server.account.password}\n" in iter(served.stdout.readline, "")
        opened = studio.connect(server.account.url, server.account.token)
        sent = studio.push(opened, project, requests, model_version=task.model_version)
        served.terminate()
        assert "Label Studio was stopped" in served.stdout.read()
    assert served.returncode == 0
    server.start()
    assert 0 < sent.known < 160
    assert sent.new + sent.known == 160
    there = server.lead.get("/api/tasks", params={"project": project, "page_size": 400}).json()
    assert there["total"] == 160
    assert len({row["data"]["task"] for row in there["tasks"]}) == 160


def test_a_taken_port_is_told(server: Server) -> None:
    with pytest.raises(UserError, match=f"--port {server.port} is taken"), ExitStack() as stack:
        stack.enter_context(serving(server.folder, CORPUS, port=server.port))


# -- in a browser


class Browser:
    """Headless Chromium by its WebDriver protocol: what a reader sees, clicks and types."""

    def __init__(self, driver: str, port: int) -> None:
        self.process = subprocess.Popen([driver, f"--port={port}", "--silent"])
        self.http = httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60)
        self.wait(self._up)
        arguments = ["--headless=new", "--no-sandbox", "--window-size=1920,1400"]
        wanted = {"alwaysMatch": {"goog:chromeOptions": {"args": arguments}}}
        session = self.http.post("/session", json={"capabilities": wanted}).json()["value"]
        self.path = f"/session/{session['sessionId']}"

    def _up(self) -> bool:
        try:
            return bool(self.http.get("/status").json()["value"]["ready"])
        except httpx.ConnectError:
            return False

    def wait(self, until: Callable[[], Any], limit: float = 60) -> Any:
        end = time.monotonic() + limit
        while time.monotonic() < end:
            if value := until():
                return value
            time.sleep(0.2)
        raise AssertionError("the page never came to what was expected")

    def open(self, url: str) -> None:
        self.http.post(f"{self.path}/url", json={"url": url}).raise_for_status()

    def run(self, script: str) -> Any:
        answer = self.http.post(f"{self.path}/execute/sync", json={"script": script, "args": []})
        return answer.json()["value"]

    def keys(self, *keys: str) -> None:
        down = [{"type": "keyDown", "value": key} for key in keys]
        up = [{"type": "keyUp", "value": key} for key in reversed(keys)]
        actions = [{"type": "key", "id": "keyboard", "actions": down + up}]
        self.http.post(f"{self.path}/actions", json={"actions": actions}).raise_for_status()

    def click(self, x: float, y: float) -> None:
        move = {"type": "pointerMove", "x": round(x), "y": round(y)}
        press = [{"type": kind, "button": 0} for kind in ("pointerDown", "pointerUp")]
        actions = [{"type": "pointer", "id": "mouse", "actions": [move, *press]}]
        self.http.post(f"{self.path}/actions", json={"actions": actions}).raise_for_status()

    def shot(self, path: Path) -> None:
        picture = self.http.get(f"{self.path}/screenshot").json()["value"]
        path.write_bytes(base64.b64decode(picture))


@pytest.fixture
def browser() -> Iterator[Browser]:
    driver = shutil.which("chromedriver")
    if not driver:
        pytest.skip("no chromedriver: apt-get install chromium chromium-driver")
    browser = Browser(driver, free_port())
    yield browser
    browser.http.delete(browser.path)
    browser.process.terminate()
    browser.process.wait()


SHIFT, CONTROL, ENTER, ESCAPE = "\ue008", "\ue009", "\ue007", "\ue00c"


def test_a_reader_in_a_browser_changes_a_disease_by_key_and_submits(
    server: Server, boxed: Path, browser: Browser, tmp_path: Path
) -> None:
    place = ("--server", server.folder, "--reviews", tmp_path / "log")
    (project,) = projects(cot("push", boxed, *place, "--title", "in a browser"))
    listed = server.lead.get("/api/tasks", params={"project": project, "fields": "all"}).json()
    task = next(one for one in listed["tasks"] if one["data"]["study_id"] == "demo-004")
    browser.open(f"{server.account.url}/user/login/")
    browser.run(
        f"document.querySelector('[name=email]').value = {server.account.email!r};"
        f"document.querySelector('[name=password]').value = {server.account.password!r};"
        "document.querySelector('form').submit()"
    )
    browser.wait(lambda: "login" not in browser.run("return location.href"))
    browser.open(f"{server.account.url}/projects/{project}/data?task={task['id']}")
    browser.wait(lambda: browser.run("return document.querySelectorAll('.htx-highlight').length"))
    browser.keys(ESCAPE)
    picture = "const i = document.querySelector('.cot-image img'); return i && i.naturalWidth"
    assert browser.wait(lambda: browser.run(picture)) == 512
    # Every proposed phrase is marked, and every box drawn.
    rows = task["predictions"][0]["result"]
    store = "window.Htx.annotationStore.selected"
    drawn = browser.wait(lambda: browser.run(f"return {store}.regions.map(r => r.cleanId)"))
    assert set(drawn) == {row["id"] for row in rows if "id" in row}
    assert "b0" in drawn
    assert browser.run("return document.querySelectorAll('.cot-image canvas').length") > 0

    mark = "const m = document.querySelector('[class*=htx-highlight-c1]').getBoundingClientRect();"
    x, y = browser.run(f"{mark} return [m.x + m.width / 2 + 0.5, m.y + m.height / 2]")
    browser.click(x, y)
    regions = "const p = document.querySelector('.cot-regions');"
    browser.wait(lambda: browser.run(f"{regions} return p && p.getBoundingClientRect().height > 0"))
    browser.keys("6")
    browser.keys(SHIFT, "y")
    browser.wait(lambda: browser.run(
        f"return JSON.stringify({store}.serializeAnnotation()).includes('Consolidation')"
    ))  # fmt: skip
    browser.shot(Path(os.environ.get("REVIEW_SHOT") or tmp_path / "review.png"))
    browser.keys(CONTROL, ENTER)
    answers = f"/api/tasks/{task['id']}/annotations/"
    (annotation,) = browser.wait(lambda: server.lead.get(answers).json())
    assert annotation["lead_time"] > 0

    assert "1 new annotations" in cot("pull", boxed, *place)
    (review,), rejects = read_reviews(tmp_path / "log")
    assert rejects == []
    changed = [edit for edit in review.edits if edit.op != "kept"]
    assert [(edit.name, edit.fields) for edit in changed] == [("c1", ("disease",))]
    assert changed[0].after is not None
    assert changed[0].after.disease == "Consolidation"
