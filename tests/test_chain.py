"""The whole chain at toy size: pages in, ranked pages out; stopped, resumed, repeated."""

import functools
import importlib
import json
import os
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import cv2
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from places import ROOT
from test_configs import parse_command
from toy import fields, toy

from saghog_jax.configs import embed, finetune, prepare, pretrain, retrieve
from saghog_jax.embedding.encoder import PageEncoder
from saghog_jax.embedding.reuse import Record
from saghog_jax.embedding.run_recipe import default_recipe
from saghog_jax.input_pipeline import progress
from saghog_jax.input_pipeline.datasets.synthetic import Corpus, write_corpus
from saghog_jax.input_pipeline.errors import UserError
from saghog_jax.input_pipeline.pages.images import load_page
from saghog_jax.input_pipeline.pages.sources import load_manifest
from saghog_jax.input_pipeline.store.build import ensure_store
from saghog_jax.input_pipeline.store.reader import Store
from saghog_jax.models import inputs
from saghog_jax.next_command import next_command
from saghog_jax.retrieval.embeddings import check_comparable, load_embeddings
from saghog_jax.stages import run_stage
from saghog_jax.training.gradients import batch_loss
from saghog_jax.training.optim import match_rules

TINY = Corpus(train_writers=4, test_writers=3, pages=2, width=360, height=200, lines=3)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Pages, and a pretrained and finetuned model of them."""
    folder = tmp_path_factory.mktemp("chain")
    (folder / "pages").mkdir()
    write_corpus(folder / "pages", TINY, workers=1)
    run_stage(toy(pretrain.get_config(), folder), folder / "pretrain")
    run_stage(toy(finetune.get_config(), folder), folder / "finetune")
    run_stage(toy(embed.get_config(), folder), folder / "embed")
    return folder


def test_ends_with_figures_a_ranking_and_a_report(folder, capsys):
    assert len(run_stage(toy(retrieve.get_config(), folder), folder / "retrieve").skipped) == 0
    out = capsys.readouterr().out
    for name in ("random", "pretrained", "finetuned"):
        assert name in out
    assert str(folder / "retrieve" / "report.html") in out
    figures = json.loads((folder / "retrieve" / "metrics.json").read_text())
    assert figures
    ranking = (folder / "retrieve" / "ranking.csv").read_text().splitlines()
    assert ranking[0].startswith("query,rank,page")
    # 6 test pages, each ranks the 5 others.
    assert len(ranking) == 1 + 6 * 5


def test_each_stage_says_what_to_run_next(folder, capsys):
    for module, name, following in [
        (pretrain, "pretrain", "finetune"),
        (finetune, "finetune", "embed"),
    ]:
        result = run_stage(toy(module.get_config(), folder), folder / name)
        assert "has all its 4 steps already" in capsys.readouterr().out
        last = next_command(result.following[0], result.workdir)
        assert last.startswith(f"python -m saghog_jax.main --config=configs/{following}.py")
        assert str(folder / name) in last
        # Nothing else than these pages, and what is written stays beside.
        assert f"--config.data.pages={folder / 'pages' / 'manifest.csv'}" in last
        assert f"--workdir={folder / following}" in last


def test_new_pages_are_searched_for_in_the_pages_of_the_model(folder, tmp_path, monkeypatch):
    """Each command that a stage names can be given as it is, as the tutorial does."""
    result = run_stage(toy(retrieve.get_config(), folder), folder / "retrieve")
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    monkeypatch.chdir(tmp_path)
    named = next_command(result.following[0], result.workdir)
    command, _, remark = named.partition("  # ")
    assert remark == "for new pages, in a folder `new`"
    config = parse_command(shlex.split(command)[3:])
    assert (config.stage, config.data.pages) == ("embed", "new")
    assert Path(config.checkpoint) == folder / "finetune"
    result = run_stage(toy(embed.get_config(), folder), folder / "embed")
    assert [following.stage for following in result.following] == ["retrieve"]
    (tmp_path / "new").mkdir()
    page = next((folder / "pages").rglob("*.png"))
    shutil.copy(page, tmp_path / "new" / "a.png")
    config.update_from_flattened_dict({"precision": "float32", "store.workers": 1})
    result = run_stage(config, tmp_path / "runs" / "new" / "embed")
    (following,) = result.following
    command = next_command(following, result.workdir)
    config = parse_command(shlex.split(command)[3:])
    assert (config.stage, config.queries) == ("search", "runs/new/embed")
    assert Path(config.gallery) == folder / "embed"
    assert command.endswith("--workdir=runs/new/search")
    check_comparable(load_embeddings(config.queries), load_embeddings(config.gallery))
    # An embedding that is finished already names the same command.
    again = toy(embed.get_config("plain"), folder, **{"data.pages": "new", "data.split": "test"})
    run_stage(again, tmp_path / "runs" / "new" / "embed")
    assert run_stage(again, result.workdir).following == result.following


def test_progress_counts_pages_and_not_pages_at_scales(folder, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(progress, "_INTERVAL", -1.0)
    config = toy(embed.get_config("plain"), folder, scales=(1.0, 0.5, 1.4))
    run_stage(config, tmp_path / "embed")
    out = capsys.readouterr().out
    counts = [line.split(" pages described, about ")[0] for line in out.splitlines()
              if " pages described, about " in line]  # fmt: skip
    # Six pages at three scales; after the last view another line tells the end.
    assert counts == [f"{view // 3} of 6" for view in range(1, 18)]
    assert "6 pages embedded in " in out
    assert " patches at 3 scales together" in out
    for word in ("patches/s", "ETA", "mesh"):
        assert word not in out


def test_the_fields_of_other_recipes_are_named():
    known = default_recipe("netrvlad", "binary")
    assert known.fields_beside(known) == {}
    fields = {
        "power": 1.0, "scales": (1.0, 0.5), "sift.patch": 0.15, "pooling": "max",
        "gmp_lambda": 2.0, "input": "page", "store.scale": 2.0, "store.keypoint_on_ink": False,
    }  # fmt: skip
    config = embed.get_config("plain")
    config.update_from_flattened_dict(fields)
    assert known.with_config(config).fields_beside(known) == fields


def test_embeddings_are_right_to_the_patch(folder):
    """The streamed sums equal a plain loop over pages with vectors written out."""
    from saghog_jax.input_pipeline.cutting.patches import Rule, cut_page
    from saghog_jax.input_pipeline.pages.images import load_page
    from saghog_jax.input_pipeline.pages.sources import load_manifest
    from saghog_jax.models.build import make_writer_model
    from saghog_jax.models.netrvlad import vlad
    from saghog_jax.runs.checkpoint import load_variables, read_config

    config = toy(embed.get_config(), folder)
    manifest = load_manifest(config.data)
    found = load_embeddings(folder / "embed")
    pretrained = load_embeddings(folder / "embed" / "pretrained")
    assert list(found.page_ids) == [page.page_id for page in manifest.pages]
    run = read_config(folder / "finetune")
    params = load_variables(folder / "finetune", ("writer",))[0]["params"]
    before = load_variables(folder / "pretrain", ("mae",))[0]["params"]
    model = make_writer_model(run)
    apply = jax.jit(model.apply, static_argnames="method")
    for i, page in list(enumerate(manifest.pages))[:2]:
        image = load_page(manifest.root / page.path, page.box, config.data.max_pixels)
        cut = cut_page(image, Rule(**found.meta["recipe"]["rule"]))
        _, binary = inputs.decode({"patches": jnp.asarray(cut.patches),
                                    "ink": jnp.asarray(cut.ink)})  # fmt: skip
        images = inputs.normalize(jnp.broadcast_to(binary, cut.patches.shape))
        x, assignment = apply({"params": params}, images)
        vectors = vlad(assignment, x, params["netrvlad"]["centroids"]).reshape(len(x), -1)
        cls = apply({"params": {**params, "encoder": before["encoder"]}}, images,
                          method="encode")  # fmt: skip
        for ours, plain in [(found, vectors), (pretrained, cls)]:
            plain = np.asarray(plain, np.float64)
            total = (plain / np.linalg.norm(plain, axis=1, keepdims=True)).sum(0)
            total = np.sign(total) * np.abs(total) ** 0.4
            total /= np.linalg.norm(total)
            # The power 0.4 enlarges rounding near zero: an element off by 1e-7 of a sum near 1
            # comes out as 1e-3.
            np.testing.assert_allclose(ours.descriptors[i], total, atol=2e-3)
            assert ours.descriptors[i] @ total > 1 - 1e-6


def test_embed_is_not_done_twice_but_again_where_a_page_has_changed(folder, tmp_path, capsys):
    pages = tmp_path / "pages"
    pages.mkdir()
    for i, path in enumerate(sorted((folder / "pages").rglob("*.png"))[:2]):
        (pages / f"{i}.png").write_bytes(path.read_bytes())
    changes = {"data.pages": str(pages), "store.root": str(tmp_path / "prepare")}
    config = toy(embed.get_config("plain"), folder, **changes)
    run_stage(config, tmp_path / "embed")
    first = load_embeddings(tmp_path / "embed").descriptors.copy()
    run_stage(config, tmp_path / "embed")
    assert "holds these embeddings already" in capsys.readouterr().out
    (pages / "1.png").write_bytes((pages / "0.png").read_bytes())
    run_stage(config, tmp_path / "embed")
    again = load_embeddings(tmp_path / "embed").descriptors
    np.testing.assert_allclose(again[1], first[0], atol=2e-3)


def test_sizes_of_device_calls_reach_the_pooler(folder, tmp_path, monkeypatch):
    from saghog_jax.embedding import encoder

    def recording(describers, pooling, *rest):
        raise KeyboardInterrupt(*rest)

    monkeypatch.setattr(encoder, "PagePooler", recording)
    config = toy(embed.get_config("plain"), folder, local_batch_size=24, pages_per_batch=3)
    with pytest.raises(KeyboardInterrupt) as sizes:
        run_stage(config, tmp_path / "out")
    assert sizes.value.args == (24, 3, config.mesh)


@pytest.mark.parametrize("module", [pretrain, finetune])
def test_threads_and_prefetch_reach_the_reader(folder, tmp_path, monkeypatch, module):
    import grain

    stage = importlib.import_module(f"saghog_jax.{module.get_config().stage}")
    given, options = [], grain.ReadOptions
    monkeypatch.setattr(grain, "ReadOptions", lambda **k: given.append(k) or options(**k))
    config = toy(module.get_config(), folder, **{"loader.threads": 3, "loader.prefetch": 5})
    stage.open_task(config, tmp_path).batches(0).close()
    assert given == [{"num_threads": 3, "prefetch_buffer_size": 5}]


def stop_embedding(monkeypatch, config, out, after):
    """Embeds until so many descriptors are kept; returns which were, and how to keep one."""
    append, written = Record.append, []

    def stopping(parts, view, *rest):
        if len(written) == after:
            raise KeyboardInterrupt
        written.append(view)
        append(parts, view, *rest)

    monkeypatch.setattr(Record, "append", stopping)
    with pytest.raises(KeyboardInterrupt):
        run_stage(config, out)
    return written, append


def test_embed_goes_on_where_it_was_stopped(folder, monkeypatch):
    whole = load_embeddings(folder / "embed")
    config = toy(embed.get_config(), folder)
    written, append = stop_embedding(monkeypatch, config, folder / "embed2", 4)
    monkeypatch.setattr(Record, "append", lambda p, n, *r: (written.append(n), append(p, n, *r)))
    run_stage(config, folder / "embed2")
    assert written == [0, 1, 2, 3, 4, 5]
    again = load_embeddings(folder / "embed2")
    np.testing.assert_array_equal(again.descriptors, whole.descriptors)
    assert not (folder / "embed2" / "parts").exists()


def test_pages_at_several_scales_stand_side_by_side(folder, tmp_path, monkeypatch, capsys):
    config = toy(embed.get_config("plain"), folder, scales=(1.0, 0.01, 0.5))
    # In the middle of the second page.
    _, append = stop_embedding(monkeypatch, config, tmp_path / "embed", 4)
    monkeypatch.setattr(Record, "append", append)
    assert len(run_stage(config, tmp_path / "embed").skipped) == 0
    out = capsys.readouterr().out
    assert (
        "6 pages of the split 'test' (--config.data.split= takes all) at the scales 1, 0.01," in out
    )
    assert "; 1 are finished already" in out
    found = load_embeddings(tmp_path / "embed")
    assert found.meta["recipe"]["scales"] == [1.0, 0.01, 0.5]
    assert found.meta["aggregation"].endswith(", concatenated at scales 1, 0.01, 0.5")
    alone = {}
    for scale in (1.0, 0.5):
        one = toy(embed.get_config("plain"), folder, **{"store.scale": scale})
        run_stage(one, tmp_path / f"{scale}")
        alone[scale] = load_embeddings(tmp_path / f"{scale}")
    # At a hundredth no page has a patch.
    first, none, half = np.split(np.asarray(found.descriptors), 3, axis=1)
    assert not none.any()
    root = np.float32(2**-0.5)
    np.testing.assert_allclose(first, root * alone[1.0].descriptors, atol=1e-4)
    np.testing.assert_allclose(half, root * alone[0.5].descriptors, atol=1e-4)
    assert found.table["patch_count"].tolist() == alone[1.0].table["patch_count"].tolist()
    assert found.page_ids.tolist() == alone[1.0].page_ids.tolist()
    assert "note: these pages are resized by 0.5, those of the training by 1 (times" in (
        capsys.readouterr().out
    )


def test_other_labels_of_embedded_pages_need_no_embedding(folder, tmp_path, monkeypatch, capsys):
    lines = (folder / "pages" / "manifest.csv").read_text().splitlines()
    table = folder / "pages" / "labelled.csv"
    table.write_text("\n".join(lines) + "\n")
    config = toy(embed.get_config(), folder, **{"data.pages": str(table)})
    run_stage(config, tmp_path)
    before = load_embeddings(tmp_path)
    bits = (tmp_path / "embeddings.npy").read_bytes()
    named = [line.replace(",w005,", ",somebody,") for line in lines]
    assert named != lines
    table.write_text("\n".join([named[0] + ",sheet", *(line + ",s" for line in named[1:])]) + "\n")
    monkeypatch.setattr(PageEncoder, "pool", lambda *_: pytest.fail("embedded again"))
    capsys.readouterr()
    run_stage(config, tmp_path)
    assert "already; the labels of its pages were updated" in capsys.readouterr().out
    for where in (tmp_path, tmp_path / "random", tmp_path / "pretrained"):
        after = load_embeddings(where)
        expected = [str(w).replace("w005", "somebody") for w in before.writers]
        assert after.writers.tolist() == expected != before.writers.tolist()
        assert set(after.column("sheet")) == {"s"}
        assert after.column("patch_count").tolist() == before.column("patch_count").tolist()
        assert after.meta["input_digest"] == before.meta["input_digest"]
    assert (tmp_path / "embeddings.npy").read_bytes() == bits
    run_stage(config, tmp_path)
    assert "were updated" not in capsys.readouterr().out
    # A folder of it that is not whole is made again.
    monkeypatch.undo()
    (tmp_path / "random" / "meta.json").unlink()
    run_stage(config, tmp_path)
    assert load_embeddings(tmp_path / "random").writers.tolist() == expected


def test_sift_stands_beside_the_model(folder, tmp_path):
    """With a share of the similarity, and alone; a share needs words, which finetuning fits."""
    changes = {"sift_words": 5, "checkpoint": str(folder / "pretrain")}
    run_stage(toy(finetune.get_config(), folder, **changes), tmp_path / "finetune")
    found = {}
    for name, given in {
        "plain": {},
        "third": {
            "sift.patch": 1 / 3,
            "compare": ("sift_patch", "sift_keypoint"),
            "scales": (1.0, 0.5),
        },
        "half": {"sift.keypoint": 0.5},
        "both": {"sift.patch": 0.25, "sift.keypoint": 0.5, "scales": (1.0, 0.5)},
    }.items():
        given = {"checkpoint": str(tmp_path / "finetune"), **given}
        run_stage(toy(embed.get_config("plain"), folder, **given), tmp_path / name)
        found[name] = load_embeddings(tmp_path / name)
    alone = load_embeddings(tmp_path / "third" / "sift_patch")
    other = np.asarray(load_embeddings(tmp_path / "third" / "sift_keypoint").descriptors)
    whole, plain = (np.asarray(found[name].descriptors) for name in ("third", "plain"))
    fixed, d = np.asarray(alone.descriptors), plain.shape[1]
    assert fixed.shape[1] == 2 * 5 * 128
    np.testing.assert_allclose(whole[:, 2 * d :], fixed / np.float32(3**0.5), atol=1e-5)
    # Of the first scale, which has half of the model's two thirds.
    np.testing.assert_allclose(whole[:, :d], plain / np.float32(3**0.5), atol=1e-3)
    np.testing.assert_allclose(np.linalg.norm(whole, axis=1), 1, atol=1e-5)
    assert found["half"].descriptors.shape[1] == d + 5 * 128
    both = np.asarray(found["both"].descriptors)
    np.testing.assert_allclose(both[:, 2 * d :][:, : 2 * 5 * 128], fixed / 2, atol=1e-5)
    np.testing.assert_allclose(both[:, -2 * 5 * 128 :], other * np.float32(0.5**0.5), atol=1e-5)
    assert np.abs(other - fixed).max() > 0.01
    meta = found["third"].meta
    assert "0.333333 of the similarity from SIFT (patch)" in meta["aggregation"]
    weights = {part["descriptor"]: part["weight"] for part in meta["recipe"]["parts"]}
    assert weights == {"netrvlad": 1 - 1 / 3, "sift_patch": 1 / 3}
    (part,) = alone.meta["recipe"]["parts"]
    assert part == {"descriptor": "sift_patch", "power": 0.5, "weight": 1.0}
    assert list(found["both"].meta["digests"]) == ["netrvlad", "sift_patch", "sift_keypoint"]
    assert not (tmp_path / "half" / "sift_keypoint").exists()
    with pytest.raises(UserError, match="descriptors netrvlad .* and netrvlad"):
        check_comparable(found["half"], found["plain"])
    given = {"sift.keypoint": 0.5, "checkpoint": str(folder / "pretrain")}
    with pytest.raises(UserError, match=r"no sift_words_keypoint.npy, .* --config.sift.keypoint=0"):
        run_stage(toy(embed.get_config("plain"), folder, **given), tmp_path / "none")
    given = {"sift.patch": 0.5, "sift.keypoint": 0.5}
    with pytest.raises(
        UserError, match=r"sift.keypoint=0.5: weights must be at least 0 and add up to less"
    ):
        run_stage(toy(embed.get_config("plain"), folder, **given), tmp_path / "none")


def test_a_copied_run_folder_is_enough(folder, tmp_path, monkeypatch, capsys):
    """The run that a finetuning started from is needed by the compared rows alone."""
    changes = {"sift_words": 5, "checkpoint": str(folder / "pretrain")}
    run_stage(toy(finetune.get_config(), folder, **changes), tmp_path / "trained")
    runs, alone = tmp_path / "old" / "runs", tmp_path / "new" / "finetune"
    shutil.copytree(tmp_path / "trained", runs / "finetune")
    path = runs / "finetune" / "config.json"
    content = json.loads(path.read_text()) | {"checkpoint": "runs/pretrain"}
    path.write_text(json.dumps(content))
    shutil.copytree(runs / "finetune", alone)
    shutil.copytree(folder / "pretrain", runs / "pretrain")
    shutil.rmtree(tmp_path / "trained")
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    found = {}
    for name, variant, checkpoint in (
        ("plain", "plain", alone),
        ("small", "small", alone),
        ("alone", "", alone),
        ("beside", "", runs / "finetune"),
    ):
        config = toy(embed.get_config(variant), folder, checkpoint=str(checkpoint))
        run_stage(config, tmp_path / name)
        found[name] = load_embeddings(tmp_path / name)
    assert len(found["plain"]) == len(found["small"]) == 6
    assert not (tmp_path / "alone" / "pretrained").exists()
    note = f"no row 'pretrained' to compare with: runs/pretrain, the run that {alone} started from"
    assert note in capsys.readouterr().out
    # A folder above the run folder is where its training was started.
    first = load_embeddings(tmp_path / "beside" / "pretrained")
    expected = load_embeddings(folder / "embed" / "pretrained")
    np.testing.assert_allclose(first.descriptors, expected.descriptors, atol=2e-3)
    np.testing.assert_array_equal(found["alone"].descriptors, found["beside"].descriptors)


def test_one_image_with_little_writing_and_the_folder_in_one_file(folder, tmp_path, capsys):
    image = sorted((folder / "pages").rglob("*.png"))[0]
    changes = {
        "data.pages": str(image),
        "few_patches": 10_000,
        "export_formats": ("npz", "parquet"),
    }
    config = toy(embed.get_config("plain"), folder, **changes)
    assert len(run_stage(config, tmp_path / "embed").skipped) == 0
    found = load_embeddings(tmp_path / "embed")
    assert found.page_ids.tolist() == [image.name]
    out = capsys.readouterr().out
    assert "warning: 1 pages have fewer than 10000 patches, too little writing to judge" in out
    patches, ink = (int(found.table[name][0]) for name in ("patch_count", "ink_pixels"))
    assert patches == found.meta["patches"][0] > 0
    # Of every patch at least a hundredth is ink, and never all.
    assert 0.01 * 1024 * patches <= ink < 1024 * patches
    listed = (tmp_path / "embed" / "few_patches.csv").read_text().splitlines()
    assert listed == ["page_id,patch_count,ink_pixels", f"{image.name},{patches},{ink}"]
    for name in ("npz", "parquet"):
        assert (tmp_path / "embed" / f"embeddings.{name}").exists()


def test_poolings_and_patch_whitening_matter(folder, tmp_path, capsys):
    whole = {}
    white = {"patch_whitening.mode": "fit", "patch_whitening.dim": 6}
    for name, changes in {
        "sum": {},
        "max": {"pooling": "max"},
        "lse": {"pooling": "lse"},
        "gmp": {"pooling": "gmp"},
        "ridge": {"pooling": "gmp", "gmp_lambda": 100.0},
        "white": white,
        "samples": {**white, "patch_whitening.samples": 40},
        "both": {**white, "pooling": "gmp"},
    }.items():
        run_stage(toy(embed.get_config("plain"), folder, **changes), tmp_path / name)
        whole[name] = load_embeddings(tmp_path / name)
    names = list(whole)
    for i, a in enumerate(names):
        for b in names[:i]:
            x, y = whole[a].descriptors, whole[b].descriptors
            assert x.shape != y.shape or np.abs(x - y).max() > 1e-2, (a, b)
    assert whole["white"].descriptors.shape == (6, 6)
    assert "patches whitened (fit, 6 dims from " in whole["white"].meta["aggregation"]
    assert "gmp, power 0.4, L2" in whole["gmp"].meta["aggregation"]
    # Other whitenings make embeddings that must not be compared.
    assert len({e.meta["checkpoint"] for e in whole.values()}) == 3
    # What was saved gives the same again, for other pages too.
    saved = {"patch_whitening.mode": "load",
             "patch_whitening.file": str(tmp_path / "white" / "patch_whitening.npz")}  # fmt: skip
    run_stage(toy(embed.get_config("plain"), folder, **saved), tmp_path / "again")
    again = load_embeddings(tmp_path / "again")
    np.testing.assert_allclose(again.descriptors, whole["white"].descriptors, atol=1e-5)
    assert again.meta["checkpoint"] == whole["white"].meta["checkpoint"]
    saved["checkpoint"] = str(folder / "pretrain")
    with pytest.raises(UserError, match="was fitted on patches of width 64 of checkpoint"):
        run_stage(toy(embed.get_config("plain"), folder, **saved), tmp_path / "other")


@pytest.mark.parametrize(("module", "stage"), [(pretrain, "pretrain"), (finetune, "finetune")])
def test_same_command_same_bits(folder, tmp_path, module, stage):
    from saghog_jax.runs.checkpoint import load_variables, params_digest

    run_stage(toy(module.get_config(), folder), tmp_path / stage)
    kinds = ("mae", "writer")
    digests = {params_digest(load_variables(p / stage, kinds)[0]) for p in (folder, tmp_path)}
    assert len(digests) == 1


def first_loss(task):
    """The loss of the first batch at the parameters a run would start from."""
    params = task.warm_start(task.init(jax.random.key(0)))
    with task.batches(0) as batches:
        batch = {k: jnp.asarray(v) for k, v in next(batches).items()}
    loss = jax.jit(functools.partial(batch_loss, task))
    return float(loss(params, batch, jax.random.key(1))[0])


@pytest.fixture(scope="module")
def finetuning(folder):
    """A function from changed fields to the first loss of a finetuning."""
    from saghog_jax import finetune as stage
    from saghog_jax.training import finetuning, labels

    def loss(**changes):
        config = stage.resolve(toy(finetune.get_config(), folder, **changes))
        store = Store.open(ensure_store(config.data, config.store))
        return first_loss(finetuning.Finetuning(config, store, labels.make_labels(config, store)))

    return loss, loss()


@pytest.mark.parametrize(
    "changes", [{"labels": "writer", "patches_per_class": 8}, {"checkpoint": ""},
               {"netrvlad.init": "random"}, {"netrvlad.num_clusters": 5}, {"input": "page"},
               {"dropout": 0.0}, {"loss.base": 0.7}, {"loss.alpha": 3.0}, {"loss.beta": 20.0},
               {"loss.epsilon": 0.4}, {"patches_per_class": 8}, {"augment.erode": 1.0}, {"seed": 1},
     {"labels": "page"}, {"patches_per_bag": 2}, {"loss.kind": "contrastive"},
     {"loss.kind": "triplet"}, {"loss.kind": "triplet_semihard"},
     {"netrvlad.normalized": True},
     {"descriptor": "gmp"}, {"descriptor": "foreground"}, {"embed_dim": 8},
     {"encoder": "resnet20", "checkpoint": ""}, {"freeze_encoder": True}],
)  # fmt: skip
def test_every_choice_of_finetuning_matters(finetuning, changes):
    loss, plain = finetuning
    assert loss(**changes) != plain


def test_bags_of_pages_and_temperature_matter(finetuning):
    loss, _ = finetuning
    page = {"labels": "page", "loss.kind": "contrastive"}
    found = {
        loss(**page),
        loss(**page, patches_per_bag=2),
        loss(**page, **{"loss.temperature": 0.5}),
    }
    assert len(found) == 3


@pytest.mark.parametrize(
    ("choice", "further"),
    [
        ({"loss.kind": "triplet"}, {"loss.margin": 0.5}),
        ({"loss.kind": "triplet"}, {"loss.include_self": True}),
        ({"embed_dim": 8}, {"embed_dropout": 0.5}),
        ({"descriptor": "foreground"}, {"min_token_ink": 0.5}),
    ],
)
def test_every_further_choice_of_finetuning_matters(finetuning, choice, further):
    loss, _ = finetuning
    assert loss(**choice, **further) != loss(**choice)


@pytest.fixture(scope="module")
def pretraining(folder):
    """A function from changed fields to the first loss of a pretraining."""
    from saghog_jax.training import pretraining

    def loss(**changes):
        config = toy(pretrain.get_config(), folder, **changes)
        store = Store.open(ensure_store(config.data, config.store))
        return first_loss(pretraining.Pretraining(config, store))

    return loss, loss()


@pytest.mark.parametrize(
    "changes", [{"target": "pixel"}, {"target": "hog_rgb"}, {"mask_ratio": 0.5},
               {"hog.num_bins": 6}, {"hog.cell_size": 2}, {"hog.half_precision": True},
               {"augment.gray": 1.0},
               {"store.binarization": "otsu"},
               {"model.depth": 1}, {"model.decoder_width": 32}, {"seed": 1}],
)  # fmt: skip
def test_every_choice_of_pretraining_matters(pretraining, changes):
    loss, plain = pretraining
    assert loss(**changes) != plain


def test_layer_decay_sets_the_rate_of_every_parameter(folder):
    from saghog_jax import finetune as stage
    from saghog_jax.training import finetuning, labels

    config = stage.resolve(toy(finetune.get_config(), folder, **{"optim.layer_decay": 0.5}))
    store = Store.open(ensure_store(config.data, config.store))
    task = finetuning.Finetuning(config, store, labels.make_labels(config, store))
    params = task.init(jax.random.key(0))["params"]
    factors = match_rules(params, finetuning.rate_rules(config))
    assert factors["encoder"]["block_1"]["fc1"]["kernel"] == 0.5
    assert factors["encoder"]["block_0"]["fc1"]["kernel"] == 0.25
    assert factors["encoder"]["patch_embed"]["proj"]["kernel"] == 0.125
    assert factors["encoder"]["cls_token"] == 0.125
    assert factors["encoder"]["norm"]["scale"] == 1.0
    assert factors["netrvlad"]["centroids"] == 1.0
    # And the task's own optimiser obeys them: Adam's first update has the size of its rate.
    grads = jax.tree.map(jnp.ones_like, params)
    updates, _ = task.tx.update(grads, task.tx.init(params), jax.tree.map(jnp.zeros_like, params))
    top = updates["netrvlad"]["centroids"][0, 0]
    assert updates["encoder"]["block_0"]["norm1"]["bias"][0] / top == pytest.approx(0.25, rel=1e-3)


def test_choices_of_embed_matter(folder, tmp_path):
    plain = load_embeddings(folder / "embed").descriptors
    config = toy(embed.get_config("plain"), folder, input="page", power=1.0)
    run_stage(config, tmp_path / "embed")
    other = load_embeddings(tmp_path / "embed")
    assert np.abs(other.descriptors - plain).max() > 1e-2
    assert not (tmp_path / "embed" / "random").exists()
    # Within masks there are fewer patches, and other descriptors of the same pages.
    masks = tmp_path / "masks"
    masks.mkdir()
    pages = load_manifest(config.data)
    for page in pages.pages:
        h, w = load_page(pages.root / page.path, None, 10**8).shape[:2]
        left = np.zeros((h, w), np.uint8)
        left[:, : w // 2] = 255
        cv2.imwrite(str(masks / Path(page.path).with_suffix(".png").name), left)
    within = {"regions.backend": "masks", "regions.masks.folder": str(masks)}
    config = toy(embed.get_config("plain"), folder, **within)
    config.regions.root = str(tmp_path / "regions")
    run_stage(config, tmp_path / "within")
    whole, half = (load_embeddings(f) for f in (folder / "embed", tmp_path / "within"))
    assert half.meta["regions"]["backend"] == "masks"
    assert sum(half.meta["patches"]) < sum(whole.meta["patches"])
    assert np.abs(half.descriptors - plain).max() > 1e-2
    # A pretrained run can be embedded by itself, by CLS.
    config = toy(embed.get_config("plain"), folder, checkpoint=str(folder / "pretrain"))
    run_stage(config, tmp_path / "cls")
    assert load_embeddings(tmp_path / "cls").descriptors.shape == (6, 16)


@pytest.mark.parametrize(
    ("module", "changes", "message"),
    [
        (finetune, {"checkpoint": "nowhere"}, "nowhere holds no run .*configs/pretrain.py"),
        (finetune, {"labels": "colour"}, "unknown config.labels 'colour', known: cluster, page"),
        (
            finetune,
            {"patches_per_bag": 3},
            "config.patches_per_class=4 is not a whole number of bags of config.patches_per_bag=3",
        ),
        (finetune, {"input": "rgb"}, "unknown config.input 'rgb', known: page, binary"),
        (finetune, {"netrvlad.init": "x"}, "unknown config.netrvlad.init 'x'"),
        (embed, {"checkpoint": "nowhere"}, "no checkpoint in nowhere; .*configs/finetune.py"),
        (embed, {"input": "rgb"}, "unknown config.input 'rgb', known: auto, page, binary"),
        (embed, {"compare": ("best",)}, "unknown config.compare 'best'"),
        (embed, {"pooling": "median"}, "unknown config.pooling 'median', known: sum, mean, max"),
        (embed, {"power": 0.0}, "config.power=0.0 must lie in"),
        (
            embed,
            {"export_formats": ("xlsx",)},
            "unknown config.export_formats 'xlsx', known: npz, parquet",
        ),
        (embed, {"patch_whitening.mode": "pca"}, "known: none, fit, load"),
        (embed, {"patch_whitening.mode": "load"}, "needs config.patch_whitening.file"),
        (embed, {"patch_whitening.samples": 1}, "samples=1 must be at least 2"),
        (retrieve, {"embeddings": "nowhere"}, "configs/embed.py"),
        (embed, {"local_batch_size": 12}, "local_batch_size=12 is not divisible by 8"),
        (embed, {"data.max_pixels": 999}, "none of the 6 pages .* data.max_pixels=999 allows"),
        (pretrain, {"data.max_pixels": 999}, "data.max_pixels=999 allows"),
        (pretrain, {"global_batch_size": 1 << 20}, "lower --config.global_batch_size"),
        (pretrain, {"global_batch_size": 12}, "global_batch_size=12 is not divisible by 8"),
        (pretrain, {"data.pages": "nowhere"}, "nowhere"),
    ],
)
def test_missing_input_and_unknown_choices_are_one_line(folder, tmp_path, module, changes, message):
    config = toy(module.get_config(), folder, **changes)
    with pytest.raises(UserError, match=message) as error:
        run_stage(config, tmp_path / "out")
    assert "\n" not in str(error.value)


def test_one_writer_and_no_writer(folder, tmp_path):
    pages = folder / "pages"
    for name, writer in [("one", "w"), ("none", "")]:
        rows = ["path,writer,page"]
        rows += [f"{p.relative_to(pages)},{writer},{p.stem}" for p in sorted(pages.rglob("*.png"))]
        manifest = pages / f"{name}.csv"
        manifest.write_text("\n".join(rows))
        config = toy(finetune.get_config(), folder, **{"labels": "writer",
                     "data.pages": str(manifest), "data.split": ""})  # fmt: skip
        with pytest.raises(UserError, match="class" if writer else "no page of .* has a writer"):
            run_stage(config, tmp_path / name)
        # Without writers there are still pages to embed and rank; there are no figures.
        config = toy(embed.get_config("plain"), folder, **{"data.pages": str(manifest),
                     "data.split": ""})  # fmt: skip
        run_stage(config, tmp_path / f"{name}-embed")
        config = toy(retrieve.get_config(), folder, embeddings=str(tmp_path / f"{name}-embed"))
        run_stage(config, tmp_path / f"{name}-retrieve")
        assert (tmp_path / f"{name}-retrieve" / "report.html").exists()


def test_bad_pages_are_skipped_and_named(folder, tmp_path, capsys):
    pages = tmp_path / "pages"
    pages.mkdir()
    good = sorted((folder / "pages").rglob("*.png"))[:3]
    for i, path in enumerate(good):
        (pages / f"w{i}_1.png").write_bytes(path.read_bytes())
    (pages / "text.png").write_text("no image")
    (pages / "cut_short.png").write_bytes(good[0].read_bytes()[:2000])
    config = toy(embed.get_config("plain"), folder, **{"data.pages": str(pages)})
    assert len(run_stage(config, tmp_path / "embed").skipped) == 2
    assert "2 pages skipped" in capsys.readouterr().out
    skipped = (tmp_path / "embed" / "skipped.csv").read_text()
    assert "text.png" in skipped
    assert "cut_short.png" in skipped
    assert len(load_embeddings(tmp_path / "embed").page_ids) == 3
    for path in pages.glob("w*.png"):
        path.unlink()
    with pytest.raises(UserError, match="none of the 2 pages"):
        run_stage(config, tmp_path / "embed3")


def command(stage, folder, *more):
    sizes = [f"--config.{k}={v}" for k, v in fields(toy(stage.get_config(), folder)).items()
             if v is not None and not isinstance(v, tuple)]  # fmt: skip
    name = stage.get_config().stage
    return [sys.executable, "-m", "saghog_jax.main", f"--config={ROOT}/configs/{name}.py",
            f"--workdir={folder / name}", *sizes, *more]  # fmt: skip


@pytest.mark.slow
def test_two_processes_embed_what_one_does(folder, tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    white = ["--config.patch_whitening.mode=fit", "--config.patch_whitening.dim=6"]
    both = [
        subprocess.Popen(
            command(embed, folder, f"--workdir={tmp_path / 'two'}", *white,
                    "--config.distributed.mode=explicit", "--config.distributed.num_processes=2",
                    f"--config.distributed.coordinator=127.0.0.1:{port}",
                    f"--config.distributed.process_id={i}"),
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )
        for i in range(2)
    ]  # fmt: skip
    out = [process.communicate(timeout=300)[0] for process in both]
    assert [process.returncode for process in both] == [0, 0], out
    assert "6 pages embedded" in out[0]
    assert "pages embedded" not in out[1]
    config = toy(embed.get_config(), folder, **{"patch_whitening.mode": "fit",
                 "patch_whitening.dim": 6})  # fmt: skip
    run_stage(config, tmp_path / "one")
    for name in (".", "random", "pretrained"):
        one, two = (load_embeddings(tmp_path / where / name) for where in ("one", "two"))
        np.testing.assert_allclose(one.descriptors, two.descriptors, atol=2e-3)
        assert one.page_ids.tolist() == two.page_ids.tolist()
    assert not (tmp_path / "two" / "parts").exists()


@pytest.mark.slow
def test_killed_stages_finish_when_started_again(folder, tmp_path):
    """SIGKILL at several moments of every stage; the result is that of an undisturbed run."""
    from saghog_jax.runs.checkpoint import load_variables, params_digest

    (tmp_path / "pages").symlink_to(folder / "pages")
    env = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"} | {"PYTHONPATH": str(ROOT)}
    digests = {}
    for run in ("whole", "killed"):
        home = tmp_path / run
        home.mkdir()
        (home / "pages").symlink_to(folder / "pages")
        for stage in (prepare, pretrain, finetune, embed, retrieve):
            words = command(stage, home, *(
                ["--config.stores.pretrain.root=" + str(home / "prepare"),
                 "--config.stores.offline.root=" + str(home / "prepare")]
                if stage is prepare else []))  # fmt: skip
            for seconds in (2, 4, 6) if run == "killed" else ():
                process = subprocess.Popen(words, env=env, cwd=home, start_new_session=True,
                                           stdout=subprocess.DEVNULL)  # fmt: skip
                time.sleep(seconds)
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
            done = subprocess.run(words, env=env, cwd=home, capture_output=True, text=True)
            assert done.returncode == 0, done.stderr
        digests[run] = [
            params_digest(load_variables(home / "pretrain", ("mae",))[0]),
            params_digest(load_variables(home / "finetune", ("writer",))[0]),
            (home / "embed" / "embeddings.npy").read_bytes(),
            (home / "retrieve" / "ranking.csv").read_text(),
        ]
    assert digests["whole"] == digests["killed"]
