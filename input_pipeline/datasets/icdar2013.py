"""ICDAR 2013 writer identification: modern handwriting in English and Greek.

Both splits number their writers (train 027 to 126, test 001 to 250), but the same number stands for
different people. Therefore the split becomes a part of the writer label.
"""

from saghog_jax.input_pipeline.datasets.collection import Archive, Collection, Part

_FILES = r"(?P<writer>\d{3})_(?P<page>[1-4])\.tiff?"


def _relabel(split: str, values: dict[str, str]) -> dict[str, str]:
    return {
        **values,
        "writer": f"{split}-{values['writer']}",
        "language": "English" if values["page"] in "12" else "Greek",
    }


COLLECTION = Collection(
    name="icdar2013",
    description=(
        "ICDAR 2013 Competition on Writer Identification: binary pages, of each writer two in "
        "English and two in Greek. The experimental data set (100 writers) is the split train, "
        "the benchmarking data set (250 writers) the split test."
    ),
    homepage="https://users.iit.demokritos.gr/~louloud/ICDAR2013WriterIdentificationComp/",
    license="None is stated; see the homepage.",
    citation="""@inproceedings{louloudis2013icdar,
  author = {Louloudis, Georgios and Gatos, Basilis and Stamatopoulos, Nikos and Papandreou,
            Alexandros},
  title = {{ICDAR} 2013 Competition on Writer Identification},
  booktitle = {12th International Conference on Document Analysis and Recognition (ICDAR)},
  pages = {1397--1401},
  year = {2013},
}""",
    variants={
        "": (
            Part("train", ("experimental_dataset_2013",), _FILES, images=400, writers=100),
            Part("test", ("icdar2013_benchmarking_dataset",), _FILES, images=1_000, writers=250),
        )
    },
    archives={
        "": (
            Archive("experimental_dataset_2013.rar"),
            Archive("icdar2013_benchmarking_dataset.rar"),
        )
    },
    columns=("language",),
    relabel=_relabel,
    shared_writers=0,
)
