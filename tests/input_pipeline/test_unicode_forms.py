"""Unicode forms: names in composed and decomposed form are one name."""

import unicodedata

from saghog_jax.input_pipeline.unicode_forms import FormFinder, composed, existing_path

COMPOSED = "B\u00e9b\u00e9"
DECOMPOSED = "Be\u0301be\u0301"


def test_composed():
    assert composed(DECOMPOSED) == COMPOSED
    assert composed(COMPOSED) == COMPOSED
    assert unicodedata.normalize("NFD", COMPOSED) == DECOMPOSED


def test_a_file_is_found_in_each_form(tmp_path):
    for on_disk, asked in ((COMPOSED, DECOMPOSED), (DECOMPOSED, COMPOSED)):
        folder = tmp_path / on_disk[:2]
        (folder / on_disk).mkdir(parents=True)
        (folder / on_disk / f"{asked}.png").touch()
        finder = FormFinder()
        # The folder has one form, the file in it the other.
        assert finder.find(folder, f"{asked}/{on_disk}.png") == f"{on_disk}/{asked}.png"
        assert finder.find(folder / on_disk, f"../{asked}/{on_disk}.png") == (
            f"../{on_disk}/{asked}.png"
        )
        assert finder.find(folder, f"{asked}/gone.png") == f"{asked}/gone.png"
        assert existing_path(folder / asked / f"{on_disk}.png") == (
            folder / on_disk / f"{asked}.png"
        )
        assert existing_path(folder / "gone" / asked) == folder / "gone" / asked


def test_a_file_that_exists_wins(tmp_path):
    for name in (COMPOSED, DECOMPOSED):
        (tmp_path / name).touch()
        assert FormFinder().find(tmp_path, name) == name


def test_relative_paths(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / DECOMPOSED).touch()
    assert str(existing_path(type(tmp_path)(COMPOSED))) == DECOMPOSED
