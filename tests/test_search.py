"""Search on the device against numpy, and what is said of distances against counting."""

import csv
import json
import sys

import jax
import numpy as np
import pytest
from planted import page, pages_of, planted

from saghog_jax import search as stage
from saghog_jax.configs import search as search_config
from saghog_jax.input_pipeline.errors import UserError
from saghog_jax.retrieval import int8_search, search, whitening
from saghog_jax.retrieval.calibration import calibrate


def unit(p, d, seed):
    x = np.random.default_rng(seed).standard_normal((p, d)).astype(np.float32)
    return x / np.linalg.norm(x, axis=1, keepdims=True)


@pytest.mark.parametrize(("q", "p", "k"), [(1, 1, 1), (3, 50, 7), (30, 33, 33), (4, 20, 50)])
@pytest.mark.parametrize("chunk_rows", [1, 7, 10_000])
def test_equals_a_full_sort(q, p, k, chunk_rows, monkeypatch):
    monkeypatch.setattr(search, "_CHUNK_BYTES", chunk_rows * 4 * 8)
    monkeypatch.setattr(search, "_QUERIES", 16)
    queries, gallery = unit(q, 8, 0), unit(p, 8, 1)
    rows, values = search.search(queries, gallery * 3, k)
    scores = queries.astype(np.float64) @ gallery.T
    assert rows.shape == (q, min(k, p))
    for i in range(q):
        assert rows[i].tolist() == np.argsort(-scores[i], kind="stable")[:k].tolist()
    np.testing.assert_allclose(values, np.take_along_axis(scores, rows, 1), atol=1e-6)


def test_equals_are_found_in_the_order_of_rows(monkeypatch):
    monkeypatch.setattr(search, "_CHUNK_BYTES", 3 * 4 * 2)
    rows, _ = search.search(np.eye(2, dtype=np.float32), np.ones((8, 2), np.float32), 5)
    assert rows.tolist() == [[0, 1, 2, 3, 4]] * 2


@pytest.mark.parametrize("chunk_rows", [4, 1000])
def test_own_page_and_group_are_left_out(chunk_rows, monkeypatch):
    monkeypatch.setattr(search, "_CHUNK_BYTES", chunk_rows * 4 * 8)
    x = unit(12, 8, 0)
    groups = np.array([0, 0, 0, 1, 1, 1, -1, -1, -1, 2, 2, 2])
    rows, values = search.search(x, x, 12, np.arange(12), groups, groups)
    for i in range(12):
        others = [
            j for j in range(12) if j != i and not (groups[i] >= 0 and groups[i] == groups[j])
        ]
        assert sorted(rows[i][rows[i] >= 0].tolist()) == others
    assert np.isneginf(values[rows < 0]).all()


def test_memory_mapped_gallery(tmp_path):
    np.save(tmp_path / "g.npy", unit(20, 8, 1))
    mapped = np.load(tmp_path / "g.npy", mmap_mode="r")
    rows, _ = search.search(unit(3, 8, 0), mapped, 4)
    assert rows.tolist() == search.search(unit(3, 8, 0), np.array(mapped), 4)[0].tolist()


def test_bad_arguments():
    with pytest.raises(ValueError, match="width 8 against a gallery of width 4"):
        search.search(unit(1, 8, 0), unit(2, 4, 0), 1)
    with pytest.raises(ValueError, match="at least 1"):
        search.search(unit(1, 8, 0), unit(0, 8, 0), 1)
    with pytest.raises(ValueError, match="at least 1"):
        search.search(unit(1, 8, 0), unit(2, 8, 0), 0)


