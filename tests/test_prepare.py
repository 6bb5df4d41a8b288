"""The stages prepare and verify, as the command line runs them."""

import shutil

import cv2
import numpy as np
import pytest
from store_helpers import fingerprint, make_store, write_pages

from saghog_jax import prepare, verify
from saghog_jax.configs import finetune, pretrain
from saghog_jax.configs import prepare as prepare_config
from saghog_jax.configs import verify as verify_config
from saghog_jax.input_pipeline.errors import UserError
from saghog_jax.input_pipeline.labels.pseudo_labels import ensure_labels, labels_folder
from saghog_jax.input_pipeline.store.reader import Store
from saghog_jax.next_command import next_command

PAGES = 5


def small(pages, root):
    config = prepare_config.get_config()
    config.data.pages, config.data.split = str(pages), ""
    config.pseudo_labels.update({"num_clusters": 4, "pca_dim": 4})
    for store in config.stores.values():
        store.root, store.workers, store.pages_per_shard = str(root), 1, 2
        store.max_patches_per_page = 30
    return config


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    folder = tmp_path_factory.mktemp("prepared")
    config = small(write_pages(folder / "pages", PAGES), folder / "stores")
    assert prepare.run(config, folder / "run").skipped == ()
    return folder / "stores"


@pytest.fixture
def damaged(prepared, tmp_path):
    """A copy to damage."""
    return shutil.copytree(prepared, tmp_path / "stores")


def only(root, rule):
    (folder,) = root.glob(f"{rule}-*")
    return folder


def run_verify(stores):
    config = verify_config.get_config()
    config.stores = str(stores)
    verify.run(config, stores)


class TestPrepare:
    def test_both_stores_and_labels_are_made(self, prepared):
        assert not Store.open(only(prepared, "pretrain")).has_descriptors
        store = Store.open(only(prepared, "offline"))
        assert store.has_descriptors
        labels = labels_folder(store, small("", "").pseudo_labels)
        assert list((store.path / "labels").iterdir()) == [labels]

    def test_the_second_run_keeps_everything_and_says_what_is_next(self, prepared, capsys):
        before = fingerprint(prepared)
        config = small(prepared.parent / "pages" / "manifest.csv", prepared)
        result = prepare.run(config, prepared)
        assert fingerprint(prepared) == before
        assert "cutting" not in capsys.readouterr().out
        finetuning, pretraining = (next_command(n, result.workdir) for n in result.following)
        start = "python -m saghog_jax.main --config=configs/"
        assert finetuning.startswith(f"{start}finetune.py --config.data")
        assert pretraining.startswith(f"{start}pretrain.py --config.data")
        for command in (finetuning, pretraining):
            assert f"--config.store.root={prepared}" in command

    def test_skipped_pages_are_counted_once(self, tmp_path):
        pages = write_pages(tmp_path / "pages", PAGES)
        (pages.parent / "p01.png").write_bytes(b"")
        assert len(prepare.run(small(pages, tmp_path / "stores"), tmp_path).skipped) == 1


class TestConfig:
    def test_prepare_makes_what_the_training_stages_read(self):
        for variant, recipe in (("cpu", "cpu"), ("paper", "historical_wi")):
            made = prepare_config.get_config(variant)
            first, second = pretrain.get_config(variant), finetune.get_config(recipe)
            assert made.stores.pretrain.to_dict() == first.store.to_dict()
            assert made.stores.offline.to_dict() == second.store.to_dict()
            assert made.regions.to_dict() == second.regions.to_dict()
            # Crops need no store; those of the paper are taken within the handwriting.
            assert first.regions.backend == {"cpu": "none", "paper": "ink"}[variant]
            if variant == "paper":
                first = pretrain.get_config("paper,regions=none")
            assert made.regions.to_dict() == first.regions.to_dict()
            assert made.pseudo_labels.to_dict() == second.pseudo_labels.to_dict()
            assert made.data.to_dict() == first.data.to_dict()
            # A recipe names its data set; everything else about the pages is the same.
            second.data.pages = made.data.pages
            assert made.data.to_dict() == second.data.to_dict()

    def test_only(self):
        assert set(prepare_config.get_config().stores) == {"pretrain", "offline"}
        assert set(prepare_config.get_config("only=offline").stores) == {"offline"}
        with pytest.raises(ValueError, match="known: pretrain, offline"):
            prepare_config.get_config("only=offlin")

    def test_verify_takes_no_argument(self):
        with pytest.raises(ValueError, match="'x'"):
            verify_config.get_config("x")


