"""`cot-builder browse RUN`: a run folder written here, asked over HTTP from a real server."""

from __future__ import annotations

import http.client
import json
import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path

import pytest
from PIL import Image

from cot_builder.errors import UserError
from eval.workbench.run import curves_of, inside, is_run, read_run
from tests.browser import WIDTHS, chromium, look, started

Get = Callable[..., tuple[int, bytes, http.client.HTTPMessage]]
HOSTILE = "<think><script>alert(1)</script><img src=x onerror=alert(2)>\x1b[31m</think>"


def write(path: Path, told: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(told if isinstance(told, str) else json.dumps(told), encoding="utf-8")
    return path


def png(path: Path, colour: str = "red") -> bytes:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (8, 6), colour).save(path)
    return path.read_bytes()


def trained(folder: Path) -> Path:
    """A run whose first stage has ended and whose second goes on, a line half written."""
    settings = {"learning_rate": 5e-05, "trainable": ["vision", "language"], "limit": None}
    recipe = {"model": {"name": "<b>tiny</b>"}, "mcl": settings, "svr": {"generations": 4}}
    named = {"mcl": ["out/demo"], "svr": ["out/demo"], "adapter": ["out/demo"]}
    write(folder / "run.json", {"recipe": recipe, "datasets": named, "command": "train all"})
    write(folder / "mcl/manifest.json", {"stage": "mcl", "examples": 31, "base": "../base"})
    lines = [
        {"stage": "mcl", "step": 1, "steps": 2, "loss": 2.5},
        {"stage": "mcl", "step": 2, "steps": 2, "loss": 1.25, "entropy": 0.5},
        {"stage": "mcl", "step": 2, "steps": 2, "loss": None, "train_loss": 1.875},
        {"stage": "svr", "step": 7, "steps": 90, "reward": 0.625},
    ]
    text = "".join(json.dumps(line) + "\n" for line in lines)
    write(folder / "metrics.jsonl", text + '[1]\n{"step": 3}\n{"stage": "svr", "st')
    png(folder / "curves.png")
    for step in (100, 200):
        png(folder / f"samples/mcl-{step:06d}.png", "green")
        answer = {"prompt": f"Locate it at {step}.", "right": "[]", "said": HOSTILE}
        write(folder / f"samples/mcl-{step:06d}.jsonl", json.dumps(answer) + "\n")
    return folder


def reproduced(folder: Path) -> Path:
    step = {"command": "cot-builder train mcl --out 'a b'", "seconds": 61.5}
    steps = {"build <i>demo</i>": {"command": "cot-builder build", "seconds": 2.25}, "train": step}
    trained(folder / "train" / "w-o-svr & more-0")
    write(
        folder / "tables/table4.csv",
        'Method,BLEU-1\n"<script>x</script>, y",0.426\nours,0.48717948711571313\n',
    )
    write(folder / "tables/table4.md", "## Table 4. Ablation\n\n| Method |\n")
    png(folder / "tables/fig5_text.png", "blue")
    write(folder / "cases/full.html", "<!doctype html><style>p{color:red}</style><p>one case</p>")
    write(folder / "train/secret.txt", "root:")
    (folder / "tables/out.png").symlink_to("/etc/hostname")
    written = {"plan": "smoke", "tool": {"version": "0.1.0"}, "steps": steps}
    write(folder / "manifest.json", written)
    return folder


@contextmanager
def serving(*arguments: str | Path) -> Iterator[Get]:
    with started(*arguments) as address:
        place, _, key = address.partition("/?")

        def ask(path: str, **headers: str) -> tuple[int, bytes, http.client.HTTPMessage]:
            connection = http.client.HTTPConnection(place.removeprefix("http://"), timeout=60)
            connection.request("GET", path, headers=headers)
            answer = connection.getresponse()
            return answer.status, answer.read(), answer.headers

        cookie = ask(f"/?{key}")[2]["Set-Cookie"].partition(";")[0]
        yield lambda path, **headers: ask(path, **(headers or {"Cookie": cookie}))


@pytest.fixture(scope="module")
def train(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Get]:
    with serving(trained(tmp_path_factory.mktemp("t") / "run")) as get:
        yield get


@pytest.fixture(scope="module")
def reproduction(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Get]:
    with serving(reproduced(tmp_path_factory.mktemp("r") / "smoke")) as get:
        yield get


def cells(page: bytes, row: str) -> list[str]:
    found = re.search(rf'<th scope="row">{re.escape(row)}</th>(.*?)</tr>', page.decode(), re.DOTALL)
    assert found, row
    return re.findall(r"<td>(.*?)</td>", found[1])


# -- over HTTP


