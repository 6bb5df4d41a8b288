"""ICDAR 2017 Historical-WI: letters and manuscripts of the 13th to 20th century, in two variants.

Training images are PNG, test images JPEG. The writer is the part of the file name before the first
hyphen.
"""

from saghog_jax.input_pipeline.datasets.collection import Archive, Collection, Part

_FILES = r"(?P<writer>\d+)-IMG_MAX_(?P<page>\d+)\.(?:png|jpe?g)"


def _parts(train_folders: tuple[str, ...], test_folder: str) -> tuple[Part, ...]:
    return (
        Part("train", train_folders, _FILES, images=1_182, writers=394),
        Part("test", (test_folder,), _FILES, images=3_600, writers=720),
    )


COLLECTION = Collection(
    name="historical_wi",
    description=(
        "ICDAR 2017 Competition on Historical Document Writer Identification: 394 writers with 3 "
        "pages each to train on, 720 other writers with 5 pages each to evaluate, binarised and "
        "in colour."
    ),
    homepage="https://zenodo.org/records/1324999",
    license="See the record https://zenodo.org/records/1324999.",
    citation="""@inproceedings{fiel2017historicalwi,
  author = {Fiel, Stefan and Kleber, Florian and Diem, Markus and Christlein, Vincent and
            Louloudis, Georgios and Stamatopoulos, Nikos and Gatos, Basilis},
  title = {{ICDAR2017} Competition on Historical Document Writer Identification ({Historical-WI})},
  booktitle = {14th IAPR International Conference on Document Analysis and Recognition (ICDAR)},
  pages = {1377--1382},
  year = {2017},
}""",
    variants={
        "binarized": _parts(
            ("icdar2017-training-binary", "icdar17-historicalwi-training-binarized"),
            "ScriptNet-HistoricalWI-2017-binarized",
        ),
        "color": _parts(
            ("icdar2017-training-color", "icdar17-historicalwi-training-color"),
            "ScriptNet-HistoricalWI-2017-color",
        ),
    },
    archives={
        "binarized": (
            Archive(
                "icdar17-historicalwi-training-binarized.zip", "3caa11320e857cf80694031a568ce6bf"
            ),
            Archive("ScriptNet-HistoricalWI-2017-binarized.zip"),
        ),
        "color": (
            Archive("icdar17-historicalwi-training-color.zip", "e5ba2c7049bfb1453946233f681e4d53"),
            Archive("ScriptNet-HistoricalWI-2017-color.zip"),
        ),
    },
)
