"""The knowledge banks: notation, extending, versions, and one clear line for every slip."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest

from cot_builder.decompose import Decomposer
from cot_builder.errors import UserError
from cot_builder.records import Decomposition, Section
from cot_builder.sections import compile_headings
from cot_builder.vocabulary import LABELS, REGIONS
from knowledge_banks import Banks, expand, load_banks, load_prompt, load_withheld
from knowledge_banks.loader import FOLDER
from knowledge_banks.shapes import SHAPES


def own_banks(folder: Path, **files: str) -> Banks:
    for name, text in files.items():
        (folder / f"{name}.toml").write_text(text, encoding="utf-8")
    return load_banks(folder)


def entry(table: list[dict[str, object]], name: str) -> dict[str, object]:
    return next(row for row in table if name in (row.get("id"), row.get("name")))


def decompose(banks: Banks, text: str) -> Decomposition:
    return Decomposer(banks).decompose([Section("findings", text)])


# -- the shipped banks


def test_shipped_banks_are_sound() -> None:
    banks = load_banks()
    assert tuple(row["name"] for row in banks.diseases["disease"]) == LABELS
    assert tuple(row["name"] for row in banks.regions["region"]) == REGIONS
    assert len(banks.regions["imagenome"]) == 29
    assert re.fullmatch(r"\d+\.\d+\.\d+", banks.version)
    assert banks == load_banks()
    compile_headings(banks.headings)


def test_every_file_of_the_folder_is_a_bank() -> None:
    assert {path.stem for path in FOLDER.glob("*.toml")} == set(SHAPES)


@pytest.mark.parametrize(
    ("phrase", "written_out"),
    [
        ("effusion", ["effusion"]),
        ("Lung  Nodule(s)", ["lung nodule", "lung nodules"]),
        ("opacit{y|ies}", ["opacity", "opacities"]),
        ("{old |}rib", ["old rib", "rib"]),
        ("x-ray", ["x ray"]),
        ("{a|b}{c|d}", ["ac", "ad", "bc", "bd"]),
        ("{left {upper|lower} lobe(s)|base}", ["left upper lobe", "left upper lobes",
                                               "left lower lobe", "left lower lobes", "base"]),
        ("process(es)", ["process", "processes"]),
        ("{a|a}", ["a"]),
        ("", []),
    ],
)  # fmt: skip
def test_expand(phrase: str, written_out: list[str]) -> None:
    assert list(expand(phrase)) == written_out


@pytest.mark.parametrize(
    "phrase", ["opacit{y|ies", "opacity}", "nodule(s", "nodule)s", "{a(b}c)", "}{"]
)
def test_expand_refuses_braces_that_do_not_pair(phrase: str) -> None:
    with pytest.raises(ValueError, match="do not pair"):
        expand(phrase)


# -- a user's folder

MEDIASTINUM = "Enlarged Cardiomediastinum"
DEVICE = 'version = "1.0.0"\nextends = true\n[[device]]\nid = "mine"\nsite = "lung"\n'


def test_extending_adds_phrases_to_an_entry_and_entries_to_a_bank(tmp_path: Path) -> None:
    shipped = load_banks()
    banks = own_banks(
        tmp_path,
        signs='extends = true\n[[sign]]\nid = "volume_loss"\nphrases = ["shrunken lobe"]\n'
        '[[sign]]\nid = "mine"\ndisease = "Edema"\nsite = "lung"\nphrases = ["batwing pattern"]\n',
    )
    before, after = (entry(b.signs["sign"], "volume_loss") for b in (shipped, banks))
    assert after == before | {"phrases": [*before["phrases"], "shrunken lobe"]}  # type: ignore[misc]
    assert len(banks.signs["sign"]) == len(shipped.signs["sign"]) + 1
    assert banks._replace(signs={}, version="", sha256="", folder=FOLDER) == shipped._replace(
        signs={}, version="", sha256=""
    )
    text = "Shrunken lobe. Batwing pattern."
    assert not decompose(shipped, text).chains
    chains = decompose(banks, text).chains
    assert [(c.disease, c.basis) for c in chains] == [
        ("Atelectasis", "implied"),
        ("Edema", "implied"),
    ]
    assert all(c.rule.endswith(f"@{banks.version}") for c in chains)


def test_extending_reaches_groups_states_and_words(tmp_path: Path) -> None:
    banks = own_banks(
        tmp_path,
        diseases='extends = true\n[[disease]]\nname = "Edema"\n'
        '[[disease.group]]\nid = "mine"\nsite = "lung"\nphrases = ["wet lungs"]\n',
        states='extends = true\n[state]\nenlarged = ["humongous"]\n',
        attributes='extends = true\n[severity]\nsevere = ["humongous"]\nhuge = ["colossal"]\n',
    )
    found = decompose(banks, "Wet lungs. The heart is humongous. Colossal effusion.").chains
    assert [(c.disease, c.severity) for c in found] == [
        ("Edema", None),
        ("Cardiomegaly", None),
        ("Pleural Effusion", "huge"),
    ]


def test_extending_overrides_all_that_is_no_phrase(tmp_path: Path) -> None:
    banks = own_banks(
        tmp_path,
        signs='extends = true\n[[sign]]\nid = "low_volumes"\nconcepts = ["crowding"]\n',
        regions='extends = true\n[[site]]\nid = "apex"\nunsided = ["whole lung"]\n',
    )
    assert entry(banks.signs["sign"], "low_volumes")["concepts"] == ["crowding"]
    assert entry(banks.regions["site"], "apex")["unsided"] == ["whole lung"]


def test_removing_a_phrase_takes_one_form_out_of_a_pattern(tmp_path: Path) -> None:
    base = tmp_path / "base"
    shutil.copytree(FOLDER, base, ignore=shutil.ignore_patterns("*.py", "*.md", "__pycache__"))
    shipped = entry(load_banks().unmapped["finding"], "aorta")["phrases"]
    forms = [form for phrase in shipped for form in expand(phrase)]  # type: ignore[attr-defined]
    banks = own_banks(
        tmp_path,
        unmapped='extends = true\n[[finding]]\nid = "aorta"\n'
        f'remove = ["{forms[0]}"]\nphrases = ["squiggly aorta"]\n',
    )
    phrases = entry(banks.unmapped["finding"], "aorta")["phrases"]
    left = [form for phrase in phrases for form in expand(phrase)]  # type: ignore[attr-defined]
    assert sorted(set(left)) == sorted({*forms[1:], "squiggly aorta"} - {forms[0]})


def test_removing_reaches_every_list_of_words_of_a_table(tmp_path: Path) -> None:
    banks = own_banks(
        tmp_path,
        attributes='extends = true\n[severity]\nremove = ["marked"]\n'
        '[lookalikes]\nremove = ["traction"]\n',
        regions='extends = true\n[[site]]\nid = "lung"\nremove = ["lingula"]\n',
    )
    assert "marked" not in banks.attributes["severity"]["severe"]
    assert "markedly" in banks.attributes["severity"]["severe"]
    assert "traction" not in banks.attributes["lookalikes"]["words"]
    assert "lingula" not in entry(banks.regions["site"], "lung")["left_phrases"]  # type: ignore[operator]


@pytest.mark.parametrize("extends", ["", "extends = false\n"])
def test_a_file_that_does_not_extend_replaces(tmp_path: Path, extends: str) -> None:
    banks = own_banks(
        tmp_path,
        unmapped=f'version = "1.0.0"\n{extends}[[finding]]\nid = "mine"\nsite = "lung"\n'
        'phrases = ["squiggle"]\n',
    )
    assert [row["id"] for row in banks.unmapped["finding"]] == ["mine"]
    found = decompose(banks, "Squiggle on the left. Hiatal hernia.").unmapped
    assert [(u.finding, u.regions) for u in found] == [("Squiggle on the left", ("left lung",))]


def test_headings_extend_too(tmp_path: Path) -> None:
    banks = own_banks(
        tmp_path,
        headings='extends = true\n[[section]]\nname = "findings"\nphrases = ["befund"]\n',
    )
    assert compile_headings(banks.headings).names["befund"] == "findings"


# -- version and hash


def test_version_tells_own_banks_from_shipped_ones(tmp_path: Path) -> None:
    shipped = load_banks()
    own = own_banks(tmp_path, devices=f'{DEVICE}phrases = ["gizmo"]\n')
    assert own.version == f"{shipped.version}+{own.sha256[:8]}"
    other = own_banks(tmp_path, devices=f'{DEVICE}phrases = ["widget"]\n')
    assert other.version not in (own.version, shipped.version)
    # One's own number counts where it is the highest, numbers and not letters compared.
    text = f'{DEVICE}phrases = ["gizmo"]\n'.replace("1.0.0", "10.0")
    assert own_banks(tmp_path, devices=text).version.startswith("10.0+")


def test_the_same_content_has_the_same_version(tmp_path: Path) -> None:
    shipped = load_banks()
    for path in FOLDER.glob("*.toml"):
        (tmp_path / path.name).write_text(f"# a comment\n{path.read_text()}")
    copied = load_banks(tmp_path)
    assert (copied.version, copied.sha256) == (shipped.version, shipped.sha256)
    assert copied.folder == tmp_path


def test_the_hash_covers_every_bank(tmp_path: Path) -> None:
    hashes = {load_banks().sha256}
    for name in SHAPES:
        folder = tmp_path / name
        folder.mkdir()
        text = (FOLDER / f"{name}.toml").read_text().replace('version = "1.', 'version = "7.', 1)
        hashes.add(own_banks(folder, **{name: text}).sha256)
    assert len(hashes) == len(SHAPES) + 1


def test_the_hash_covers_the_order_of_states(tmp_path: Path) -> None:
    text = (FOLDER / "states.toml").read_text()
    first, second = re.findall(r"^(?:low|high) = .*\n", text, re.MULTILINE)
    swapped = own_banks(tmp_path, states=text.replace(first + second, second + first))
    assert swapped.states == load_banks().states
    assert swapped.sha256 != load_banks().sha256


# -- slips: file, text of the file, what the one line must name

SIGN = 'version = "1.0.0"\nextends = true\n[[sign]]\nid = "mine"\n'
WHOLE_SIGN = f'{SIGN}disease = "Edema"\nsite = "lung"\nphrases = ["x"]\n'
GROUP = 'extends = true\n[[disease]]\nname = "Edema"\n[[disease.group]]\nid = "mine"\n'
SITES = 'extends = true\n[[site]]\nid = "mine"\n'
STRUCTURE = 'extends = true\n[[structure]]\nid = "heart"\n[structure.means]\n'
CUE = 'extends = true\n[[cue]]\nid = "mine"\nphrases = ["x"]\n'

SLIPS = [
    # TOML itself
    ("signs", "version =\n", ["not valid TOML", "line 1"]),
    ("signs", 'version = "1.0.0"\nversion = "1.0.0"\n', ["not valid TOML", "line 2"]),
    ("signs", f'{SIGN}site = "lung"\nsite = "bone"\n', ["not valid TOML", "line 6"]),
    # names of banks, tables and keys
    ("sings", 'version = "1.0.0"', ["unknown bank", "signs.toml"]),
    ("signs", 'version = "1.0.0"\n[[sings]]\nid = "x"', ['unknown key "sings"', "sign, version"]),
    ("signs", f"{WHOLE_SIGN}sight = 1", ["[[sign]] 'mine'", 'unknown key "sight"', "site"]),
    ("states", 'extends = true\n[rnak]\norder = ["normal"]', ['unknown key "rnak"']),
    ("attributes", "extends = true\n[plain]\nword = []", ["[plain]", 'unknown key "word"']),
    # missing
    ("signs", "", ['key "version" is missing']),
    ("signs", 'version = "1.0.0"', ['key "sign" is missing']),
    ("signs", SIGN, ["[[sign]] 'mine'", 'key "disease" is missing']),
    ("signs", WHOLE_SIGN.replace('id = "mine"\n', ""), ["[[sign]] 1", 'key "id" is missing']),
    ("diseases", GROUP, ["[[disease]] 'Edema': [[disease.group]] 'mine'", 'key "site" is missing']),
    ("states", 'version = "1.0.0"\n[state]\nnormal = ["x"]', ['key "rank" is missing']),
    ("states", 'version = "1.0.0"\n[state]\n[rank]', ["[rank]", 'key "order" is missing']),
    # types
    ("signs", "version = 1.0", ['key "version"', "expected a string", "1.0"]),
    ("signs", 'version = "one"\nsign = []', ['key "version"', "'one'"]),
    ("signs", "extends = 1", ['key "extends"', "true or false", "1"]),
    ("signs", f"{SIGN}phrases = 'x'", ["'mine'", 'key "phrases"', "a list of strings", "'x'"]),
    ("signs", f'{SIGN}phrases = ["x", 1]', ['key "phrases"', "a list of strings", "got 1"]),
    ("signs", f'{SIGN}fixed = "yes"', ['key "fixed"', "true or false", "'yes'"]),
    ("signs", f"{SIGN}site = true", ['key "site"', "a string", "True"]),
    ("signs", 'extends = true\nsign = ["x"]', ["[[sign]] 1", "expected a table"]),
    ("signs", "extends = true\n[sign]\nid = 'x'", ["[[sign]]", "an array of tables"]),
    ("attributes", "extends = true\nseverity = 3", ["[severity]", "expected a table", "3"]),
    ("states", 'extends = true\n[state]\nnormal = "x"', ["[state]", 'key "normal"', "list"]),
    # names that another bank defines
    ("signs", WHOLE_SIGN.replace('"lung"', '"lnug"'), ["'mine'", 'key "site"', "'lnug'", "lung"]),
    ("signs", WHOLE_SIGN.replace("Edema", "edema"), ['key "disease"', "'edema'", "Edema"]),
    ("diseases", f'{GROUP}site = "x"\nphrases = ["y"]', ["'Edema'", "'mine'", "site 'x'"]),
    ("diseases", 'extends = true\n[[disease]]\nname = "Oedema"\ndefinition = "x"', ["'Oedema'"]),
    ("devices", f'{DEVICE}phrases = ["x"]\nplaces = ["x"]', ["'mine'", 'key "places"', "'x'"]),
    ("devices", f'{DEVICE}phrases = ["x"]\nsays = "no"', ['key "says"', "assertion 'no'"]),
    ("regions", f'{SITES}all = ["lungs"]', ["[[site]] 'mine'", 'key "all"', "region 'lungs'"]),
    ("regions", f'{SITES}left = ["left lung"]', ["'mine'", '"left", "right", "both"']),
    ("regions", 'extends = true\n[imagenome]\n"rib" = "lung"', ["[imagenome]", 'key "rib"']),
    ("regions", 'extends = true\n[[side]]\nid = "top"\nphrases = ["x"]', ["side 'top'"]),
    ("structures", f'{STRUCTURE}huge = "No Finding"', ["'heart'", "means", "state 'huge'"]),
    ("structures", f'{STRUCTURE}normal = "Edema"', ['key "normal"', "meaning 'Edema'"]),
    ("structures", f'{STRUCTURE}normal = "sign mist"', ["meaning 'sign mist'", "sign "]),
    ("states", 'extends = true\n[state]\nodd = ["x"]', ["[rank]", 'key "order"', "'odd'"]),
    ("states", 'extends = true\n[rank]\norder = ["odd"]', ["[rank]", "state 'odd'"]),
    ("cues", f'{CUE}means = "perhaps"\nreach = "forward"', ["'mine'", 'key "means"', "'perhaps'"]),
    ("cues", f'{CUE}means = "negative"\nreach = "up"', ['key "reach"', "'up'", "backward"]),
    # entries
    ("signs", WHOLE_SIGN + WHOLE_SIGN.partition("true\n")[2], ["'mine'", "2 times"]),
    ("diseases", 'version = "1.0.0"\ndisease = []', ["[[disease]] 'No Finding' is missing"]),
    ("regions", 'version = "1.0.0"\nsite = []\nside = []\nregion = []\n[imagenome]', ["'abdomen'"]),
    # phrases
    ("signs", f'{SIGN}phrases = ["x{{y"]', ["'mine'", 'key "phrases"', "'x{y'", "do not pair"]),
    ("signs", f'{SIGN}phrases = ["  "]', ['key "phrases"', "empty"]),
    ("regions", f'{SITES}all = ["spine"]\nphrases = ["a)"]', ["'mine'", "'a)'", "do not pair"]),
    ("states", 'extends = true\n[state]\nnormal = ["(a"]', ["[state]", 'key "normal"', "'(a'"]),
    ("attributes", 'extends = true\n[plain]\nwords = [""]', ["[plain]", "empty"]),
    # removals
    ("cues", 'extends = true\n[[cue]]\nid = "no"\nremove = ["nil"]', ["'no'", "remove", "'nil'"]),
    ("cues", 'extends = true\n[[cue]]\nid = "no"\nremove = "no"', ["'no'", "remove", "a list"]),
    ("cues", 'extends = true\n[[cue]]\nid = "no"\nremove = ["(x"]', ["remove", "do not pair"]),
    ("cues", f'{CUE}means = "end"\nreach = "forward"\nremove = ["x"]', ['unknown key "remove"']),
    ("cues", 'extends = true\nremove = ["no"]', ["remove", "'no'"]),
    ("attributes", 'extends = true\n[severity]\nremove = ["zilch"]', ["[severity]", "'zilch'"]),
]  # fmt: skip


@pytest.mark.parametrize(("bank", "text", "named"), SLIPS)
def test_a_slip_is_named(tmp_path: Path, bank: str, text: str, named: list[str]) -> None:
    with pytest.raises(UserError) as error:
        own_banks(tmp_path, **{bank: text})
    message = str(error.value)
    assert "\n" not in message
    for part in (str(tmp_path / f"{bank}.toml"), *named):
        assert part in message


def test_a_name_lost_to_a_replaced_bank_is_named_where_it_is_used(tmp_path: Path) -> None:
    text = (FOLDER / "regions.toml").read_text().replace('id = "rib"', 'id = "costa"')
    with pytest.raises(UserError, match=r"unknown site 'rib'.*costa") as error:
        own_banks(tmp_path, regions=text)
    assert str(tmp_path) not in str(error.value).partition(": ")[0]


def test_a_folder_without_banks_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"nowhere: no such folder"):
        load_banks(tmp_path / "nowhere")
    with pytest.raises(UserError, match=r"no bank in this folder.*signs\.toml"):
        load_banks(tmp_path)
    (tmp_path / "signs.toml").symlink_to("gone")
    with pytest.raises(UserError, match=r"signs\.toml is missing"):
        load_banks(tmp_path)
    (tmp_path / "signs.toml").unlink()
    (tmp_path / "signs.toml").mkdir()
    with pytest.raises(UserError, match=r"signs\.toml cannot be read"):
        load_banks(tmp_path)


@pytest.mark.parametrize(
    ("file", "text", "told"),
    [
        ("chains.schema.json", "{", "is not valid JSON"),
        (
            "withheld.toml",
            '[[pattern]]\nname = "id"\nany = ["("]',
            "a list .* of regular",
        ),
        ("withheld.toml", '[[pattern]]\nany = ["x"]', "a name and a list"),
    ],
)
def test_a_slip_in_a_prompt_of_ones_own_is_named(
    tmp_path: Path, file: str, text: str, told: str
) -> None:
    (tmp_path / "prompts").mkdir()
    (tmp_path / "prompts" / file).write_text(text)
    with pytest.raises(UserError, match=rf"{file}\W.*{told}"):
        load_withheld(tmp_path) if file == "withheld.toml" else load_prompt("chains", tmp_path)


def test_bytes_that_are_no_text_are_named(tmp_path: Path) -> None:
    (tmp_path / "cues.toml").write_bytes(b'version = "1.0.0" # \xff')
    with pytest.raises(UserError, match=r"cues\.toml is not valid TOML"):
        load_banks(tmp_path)
