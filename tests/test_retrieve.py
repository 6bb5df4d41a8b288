"""The stage from an embeddings folder to figures, lists and report, on good and on bad input."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
from planted import page, pages_of, planted
from report_helpers import data_of

from saghog_jax import retrieve
from saghog_jax.configs import retrieve as retrieve_config
from saghog_jax.input_pipeline.errors import UserError
from saghog_jax.retrieval import whitening
from saghog_jax.retrieval.embeddings import load_embeddings
from saghog_jax.retrieval.metrics import evaluate, summarize
from saghog_jax.retrieval.ranking import score_rows
from saghog_jax.retrieval.results import labels_of


def config_of(folder, variant=None, **fields):
    config = retrieve_config.get_config(variant)
    config.embeddings = str(folder)
    config.bootstrap = 50
    config.report.map_pages = 0
    config.update(fields)
    return config.lock()


def run(tmp_path, folder, variant=None, **fields):
    out = tmp_path / "out"
    retrieve.run(config_of(folder, variant, **fields), out)
    return json.loads((out / "metrics.json").read_text())


def lines(path):
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


@pytest.fixture
def folder(tmp_path):
    pages = [*pages_of(6, 4), page("lonely.png", "only", "1"), page("unknown.png", "", "1")]
    planted(tmp_path / "e", pages, model="finetuned")
    return tmp_path / "e"


def test_all_that_is_written_agrees(tmp_path, folder, capsys):
    content = run(tmp_path, folder)
    out = tmp_path / "out"
    e = load_embeddings(folder)
    expected = summarize(evaluate(score_rows(e.descriptors), labels_of(e, "writer")))
    (result,) = content["results"]
    assert expected.items() <= result.items()
    assert result["queries"] == 24
    assert result["queries_without_partner"] == 1
    assert result["distractors"] == 1
    assert result["intervals"]["map"][0] <= result["map"] <= result["intervals"]["map"][1]

    queries = {row["query"]: row for row in lines(out / "per_query.csv")}
    assert queries["lonely.png"]["status"] == "no partner"
    assert queries["unknown.png"]["status"] == "no label"
    scored = [row for row in queries.values() if row["status"] == "scored"]
    assert np.mean([float(row["ap"]) for row in scored]) == pytest.approx(result["map"], abs=1e-6)
    assert all(row["relevant"] == "3" and row["gallery"] == "25" for row in scored)

    ranking = lines(out / "ranking.csv")
    assert len(ranking) == 26 * 10
    first = [row for row in ranking if row["rank"] == "1" and queries[row["query"]] in scored]
    assert all(row["query"] != row["page"] for row in ranking)
    right = np.mean([row["correct"] == "1" for row in first])
    assert right == pytest.approx(result["top1"])
    unknown = [row["correct"] for row in ranking if "unknown.png" in (row["query"], row["page"])]
    assert set(unknown) == {""}
    x = dict(zip(e.page_ids.tolist(), e.descriptors))
    for row in ranking[:20]:
        assert float(row["distance"]) == pytest.approx(
            1 - x[row["query"]] @ x[row["page"]], abs=1e-5
        )
    by_writer = content["per_writer"]
    assert len(by_writer) == 6
    assert np.mean([f["map"] for f in by_writer.values()]) == pytest.approx(result["map"])
    printed = capsys.readouterr().out
    assert "1 labelled pages have no relevant page" in printed
    assert printed.rstrip().endswith(f"report: {out / 'report.html'}")


def test_three_models_side_by_side(tmp_path, folder, capsys):
    planted(folder / "random", pages_of(6, 4), noise=5, model="random")
    elsewhere = str(tmp_path / "nowhere")
    usual = retrieve_config.get_config().compare
    content = run(tmp_path, folder, compare=(*usual, elsewhere))
    assert [r["name"] for r in content["results"]] == ["random", "finetuned"]
    assert content["results"][0]["map"] < content["results"][1]["map"]
    printed = capsys.readouterr().out
    # What the embedding would have made itself is not missed.
    assert printed.count("no embeddings to compare with at") == 1
    assert f"no embeddings to compare with at {elsewhere}" in printed
    table = [line.split() for line in printed.splitlines() if line.startswith(("random", "fine"))]
    assert [(row[0], row[1]) for row in table] == [("random", "none"), ("finetuned", "none")]
    assert table[0][2] == f"{content['results'][0]['map']:.3f}"
    assert "random" in (tmp_path / "out" / "report.html").read_text()


def test_planted_writers_without_noise_are_all_found(tmp_path):
    planted(tmp_path / "e", pages_of(5, 3), noise=0.01)
    (result,) = run(tmp_path, tmp_path / "e")["results"]
    assert result["map"] == result["top1"] == 1


def test_siblings_are_left_out(tmp_path, folder):
    content = run(tmp_path, folder, exclude_group="sheet")
    (result,) = content["results"]
    assert content["definitions"]["exclude_group"] == "sheet"
    rows = lines(tmp_path / "out" / "per_query.csv")
    assert {row["relevant"] for row in rows if row["status"] == "scored"} == {"2"}
    sheets = {f"w{w:02d}/p{i}.png": (w, i // 2) for w in range(6) for i in range(4)}
    for row in lines(tmp_path / "out" / "ranking.csv"):
        if row["query"] in sheets:
            assert sheets[row["query"]] != sheets.get(row["page"])
    assert result["map"] != run(tmp_path, folder)["results"][0]["map"]


def test_relevance_by_page(tmp_path):
    # Fragments: two of each page; the same page name of another writer is another page.
    pages = [
        page(f"{writer}{number}.png", writer, number, box=(i, 0, i + 5, 5))
        for writer in "ab"
        for number in "12"
        for i in range(2)
    ]
    planted(tmp_path / "e", pages)
    by_writer = run(tmp_path, tmp_path / "e")
    by_page = run(tmp_path, tmp_path / "e", "hisfrag20_page")
    assert lines(tmp_path / "out" / "per_query.csv")[0]["relevant"] == "1"
    assert set(by_writer["per_writer"]) == {"a", "b"}
    assert set(by_page["per_page"]) == {"a / 1", "a / 2", "b / 1", "b / 2"}


@pytest.mark.parametrize("labels", ["none", "single", "one writer"])
def test_collections_without_figures(tmp_path, capsys, labels):
    writer = {"none": lambda i: "", "single": str, "one writer": lambda i: "x"}[labels]
    planted(tmp_path / "e", [page(f"{i}.png", writer(i), str(i)) for i in range(5)])
    (result,) = run(tmp_path, tmp_path / "e")["results"]
    said = {
        "none": "no page has a label",
        "single": "no page has a relevant page",
        "one writer": "all pages have the same label",
    }
    assert said[labels] in capsys.readouterr().out
    assert result["queries"] == (5 if labels == "one writer" else 0)
    assert len(lines(tmp_path / "out" / "ranking.csv")) == 5 * 4
    assert (tmp_path / "out" / "report.html").exists()


def test_one_page_only(tmp_path):
    planted(tmp_path / "e", pages_of(1, 1))
    run(tmp_path, tmp_path / "e")
    assert lines(tmp_path / "out" / "ranking.csv") == []
    assert "no relevant page in the collection" in (tmp_path / "out" / "report.html").read_text()


def test_transductive_whitening_stands_beside_the_plain_figures(tmp_path, folder, capsys):
    planted(folder / "random", pages_of(6, 4), noise=5, model="random")
    results = run(tmp_path, folder, whitening={"mode": "transductive", "dim": 6})["results"]
    assert [(r["name"], r["whitening"]) for r in results] == [
        ("random", "none"),
        ("random", "transductive, 6 dims from 24 pages"),
        ("finetuned", "none"),
        ("finetuned", "transductive, 6 dims from 26 pages"),
    ]
    assert results[2]["map"] != results[3]["map"]
    assert "advised" not in capsys.readouterr().out
    run(tmp_path, folder, whitening={"mode": "transductive", "dim": 20})
    assert "only 26 pages makes noise as loud as signal" in capsys.readouterr().out


def test_inductive_whitening_is_fitted_elsewhere_saved_and_reused(tmp_path, folder):
    training = planted(tmp_path / "train", pages_of(10, 4), seed=5)
    planted(folder / "random", pages_of(6, 4), model="random")
    mode = {"mode": "inductive", "fit": str(tmp_path / "train"), "dim": 5}
    results = run(tmp_path, folder, whitening=mode)["results"]
    assert [r["whitening"] for r in results] == [
        "none",
        "none",
        f"inductive, 5 dims from 40 pages of {tmp_path / 'train'}",
    ]
    e = load_embeddings(folder)
    fitted = whitening.fit(training.descriptors, 5)
    scores = score_rows(whitening.apply(fitted, e.descriptors))
    expected = summarize(evaluate(scores, labels_of(e, "writer")))["map"]
    assert results[-1]["map"] == pytest.approx(expected)
    saved = tmp_path / "out" / "whitening.npz"
    saved.rename(tmp_path / "w.npz")
    again = run(tmp_path, folder, whitening={"mode": "inductive", "fit": str(tmp_path / "w.npz")})
    assert again["results"][-1]["map"] == results[-1]["map"]


def test_whitening_of_another_model_is_refused(tmp_path, folder):
    planted(tmp_path / "other", pages_of(6, 4), checkpoint="xyz")
    with pytest.raises(UserError, match="embedded with checkpoint xyz"):
        run(tmp_path, folder, whitening={"mode": "inductive", "fit": str(tmp_path / "other")})
    other = load_embeddings(tmp_path / "other")
    whitening.save(whitening.fit(other.descriptors, 4), tmp_path / "w.npz", "xyz")
    with pytest.raises(UserError, match="of checkpoint xyz"):
        run(tmp_path, folder, whitening={"mode": "inductive", "fit": str(tmp_path / "w.npz")})


@pytest.mark.parametrize("method", ["sgr", "krnn", "gnn", "qe"])
def test_reranked_figures_stand_beside_the_plain_ones(tmp_path, folder, method):
    results = run(tmp_path, folder, rerank={"method": method})["results"]
    assert [r["reranking"].split(" ")[0] for r in results] == ["none", method]
    assert results[1]["reranking"].endswith("; given)")


def test_the_published_reranking_is_an_option_that_says_so(tmp_path, folder):
    for method in ("sgr", "gnn"):
        fields = {"method": method, "k": 3}
        at_once, in_place = (
            run(tmp_path, folder, rerank={**fields, "sequential": flag})["results"][1]
            for flag in (False, True)
        )
        assert in_place["map"] != at_once["map"]
        assert in_place["reranking"].endswith("row after row: leaks the order of pages)")
    bad = {"rerank": {"method": "krnn", "sequential": True}}
    grouped = {"rerank": {"method": "sgr", "sequential": True}, "exclude_group": "path"}
    for fields in (bad, grouped):
        with pytest.raises(UserError, match="sequential is for .*=sgr or gnn"):
            run(tmp_path, folder, **fields)


def test_reranking_parameters_come_from_training_pages(tmp_path, folder, capsys):
    planted(tmp_path / "train", pages_of(10, 4), seed=5)
    chosen = {"method": "krnn", "choose_on": str(tmp_path / "train")}
    results = run(tmp_path, folder, rerank=chosen)["results"]
    assert f"chosen on {tmp_path / 'train'}" in results[1]["reranking"]
    assert "re-ranking" in capsys.readouterr().out
    planted(tmp_path / "bare", [page(f"{i}.png", "", "") for i in range(4)])
    with pytest.raises(UserError, match="chosen on pages without any relevant page"):
        run(tmp_path, folder, rerank={"method": "krnn", "choose_on": str(tmp_path / "bare")})


@pytest.mark.parametrize("variant", retrieve_config.VARIANTS)
def test_every_recipe_runs(tmp_path, folder, variant):
    content = run(tmp_path, folder, variant)
    # Every page of this collection is the only one of its name.
    assert ("map" in content["results"][-1]) == (variant != "hisfrag20_page")


def test_paper_recipe_whitens_beyond_500_pages_only(tmp_path, folder, capsys):
    assert [r["whitening"] for r in run(tmp_path, folder, "paper")["results"]] == ["none"]
    assert "no whitening: 26 pages of width 16, not more than 500" in capsys.readouterr().out


def test_conventions_reach_the_figures(tmp_path, folder):
    plain = run(tmp_path, folder)["results"][0]
    hisir = run(tmp_path, folder, "hisir19")["results"][0]
    assert hisir["top1"] == pytest.approx(plain["top1"] * 24 / 25)
    assert hisir["map"] == plain["map"]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"relevance": "scribe"}, "config.relevance is 'scribe', known: writer, page"),
        ({"convention": "x"}, "config.convention is 'x'"),
        ({"whitening": {"mode": "pca"}}, "known: none, transductive, inductive"),
        ({"whitening": {"mode": "inductive"}}, "needs config.whitening.fit"),
        ({"whitening": {"mode": "transductive", "dim": -3}}, "impossible"),
        ({"rerank": {"method": "magic"}}, "known: none, sgr"),
        ({"rerank": {"k": 0}}, "config.rerank.k=0 must be positive"),
        ({"exclude_group": "source"}, "no column 'source', only: path"),
        ({"top_k": 0}, "top_k=0"),
        ({"ks": (0, 1)}, r"ks=\(0, 1\)"),
    ],
)
def test_bad_choices(tmp_path, folder, fields, message):
    with pytest.raises(UserError, match=message):
        run(tmp_path, folder, **fields)


def test_ranking_as_annotations(tmp_path, capsys):
    canvas = {f"{writer}{i}.png": f"https://example.org/{i}" for i, writer in enumerate("abab")}
    e = planted(tmp_path / "e", [page(n, n[0], extra={"canvas": c}) for n, c in canvas.items()])
    run(tmp_path, e.folder)
    assert not (tmp_path / "out" / "annotations.json").exists()
    decisions = tmp_path / "decisions.csv"
    decisions.write_text('query,page,rank,distance,decision\n"b1.png","b3.png",1,0.1,accept\n')
    run(tmp_path, e.folder, annotations=True, decisions=str(decisions))
    assert "annotations.json, with 1 decisions" in capsys.readouterr().out
    items = json.loads((tmp_path / "out" / "annotations.json").read_text())["items"]
    ranking = lines(tmp_path / "out" / "ranking.csv")
    assert len(items) == len(ranking) == 4 * 3
    for item, row in zip(items, ranking, strict=True):
        found, said, *decided = item["body"]
        assert item["target"] == canvas[row["query"]]
        assert found["source"] == canvas[row["page"]]
        distance = f"distance {float(row['distance']):.4f}"
        assert said["value"] == f"rank {row['rank']}, {distance}, writer {row['writer']}"
        # A decision about two pages of one collection holds in both directions.
        accepted = {row["query"], row["page"]} == {"b1.png", "b3.png"}
        assert [d["value"] for d in decided] == (["accept"] if accepted else [])
    with pytest.raises(UserError, match="cannot read"):
        run(tmp_path, e.folder, annotations=True, decisions=str(tmp_path / "none.csv"))


def test_missing_embeddings(tmp_path):
    with pytest.raises(UserError, match=r"make it with: .*configs/embed\.py"):
        run(tmp_path, tmp_path / "none")
    assert not (tmp_path / "out").exists()


def test_running_again_replaces_the_results(tmp_path, folder):
    run(tmp_path, folder)
    before = {p.name: p.read_bytes() for p in (tmp_path / "out").iterdir()}
    run(tmp_path, folder)
    assert {p.name: p.read_bytes() for p in (tmp_path / "out").iterdir()} == before


def test_memory_and_interval_switches(tmp_path, folder):
    content = run(tmp_path, folder, bootstrap=0, ks=(2, 3), top_k=4)
    (result,) = content["results"]
    assert result["intervals"] == {}
    assert {"top2", "hard@3"} <= set(result)
    assert "top1" not in result
    assert len(lines(tmp_path / "out" / "ranking.csv")) == 26 * 4


def test_pictures_of_the_report_are_as_large_as_it_says(tmp_path):
    planted(tmp_path / "e", pages_of(2, 2), images=True)
    sizes = {}
    for fields in ({}, {"thumbnail": 20}, {"max_pixels": 60 * 40 - 1}):
        config = config_of(tmp_path / "e").unlock()
        config.report.update(fields)
        retrieve.run(config, tmp_path / "out")
        about = next(iter(data_of(tmp_path / "out" / "report.html")["pages"].values()))
        sizes[str(fields)] = len(about.get("image", ""))
    assert list(sizes.values()) == sorted(sizes.values(), reverse=True)
    assert len(set(sizes.values())) == 3
    assert about["missing"]


def test_default_paths_are_those_of_the_chain():
    config = retrieve_config.get_config()
    assert config.embeddings == "runs/embed"
    assert [Path(c.replace("{embeddings}", "e")).name for c in config.compare] == [
        "random",
        "pretrained",
    ]
