"""GRK-Papyri: Greek documents on papyrus of the sixth century, known as GRK-50.

In a file name such as Apa_Rhasios_1, the number after the last underscore is the page, and the part
before it is the writer.
"""

from saghog_jax.input_pipeline.datasets.collection import Archive, Collection, Part

COLLECTION = Collection(
    name="grk_papyri",
    description=(
        "50 images of Greek papyri by 10 scribes, 4 to 7 each, of the 6th century; some grey, "
        "from 177 to 7,938 pixels wide. There is no training split."
    ),
    homepage="https://d-scribes.philhist.unibas.ch/en/gkr-papyri/",
    license="Non-commercial research; some images have owners with other terms, see the homepage.",
    citation="""@inproceedings{mohammed2019grk,
  author = {Mohammed, Hussein and Marthot-Santaniello, Isabelle and M{\\"a}rgner, Volker},
  title = {{GRK-Papyri}: A Dataset of {Greek} Handwriting on Papyri for the Task of Writer
           Identification},
  booktitle = {International Conference on Document Analysis and Recognition (ICDAR)},
  pages = {726--731},
  year = {2019},
}""",
    variants={
        "": (
            Part(
                "test",
                ("GRK-Papyri", "GRK*", "GRK*/*", "GRK*/*/*", "."),
                r"(?P<writer>.+)_(?P<page>\d+)\.jpe?g",
                images=50,
                writers=10,
            ),
        )
    },
    archives={"": (Archive("the images of GRK-Papyri"),)},
)
