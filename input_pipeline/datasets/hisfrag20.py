"""HisFrag20: pages torn into fragments by a program, for retrieval by writer or by page.

Files are named WRITER_PAGE_FRAGMENT. The numbers of 331 writers occur in both splits, on different
pages. The numbers are not changed, so a model trained on the writers of `train` has seen some
writers of `test`. The column `page` holds writer and page, because pages are numbered per writer.
"""

from saghog_jax.input_pipeline.datasets.collection import Archive, Collection, Part

_FILES = r"(?P<writer>\d+)_(?P<page>\d+)_(?P<fragment>\d+)\.jpe?g"


def _relabel(split: str, values: dict[str, str]) -> dict[str, str]:
    del split
    return {**values, "page": f"{values['writer']}_{values['page']}"}


COLLECTION = Collection(
    name="hisfrag20",
    description=(
        "ICFHR 2020 Competition on Image Retrieval for Historical Handwritten Fragments: more "
        "than 120,000 fragments, black outside of their torn outline. Evaluated leave one out, "
        "by writer and by page; 595 writers of the test split have a single page."
    ),
    homepage="https://zenodo.org/records/3893807",
    license="See the record https://zenodo.org/records/3893807.",
    citation="""@inproceedings{seuret2020hisfrag,
  author = {Seuret, Mathias and Nicolaou, Anguelos and Stutzmann, Dominique and Maier, Andreas and
            Christlein, Vincent},
  title = {{ICFHR} 2020 Competition on Image Retrieval for Historical Handwritten Fragments},
  booktitle = {17th International Conference on Frontiers in Handwriting Recognition (ICFHR)},
  year = {2020},
}""",
    variants={
        "": (
            Part(
                "train",
                ("hisfrag20", "hisfrag20_train"),
                _FILES,
                images=101_707,
                writers=8_717,
                pages=17_222,
            ),
            Part("test", ("hisfrag20_test",), _FILES, images=20_019, writers=1_152, pages=2_753),
        )
    },
    archives={
        "": (
            Archive("hisfrag20_train.zip", "a6c3a9a2c2f170605fcf153792dd78e8", 3_226_721_481),
            Archive("hisfrag20_test.zip", "56ea22f6424cadb2208c1bfd171d8a8a", 1_428_688_298),
        )
    },
    columns=("fragment",),
    relabel=_relabel,
    shared_writers=331,
)
