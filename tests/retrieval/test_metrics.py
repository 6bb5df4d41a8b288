"""Counted ranks against plain loops, against scikit-learn, and against the published figures."""

import numpy as np
import pytest
from places import TESTS
from sklearn.metrics import average_precision_score, ndcg_score

from saghog_jax.retrieval import device_products, metrics, ranking, relevant_ranks

GOLDEN = np.load(TESTS / "golden" / "page.npz")


def loops(scores, labels, groups, ks):
    """The definitions, one page at a time."""
    out = {}
    for q in range(len(labels)):
        if labels[q] < 0:
            continue
        gallery = [
            g
            for g in range(len(labels))
            if g != q and not (groups[q] >= 0 and groups[g] == groups[q])
        ]
        gallery.sort(key=lambda g: (-scores[q, g], g))
        good = [labels[g] == labels[q] for g in gallery]
        if not any(good):
            out[q] = None
            continue
        ranks = [i + 1 for i, right in enumerate(good) if right]
        ideal = sum(1 / np.log2(1 + j) for j in range(1, len(ranks) + 1))
        out[q] = {
            "ap": np.mean([j / rank for j, rank in enumerate(ranks, start=1)]),
            "ndcg": sum(1 / np.log2(1 + rank) for rank in ranks) / ideal,
            "first": ranks[0],
            "relevant": len(ranks),
            "gallery": len(gallery),
            "hits": [sum(good[:k]) for k in ks],
        }
    return out


