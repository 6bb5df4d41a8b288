"""The evidence pass at toy size: what it keeps, what it says, and what it does without a model."""

import json
import shutil

import numpy as np
import pytest
from planted import pages_of, planted
from report_helpers import data_of
from toy import toy

from saghog_jax.configs import embed, finetune, pretrain, retrieve, search
from saghog_jax.input_pipeline.datasets.synthetic import Corpus, write_corpus
from saghog_jax.input_pipeline.errors import UserError
from saghog_jax.retrieval.embeddings import load_embeddings
from saghog_jax.stages import run_stage

TINY = Corpus(train_writers=3, test_writers=3, pages=2, width=320, height=160, lines=2)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Pages, a model of them, and their embeddings."""
    folder = tmp_path_factory.mktemp("evidence")
    (folder / "pages").mkdir()
    write_corpus(folder / "pages", TINY, workers=1)
    for stage in (pretrain, finetune):
        config = toy(stage.get_config(), folder, total_steps=2)
        run_stage(config, folder / config.stage)
    run_stage(toy(embed.get_config(), folder), folder / "embed")
    return folder


def retrieved(folder, out, **changes):
    """The report's data, and the arrays of each match by name."""
    config = toy(retrieve.get_config(), folder, bootstrap=0, **changes)
    run_stage(config, out)
    arrays = {}
    for path in sorted((out / "evidence").glob("*.npz")):
        with np.load(path, allow_pickle=False) as file:
            arrays[path.stem] = {name: file[name] for name in file.files}
    return data_of(out / "report.html"), arrays


def check_sums(arrays):
    for match in arrays.values():
        for side in ("query", "match"):
            said = match["similarity"] - match[f"{side}_mean"]
            np.testing.assert_allclose(match[f"{side}_contributions"].sum(), said, atol=1e-4)


def test_contributions_add_up_to_the_distances_of_the_report(folder, tmp_path):
    data, arrays = retrieved(folder, tmp_path, **{"report.evidence.queries": 2})
    assert len(arrays) == 2 * 3
    check_sums(arrays)
    e = load_embeddings(folder / "embed")
    rows = {str(name): row for row, name in enumerate(e.page_ids)}
    x = np.asarray(e.descriptors)
    for match in arrays.values():
        a, b = rows[str(match["query"])], rows[str(match["match"])]
        np.testing.assert_allclose(match["similarity"], x[a] @ x[b], atol=1e-5)
        np.testing.assert_allclose(match["query_mean"], x[a] @ x.mean(0), atol=1e-5)
        assert match["query_place"].shape == (e.meta["patches"][a], 2)
    # The hardest two queries, their first three answers.
    aps = {sheet["q"]: sheet["ap"] for sheet in data["sheets"]}
    assert max(aps[q] for q in data["evidence"]) <= sorted(aps.values())[1]
    for sheet in data["sheets"]:
        found = data["evidence"].get(sheet["q"], {})
        assert list(found) == ([hit[0] for hit in sheet["hits"][:3]] if found else [])
        for key, shown in found.items():
            assert all(uri.startswith("data:image/webp;base64,") for uri in shown["heat"])
            distance = next(d for k, d, *_ in sheet["hits"] if k == key)
            assert abs(1 - shown["similarity"] - distance) < 2e-4
            assert 1 <= len(shown["pairs"]) <= 8
            for cosine, *patches in shown["pairs"]:
                assert -1 <= cosine <= 1.001
                for page, (x, y, uri) in zip((sheet["q"], key), patches, strict=True):
                    w, h = data["pages"][page]["size"]
                    assert 0 <= x < w
                    assert 0 <= y < h
                    assert uri.startswith("data:image/webp;base64,")


def test_fields_of_the_config(folder, tmp_path):
    name = str(load_embeddings(folder / "embed").page_ids[4])
    changes = {"of": (name,), "matches": 2, "pairs": 1}
    changes = {f"report.evidence.{key}": value for key, value in changes.items()}
    data, arrays = retrieved(folder, tmp_path, **changes)
    assert list(arrays) == ["00004_1", "00004_2"]
    assert [len(e["pairs"]) for e in data["evidence"]["p4"].values()] == [1, 1]
    # A query that is asked for is in the report, whatever else has room.
    data, _ = retrieved(folder, tmp_path, **changes, **{"report.max_queries": 1})
    assert [sheet["q"] for sheet in data["sheets"]] == ["p4"]
    # Nothing of an earlier run stays.
    data, arrays = retrieved(folder, tmp_path, **{"report.evidence.queries": 0})
    assert data["evidence"] == {}
    assert arrays == {}
    with pytest.raises(UserError, match="evidence.matches=-1"):
        retrieved(folder, tmp_path, **{"report.evidence.matches": -1})
    with pytest.raises(UserError, match="evidence.of names 'nobody'"):
        retrieved(folder, tmp_path, **{"report.evidence.of": ("nobody",)})


