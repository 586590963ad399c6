"""The spaCy component gives what the build gives; spelling and links need scispaCy."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cot_builder.dataset import read_studies
from cot_builder.decompose import Decomposer
from cot_builder.errors import UserError
from cot_builder.pipeline import build
from cot_builder.records import Chain, Decomposition, Section, Unmapped
from cot_builder.sections import compile_headings, split_sections
from cot_builder.shards import BuildOptions
from cot_builder.sources import SourceOptions
from knowledge_banks import load_banks

spacy = pytest.importorskip("spacy", reason="spaCy is in the extras sci and dev")

from spacy.language import Language  # noqa: E402
from spacy.tokens import Doc, DocBin, Span  # noqa: E402

from cot_builder.spacy_component import (  # noqa: E402
    bank_concepts,
    link_findings,
    scispacy_tokenizer,
    sections_doc,
    write_knowledge_base,
)

ROOT = Path(__file__).resolve().parents[1]

REPORTS = (
    "The lungs are clear. Heart size is normal. No pneumothorax or pleural effusion.",
    "Lungs are low in volume. No Kerley B lines.",
    "Patchy opacity in the left base may represent atelectasis or infiltrate.",
    "Right IJ catheter tip in the SVC without pneumothorax.",
    "Interval resolution of the right effusion; stable mild cardiomegaly.",
    "Degenerative changes of the thoracic spine. No acute fracture.",
    "1. Small left hydropneumothorax.\n2. Mild edema.\n\n3. Opacity/infiltrate at the right base.",
    "Left-sided port-a-cath, tip at the cavoatrial junction. The aorta is tortuous.",
    "  Blunting of the left costophrenic angle.  Moderate pneumothorx.  ",
    "Cardiomediastinal silhouette is within normal limits; XXXX are intact.",
    "Right greater than left effusions,atelectasis.There is no pneumonia",
    "Comparison: none. Follow-up CT to exclude a nodule.",
    "",
)

# Concepts invented for these tests; the ids are of no terminology.
CONCEPTS = (
    {"concept_id": "X01", "canonical_name": "Pneumothorax", "aliases": ["collapsed lung", "PTX"]},
    {"concept_id": "X02", "canonical_name": "Pleural effusion", "aliases": ["effusion"]},
    {"concept_id": "X03", "canonical_name": "Opacity", "aliases": [], "definition": "White."},
    {"concept_id": "X04", "canonical_name": "Base of lung", "aliases": ["left base"]},
)


@pytest.fixture(scope="module")
def nlp() -> Language:
    nlp: Language = spacy.blank("en")
    nlp.add_pipe("cot_chains")
    return nlp


@pytest.fixture(scope="module")
def decomposer() -> Decomposer:
    return Decomposer(load_banks())


@pytest.fixture(scope="module")
def spelling(scispacy: None) -> Language:
    nlp: Language = spacy.blank("en")
    nlp.add_pipe("cot_chains", config={"spelling": True})
    return nlp


@pytest.fixture(scope="module")
def scispacy() -> None:
    pytest.importorskip("scispacy", reason="scispaCy is in the extra sci")


@pytest.fixture
def kb(tmp_path: Path) -> Path:
    path = tmp_path / "kb.jsonl"
    path.write_text("".join(f"{json.dumps(concept)}\n" for concept in CONCEPTS))
    return path


def found(doc: Doc) -> tuple[tuple[Chain, ...], tuple[Unmapped, ...]]:
    return doc._.chains, doc._.unmapped


def built(result: Decomposition) -> tuple[tuple[Chain, ...], tuple[Unmapped, ...]]:
    return result.chains, result.unmapped


def check_spans(doc: Doc) -> None:
    spans = list(doc.spans["findings"])
    records = [*doc._.chains, *doc._.unmapped]
    assert len(spans) == len(records)
    assert {id_of(span._.record) for span in spans} == {id_of(record) for record in records}
    assert [span.start for span in spans] == sorted(span.start for span in spans)
    for span in spans:
        record = span._.record
        assert span.label_ == (record.disease if isinstance(record, Chain) else "unmapped")
        assert record.finding in span.text


def id_of(record: Chain | Unmapped) -> tuple[str, int, int, str]:
    return record.section, record.start, record.end, getattr(record, "disease", "unmapped")


# -- the same as the build


@pytest.mark.parametrize("text", REPORTS)
def test_a_document_gives_what_the_build_gives(
    text: str, nlp: Language, decomposer: Decomposer
) -> None:
    doc = nlp(text)
    assert found(doc) == built(decomposer.decompose([Section("text", text)]))
    assert all(text[r.start : r.end] == r.finding for records in found(doc) for r in records)
    check_spans(doc)


def test_every_kind_of_finding_is_among_the_reports(nlp: Language) -> None:
    docs = list(nlp.pipe(REPORTS))
    labels = {span.label_ for doc in docs for span in doc.spans["findings"]}
    assert {"unmapped", "No Finding", "Support Devices", "Atelectasis"} <= labels
    assertions = {chain.assertion for doc in docs for chain in doc._.chains}
    assert assertions == {"positive", "negative", "uncertain"}


def test_real_reports_give_what_the_build_gives(
    shared: Path, nlp: Language, decomposer: Decomposer
) -> None:
    folder = shared / "data/mimic_synth/mimic-cxr"
    headings = compile_headings(load_banks().headings)
    own = spacy.blank("en")
    own.add_pipe("cot_chains", config={"sections": "sections"})
    reports = [
        split_sections(path.read_text(encoding="utf-8", errors="replace"), headings)
        for path in sorted(folder.rglob("s*.txt"))[:40]
    ]
    assert sum(map(bool, reports)) > 5
    for sections in reports:
        doc = own(sections_doc(own, sections))
        assert found(doc) == built(decomposer.decompose(sections))
        check_spans(doc)


def test_sections_keep_their_names_and_offsets(decomposer: Decomposer) -> None:
    nlp = spacy.blank("en")
    nlp.add_pipe("cot_chains", config={"sections": "parts"})
    sections = [
        Section("findings", "Small effusion.\nAnkle: fracture."),
        Section("impression", "No edema. Hydropneumothorax."),
        Section("addendum", " "),
    ]
    doc = nlp(sections_doc(nlp, sections, group="parts"))
    assert found(doc) == built(decomposer.decompose(sections))
    (edema,) = (span for span in doc.spans["findings"] if span.label_ == "Edema")
    assert (edema.text, edema._.record.section, edema._.record.start) == ("edema", "impression", 3)
    check_spans(doc)


def test_spans_widen_to_tokens_and_records_keep_the_characters() -> None:
    nlp = spacy.blank("en")
    nlp.add_pipe("cot_chains", config={"section": "findings"})
    doc = Doc(nlp.vocab, words=["Effusion/atelectasis", "."], spaces=[False, False])
    spans = nlp(doc).spans["findings"]
    assert [(s.text, s.label_, s._.record.finding, s._.record.section) for s in spans] == [
        ("Effusion/atelectasis", "Pleural Effusion", "Effusion", "findings"),
        ("Effusion/atelectasis", "Atelectasis", "atelectasis", "findings"),
    ]


def test_a_document_that_the_component_has_not_seen_has_nothing() -> None:
    doc = spacy.blank("en")("Effusion.")
    assert (found(doc), doc[:1]._.record, doc[:1]._.concept_ids) == (((), ()), None, [])


# -- between processes and on disk


def test_two_processes_give_the_same(nlp: Language) -> None:
    one, two = nlp.pipe(REPORTS), nlp.pipe(REPORTS, n_process=2, batch_size=3)
    for left, right in zip(one, two, strict=True):
        assert found(left) == found(right)
        assert [(s.start, s.end, s.label_, s._.record) for s in left.spans["findings"]] == [
            (s.start, s.end, s.label_, s._.record) for s in right.spans["findings"]
        ]


def test_documents_survive_a_file(nlp: Language, tmp_path: Path) -> None:
    doc = nlp(REPORTS[6])
    DocBin(docs=[doc], store_user_data=True).to_disk(tmp_path / "docs.spacy")
    (back,) = DocBin().from_disk(tmp_path / "docs.spacy").get_docs(nlp.vocab)
    assert found(back) == found(doc)
    check_spans(back)


def test_a_saved_pipeline_keeps_its_config(tmp_path: Path) -> None:
    own = tmp_path / "banks"
    own.mkdir()
    (own / "unmapped.toml").write_text(
        'version = "9.0.0"\nextends = true\n'
        '[[finding]]\nid = "gizmo"\nsite = "lung"\nphrases = ["gizmo shadow"]\n'
    )
    nlp = spacy.blank("en")
    nlp.add_pipe("cot_chains", config={"banks": str(own), "section": "findings"})
    nlp.to_disk(tmp_path / "model")
    again = spacy.load(tmp_path / "model")
    (finding,) = again("There is a gizmo shadow.")._.unmapped
    assert (finding.section, finding.finding) == ("findings", "gizmo shadow")
    assert finding.rule.startswith("unmapped.gizmo@9.0.0")


def test_spacy_finds_the_component_by_its_entry_point(tmp_path: Path) -> None:
    info = tmp_path / "invented-0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: invented\nVersion: 0\n")
    (info / "entry_points.txt").write_text(
        "[spacy_factories]\ncot_chains = cot_builder.spacy_component:make_cot_chains\n"
    )
    code = (
        f"import sys; sys.path[:0] = [{str(tmp_path)!r}, {str(ROOT)!r}]\n"
        "import spacy; nlp = spacy.blank('en'); nlp.add_pipe('cot_chains')\n"
        "assert 'cot_builder' in sys.modules; print(nlp('No edema.')._.chains[0].disease)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout == "Edema\n", done.stderr


# -- bad input


@pytest.mark.parametrize(
    ("config", "says"),
    [
        ({"banks": "nowhere"}, "nowhere: no such folder"),
        ({"sections": "parts"}, "'parts': expected a span group of the document"),
        ({"link": "nowhere.jsonl"}, "expected a component of this pipeline (cot_chains)"),
    ],
)
def test_bad_config_says_what_was_expected(config: dict[str, Any], says: str) -> None:
    def run() -> None:
        nlp = spacy.blank("en")
        nlp.add_pipe("cot_chains", config=config)
        nlp("No edema.")

    with pytest.raises(UserError) as caught:
        run()
    assert says in str(caught.value)


def test_a_section_with_loose_white_space_is_refused(nlp: Language) -> None:
    with pytest.raises(UserError, match="without white space around it"):
        sections_doc(nlp, [Section("findings", "Effusion. "), Section("impression", "Edema.")])


def test_a_linker_that_links_nothing_is_refused() -> None:
    code = (
        "import spacy, cot_builder.spacy_component\n"
        "nlp = spacy.blank('en'); nlp.add_pipe('sentencizer')\n"
        "nlp.add_pipe('cot_chains', config={'link': 'sentencizer'})\n"
        "try: nlp('No edema.')\n"
        "except Exception as error: print(type(error).__name__, error)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert "UserError" in done.stdout, done.stderr
    assert "expected a linker that sets `ent._.kb_ents`" in done.stdout


@pytest.mark.parametrize(
    ("blocked", "use"),
    [
        ("spacy", ""),
        ("scispacy", "nlp.add_pipe('cot_chains', config={'spelling': True})"),
        ("scispacy", "c.scispacy_tokenizer(nlp)"),
        ("nmslib", "c.link_findings(['edema'], Path(sys.argv[1]))"),
    ],
)
def test_a_missing_extra_names_the_remedy(blocked: str, use: str, kb: Path) -> None:
    code = (
        f"import sys; from pathlib import Path; sys.modules[{blocked!r}] = None\n"
        "try:\n"
        "    import cot_builder.spacy_component as c, spacy; nlp = spacy.blank('en')\n"
        f"    {use}\n"
        "except Exception as error: print(type(error).__name__, error)"
    )
    run = [sys.executable, "-c", code, str(kb)]
    done = subprocess.run(run, capture_output=True, text=True, cwd=ROOT)
    assert "UserError" in done.stdout, done.stderr
    assert "pip install 'cot-builder[sci]'" in done.stdout


# -- scispaCy


def test_scispacys_tokenizer_keeps_words_whole_and_changes_no_chain(
    scispacy: None, decomposer: Decomposer, tmp_path: Path
) -> None:
    nlp = spacy.blank("en")
    nlp.add_pipe("cot_chains")
    nlp.tokenizer = scispacy_tokenizer(nlp)
    assert [t.text for t in nlp("Left-sided port-a-cath.")] == ["Left-sided", "port-a-cath", "."]
    nlp.to_disk(tmp_path / "model")
    for pipeline in (nlp, spacy.load(tmp_path / "model")):
        for text in REPORTS:
            doc = pipeline(text)
            assert found(doc) == built(decomposer.decompose([Section("text", text)]))
            check_spans(doc)


@pytest.mark.parametrize(
    ("text", "finding", "label", "assertion", "mark"),
    [
        ("Left pnuemothorax.", "Left pnuemothorax", "Pneumothorax", "positive", "~pneumothorax"),
        ("No pnumothroax is seen.", "pnumothroax", "Pneumothorax", "negative", "≈pneumothorax"),
        ("Mild pulmonary edemma.", "Mild pulmonary edemma", "Edema", "positive", "≈"),
        ("Possible left basilar atlectsis, new.", "left basilar atlectsis", "Atelectasis",
         "uncertain", "atelectasis+doubt@"),
        ("No left atelec tasis.", "left atelec tasis", "Atelectasis", "negative", "≈atelectasis"),
        ("There is scolosis.", "scolosis", "unmapped", "positive", "scoliosis"),
    ],
)  # fmt: skip
def test_misspelt_phrases_are_found_and_marked(
    text: str, finding: str, label: str, assertion: str, mark: str, spelling: Language
) -> None:
    doc = spelling(text)
    (span,) = doc.spans["findings"]
    record = span._.record
    assert (record.finding, span.label_, record.assertion) == (finding, label, assertion)
    assert text[record.start : record.end] == finding
    assert mark in record.rule


@pytest.mark.parametrize(
    "text",
    [
        *REPORTS,
        "The conclusions are unchanged in generation.",
        "Reviewed peripherally; summary appended by the operators.",
    ],
)
def test_well_spelt_text_gains_nothing(text: str, nlp: Language, spelling: Language) -> None:
    assert found(spelling(text)) == found(nlp(text))


def test_spelling_leaves_the_other_findings_alone(nlp: Language, spelling: Language) -> None:
    text = "Small left effusion and pulmonary edemma. No fracture. The ankle: edemma."
    plain, doc = nlp(text), spelling(text)
    marked = [c for c in doc._.chains if "≈" in c.rule]
    assert [c for c in doc._.chains if c not in marked] == list(plain._.chains)
    assert [(c.disease, c.sentence) for c in marked] == [("Edema", 0)]
    check_spans(doc)


def test_spelling_is_the_same_in_two_processes(spelling: Language) -> None:
    texts = ["No pnumothroax.", "Mild edemma.", *REPORTS]
    alone = [found(doc) for doc in spelling.pipe(texts)]
    assert [found(doc) for doc in spelling.pipe(texts, n_process=2, batch_size=4)] == alone


# -- concept ids


def ids(links: Sequence[tuple[str, float]]) -> list[str]:
    return [concept for concept, _ in links]


def test_findings_are_linked_as_a_whole_or_by_their_longest_parts(scispacy: None, kb: Path) -> None:
    findings = ["pneumothorax", "small pleural effusion", "opacity in the left base", "hernia", ""]
    links = link_findings([*findings, "pneumothorax"], kb)
    assert {finding: ids(own) for finding, own in links.items()} == {
        "pneumothorax": ["X01"],
        "small pleural effusion": ["X02"],
        "opacity in the left base": ["X04"],
        "hernia": [],
        "": [],
    }
    assert links["pneumothorax"][0][1] == pytest.approx(1)
    assert link_findings([], kb) == {}


def test_a_changed_knowledge_base_is_read_again(scispacy: None, kb: Path) -> None:
    assert ids(link_findings(["hernia"], kb)["hernia"]) == []
    kb.write_text('{"concept_id": "X09", "canonical_name": "Hernia", "aliases": []}\n')
    assert ids(link_findings(["hernia"], kb)["hernia"]) == ["X09"]


def test_a_folder_with_scispacys_index_is_loaded(scispacy: None, kb: Path) -> None:
    joblib = pytest.importorskip("joblib")
    nmslib = pytest.importorskip("nmslib")
    sparse = pytest.importorskip("scipy.sparse")
    text = pytest.importorskip("sklearn.feature_extraction.text")
    names = ["effusion", "Pleural effusion"]  # fewer than the JSONL has: proof that it is used
    vectorizer = text.TfidfVectorizer(analyzer="char_wb", ngram_range=(3, 3))
    vectors = vectorizer.fit_transform(names).astype("float32")
    index = nmslib.init(
        method="hnsw", space="cosinesimil_sparse", data_type=nmslib.DataType.SPARSE_VECTOR
    )
    index.addDataPointBatch(vectors)
    index.createIndex({"indexThreadQty": 1})
    index.saveIndex(str(kb.parent / "nmslib_index.bin"))
    sparse.save_npz(kb.parent / "tfidf_vectors_sparse.npz", vectors)
    joblib.dump(vectorizer, kb.parent / "tfidf_vectorizer.joblib")
    (kb.parent / "concept_aliases.json").write_text(json.dumps(names))
    links = link_findings(["effusion", "opacity"], kb.parent)
    assert {finding: ids(own) for finding, own in links.items()} == {
        "effusion": ["X02"],
        "opacity": [],
    }


@pytest.mark.parametrize(
    ("lines", "says"),
    [
        ("", "is empty; expected one concept a line"),
        ("not json\n", "kb.jsonl:1: expected a concept such as"),
        (f"{json.dumps(CONCEPTS[0])}\n[]\n", "kb.jsonl:2: expected a concept such as"),
        ('{"concept_id": "X1", "canonical_name": " ", "aliases": []}\n', "kb.jsonl:1"),
        ('{"concept_id": 7, "canonical_name": "A", "aliases": []}\n', "kb.jsonl:1"),
        ('{"concept_id": "X1", "canonical_name": "Aorta"}\n', "kb.jsonl:1"),
        ('{"concept_id": "X1", "canonical_name": "Aorta", "aliases": "a"}\n', "kb.jsonl:1"),
    ],
)
def test_a_malformed_knowledge_base_is_named(
    lines: str, says: str, scispacy: None, kb: Path
) -> None:
    kb.write_text(lines)
    with pytest.raises(UserError) as caught:
        link_findings(["effusion"], kb)
    assert says in str(caught.value)


def test_a_missing_knowledge_base_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="expected a JSONL file of concepts or a folder with one"):
        link_findings(["effusion"], tmp_path)
    with pytest.raises(UserError, match="expected a JSONL file"):
        link_findings(["effusion"], tmp_path / "absent.jsonl")


def test_spans_carry_concept_ids_from_a_file(scispacy: None, kb: Path) -> None:
    nlp = spacy.blank("en")
    nlp.add_pipe("cot_chains", config={"link": str(kb)})
    texts = ["Small left pleural effusion. No pneumothorax.", "The aorta is tortuous."]
    for process in (1, 2):
        docs = list(nlp.pipe(texts, n_process=process))
        links = {s.text: ids(s._.concept_ids) for doc in docs for s in doc.spans["findings"]}
        assert links == {
            "Small left pleural effusion": ["X02"],
            "pneumothorax": ["X01"],
            "aorta is tortuous": [],
        }


def test_spans_carry_concept_ids_from_scispacys_linker(scispacy: None, kb: Path) -> None:
    linking = pytest.importorskip("scispacy.linking")
    from cot_builder.spacy_component import _generator, _read_concepts

    nlp = spacy.blank("en")
    nlp.add_pipe("cot_chains", config={"link": "linker"})
    linker = linking.EntityLinker(
        candidate_generator=_generator(_read_concepts(kb)), filter_for_definitions=False
    )
    Language.component("linker", func=linker)
    nlp.add_pipe("linker")  # behind the component that asks it
    doc = nlp("Small left pleural effusion and opacity. No pneumothorax. Hernia.")
    assert [ids(span._.concept_ids) for span in doc.spans["findings"]] == [
        ["X02"], ["X03"], ["X01"], [],
    ]  # fmt: skip
    assert doc.ents == ()
    assert isinstance(doc.spans["findings"][0], Span)


def test_the_banks_are_a_knowledge_base_too(
    scispacy: None, decomposer: Decomposer, tmp_path: Path
) -> None:
    path = tmp_path / "banks.jsonl"
    write_knowledge_base(decomposer.lexicon, path)
    concepts = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    assert concepts == list(bank_concepts(decomposer.lexicon))
    assert len({concept["concept_id"] for concept in concepts}) == len(concepts) > 30
    links = link_findings(["pleural effusion", "scoliosis"], path)
    assert ids(links["pleural effusion"])[0] == "diseases.effusion"
    assert ids(links["scoliosis"])[0].startswith("unmapped.")


# -- build --link


def linked(kb: Path | None, out: Path, *, workers: int = 1) -> dict[str, Any]:
    return build(
        BuildOptions(
            source="demo",
            release=SourceOptions(banks=load_banks()),
            out=out,
            link=kb,
            shard_size=5,
            workers=workers,
        )
    )


def test_a_build_writes_the_concept_ids_of_each_finding(
    scispacy: None, kb: Path, tmp_path: Path
) -> None:
    manifest = linked(kb, tmp_path / "one")
    sha256 = hashlib.sha256(kb.read_bytes()).hexdigest()
    assert manifest["link"]["knowledge_base"] == kb.name
    assert manifest["link"]["sha256"] == sha256
    studies = list(read_studies(tmp_path / "one"))
    mentions = [m for study in studies for m in (*study["chains"], *study["unmapped"])]
    told = {m["finding"].lower(): m["concept_ids"] for m in mentions}
    assert told["pneumothorax"] == ["X01"]
    assert [] in told.values(), "a finding that the knowledge base does not have"
    chain = Chain.from_row(next(m for m in studies[0]["chains"] if m["concept_ids"]))
    assert chain.concept_ids
    assert Chain.from_row(chain.to_row()) == chain
    linked(kb, tmp_path / "two", workers=2)
    for shard in manifest["shards"]:
        one, two = (tmp_path / name / shard["file"] for name in ("one", "two"))
        assert one.read_bytes() == two.read_bytes()


def test_without_a_link_nobody_looked(tmp_path: Path) -> None:
    assert linked(None, tmp_path / "out")["link"] is None
    mentions = [m for study in read_studies(tmp_path / "out") for m in study["chains"]]
    assert {m["concept_ids"] for m in mentions} == {None}


def test_another_knowledge_base_is_another_dataset(
    scispacy: None, kb: Path, tmp_path: Path
) -> None:
    options = BuildOptions(
        source="demo", release=SourceOptions(banks=load_banks()), out=tmp_path / "out", link=kb
    )
    build(options)
    kb.write_text(json.dumps(CONCEPTS[0]))
    with pytest.raises(UserError, match="complete dataset of other input, options or banks"):
        build(replace(options, resume=True))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "expected a JSONL file of concepts"),
        ("", "is empty"),
        ('{"concept_id": "X01"}', r"kb.jsonl:1: expected a concept such as"),
    ],
)
def test_a_knowledge_base_that_cannot_be_read_stops_the_build(
    content: str | None, message: str, scispacy: None, tmp_path: Path
) -> None:
    kb = tmp_path / "kb.jsonl"
    if content is not None:
        kb.write_text(content)
    with pytest.raises(UserError, match=message):
        linked(kb, tmp_path / "out")
    assert not list(tmp_path.glob("out/*.parquet"))
