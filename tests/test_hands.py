"""The stage hands on planted collections: files, constraints, metrics, and bad input."""

import csv
import json
import logging

import numpy as np
import pytest
from messages import message_of
from planted import page, pages_of, planted

from saghog_jax import hands as stage
from saghog_jax.configs import hands as hands_config
from saghog_jax.retrieval import clustering


def run(embeddings, workdir, **changes):
    config = hands_config.get_config()
    config.embeddings, config.bootstrap = str(embeddings.folder), 200
    config.update(changes)
    result = stage.run(config, workdir)
    with result.paths["hands"].open(newline="") as file:
        rows = list(csv.DictReader(file))
    return rows, json.loads(result.paths["metrics"].read_text()), result


def decide(path, *lines):
    path.write_text("query,page,decision\n" + "".join(f"{line}\n" for line in lines))
    return str(path)


@pytest.fixture
def collection(tmp_path):
    """Pages of 20 writers, three each."""
    return planted(tmp_path / "e", pages_of(20, 3), noise=0.25, dim=24)


def unlabelled(folder, count=60, noise=0.25):
    pages = [page(f"{i}.png") for i in range(count)]
    labels = np.random.default_rng(1).standard_normal((count // 3 + 1, 24))
    embeddings = planted(folder, pages, dim=24)
    x = labels[np.arange(count) // 3]
    x = x + noise * np.random.default_rng(2).standard_normal(x.shape)
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    np.save(folder / "embeddings.npy", x.astype(np.float32))
    return embeddings


def test_writers_are_found(collection, tmp_path):
    rows, found, result = run(collection, tmp_path / "out")
    assert [row["page"] for row in rows] == collection.page_ids.tolist()
    of_writer = {}
    for row in rows:
        of_writer.setdefault(row["writer"], set()).add(row["hand"])
        assert row["pages_of_hand"] == "3"
        assert float(row["sure"]) > 0
        assert row["next_hand"] not in ("", row["hand"])
    assert len({frozenset(hands) for hands in of_writer.values()}) == 20
    assert (found["rule"], found["labelled_writers"]) == ("labels", 20)
    assert (found["pages"], found["hands"], found["alone"]) == (60, 20, 0)
    assert result.counts == {"pages": 60, "hands": 20}
    ours = found["metrics"]["average"]
    assert ours["bcubed_f"] == ours["adjusted_rand"] == 1
    assert 0.9 < ours["bcubed_f_held_out"] <= 1
    assert set(found["metrics"]) == {"average", "first_neighbours", "linked"}
    assert set(found["differences"]) == {"first_neighbours", "linked"}
    middle, low, high = found["differences"]["linked"]
    assert low <= middle <= high
    # The cut of the labels is judged where other writers have chosen it.
    linked = found["metrics"]["linked"]["bcubed_f"]
    assert middle == pytest.approx(ours["bcubed_f_held_out"] - linked)


def test_embeddings_without_writers_are_sorted_by_the_rule(tmp_path):
    rows, found, _ = run(unlabelled(tmp_path / "e"), tmp_path / "out")
    assert (found["rule"], found["threshold"]) == ("rule", clustering.RULE)
    assert found["metrics"] == found["differences"] == {}
    assert found["hands"] == 20
    assert {row["writer"] for row in rows} == {""}


def test_the_cut_that_is_asked_for(collection, tmp_path):
    _, found, _ = run(collection, tmp_path / "a", cut="value", threshold=-9.0)
    assert (found["rule"], found["threshold"], found["hands"]) == ("value", -9.0, 1)
    _, found, _ = run(collection, tmp_path / "b", cut="value", threshold=9.0)
    assert (found["hands"], found["alone"]) == (60, 60)
    _, found, _ = run(collection, tmp_path / "c", cut="rule")
    assert (found["rule"], found["threshold"]) == ("rule", clustering.RULE)


def test_all_alone_and_one_hand_are_said(collection, tmp_path, caplog):
    with caplog.at_level(logging.INFO, "saghog_jax"):
        run(collection, tmp_path / "a", cut="value", threshold=9.0)
        run(collection, tmp_path / "b", cut="value", threshold=-9.0)
    assert "no two pages are close enough for one hand" in caplog.text
    assert "all pages are in one hand" in caplog.text


@pytest.mark.parametrize("method", ["hdbscan", "linked", "first_neighbours"])
def test_other_methods(collection, tmp_path, method):
    _, found, _ = run(collection, tmp_path / "out", method=method)
    assert found["method"] == method
    assert found["metrics"][method]["bcubed_f"] > 0.8


@pytest.mark.parametrize("most_pages", [10_000, 20])
def test_decisions_are_obeyed(collection, tmp_path, most_pages):
    path = decide(
        tmp_path / "decisions.csv",
        "w00/p0.png,w07/p1.png,accept",
        "w03/p0.png,w03/p1.png,reject",
        "w04/p0.png,w04/p1.png,unsure",
    )
    rows, found, _ = run(collection, tmp_path / "out", decisions=path, most_pages=most_pages)
    hand = {row["page"]: row["hand"] for row in rows}
    assert hand["w00/p0.png"] == hand["w07/p1.png"]
    assert hand["w03/p0.png"] != hand["w03/p1.png"]
    following = {row["page"]: row["next_hand"] for row in rows}
    assert following["w03/p0.png"] != hand["w03/p1.png"]
    assert found["contradictions"] == []


def test_contradictory_decisions_are_listed_and_not_obeyed(collection, tmp_path, caplog):
    path = decide(
        tmp_path / "decisions.csv",
        "w00/p0.png,w07/p0.png,accept",
        "w07/p0.png,w00/p0.png,reject",
    )
    rows, found, _ = run(collection, tmp_path / "out", decisions=path)
    pair = ["w00/p0.png", "w07/p0.png"]
    assert found["contradictions"] == [{"apart": pair, "because": "decision", "accepted": [pair]}]
    hand = {row["page"]: row["hand"] for row in rows}
    assert hand["w00/p0.png"] != hand["w07/p0.png"]
    assert caplog.text.count("1 contradictions, whose decisions are not obeyed") == 1


def test_known_writers_are_obeyed_only_where_asked(tmp_path):
    """Two writers whose pages look alike, and pages of one writer that do not."""
    pages = pages_of(20, 3)
    embeddings = planted(tmp_path / "e", pages, noise=1.5, dim=24)
    free, found, _ = run(embeddings, tmp_path / "a")
    assert found["metrics"]["average"]["bcubed_f"] < 1
    rows, found, _ = run(embeddings, tmp_path / "b", known_writers=True)
    assert found["metrics"]["average"]["bcubed_f"] == 1
    assert "bcubed_f_held_out" not in found["metrics"]["average"]
    assert [row["hand"] for row in rows] != [row["hand"] for row in free]
    path = decide(tmp_path / "d.csv", "w00/p0.png,w01/p0.png,accept")
    _, found, _ = run(embeddings, tmp_path / "c", known_writers=True, decisions=path)
    assert [c["because"] for c in found["contradictions"]] == ["writers"]


def test_many_pages_are_linked_in_blocks(collection, tmp_path, caplog):
    _, found, _ = run(collection, tmp_path / "out", most_pages=59)
    assert found["method"] == "linked"
    assert "60 pages are more than config.most_pages=59" in caplog.text


def test_the_bootstrap_can_be_left_out(collection, tmp_path):
    assert run(collection, tmp_path / "out", bootstrap=0)[1]["differences"] == {}


def test_one_page(tmp_path):
    embeddings = planted(tmp_path / "e", [page("a.png", "w")])
    rows, found, _ = run(embeddings, tmp_path / "out")
    assert (found["hands"], found["alone"]) == (1, 1)
    assert (rows[0]["hand"], rows[0]["sure"], rows[0]["next_hand"]) == ("1", "", "")
    _, found, _ = run(embeddings, tmp_path / "two", cut="labels")
    assert found["differences"] == {}


def test_a_page_that_is_gone(collection, tmp_path, caplog):
    path = decide(tmp_path / "d.csv", "w00/p0.png,w07/p1.png,accept", "gone.png,w03/p0.png,accept")
    run(collection, tmp_path / "out", decisions=path)
    assert "1 of 2 decisions are left out: 1 of their pages are not among the" in caplog.text


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"method": "ward"}, "unknown config.method 'ward', known: average, hdbscan, linked, fi"),
        ({"cut": "best"}, "unknown config.cut 'best', known: auto, labels, rule, value"),
        ({"most_pages": 0}, "config.most_pages=0 must be at least 1"),
        ({"bootstrap": -1}, "config.bootstrap=-1 at least 0"),
        ({"method": "hdbscan", "known_writers": True}, "'hdbscan' cannot obey decisions or known"),
        ({"method": "hdbscan", "most_pages": 9}, "60 pages are too many for config.method='hdbs"),
        ({"cut": "labels"}, "config.cut='labels', but no page of "),
        ({"decisions": "other"}, "none of the 1 decisions is about pages of "),
    ],
)
def test_mistakes_are_one_line(tmp_path, changes, message, caplog):
    embeddings = unlabelled(tmp_path / "e")
    if changes.get("decisions"):
        changes = {"decisions": decide(tmp_path / "d.csv", "x.png,y.png,accept")}
    said = message_of(lambda: run(embeddings, tmp_path / "out", **changes))
    assert message in said
    assert len(said.splitlines()) == 1
    assert caplog.text == ""