@pytest.mark.server
def test_a_training_run_shows_stages_settings_metrics_and_answers(train: Get) -> None:
    status, page, _ = train("/")
    assert status == 200
    assert cells(page, "mcl") == ["ended", "2 of 2", "31", "../base", "out/demo"]
    assert cells(page, "svr") == ["going on, or cut off", "7 of 90", "—", "—", "out/demo"]
    assert cells(page, "adapter") == ["not begun", "—", "—", "—", "out/demo"]
    assert cells(page, "learning_rate") == ["5e-05", "—", "—"]
    assert cells(page, "trainable") == ["vision, language", "—", "—"]
    assert cells(page, "model.name") == ["&lt;b&gt;tiny&lt;/b&gt;"]
    # The last number of each metric, which the last line need not have.
    assert cells(page, "loss") == ["1.25", "—", "—"]
    assert cells(page, "train_loss") == ["1.875", "—", "—"]
    assert cells(page, "reward") == ["—", "0.625", "—"]
    assert b"Locate it at 200." in page
    assert b"Locate it at 100." not in page
    assert b'href="/file/samples/mcl-000100.png"' in page


@pytest.mark.server
def test_every_picture_of_a_page_is_there(train: Get, reproduction: Get) -> None:
    for get, path in (
        (train, "/"),
        (reproduction, "/"),
        (reproduction, "/run/train/w-o-svr%20%26%20more-0"),
    ):
        sources = re.findall(r'<img [^>]*src="([^"]+)"', get(path)[1].decode())
        assert sources
        for source in sources:
            status, content, headers = get(source)
            assert (status, headers["Content-Type"]) == (200, "image/png"), source
            Image.open(BytesIO(content)).verify()


@pytest.mark.server
def test_a_reproduction_shows_steps_tables_figures_and_its_runs(reproduction: Get) -> None:
    _, page, _ = reproduction("/")
    assert cells(page, "build &lt;i&gt;demo&lt;/i&gt;") == ["2.25", "cot-builder build"]
    assert cells(page, "train") == ["61.5", "cot-builder train mcl --out &#39;a b&#39;"]
    assert cells(page, "&lt;script&gt;x&lt;/script&gt;, y") == ["0.426"]
    assert cells(page, "ours") == ["0.4872"]
    assert b"out.png" not in page
    for told in (b"63.8 seconds in 2 steps", b"<h2>Table 4. Ablation</h2>", b"smoke"):
        assert told in page
    (run,) = re.findall(r'href="(/run/[^"]+)"', page.decode())
    assert cells(reproduction(run)[1], "mcl")[0] == "ended"


@pytest.mark.server
def test_what_others_wrote_is_inert(train: Get, reproduction: Get) -> None:
    for page in (train("/")[1], reproduction("/")[1]):
        assert re.findall(rb"<script(?! src=)|<img src=x|<b>tiny|<i>demo|\x1b", page) == []
    assert b"&lt;script&gt;alert(1)" in train("/")[1]
    status, sheet, headers = reproduction("/file/cases/full.html")
    assert (status, b"one case" in sheet) == (200, True)
    assert headers["Content-Security-Policy"].startswith("sandbox; default-src 'none'")
    assert headers["X-Content-Type-Options"] == "nosniff"
    assert reproduction("/")[2]["Content-Security-Policy"].startswith("default-src 'none'")


@pytest.mark.server
def test_a_run_is_kept_from_others_too(train: Get) -> None:
    for path in ("/", "/curves/", "/file/curves.png", "/static/workbench.css"):
        assert train(path, Cookie="none=1")[0] == 403
    assert train("/", Host="evil.example")[0] == 400


@pytest.mark.server
@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/file/curves.png", 404),
        ("/file/manifest.json", 404),
        ("/file/train/secret.txt", 404),
        ("/file/tables/out.png", 404),
        ("/file/tables", 404),
        ("/file//etc/hostname", 404),
        ("/file/%2fetc/hostname", 404),
        ("/file/..%2f..%2fx.png", 404),
        ("/file/../../x.png", 404),
        ("/file/%00.png", 404),
        ("/file/%ff.png", 404),
        ("/file/" + "a" * 5000 + ".png", 404),
        ("/curves/", 404),
        ("/curves/..", 404),
        ("/run/train", 400),
        ("/run/nowhere", 400),
        ("/run/..", 404),
        ("/run/%2e%2e/smoke", 404),
        ("/study/0", 404),
    ],
)
def test_only_files_of_the_run_are_sent(reproduction: Get, path: str, status: int) -> None:
    answer, text, _ = reproduction(path)
    assert answer == status
    assert b"root:" not in text