def test_pages_with_evidence_get_large_pictures_first(folder, tmp_path):
    changes = {"report.thumbnail": 40, "report.evidence.queries": 1, "report.evidence.matches": 1}
    sizes, large = [], []
    # Room for all, for none, and for some.
    for megabytes in (10.0, 0.001, None):
        most = megabytes or sum(sizes) / 2e6
        data, _ = retrieved(folder, tmp_path, **changes, **{"report.max_mb": most})
        sizes.append((tmp_path / "report.html").stat().st_size)
        large.append({key for key, about in data["pages"].items() if "large" in about})
    assert (len(large[0]), len(large[1])) == (len(data["pages"]), 0)
    assert 0 < len(large[2]) < len(data["pages"])
    ((query, found),) = data["evidence"].items()
    assert large[2] <= {query, *found} or {query, *found} <= large[2]


def test_behind_whitening(folder, tmp_path):
    changes = {"whitening.mode": "transductive", "whitening.dim": 3, "report.evidence.queries": 2}
    _, arrays = retrieved(folder, tmp_path, **changes)
    assert len(arrays) == 6
    check_sums(arrays)
    plain = retrieved(folder, tmp_path / "plain", **{"report.evidence.queries": 2})[1]
    both = [next(iter(a.values()))["similarity"] for a in (arrays, plain)]
    assert abs(both[0] - both[1]) > 1e-3


@pytest.mark.parametrize("model", ["random", "pretrained"])
def test_of_the_models_beside(folder, tmp_path, model):
    changes = {"embeddings": str(folder / "embed" / model), "report.evidence.queries": 1}
    _, arrays = retrieved(folder, tmp_path, **changes)
    assert len(arrays) == 3
    check_sums(arrays)


def test_of_pages_cut_within_regions(folder, tmp_path):
    changes = {"regions.backend": "ink", "regions.root": str(tmp_path / "regions")}
    run_stage(toy(embed.get_config(), folder, **changes), tmp_path / "embed")
    assert list((tmp_path / "regions").glob("ink-*/*.png"))
    changes = {"embeddings": str(tmp_path / "embed"), "report.evidence.queries": 1}
    _, arrays = retrieved(folder, tmp_path / "out", **changes)
    assert len(arrays) == 3
    check_sums(arrays)


def test_other_poolings_have_no_evidence(folder, tmp_path, capsys):
    for pooling in ("mean", "max"):
        run_stage(toy(embed.get_config(), folder, pooling=pooling), tmp_path / pooling)
        changes = {"embeddings": str(tmp_path / pooling), "report.evidence.queries": 1}
        _, arrays = retrieved(folder, tmp_path / "out", **changes)
        assert len(arrays) == {"mean": 3, "max": 0}[pooling]
    assert "it needs pooling sum or mean" in capsys.readouterr().out


def test_embeddings_that_do_not_say_how_they_were_made(tmp_path, capsys):
    planted(tmp_path / "embed", pages_of(3, 2))
    data, arrays = retrieved(tmp_path, tmp_path / "out")
    assert data["evidence"] == {}
    assert arrays == {}
    assert "has no recipe: it was not written by embed" in capsys.readouterr().out


def test_without_the_model_the_report_is_made_and_says_so(folder, tmp_path, capsys):
    shutil.copytree(folder / "embed", tmp_path / "embed")
    path = tmp_path / "embed" / "meta.json"
    meta = json.loads(path.read_text())
    meta |= {"checkpoint_folder": str(tmp_path / "gone"), "pages_root": str(folder / "pages")}
    path.write_text(json.dumps(meta))
    changes = {"embeddings": str(tmp_path / "embed")}
    data, arrays = retrieved(folder, tmp_path / "out", **changes)
    assert data["evidence"] == {}
    assert arrays == {}
    assert "no evidence in the report" in capsys.readouterr().out
    changes["report.evidence.checkpoint"] = str(folder / "finetune")
    assert retrieved(folder, tmp_path / "out", **changes)[1]
    changes["report.evidence.checkpoint"] = str(folder / "pretrain")
    with pytest.raises(UserError, match="does not hold the model"):
        retrieved(folder, tmp_path / "out", **changes)