class TestDryRun:
    def look(self, config, tmp_path, capsys):
        config.dry_run = True
        skipped = len(prepare.run(config, tmp_path).skipped)
        return skipped, capsys.readouterr().out

    def test_it_says_what_was_understood_and_writes_nothing(self, tmp_path, capsys):
        pages = write_pages(tmp_path / "pages", PAGES)
        cv2.imwrite(str(pages.parent / "p02.png"), np.full((50, 70, 3), 240, np.uint8))
        (pages.parent / "p04.png").write_text("no image")
        skipped, out = self.look(small(pages, tmp_path / "stores"), tmp_path, capsys)
        assert skipped == 2
        assert not (tmp_path / "stores").exists()
        assert f"5 pages below {pages.parent}" in out
        assert (
            "3 writers with 1 to 2 pages (median 2), 1 of them with one page only: w0 2, w1" in out
        )
        assert "  p00.png, w0, 0" in out
        assert "smallest 200 x 160, median 200 x 160, largest 200 x 160" in out
        assert "2 pages would be skipped:\n  p02.png: no writing: 0 pixels lie in strokes" in out
        assert "\n  p04.png: not an image" in out

    def test_it_names_the_files_that_are_no_images(self, tmp_path, capsys):
        pages = write_pages(tmp_path / "pages", 2)
        config = small(pages, tmp_path / "stores")
        assert "no images" not in self.look(config, tmp_path, capsys)[1]
        (pages.parent / "sub").mkdir()
        for name in ("letter.txt", "sub/notes.odt", ".hidden"):
            (pages.parent / name).write_bytes(b"")
        pages.unlink()
        config.data.pages = str(pages.parent)
        _, out = self.look(config, tmp_path, capsys)
        assert "2 files are not images and are left out: 'letter.txt', 'sub/notes.odt'" in out

    def test_its_estimate_is_what_the_store_takes(self, tmp_path, capsys, prepared):
        config = small(prepared.parent / "pages" / "manifest.csv", tmp_path)
        _, out = self.look(config, tmp_path, capsys)
        store = Store.open(only(prepared, "pretrain"))
        size = sum(path.stat().st_size for path in store.path.glob("shards/*/*.npy"))
        assert (
            f"for pretraining (store pretrain): about {len(store):,}, {size / 1e6:,.0f} MB" in out
        )
        assert "each stage chooses its patches by its own rule" in out
        assert "at most" in out

    def test_fewer_samples_cut_fewer_pages(self, tmp_path, capsys, prepared):
        config = small(prepared.parent / "pages" / "manifest.csv", tmp_path)
        config.dry_run_samples = 2
        assert "estimated from 2 sample pages" in self.look(config, tmp_path, capsys)[1]

    def test_it_says_how_wide_strokes_are_and_what_would_suit(self, tmp_path, capsys):
        """Bars of three pixels, then of six by a factor, then none."""
        pages = write_pages(tmp_path / "pages", 2)
        page = np.full((200, 300, 3), 255, np.uint8)
        for x in range(20, 280, 25):
            for y in range(20, 180, 40):
                page[y : y + 30, x : x + 3] = 0
        for name in ("p00.png", "p01.png"):
            cv2.imwrite(str(pages.parent / name), page)
        config = small(pages, tmp_path)
        _, out = self.look(config, tmp_path, capsys)
        assert "strokes are 3.0 pixels wide" in out
        assert "--config.store.scale=2\n" in out
        result = prepare.run(config, tmp_path)
        command = next_command(result.following[0], result.workdir)
        assert command == (
            f"python -m saghog_jax.main --config=configs/regions.py --config.data.pages={pages} "
            f"--config.data.split= --config.store.scale=2.0 --workdir={tmp_path.parent / 'regions'}"
        )
        for section in config.stores.values():
            section.scale = 2.0
        _, out = self.look(config, tmp_path, capsys)
        assert "strokes are 6.0 pixels wide (median of the sample pages)\n" in out
        for name in ("p00.png", "p01.png"):
            cv2.imwrite(str(pages.parent / name), np.full((200, 300, 3), 255, np.uint8))
        with pytest.raises(UserError, match="none of the 2 pages can be used"):
            self.look(config, tmp_path, capsys)
        out = capsys.readouterr().out
        assert "p01.png: no writing: 0 pixels lie in strokes" in out
        assert "strokes are" not in out

    def test_no_readable_page(self, tmp_path, capsys):
        pages = write_pages(tmp_path / "pages", 1)
        (pages.parent / "p00.png").write_bytes(b"")
        with pytest.raises(UserError, match="none of the 1 pages can be used"):
            self.look(small(pages, tmp_path), tmp_path, capsys)


