"""Builds in parts: their merge has the bytes of a single build, and nothing else is merged."""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from cot_builder.dataset import MANIFEST
from cot_builder.engines import ENGINES
from cot_builder.errors import UserError
from cot_builder.images import Scaling
from cot_builder.parts import PART, Portion, build_part, merge
from cot_builder.pipeline import Progress, build
from cot_builder.shards import BuildOptions
from cot_builder.sources import SourceOptions
from knowledge_banks import load_banks

BANKS = load_banks()
TEXTS = ("Small left effusion. No edema.", "The lungs are clear.", "", "Stable <b>mass</b>.")


@pytest.fixture(scope="module")
def release(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A corpus with images, one broken, and one line that is no study."""
    root = tmp_path_factory.mktemp("release")
    lines = ["no study\n"]
    for number in range(30):
        study: dict[str, Any] = {"study_id": f"s{number:02}", "report": TEXTS[number % 4]}
        study["split"] = ("train", "val", "test")[number % 3]
        if number % 5 == 0:
            study["images"] = [{"path": f"im/{number}.png"}]
            (root / "im").mkdir(exist_ok=True)
            Image.new("L", (40, 30), number).save(root / f"im/{number}.png")
        lines.append(json.dumps(study) + "\n")
    (root / "im/5.png").write_bytes(b"broken")
    (root / "studies.jsonl").write_text("".join(lines))
    return root


def options(release: Path, out: Path, **changes: Any) -> BuildOptions:
    chosen: dict[str, Any] = {"shard_size": 3, "scaling": Scaling(0.5)}
    source = SourceOptions(banks=BANKS, root=release)
    return BuildOptions(source="demo", release=source, out=out, **{**chosen, **changes})


def parts(release: Path, folder: Path, of: int, **changes: Any) -> list[Path]:
    made = [folder / str(number) for number in range(of)]
    for number, out in enumerate(made):
        build_part(options(release, out, **changes), Portion(number, of))
    return made


def files(folder: Path) -> dict[str, bytes]:
    found = {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }
    manifest = json.loads(found[MANIFEST])
    del manifest["command"]
    return {**found, MANIFEST: json.dumps(manifest).encode()}


@pytest.fixture(scope="module")
def single(release: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    out = tmp_path_factory.mktemp("single") / "out"
    build(options(release, out))
    return files(out)


@pytest.mark.parametrize("of", [1, 16])
def test_merged_parts_are_a_single_build(
    release: Path, single: dict[str, bytes], tmp_path: Path, of: int
) -> None:
    made = parts(release, tmp_path, of)
    kept = {part: sorted(part.rglob("*")) for part in made}
    manifest = merge(tmp_path / "out", made[::-1], command="merge it")
    assert files(tmp_path / "out") == single
    assert manifest["command"] == "merge it"
    assert len([name for name in single if name.startswith("images/")]) == 4
    assert {part: sorted(part.rglob("*")) for part in made} == kept


def test_without_links_files_are_copied(
    release: Path, single: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any) -> None:
        raise OSError(errno.EXDEV, "Invalid cross-device link")

    made = parts(release, tmp_path, 2)
    monkeypatch.setattr(os, "link", refuse)
    merge(tmp_path / "out", made)
    assert files(tmp_path / "out") == single


def test_a_merge_that_was_cut_off_starts_anew(
    release: Path, single: dict[str, bytes], tmp_path: Path
) -> None:
    made, out = parts(release, tmp_path, 2), tmp_path / "out"
    shard = next(made[1].glob("*.parquet"))
    whole = shard.read_bytes()
    shard.write_bytes(whole[:-1])
    with pytest.raises(UserError, match=rf"{shard} is damaged: build this part again"):
        merge(out, made)
    assert not (out / MANIFEST).exists()
    shard.unlink()
    with pytest.raises(UserError, match=rf"{shard} is missing"):
        merge(out, made)
    shard.write_bytes(whole)
    merge(out, made)
    assert files(out) == single
    with pytest.raises(UserError, match="name a new or empty folder"):
        merge(out, made)


def test_a_part_resumes(release: Path, single: dict[str, bytes], tmp_path: Path) -> None:
    made = parts(release, tmp_path, 2)
    next(made[0].glob("*.parquet")).unlink()
    (made[0] / PART).unlink()
    with pytest.raises(UserError, match=r"no finished part of a build; .* --resume"):
        merge(tmp_path / "out", made)
    build_part(options(release, made[0], resume=True), Portion(0, 2))
    merge(tmp_path / "out", made)
    assert files(tmp_path / "out") == single


def test_what_is_not_all_parts_of_one_build_is_refused(release: Path, tmp_path: Path) -> None:
    first, second, third = parts(release, tmp_path / "a", 3)
    (other, _, _) = parts(release, tmp_path / "b", 3, shard_size=4)
    for given, said in (
        ([first, second], r"1 of 3 parts are missing, of them 2/3"),
        ([first, second, shutil.copytree(first, tmp_path / "copy")], "are the same part"),
        ([other, second, third], "are parts of different builds"),
        ([first, second, tmp_path], r"has no part\.json"),
    ):
        with pytest.raises(UserError, match=said):
            merge(tmp_path / "out", given)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "edit", ["[]", "{", '{"part": [0, 1]}', "../../evil.parquet", "/tmp/x-00000-of-00001.parquet"]
)
def test_a_damaged_or_hostile_part_is_refused(release: Path, tmp_path: Path, edit: str) -> None:
    (part,) = parts(release, tmp_path, 1)
    content = json.loads((part / PART).read_text())
    content["outline"]["jobs"][0][0] = edit
    (part / PART).write_text(json.dumps(content) if edit.endswith("parquet") else edit)
    with pytest.raises(UserError, match=rf"{PART} is damaged"):
        merge(tmp_path / "out", [part])


@pytest.mark.parametrize("text", ["", "1", "3/3", "-1/2", "1/0", "a/b", "1/2/3", "1.0/2"])
def test_a_portion_that_is_none_is_told(text: str) -> None:
    with pytest.raises(UserError, match="expected I/N"):
        Portion.parse(text)


@pytest.mark.server
@pytest.mark.parametrize("engine", ["datatrove", "ray"])
def test_an_engine_gives_the_bytes_of_a_single_build(
    release: Path, single: dict[str, bytes], tmp_path: Path, engine: str
) -> None:
    pytest.importorskip(engine)
    seen: list[Progress] = []
    build(
        options(release, tmp_path / "out", workers=2),
        engine=ENGINES[engine],
        progress=seen.append,
    )
    assert files(tmp_path / "out") == single
    assert (seen[0].done, seen[-1].done) == (0, 30)


def test_the_slurm_array_builds_and_merges(release: Path, tmp_path: Path) -> None:
    script = Path(__file__).resolve().parents[1] / "benchmarks" / "build_array.sbatch"
    (tmp_path / "bin").mkdir()
    for name, line in (
        ("cot-builder", f'{sys.executable} -c "from cot_builder.cli import main; main()" "$@"'),
        ("sbatch", f'echo "$MERGE $@" >> {tmp_path}/sent'),
    ):
        (tmp_path / "bin" / name).write_text(f"#!/bin/bash\n{line}\n")
        (tmp_path / "bin" / name).chmod(0o755)
    shared = {
        "PATH": f"{tmp_path}/bin:{os.environ['PATH']}", "OUT": str(tmp_path / "out"),
        "ROOT": str(release), "SOURCE": "demo", "PARTS": "2", "SLURM_CPUS_PER_TASK": "1",
        "SLURM_ARRAY_TASK_MIN": "0", "SLURM_ARRAY_JOB_ID": "77", "SLURM_JOB_PARTITION": "cpu",
    }  # fmt: skip
    for more in ({"SLURM_ARRAY_TASK_ID": "0"}, {"SLURM_ARRAY_TASK_ID": "1"}, {"MERGE": "1"}):
        subprocess.run(["bash", script], env={**os.environ, **shared, **more}, check=True)
    (sent,) = (tmp_path / "sent").read_text().splitlines()
    assert sent.startswith("1 --array=0 --dependency=afterok:77 ")
    assert sent.endswith(f" --partition=cpu {script}")
    assert json.loads((tmp_path / "out" / MANIFEST).read_text())["counts"]["planned"] == 30