def gallery(seed, p=60, writers=14, d=5):
    """Unit vectors with planted writers, pages without a writer, exact duplicates and groups."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(-1, writers, p)
    labels[:3] = [100, 101, 102]  # writers of one page
    labels = np.unique(labels, return_inverse=True)[1] - 1
    centres = rng.standard_normal((labels.max() + 2, d))
    x = (centres[labels] + rng.standard_normal((p, d))).astype(np.float32)
    x[10] = x[11] = x[12]
    groups = rng.integers(-1, p // 3, p)
    return x / np.linalg.norm(x, axis=1, keepdims=True), labels, groups


def exact_scores(x):
    # A coarse grid makes ties frequent and every product exact, whatever the order of summation.
    coarse = np.round(x * 4)
    return ranking.score_rows(coarse, "euclidean"), coarse


@pytest.fixture(params=[1, 24, 10_000], ids=["sorted", "mixed", "counted"])
def sort_from(request, monkeypatch):
    monkeypatch.setattr(relevant_ranks, "_SORT_FROM", request.param)


@pytest.fixture(params=[1, 10_000], ids=["near", "all"])
def sparse(request, monkeypatch):
    """Both ways: distant pages are removed from the rows, or rows are left unchanged."""
    monkeypatch.setattr(relevant_ranks, "_SPARSE", request.param)


@pytest.mark.parametrize("grouped", [False, True])
@pytest.mark.parametrize("seed", range(4))
def test_every_figure_equals_plain_loops(seed, grouped, sort_from, sparse):
    x, labels, groups = gallery(seed)
    score, _ = exact_scores(x)
    ks = (1, 2, 5, 10)
    e = metrics.evaluate(score, labels, groups if grouped else None, ks)
    expected = loops(
        score(np.arange(len(x))), labels, groups if grouped else np.full(len(x), -1), ks
    )
    assert e.rows.tolist() == [q for q, figures in expected.items() if figures]
    assert sorted(e.without_relevant.tolist()) == [
        q for q, figures in expected.items() if not figures
    ]
    assert e.distractors.tolist() == np.flatnonzero(labels < 0).tolist()
    assert len(e.without_relevant) >= 3
    for i, q in enumerate(e.rows):
        for key in ("first", "relevant", "gallery"):
            assert getattr(e, key)[i] == expected[q][key], key
        assert e.hits[i].tolist() == expected[q]["hits"]
        assert e.ap[i] == pytest.approx(expected[q]["ap"], abs=1e-12)
        assert e.ndcg[i] == pytest.approx(expected[q]["ndcg"], abs=1e-12)


@pytest.mark.parametrize("tag", ["even", "single", "single_cos", "pairs", "many"])
def test_published_figures(tag, sort_from, sparse):
    distances = GOLDEN[f"f64_ret_{tag}_distances"]
    labels = GOLDEN[f"ret_{tag}_labels"].astype(np.int64)
    e = metrics.evaluate(lambda rows: -distances[rows], labels, ks=range(1, 10))
    figures = metrics.summarize(e, "published")
    names = [str(name) for name in GOLDEN[f"ret_{tag}_metric_names"]]
    ours = [name.replace("-", "@").replace("perc", "precision") for name in names]
    # Means of the same few rationals in another order of summation: float64 rounding only.
    np.testing.assert_allclose(
        [figures[name] for name in ours], GOLDEN[f"f64_ret_{tag}_metric_values"], atol=1e-12
    )


@pytest.mark.parametrize("tag", ["even", "single", "single_cos", "pairs", "many"])
def test_published_distances_of_unit_vectors(tag):
    x = GOLDEN[f"ret_{tag}_features"]
    scores = ranking.score_rows(x, "euclidean")(np.arange(len(x)))
    # The inner product less half a squared norm, both of unit vectors.
    cosine = 1 - (scores + 0.5)
    ours = cosine if tag == "single_cos" else np.sqrt(np.maximum(2 * cosine, 0))
    np.fill_diagonal(ours, 0)
    # A root near zero: an error of 1e-7 of the square is 1e-6 at the nearest pages, 0.1 apart.
    np.testing.assert_allclose(ours, GOLDEN[f"f64_ret_{tag}_distances"], atol=1e-6)


def test_scikit_learn_agrees_without_ties():
    x, labels, _ = gallery(5)
    x = x + np.random.default_rng(0).normal(0, 1e-3, x.shape).astype(np.float32)
    score = ranking.score_rows(x)
    e = metrics.evaluate(score, labels)
    for i, q in enumerate(e.rows):
        others = np.arange(len(x)) != q
        right, near = (labels == labels[q])[others], score(np.array([q]))[0, others]
        assert e.ap[i] == pytest.approx(average_precision_score(right, near), abs=1e-12)
        assert e.ndcg[i] == pytest.approx(ndcg_score([right], [near]), abs=1e-12)


def test_which_average_precision():
    # Partners at ranks 1, 4 and 5: finite sum (1 + 2/4 + 3/5) / 3, not the trapezoid (.656), and
    # not what forgetting to remove the query gives (.817).
    near = np.array([[9.0, 8.0, 7.0, 6.0, 5.0, 4.0]], np.float32)
    labels = np.array([0, 0, 1, 1, 0, 0])
    e = metrics.evaluate(lambda rows: near[np.zeros_like(rows)], labels)
    assert e.ap[0] == pytest.approx(0.7)


def test_self_is_removed_by_row_even_if_a_duplicate_is_as_near():
    x = np.eye(3, dtype=np.float32)[[0, 0, 1, 1]]
    e = metrics.evaluate(ranking.score_rows(x), np.array([0, 0, 1, 1]))
    assert e.first.tolist() == [1, 1, 1, 1]
    assert e.gallery.tolist() == [3, 3, 3, 3]


@pytest.mark.parametrize("values", [1, 61, 200, 1 << 23])
def test_chunks_do_not_change_the_result(values, monkeypatch):
    x, labels, groups = gallery(1)
    score, _ = exact_scores(x)
    whole = metrics.evaluate(score, labels, groups)
    nearest = ranking.nearest(score, np.arange(60), groups, 60, 7)
    monkeypatch.setattr(ranking, "CHUNK_VALUES", values)
    monkeypatch.setattr(relevant_ranks, "CHUNK_VALUES", values)
    monkeypatch.setattr(relevant_ranks, "_TILE_VALUES", values)
    again = metrics.evaluate(score, labels, groups)
    np.testing.assert_array_equal(again.hits, whole.hits)
    # The same terms, summed with other padding.
    np.testing.assert_allclose(again.ap, whole.ap, atol=1e-15)
    for a, b in zip(ranking.nearest(score, np.arange(60), groups, 60, 7), nearest):
        np.testing.assert_array_equal(a, b)


def test_cosine_and_euclidean_order_unit_vectors_alike():
    x, labels, _ = gallery(2, d=16)
    x[10:12] = x[:2] * -1  # no duplicates: their order would hang on rounding
    cosine = metrics.evaluate(ranking.score_rows(x, "cosine"), labels)
    euclidean = metrics.evaluate(ranking.score_rows(x, "euclidean"), labels)
    np.testing.assert_array_equal(cosine.hits, euclidean.hits)
    np.testing.assert_allclose(cosine.ap, euclidean.ap, atol=1e-15)
    # On vectors of other lengths they differ: the switch is not ignored.
    x = x * 2.0 ** np.arange(-2, 2, dtype=np.float32)[np.arange(60) % 4, None]
    np.testing.assert_array_equal(metrics.evaluate(ranking.score_rows(x), labels).ap, cosine.ap)
    other = metrics.evaluate(ranking.score_rows(x, "euclidean"), labels)
    assert not np.array_equal(other.ap, cosine.ap)


@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
def test_large_collections_are_scored_by_jax(metric, monkeypatch):
    x, _, _ = gallery(7, d=16)
    x *= np.linspace(0.5, 2, len(x), dtype=np.float32)[:, None]
    by_jax = []
    original = device_products.products_on_device
    monkeypatch.setattr(
        device_products, "products_on_device", lambda x: by_jax.append(len(x)) or original(x)
    )
    rows = np.array([3, 0, 41])
    small = ranking.score_rows(x, metric)(rows)
    assert by_jax == []
    monkeypatch.setattr(ranking, "_ON_DEVICE_FROM", x.size * len(x))
    large = ranking.score_rows(x, metric)(rows)
    assert by_jax == [60]
    assert small.dtype == large.dtype == np.float32
    assert small.flags.writeable
    assert large.flags.writeable
    # Sums of 16 products of numbers up to 4, in another order.
    np.testing.assert_allclose(small, large, atol=1e-5)


def test_euclidean_scores_order_as_distances():
    x, _, _ = gallery(3)
    x = x * np.linspace(0.1, 3, len(x), dtype=np.float32)[:, None]
    distance = np.linalg.norm(x[:, None] - x[None], axis=2)
    score = ranking.score_rows(x, "euclidean")(np.arange(len(x)))
    differ = np.argsort(distance, 1) != np.argsort(-score, 1)
    # Only pages closer to each other than float32 tells may swap.
    assert differ.mean() < 0.05


@pytest.mark.parametrize("maxima", [0, 100])
@pytest.mark.parametrize("k", [1, 6, 59, 500])
def test_nearest_equals_a_stable_sort(k, maxima, monkeypatch):
    monkeypatch.setattr(ranking, "_MAXIMA_UP_TO", maxima)
    x, _, groups = gallery(4)
    groups = np.minimum(groups, 2)  # the group of most pages: its galleries are short
    score, _ = exact_scores(x)
    pages, values = ranking.nearest(score, np.arange(60), groups, 60, k)
    assert pages.shape == (60, min(k, 59))
    all_scores = score(np.arange(60))
    for q in range(60):
        others = [g for g in range(60) if g != q and (groups[q] < 0 or groups[g] != groups[q])]
        others.sort(key=lambda g: (-all_scores[q, g], g))
        others = others[:k]
        assert pages[q, : len(others)].tolist() == others
        assert (pages[q, len(others) :] == -1).all()
        np.testing.assert_array_equal(values[q, : len(others)], all_scores[q, others])


def test_conventions_differ_by_pages_without_partner():
    labels = np.array([0, 0, 1, -1])
    x = np.array([[1, 0], [1, 0.1], [0, 1], [0.1, 1]], np.float32)
    e = metrics.evaluate(ranking.score_rows(x), labels, ks=(1, 2))
    figures = {name: metrics.summarize(e, name) for name in metrics.CONVENTIONS}
    counts = {"queries": 2, "queries_without_partner": 1, "distractors": 1}
    for summary in figures.values():
        assert summary["map"] == 1
        assert counts.items() <= summary.items()
    top = {name: summary["top1"] for name, summary in figures.items()}
    soft = {name: summary["soft@1"] for name, summary in figures.items()}
    assert top == {"partners": 1, "published": 1, "hisir19": 2 / 3}
    assert soft == {"partners": 1, "published": 2 / 3, "hisir19": 2 / 3}
    assert figures["partners"]["hard@2"] == 0
    assert figures["partners"]["precision@2"] == 0.5
    assert figures["published"]["precision@2"] == pytest.approx(1 / 3)
    with pytest.raises(ValueError, match="known: partners, published, hisir19"):
        metrics.summarize(e, "official")


@pytest.mark.parametrize("labels", [[-1, -1, -1], [0, 1, 2], [0], []])
def test_without_queries(labels):
    x = np.eye(4, dtype=np.float32)[: len(labels)]
    e = metrics.evaluate(ranking.score_rows(x), np.array(labels, np.int64))
    figures = metrics.summarize(e)
    assert figures["queries"] == 0
    assert "map" not in figures
    assert metrics.per_label(e, np.array(labels, np.int64)) == {}
    assert metrics.confidence(e, np.array(labels, np.int64), 10) == {}


def test_one_writer_only():
    x, _, _ = gallery(0)
    figures = metrics.summarize(metrics.evaluate(ranking.score_rows(x), np.zeros(60, np.int64)))
    assert figures["map"] == 1
    assert figures["queries"] == 60


def test_labels_by_several_columns():
    writers = np.array(["a", "a", "b", "", "b"])
    pages = np.array(["1", "2", "1", "1", ""])
    assert metrics.encode_labels(writers).tolist()[3] == -1
    by_writer = metrics.encode_labels(writers)
    assert by_writer[0] == by_writer[1] != by_writer[2] == by_writer[4]
    by_page = metrics.encode_labels(writers, pages)
    assert len(set(by_page[:3].tolist())) == 3
    assert by_page[3:].tolist() == [-1, -1]


def queries_of(evaluation, queries):
    """An evaluation with some of its queries."""
    names = ("rows", "relevant", "ap", "ndcg", "first", "hits", "gallery")
    columns = {name: getattr(evaluation, name)[queries] for name in names}
    return metrics.Evaluation(**{**vars(evaluation), **columns})


def test_per_label_means():
    x, labels, _ = gallery(6)
    e = metrics.evaluate(ranking.score_rows(x), labels, ks=(2, 5))
    by_label = metrics.per_label(e, labels)
    assert set(by_label) == set(labels[e.rows].tolist())
    for code, figures in by_label.items():
        own = labels[e.rows] == code
        expected = metrics.summarize(queries_of(e, own))
        assert figures.pop("top1") == pytest.approx((e.first[own] == 1).mean())
        assert figures == pytest.approx({name: expected[name] for name in figures})
        assert figures.keys() == expected.keys() - {"queries_without_partner", "distractors"}


def test_confidence_draws_writers():
    # Half of the writers have AP 1, half have 0: an interval over queries would be narrow.
    labels = np.repeat(np.arange(10), 20)
    e = metrics.evaluate(ranking.score_rows(np.ones((200, 2), np.float32)), labels)
    ap = (labels % 2).astype(float)
    e = metrics.Evaluation(**{**vars(e), "ap": ap})
    low, high = metrics.confidence(e, labels, 2000)["map"]
    rng = np.random.default_rng(1)
    means = [ap.reshape(10, 20)[rng.integers(0, 10, 10)].mean() for _ in range(4000)]
    # Both are quantiles of a mean of ten coins: steps of 0.1.
    assert (low, high) == pytest.approx(np.quantile(means, [0.025, 0.975]), abs=0.051)
    narrow = metrics.confidence(e, labels, 2000, level=0.5)["map"]
    assert low < narrow[0] < narrow[1] < high
    assert metrics.confidence(e, labels, 100, seed=1) != metrics.confidence(e, labels, 100, seed=2)


def test_difference_pairs_the_queries_and_draws_writers():
    # 10 writers; of the odd ones every query gains 0.2, of the even ones nothing, whatever the
    # level of a query: the interval is that of a mean of ten coins, however far levels are apart.
    labels = np.repeat(np.arange(10), 20)
    e = metrics.evaluate(ranking.score_rows(np.ones((200, 2), np.float32)), labels)
    level = np.random.default_rng(0).uniform(0, 0.8, 200)
    a = metrics.Evaluation(**{**vars(e), "ap": level + 0.2 * (labels % 2)})
    b = metrics.Evaluation(**{**vars(e), "ap": level})
    gain, low, high = metrics.difference(a, b, labels, 4000)
    assert gain == pytest.approx(0.1)
    assert (low, high) == pytest.approx((0.04, 0.16), abs=0.021)
    assert metrics.difference(b, a, labels, 100)[0] == -gain
    other = queries_of(e, slice(-1))
    with pytest.raises(ValueError, match="different queries"):
        metrics.difference(a, other, labels, 100)
    with pytest.raises(ValueError, match="the queries have 1 label"):
        metrics.difference(a, b, np.zeros(200, int), 100)


def test_bad_arguments():
    score = ranking.score_rows(np.eye(3, dtype=np.float32))
    with pytest.raises(ValueError, match="labels"):
        metrics.evaluate(score, np.zeros(3, int), np.zeros(2, int))
    with pytest.raises(ValueError, match="at least 1"):
        metrics.evaluate(score, np.zeros(3, np.int64), ks=(0,))
    with pytest.raises(ValueError, match="known: cosine, euclidean"):
        ranking.score_rows(np.eye(3), "manhattan")