@pytest.mark.server
def test_a_run_that_goes_on_is_read_again(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    write(folder / "run.json", {"recipe": {}, "datasets": {"mcl": ["d"]}})
    with serving(folder) as get:
        assert cells(get("/")[1], "mcl")[0] == "not begun"
        assert get("/curves/")[0] == 404
        line = {"stage": "mcl", "step": 5, "steps": 9, "loss": 0.5}
        write(folder / "metrics.jsonl", json.dumps(line) + "\n")
        assert cells(get("/")[1], "mcl")[:2] == ["going on, or cut off", "5 of 9"]
        assert get("/curves/")[1].startswith(b"\x89PNG")
        write(folder / "run.json", "{")
        status, page, _ = get("/")
        assert (status, b"cannot be read as JSON" in page) == (400, True)


# -- in a browser


@pytest.mark.server
@pytest.mark.parametrize(
    ("write_run", "pages"),
    [
        (trained, {"run-train": "/"}),
        (
            reproduced,
            {"run-reproduce": "/", "run-reproduce-train": "/run/train/w-o-svr%20%26%20more-0"},
        ),
    ],
)
def test_pages_of_runs_fit_and_are_accessible(
    tmp_path: Path, write_run: Callable[[Path], Path], pages: dict[str, str]
) -> None:
    with started(write_run(tmp_path / "run")) as address, chromium(address) as browser:
        for name, path in pages.items():
            for width in WIDTHS:
                look(browser, path, width, name=name)


# -- without a server


def test_curves_are_the_runs_own_unless_a_stage_has_logged_since(tmp_path: Path) -> None:
    folder = trained(tmp_path / "run")
    own = (folder / "curves.png").read_bytes()
    os.utime(folder / "metrics.jsonl", (1, 1))
    assert curves_of(folder) == own
    os.utime(folder / "curves.png", (0, 0))
    assert curves_of(folder) != own
    (folder / "metrics.jsonl").unlink()
    assert curves_of(folder) == own


def test_a_reproduction_that_goes_on_shows_what_has_ended(tmp_path: Path) -> None:
    row = {"command": ["build", "--out", "a b"], "seconds": 2.5}
    write(tmp_path / "steps/build-demo.json", row)
    for name in ("build-demo", "check"):
        write(tmp_path / f"logs/{name}.log", "")
    told = read_run(tmp_path)
    assert ("State", "going on, or cut off") in told.facts
    assert told.more[0].rows == [
        ("build-demo", "2.5", "cot-builder build --out 'a b'"),
        ("check", "—", "has not ended; logs/check.log tells more"),
    ]


@pytest.mark.parametrize(
    ("files", "said"),
    [
        ({}, "holds none of these: a dataset .* `train` .run.json.*`reproduce`"),
        ({"manifest.json": {"stage": "mcl"}}, "holds none of these"),
        ({"manifest.json": {"plan": "x", "steps": 3}}, "holds none of these"),
        ({"manifest.json": "{"}, "manifest.json cannot be read as JSON"),
        ({"manifest.json": "[" * 100_000}, "manifest.json cannot be read as JSON"),
        ({"manifest.json": "[1]"}, "expected a JSON object, got list"),
    ],
)
def test_a_folder_that_is_no_run(tmp_path: Path, files: dict[str, object], said: str) -> None:
    for name, told in files.items():
        write(tmp_path / name, told)
    with pytest.raises(UserError, match=said):
        is_run(tmp_path)
    with pytest.raises(UserError, match="is no folder"):
        is_run(tmp_path / "none")


def test_a_dataset_is_none_and_odd_shapes_do_no_harm(tmp_path: Path) -> None:
    write(tmp_path / "data/manifest.json", {"shards": [], "splits": {}})
    assert not is_run(tmp_path / "data")
    odd = tmp_path / "odd"
    write(odd / "run.json", {"recipe": [1], "datasets": "x", "versions": None, "command": {}})
    write(odd / "metrics.jsonl", '\x00\n{"stage": "a", "step": 1, "loss": [{}], "x": NaN}\n')
    write(odd / "samples/a-1.jsonl", "null\n")
    told = read_run(odd)
    assert told.more[0].rows == [("loss", "{}"), ("x", "nan")]
    assert told.samples[0].answers == []


def test_a_path_stays_inside(tmp_path: Path) -> None:
    assert inside(tmp_path, "a/b") == tmp_path.resolve() / "a/b"
    (tmp_path / "up").symlink_to(tmp_path.parent)
    for below in ("..", "/etc", "a/../../b", "up/x", "\0"):
        with pytest.raises(KeyError):
            inside(tmp_path, below)


@pytest.mark.parametrize(
    "below",
    ["run.json", "metrics.jsonl", "samples/mcl-000200.jsonl", "mcl/manifest.json"],
)
def test_a_link_that_leads_out_of_a_run_is_not_followed(tmp_path: Path, below: str) -> None:
    folder = trained(tmp_path / "run")
    (folder / below).rename(tmp_path / "outside")
    (folder / below).symlink_to(tmp_path / "outside")
    with pytest.raises(UserError, match=f"{below} leads out of the run's folder"):
        read_run(folder)


def test_a_stage_that_is_named_like_a_path_is_not_followed(tmp_path: Path) -> None:
    folder = trained(tmp_path / "run")
    write(tmp_path / "outside/manifest.json", {"examples": 31})
    write(folder / "metrics.jsonl", '{"stage": "../outside", "step": 1}\n')
    with pytest.raises(UserError, match=r"outside/manifest\.json leads out"):
        read_run(folder)


@pytest.mark.parametrize("option", ["root", "predictions", "against", "banks", "old"])
def test_options_of_a_dataset_do_not_fit_a_run(tmp_path: Path, option: str) -> None:
    from typer.testing import CliRunner

    from cot_builder.cli import app

    trained(tmp_path / "run")
    told = CliRunner().invoke(app, ["browse", str(tmp_path / "run"), f"--{option}", "x"])
    assert told.exit_code == 1
    assert f"--{option} is for a dataset" in told.output
