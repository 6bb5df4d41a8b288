"""CLaMM 2017: Latin book scripts of the Middle Ages, labelled by script and date.

The tables of the test splits have other column names than the table of the training split. One
table lists an image that is missing in its archive.
"""

from saghog_jax.input_pipeline.datasets.clamm16 import FILE_COLUMN, FILES, script_names
from saghog_jax.input_pipeline.datasets.collection import Archive, Collection, Part, Table

# Years of the date classes 1 to 15.
DATES = (
    "-1000",
    "1001-1100",
    "1101-1200",
    "1201-1250",
    "1251-1300",
    "1301-1350",
    "1351-1400",
    "1401-1425",
    "1426-1450",
    "1451-1475",
    "1476-1500",
    "1501-1525",
    "1526-1550",
    "1551-1575",
    "1576-1600",
)


def _relabel(split: str, values: dict[str, str]) -> dict[str, str]:
    del split
    date = values["date"]
    if date.isdecimal() and 1 <= int(date) <= len(DATES):
        date = DATES[int(date) - 1]
    return {**values, "script": script_names(values["script"]), "date": date}


def _part(split: str, name: str, images: int, absent: frozenset[str] = frozenset()) -> Part:
    columns = {"script": "SCRIPT_TYPE.*", "date": "DATE_.*"}
    table = Table((f"@{name}.csv",), FILE_COLUMN, columns, absent=absent)
    return Part(split, (name, name.removeprefix("ICDAR2017_CLaMM_")), FILES, images, table=table)


COLLECTION = Collection(
    name="clamm17",
    description=(
        "ICDAR 2017 Competition on the Classification of Medieval Handwritings in Latin Script: "
        "12 scripts and 15 classes of dates. Tasks 1 and 3 have grey images of 300 dpi as in "
        "training, tasks 2 and 4 images of many kinds. Writers are not known."
    ),
    homepage="https://zenodo.org/records/5527690",
    license="See the record https://zenodo.org/records/5527690.",
    citation="""@inproceedings{cloppet2017clamm,
  author = {Cloppet, Florence and {\\'E}glin, V{\\'e}ronique and Helias-Baron, Marl{\\`e}ne and
            Kieu, Cuong and Vincent, Nicole and Stutzmann, Dominique},
  title = {{ICDAR2017} Competition on the Classification of Medieval Handwritings in {Latin}
           Script},
  booktitle = {14th IAPR International Conference on Document Analysis and Recognition (ICDAR)},
  pages = {1371--1376},
  year = {2017},
}""",
    variants={
        "": (
            _part("train", "ICDAR2017_CLaMM_Training", 3_540),
            _part(
                "test_task1_task3",
                "ICDAR2017_CLaMM_task1_task3",
                2_000,
                frozenset({"IRHT_P_009783.tif"}),
            ),
            _part("test_task2_task4", "ICDAR2017_CLaMM_task2_task4", 1_000),
        )
    },
    archives={
        "": (
            Archive("ICDAR2017_CLaMM_Training.zip"),
            Archive("ICDAR2017_CLaMM_task1_task3.zip"),
            Archive("ICDAR2017_CLaMM_task2_task4.zip"),
        )
    },
    columns=("script", "date"),
    relabel=_relabel,
)
