"""CLaMM 2016: Latin book scripts of the Middle Ages, labelled by script instead of writer.

The tables give scripts by number (1 to 12) or by name. The column `script` always has the name; for
images with two scripts it has both names, joined by `+`.
"""

import re

from saghog_jax.input_pipeline.datasets.collection import Archive, Collection, Part, Table

SCRIPTS = (
    "Caroline",
    "Cursiva",
    "Half Uncial",
    "Humanistic",
    "Humanistic Cursive",
    "Hybrida",
    "Praegothica",
    "Semihybrida",
    "Semitextualis",
    "Southern Textualis",
    "Textualis",
    "Uncial",
)
FILES = r"[^@].*\.(?:tiff?|jpe?g|png)"
# Header of the column with the file name; the spelling differs between years.
FILE_COLUMN = "FILE_?NAME"


def script_names(cells: str) -> str:
    """Names of scripts, joined by `+`, from numbers or names joined by `+`."""
    names = []
    for cell in cells.split("+"):
        number = int(cell) if re.fullmatch(r"\d+", cell) else 0
        name = SCRIPTS[number - 1] if 1 <= number <= len(SCRIPTS) else cell.replace("_", " ")
        names.append(name.title())
    return "+".join(names)


def _relabel(split: str, values: dict[str, str]) -> dict[str, str]:
    del split
    return {**values, "script": script_names(values["script"])}


def _part(split: str, folder: str, table: str, images: int) -> Part:
    # The second script of task 2 may be in a column without a name.
    columns = {"script": r"SCRIPT.*|"}
    return Part(split, (folder,), FILES, images, table=Table((table,), FILE_COLUMN, columns))


COLLECTION = Collection(
    name="clamm16",
    description=(
        "ICFHR 2016 Competition on the Classification of Medieval Handwritings in Latin Script: "
        "grey images of 300 dpi of 12 scripts. Task 1: one script per image; task 2: one or two. "
        "Writers are not known."
    ),
    homepage="https://zenodo.org/records/5526880",
    license="See the record https://zenodo.org/records/5526880.",
    citation="""@inproceedings{cloppet2016clamm,
  author = {Cloppet, Florence and {\\'E}glin, V{\\'e}ronique and Kieu, Van Cuong and Stutzmann,
            Dominique and Vincent, Nicole},
  title = {{ICFHR2016} Competition on the Classification of Medieval Handwritings in {Latin}
           Script},
  booktitle = {15th International Conference on Frontiers in Handwriting Recognition (ICFHR)},
  pages = {590--595},
  year = {2016},
}""",
    variants={
        "": (
            _part("train", "CLaMM_Training_Data_Set", "@CLaMM-filelist.csv", 2_000),
            _part("test_task1", "CLaMM_task1", "@CLaMM_task1.csv", 1_000),
            _part("test_task2", "CLaMM_task2", "@CLaMM_task2.csv", 2_000),
        )
    },
    archives={
        "": (
            Archive("ICFHR2016_CLaMM_Training.zip", size=3_054_287_145),
            Archive("ICFHR2016_CLaMM_task1.zip", size=1_509_816_283),
            Archive("ICFHR2016_CLaMM_task2.zip", size=3_269_954_167),
        )
    },
    columns=("script",),
    relabel=_relabel,
)