def test_images_that_are_gone_or_have_changed(folder, tmp_path, capsys):
    shutil.copytree(folder / "pages", tmp_path / "pages")
    changes = {"data.pages": str(tmp_path / "pages" / "manifest.csv")}
    run_stage(toy(embed.get_config(), folder, **changes), tmp_path / "embed")
    e = load_embeddings(tmp_path / "embed")
    e.image(0).unlink()
    shutil.copy(e.image(5), e.image(1))
    capsys.readouterr()
    changes = {"embeddings": str(tmp_path / "embed"), "report.evidence.queries": 6}
    data, arrays = retrieved(folder, tmp_path / "out", **changes)
    said = capsys.readouterr().out
    assert f"no evidence for {e.page_ids[0]}: " in said
    assert f"{e.page_ids[1]}: the image has changed since it was embedded" in said
    assert arrays
    touched = {str(match[side]) for match in arrays.values() for side in ("query", "match")}
    assert not touched & set(map(str, e.page_ids[:2]))
    assert "missing" in data["pages"]["p0"]


def test_places_are_of_the_image_whatever_it_was_resized_by(folder, tmp_path, capsys):
    """Two scales besides the factor of the row, and SIFT: patches of both, in image pixels."""
    finetuning = toy(finetune.get_config(), folder, total_steps=2, sift_words=5)
    run_stage(finetuning, tmp_path / "finetune")
    lines = (folder / "pages" / "manifest.csv").read_text().splitlines()
    table = folder / "pages" / "twice.csv"
    table.write_text("\n".join([lines[0] + ",scale", *(f"{line},2" for line in lines[1:])]) + "\n")
    changes = {
        "data.pages": str(table),
        "checkpoint": str(tmp_path / "finetune"),
        "scales": (1.0, 0.5),
        "sift.patch": 0.3,
        "sift.keypoint": 0.2,
        "compare": ("sift_keypoint",),
    }
    run_stage(toy(embed.get_config(), folder, **changes), tmp_path / "embed")
    asked = {"embeddings": str(tmp_path / "embed"), "report.evidence.queries": 2}
    data, arrays = retrieved(folder, tmp_path / "out", **asked)
    assert len(arrays) == 2 * 3
    check_sums(arrays)
    for match in arrays.values():
        for side in ("query", "match"):
            place, sides = match[f"{side}_place"], match[f"{side}_side"]
            assert set(sides) == {16, 32}
            assert (np.diff(sides) >= 0).all()
            assert place.min() >= 0
            assert (place < [TINY.width, TINY.height]).all()
        assert (match["query_side"][match["pairs"][:, 0]] == 16).all()
    assert max(match["query_place"][:, 0].max() for match in arrays.values()) > TINY.width / 2
    shown = [match for matches in data["evidence"].values() for match in matches.values()]
    assert all(match["sides"] == [16, 16] for match in shown)
    # What SIFT alone says, and what is said where its words are other ones.
    asked["embeddings"] = str(tmp_path / "embed" / "sift_keypoint")
    _, arrays = retrieved(folder, tmp_path / "sift", **asked)
    assert len(arrays) == 2 * 3
    check_sums(arrays)
    np.save(tmp_path / "finetune" / "sift_words_keypoint.npy", np.eye(5, 128, dtype=np.float32))
    asked["embeddings"] = str(tmp_path / "embed")
    _, arrays = retrieved(folder, tmp_path / "other", **asked)
    assert not arrays
    assert "does not hold the model that made the embeddings" in capsys.readouterr().out


def test_of_a_search(folder, tmp_path):
    config = toy(search.get_config(), folder)
    config.queries = config.gallery = str(folder / "embed")
    config.report.evidence.queries = 1
    run_stage(config, tmp_path)
    data = data_of(tmp_path / "report.html")
    assert len(data["evidence"]) == 1
    assert len(list((tmp_path / "evidence").glob("*.npz"))) == 3