def writers(p=200, each=5, noise=0.6):
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(p // each), each)
    x = rng.standard_normal((p // each, 12))[labels] + noise * rng.standard_normal((p, 12))
    return x.astype(np.float32), labels


def pairs_of(x, labels, groups=None):
    x = x / np.linalg.norm(x, axis=1, keepdims=True)
    i, j = np.triu_indices(len(x), 1)
    keep = (
        np.ones(len(i), bool) if groups is None else ~((groups[i] == groups[j]) & (groups[i] >= 0))
    )
    i, j = i[keep], j[keep]
    return 1 - np.einsum("nd,nd->n", x[i], x[j]), labels[i] == labels[j]


@pytest.mark.parametrize("grouped", [False, True])
def test_shares_are_those_of_counting(grouped):
    x, labels = writers()
    groups = np.where(np.arange(200) % 10 < 4, np.arange(200) // 2, -1) if grouped else None
    found = calibrate(x, labels, groups)
    distance, same = pairs_of(x, labels, groups)
    assert found.counts.sum() == len(distance)
    assert found.same == same.sum()
    assert (found.counts >= 30).all()
    assert (np.diff(found.shares) < 0).all()
    # Isotonic steps are plain shares of the pairs in them; a pair within 1e-6 of an edge may fall
    # on the other side in float32.
    for a, b, share, count in zip(found.edges, found.edges[1:], found.shares, found.counts):
        inside = (distance >= a) & (distance < b)
        assert inside.sum() == pytest.approx(count, abs=1)
        assert same[inside].mean() == pytest.approx(share, abs=2 / count)


def test_reading_of_distances():
    found = calibrate(*writers())
    assert found(np.array([0.0, 0.01])).tolist() == [found.shares[0]] * 2
    assert found(np.array([[2.5]])).tolist() == [[found.shares[-1]]]
    assert np.isnan(found(np.array([np.inf, np.nan]))).all()
    middle = (found.edges[1] + found.edges[2]) / 2
    assert found(np.array([middle])) == found.shares[1]


def test_unlabelled_pages_do_not_count():
    x, labels = writers()
    more = np.concatenate([x, x[:50]]), np.concatenate([labels, np.full(50, -1)])
    np.testing.assert_array_equal(calibrate(*more).shares, calibrate(x, labels).shares)


def test_too_little_says_nothing():
    x, labels = writers()
    assert calibrate(x, np.full(200, -1)) is None
    assert calibrate(x, np.zeros(200, np.int64)) is None
    assert calibrate(x, np.arange(200)) is None
    assert calibrate(x[:10], labels[:10]) is not None
    assert calibrate(x[:6], labels[:6]).counts.tolist() == [15]


def test_blocks_do_not_change_the_shares(monkeypatch):
    whole = calibrate(*writers())
    monkeypatch.setattr("saghog_jax.retrieval.ranking.CHUNK_VALUES", 777)
    again = calibrate(*writers())
    np.testing.assert_allclose(again.shares, whole.shares, atol=1e-3)


def run(tmp_path, **fields):
    config = search_config.get_config()
    config.update(fields)
    stage.run(config.lock(), tmp_path / "out")
    with open(tmp_path / "out" / "matches.csv", newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file)), json.loads(
            (tmp_path / "out" / "search.json").read_text()
        )


@pytest.fixture
def gallery(tmp_path):
    planted(tmp_path / "gallery", pages_of(12, 6), noise=0.3)
    return str(tmp_path / "gallery")


def test_new_pages_find_their_writer(tmp_path, gallery, capsys):
    new = [page(f"new{w}.png", "" if w else f"w{w:02d}", "1") for w in range(3)]
    directions = planted(tmp_path / "exact", pages_of(12, 1), noise=0)
    e = planted(tmp_path / "new", new)
    np.save(e.folder / "embeddings.npy", directions.descriptors[:3])
    matches, content = run(tmp_path, queries=str(e.folder), gallery=gallery, top_k=6)
    assert len(matches) == 3 * 6
    for row in matches:
        assert row["writer"] == f"w{int(row['query'][3]):02d}"
        assert row["correct"] == ("1" if row["query"] == "new0.png" else "")
        assert float(row["same_writer_share"]) > 0.5
    assert [float(m["distance"]) for m in matches[:6]] == sorted(
        float(m["distance"]) for m in matches[:6]
    )
    assert content["calibration"][0]["pairs"] >= 30
    assert "In a collection with other writers" in capsys.readouterr().out


def test_a_collection_searched_in_itself(tmp_path, gallery):
    matches, _ = run(tmp_path, queries=gallery, gallery=gallery, top_k=5)
    assert all(row["query"] != row["page"] for row in matches)
    assert np.mean([row["correct"] == "1" for row in matches]) > 0.9
    grouped, _ = run(tmp_path, queries=gallery, gallery=gallery, top_k=5, exclude_group="sheet")
    sheet = {f"w{w:02d}/p{i}.png": f"{w}-{i // 2}" for w in range(12) for i in range(6)}
    assert all(sheet[row["query"]] != sheet[row["page"]] for row in grouped)


def test_only_the_same_image_is_the_page_itself(tmp_path, gallery):
    # The same names in another folder are other pages; the same pages embedded twice are not.
    (tmp_path / "far").mkdir()
    planted(tmp_path / "far" / "e", pages_of(2, 2), noise=0.3)
    planted(tmp_path / "again", pages_of(2, 2), noise=0.3)
    far, _ = run(tmp_path, queries=str(tmp_path / "far" / "e"), gallery=gallery, top_k=72)
    again, _ = run(tmp_path, queries=str(tmp_path / "again"), gallery=gallery, top_k=72)
    assert len([row for row in far if row["query"] == row["page"]]) == 4
    assert not [row for row in again if row["query"] == row["page"]]
    assert len(again) == len(far) - 4


def test_without_a_labelled_set_nothing_is_said(tmp_path, gallery, capsys):
    matches, content = run(tmp_path, queries=gallery, gallery=gallery, calibrate="")
    assert "same_writer_share" not in matches[0]
    assert content["calibration"] == []
    assert "they only order the pages" in capsys.readouterr().out
    assert "they only order the pages" in (tmp_path / "out" / "report.html").read_text()


def test_another_labelled_set(tmp_path, gallery):
    planted(tmp_path / "labelled", pages_of(30, 4), noise=0.3, seed=7)
    _, mine = run(tmp_path, queries=gallery, gallery=gallery)
    _, other = run(tmp_path, queries=gallery, gallery=gallery, calibrate=str(tmp_path / "labelled"))
    assert mine["calibration"] != other["calibration"]
    assert "120 pages by 30 writers" in other["reading"]


def test_whitened_search(tmp_path, gallery):
    x = np.load(f"{gallery}/embeddings.npy")
    whitening.save(whitening.fit(x, 6), tmp_path / "w.npz", "abc")
    plain, _ = run(tmp_path, queries=gallery, gallery=gallery)
    white, content = run(
        tmp_path, queries=gallery, gallery=gallery, whitening=str(tmp_path / "w.npz")
    )
    assert [r["distance"] for r in plain] != [r["distance"] for r in white]
    assert content["whitening"] == str(tmp_path / "w.npz")
    whitening.save(whitening.fit(x, 6), tmp_path / "w.npz", "xyz")
    with pytest.raises(UserError, match="belongs to other embeddings"):
        run(tmp_path, queries=gallery, gallery=gallery, whitening=str(tmp_path / "w.npz"))


def test_bad_input(tmp_path, gallery):
    planted(tmp_path / "other", pages_of(2, 2), checkpoint="xyz")
    planted(tmp_path / "narrow", pages_of(2, 2), dim=4)
    for queries, message in (
        ("none", r"does not exist.*configs/embed\.py"),
        ("other", "embedded with checkpoint xyz"),
        ("narrow", "width 4"),
    ):
        with pytest.raises(UserError, match=message):
            run(tmp_path, queries=str(tmp_path / queries), gallery=gallery)
    with pytest.raises(UserError, match="top_k=0"):
        run(tmp_path, queries=gallery, gallery=gallery, top_k=0)
    with pytest.raises(UserError, match="no column 'source'"):
        run(tmp_path, queries=gallery, gallery=gallery, exclude_group="source")


def test_other_settings_are_compared_by_force_alone(tmp_path, gallery, capsys):
    planted(tmp_path / "other", pages_of(12, 1), checkpoint="xyz")
    fields = {"queries": str(tmp_path / "other"), "gallery": gallery}
    with pytest.raises(UserError, match="embedded with checkpoint xyz.*--config.force=True"):
        run(tmp_path, **fields)
    matches, _ = run(tmp_path, **fields, force=True, top_k=1)
    assert len(matches) == 12
    assert "warning: " in capsys.readouterr().out
    # Other widths cannot be compared at all.
    planted(tmp_path / "narrow", pages_of(2, 2), dim=4)
    with pytest.raises(UserError, match="width 4"):
        run(tmp_path, queries=str(tmp_path / "narrow"), gallery=gallery, force=True)


def test_one_program_serves_all_chunks(monkeypatch):
    monkeypatch.setattr(search, "_CHUNK_BYTES", 6 * 4 * 8)
    jax.clear_caches()
    search.search(unit(3, 8, 0), unit(20, 8, 1), 2)
    assert search._merge._cache_size() == 1


def test_matches_as_annotations(tmp_path, gallery):
    new = [page("a b.png", extra={"canvas": "https://example.org/c/1"}), page("<i>&.png")]
    e = planted(tmp_path / "new", [*new, page("boxed.png", box=(5, 6, 15, 26))])
    decisions = tmp_path / "decisions.csv"
    fields = {"queries": str(e.folder), "gallery": gallery, "top_k": 3, "annotations": True}
    matches, _ = run(tmp_path, **fields)
    plain = json.loads((tmp_path / "out" / "annotations.json").read_text())
    rows = [
        f'"{m["query"]}","{m["page"]}",1,0.1,{d}' for m, d in zip(matches, ("accept", "unsure"))
    ]
    decisions.write_text("\n".join(["query,page,rank,distance,decision", *rows]) + "\n")
    run(tmp_path, **fields, decisions=str(decisions))
    content = json.loads((tmp_path / "out" / "annotations.json").read_text())
    assert content["type"] == "AnnotationPage"
    assert "/presentation/3/" in content["@context"]
    items = content["items"]
    assert len(items) == len(matches) == 9
    assert len({item["id"] for item in items}) == 9
    assert [item["id"] for item in items] == [item["id"] for item in plain["items"]]
    assert items[0]["target"] == "https://example.org/c/1"
    assert items[3]["target"] == "../pages/%3Ci%3E%26.png"
    assert items[6]["target"]["source"] == "../pages/boxed.png"
    assert items[6]["target"]["selector"]["value"] == "xywh=5,6,10,20"
    for item, match in zip(items, matches):
        linked, said = item["body"][:2]
        assert linked["source"] == f"../pages/{match['page']}"
        assert f"rank {match['rank']}, distance {float(match['distance']):.4f}" in said["value"]
        assert f"writer {match['writer']}" in said["value"]
        assert "% of the pairs at that distance" in said["value"]
    assert [item["motivation"] for item in items[:3]] == ["assessing", "assessing", "linking"]
    assert items[1]["body"][2]["value"] == "unsure"
    assert {item["motivation"] for item in plain["items"]} == {"linking"}
    for text, message in (
        ("query,page\na,b\n", "is not a decisions.csv: no column decision, only"),
        (
            "query,page,decision\na,b,maybe\n",
            "line 2: expected the columns query, page and decision .*found the decision 'maybe'",
        ),
    ):
        decisions.write_text(text)
        with pytest.raises(UserError, match=message):
            run(tmp_path, **fields, decisions=str(decisions))
    with pytest.raises(UserError, match="cannot read"):
        run(tmp_path, **fields, decisions=str(tmp_path / "none.csv"))


def test_backends_are_named(tmp_path, gallery, monkeypatch):
    with pytest.raises(
        UserError, match="unknown config.backend 'annoy', known: exact, int8, faiss, milvus"
    ):
        run(tmp_path, queries=gallery, gallery=gallery, backend="annoy")
    monkeypatch.setitem(sys.modules, "faiss", None)
    with pytest.raises(UserError, match=r"pip install 'saghog_jax\[faiss\]'"):
        run(tmp_path, queries=gallery, gallery=gallery, backend="faiss")


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_8_bit_codes_find_what_exact_search_finds(tmp_path, dtype):
    e = planted(tmp_path / "gallery", pages_of(30, 6), noise=0.3, dtype=dtype)
    fields = {"queries": str(e.folder), "gallery": str(e.folder), "top_k": 5}
    whitening.save(whitening.fit(np.asarray(e.descriptors, np.float32), 6), tmp_path / "w", "abc")
    for more in ({}, {"exclude_group": "sheet"}, {"whitening": str(tmp_path / "w")}):
        exact, _ = run(tmp_path, **fields, **more)
        rows, content = run(tmp_path, **fields, **more, backend="int8")
        assert [(r["query"], r["page"]) for r in rows] == [(r["query"], r["page"]) for r in exact]
        assert content["backend"] == "int8"
    # The index of the workdir serves the same descriptors again; that of the folder comes first.
    written = tmp_path / "out" / int8_search.FOLDER / "index.json"
    time = written.stat().st_mtime_ns
    run(tmp_path, **fields, **more, backend="int8")
    assert written.stat().st_mtime_ns == time
    int8_search.write(e.folder / int8_search.FOLDER, e.descriptors)
    run(tmp_path, **fields, backend="int8")
    assert written.stat().st_mtime_ns == time


def test_the_first_pass_is_in_the_codes(tmp_path):
    e = planted(tmp_path / "gallery", pages_of(30, 6), noise=0.3)
    fields = {"queries": str(e.folder), "gallery": str(e.folder), "top_k": 5}
    folder = e.folder / int8_search.FOLDER
    int8_search.write(folder, e.descriptors)
    codes = np.load(folder / "codes.npy")
    np.save(folder / "codes.npy", -codes)
    exact, _ = run(tmp_path, **fields)
    rows, _ = run(tmp_path, **fields, backend="int8")
    assert [r["page"] for r in rows] != [r["page"] for r in exact]


def test_the_milvus_backend(tmp_path, gallery):
    reason = "the extra milvus is not installed, or milvus-lite has no wheel for this system"
    pytest.importorskip("pymilvus", reason=reason)
    pytest.importorskip("milvus_lite", reason=reason)
    fields = {"queries": gallery, "gallery": gallery, "top_k": 5}
    for more in ({}, {"exclude_group": "sheet"}):
        exact, _ = run(tmp_path, **fields, **more)
        rows, content = run(tmp_path, **fields, **more, backend="milvus")
        assert [(r["query"], r["page"]) for r in rows] == [(r["query"], r["page"]) for r in exact]
        assert content["backend"] == "milvus"
    assert (tmp_path / "out" / "milvus.db").exists()
    named = {"uri": str(tmp_path / "named.db"), "index": "IVF_FLAT"}
    run(tmp_path, **fields, backend="milvus", milvus=named)
    assert (tmp_path / "named.db").exists()


def test_float16_galleries_are_searched_in_chunks(tmp_path, monkeypatch):
    monkeypatch.setattr(search, "_CHUNK_BYTES", 7 * 4 * 8)
    x = unit(60, 8, 1).astype(np.float16)
    np.save(tmp_path / "g.npy", x)
    mapped = np.load(tmp_path / "g.npy", mmap_mode="r")
    rows, values = search.search(x[:5], mapped, 6)
    again = search.search(x[:5].astype(np.float32), x.astype(np.float32), 6)
    np.testing.assert_array_equal(rows, again[0])
    np.testing.assert_array_equal(values, again[1])


def test_faiss_finds_what_exact_search_finds(tmp_path, gallery):
    pytest.importorskip("faiss", reason="the extra faiss is not installed")
    fields = {"queries": gallery, "gallery": gallery, "top_k": 5}
    for more in ({}, {"exclude_group": "sheet"}):
        exact, _ = run(tmp_path, **fields, **more)
        # Looking into every cell is exact; so it is with pages of the group left out.
        all_cells = {"lists": 6, "probes": 6}
        found, content = run(tmp_path, **fields, **more, backend="faiss", faiss=all_cells)
        assert [(r["query"], r["page"]) for r in found] == [(r["query"], r["page"]) for r in exact]
        assert content["backend"] == "faiss"
    index = tmp_path / "out" / "faiss.index"
    before = index.stat().st_mtime_ns
    fields["top_k"] = 60
    one, _ = run(tmp_path, **fields, backend="faiss", faiss={"lists": 6, "probes": 1})
    assert index.stat().st_mtime_ns == before
    # One cell of six holds less; what is found is still in order, and never the page itself.
    assert 72 < len(one) < 72 * 60
    assert all(row["query"] != row["page"] for row in one)
    run(tmp_path, **fields, backend="faiss", faiss={"lists": 5, "probes": 1})
    assert index.stat().st_mtime_ns != before
    with pytest.raises(UserError, match=r"config\.faiss\.lists=999 must lie in 1 to 72"):
        run(tmp_path, **fields, backend="faiss", faiss={"lists": 999, "probes": 1})


def test_faiss_of_a_larger_gallery_is_nearly_exact(tmp_path):
    pytest.importorskip("faiss", reason="the extra faiss is not installed")
    from saghog_jax.retrieval import faiss_search

    rng = np.random.default_rng(0)
    x = (rng.standard_normal((300, 16))[np.arange(6000) % 300] * 2).astype(np.float32)
    x += rng.standard_normal(x.shape).astype(np.float32)
    queries = x[:50] + 0.1
    rows, values = search.search(queries, x, 10)
    found, similar = faiss_search.search(
        queries, x, 10, 0, 32, tmp_path / "i", "x", np.full(50, -1)
    )
    recall = np.mean([len(set(a) & set(b)) / 10 for a, b in zip(rows.tolist(), found.tolist())])
    assert recall > 0.95
    assert (np.diff(similar, axis=1) <= 0).all()
    np.testing.assert_allclose(similar[:, 0], values[:, 0], atol=1e-5)
