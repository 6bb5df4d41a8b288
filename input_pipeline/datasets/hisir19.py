"""HisIR19: 20,000 images of manuscript books, letters and charters, for retrieval by writer.

The writers are in CSVs beside the archives. One CSV has the column FILENEMA instead of FILENAME,
and only one has a category. Each CSV numbers its writers, and it is unknown whether the numbers of
both agree. Therefore the split becomes a part of the writer label.
"""

from saghog_jax.input_pipeline.datasets.collection import Archive, Collection, Part, Table

_FILES = r"(?P<page>\d+)\.(?:jpe?g|png|tiff?)"


def _table(*names: str) -> Table:
    return Table(
        names,
        file="FILENAME|FILENEMA",
        columns={"writer": "ID|WRITER.?ID", "category": "CATEGORY"},
        optional=frozenset({"category"}),
    )


def _relabel(split: str, values: dict[str, str]) -> dict[str, str]:
    return {**values, "writer": f"{split}-{values['writer']}"}


COLLECTION = Collection(
    name="hisir19",
    description=(
        "ICDAR 2019 Competition on Image Retrieval for Historical Handwritten Documents. "
        "Validation: 300 writers with 1 image, 100 with 3, 120 with 5. Test: 20,000 images, 1 to "
        "5 per writer. The organisers suggest the test split of historical_wi for training."
    ),
    homepage="https://zenodo.org/records/3262372",
    license="See the record https://zenodo.org/records/3262372.",
    citation="""@inproceedings{christlein2019hisir,
  author = {Christlein, Vincent and Nicolaou, Anguelos and Seuret, Mathias and Stutzmann, Dominique
            and Maier, Andreas},
  title = {{ICDAR} 2019 Competition on Image Retrieval for Historical Handwritten Documents},
  booktitle = {International Conference on Document Analysis and Recognition (ICDAR)},
  pages = {1505--1509},
  year = {2019},
}""",
    variants={
        "": (
            Part(
                "validation",
                ("wi_comp_19_validation",),
                _FILES,
                images=1_200,
                writers=520,
                table=_table(
                    "wi_comp_19val_ground_truth.csv", "wi_comp19_validation_ground_truth.csv"
                ),
            ),
            Part(
                "test",
                ("wi_comp_19_test", "wi_comp_19_test_v2"),
                _FILES,
                images=20_000,
                writers=None,
                table=_table("wi_comp19_test_ground_truth.csv"),
            ),
        )
    },
    archives={
        "": (
            Archive("wi_comp_19_validation.zip"),
            Archive("wi_comp_19_test.zip"),
            Archive("wi_comp_19val_ground_truth.csv"),
            Archive("wi_comp19_test_ground_truth.csv"),
        )
    },
    columns=("category",),
    relabel=_relabel,
    shared_writers=0,
)