class TestVerify:
    def test_whole_stores(self, prepared, capsys):
        run_verify(prepared)
        out = capsys.readouterr().out
        assert out.count("all readable, all checksums right") == 2
        run_verify(only(prepared, "offline"))

    @pytest.mark.parametrize("name", ["patches", "ink", "page", "x", "y", "descriptors"])
    def test_one_flipped_bit(self, damaged, name):
        path = only(damaged, "offline") / "shards" / "00001" / f"{name}.npy"
        data = bytearray(path.read_bytes())
        data[-1] ^= 1
        path.write_bytes(data)
        with pytest.raises(UserError, match=rf"00001/{name}\.npy has changed since"):
            run_verify(damaged)

    def test_missing_and_cut_off_arrays(self, damaged):
        shards = only(damaged, "pretrain") / "shards"
        (shards / "00000" / "ink.npy").unlink()
        path = shards / "00001" / "patches.npy"
        path.write_bytes(path.read_bytes()[:-1])
        with pytest.raises(UserError, match=r"^2 problems.*ink\.npy.*patches\.npy"):
            run_verify(damaged)

    def test_an_edited_manifest(self, damaged):
        path = only(damaged, "pretrain") / "manifest.csv"
        path.write_text(path.read_text().replace("w1", "w7"))
        with pytest.raises(UserError, match=r"manifest\.csv has changed since"):
            run_verify(damaged)

    def test_an_unfinished_store(self, damaged):
        (only(damaged, "pretrain") / "store.json").unlink()
        with pytest.raises(UserError, match="unfinished"):
            run_verify(damaged)

    def test_damaged_labels(self, damaged):
        (labels,) = (only(damaged, "offline") / "labels").iterdir()
        np.save(labels / "labels.npy", np.load(labels / "labels.npy") * 0)
        with pytest.raises(UserError, match=r"labels/\w+ has changed since it was written"):
            run_verify(damaged)

    def test_the_advice_mends_a_store(self, prepared, damaged, capsys):
        store = only(damaged, "pretrain")
        (store / "shards" / "00001" / "x.npy").write_bytes(b"")
        with pytest.raises(UserError, match=r"delete its store\.json and the damaged shard"):
            run_verify(damaged)
        (store / "store.json").unlink()
        shutil.rmtree(store / "shards" / "00001")
        prepare.run(small(prepared.parent / "pages" / "manifest.csv", damaged), damaged)
        assert "3 of them are done already" in capsys.readouterr().out
        assert fingerprint(store) == fingerprint(only(prepared, "pretrain"))

    def test_no_store(self, tmp_path):
        with pytest.raises(UserError, match=r"no patch store.*configs/prepare\.py"):
            run_verify(tmp_path)

    def test_empty_shards_and_labels_of_another_store(self, tmp_path):
        store, _ = make_store(tmp_path / "store", [0, 0, 40, 9])
        run_verify(store.path)
        labels = small("", "").pseudo_labels
        ensure_labels(store, labels)
        run_verify(store.path)
        other, _ = make_store(tmp_path / "other", [20, 20])
        ensure_labels(other, labels)
        shutil.rmtree(store.path / "labels")
        shutil.copytree(other.path / "labels", store.path / "labels")
        with pytest.raises(UserError, match="labels.npy does not fit this store"):
            run_verify(store.path)
