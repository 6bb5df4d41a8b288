"""CVL 1.1: modern handwriting in English and German, as cropped pages or whole pages.

All cropped pages are in one folder; the 27 writers with seven pages are the split train. Pages are
numbered 1, 2, 3, 4, 6, in train also 7 and 8. Pages 3 and 4 of writer 0431 are blank. They are left
out if the files exist, which leaves 1,413 pages of the nominal 1,415.
"""

from saghog_jax.input_pipeline.datasets.collection import Archive, Collection, Part

_TRAIN = r"00(?:0[1-6]|1[2-8]|2\d|4[127]|50)"
_BLANK = r"0431-[34]\b"


def _parts(folders: tuple[tuple[str, ...], tuple[str, ...]], end: str) -> tuple[Part, ...]:
    rest = rf"-(?P<page>\d){end}"
    return (
        Part("train", folders[0], rf"(?P<writer>{_TRAIN}){rest}", images=189, writers=27),
        Part(
            "test",
            folders[1],
            rf"(?!{_TRAIN}-|{_BLANK})(?P<writer>\d{{4}}){rest}",
            images=1_413,
            writers=283,
        ),
    )


_CROPPED = ("cvl-database-cropped-1-1", "cvl-database-cropped", ".")

COLLECTION = Collection(
    name="cvl",
    description=(
        "CVL database 1.1: pages of 310 writers, who copied one German and four or six English "
        "texts. 27 writers with 7 pages each to train on, 283 with 5 each to evaluate."
    ),
    homepage="https://zenodo.org/records/1492267",
    license="Creative Commons Attribution-NonCommercial 3.0 (CC BY-NC 3.0).",
    citation="""@inproceedings{kleber2013cvl,
  author = {Kleber, Florian and Fiel, Stefan and Diem, Markus and Sablatnig, Robert},
  title = {{CVL-DataBase}: An Off-Line Database for Writer Retrieval, Writer Identification and
           Word Spotting},
  booktitle = {12th International Conference on Document Analysis and Recognition (ICDAR)},
  pages = {560--564},
  year = {2013},
}""",
    variants={
        "cropped": _parts((_CROPPED, _CROPPED), r"-cropped\.tiff?"),
        "pages": _parts(
            (
                ("cvl-database-1-1/trainset/pages", "trainset/pages"),
                ("cvl-database-1-1/testset/pages", "testset/pages"),
            ),
            r"\.tiff?",
        ),
    },
    archives={
        "cropped": (Archive("cvl-database-cropped-1-1.zip"),),
        "pages": (Archive("cvl-database-1-1.zip"),),
    },
    shared_writers=0,
)
