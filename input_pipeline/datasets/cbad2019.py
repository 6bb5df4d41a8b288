"""cBAD 2019: pages of seven European archives, without writer labels; useful for pretraining.

Baselines (PAGE XML) are stored in folders page/ beside the images and are not read here.
"""

from saghog_jax.input_pipeline.datasets.collection import Archive, Collection, Part

_FILES = r".+\.(?:jpe?g|png|tiff?)"


def _part(split: str, names: tuple[str, ...], images: int) -> Part:
    # The archive's folders first, because other collections have folders `train` too.
    above = ("ICDAR-2019-cBAD-dataset/", "*cBAD*/", "")
    folders = tuple(f"{folder}{name}" for folder in above for name in names)
    return Part(split, folders, _FILES, images)


COLLECTION = Collection(
    name="cbad2019",
    description=(
        "ICDAR 2019 Competition on Baseline Detection: 3,021 pages of seven European archives. "
        "Writers are not known."
    ),
    homepage="https://zenodo.org/records/3568023",
    license="Creative Commons Attribution 4.0 (CC BY 4.0).",
    citation="""@dataset{diem2019cbad,
  author = {Diem, Markus and Kleber, Florian and Gatos, Basilis},
  title = {{ICDAR} 2019 Competition on Baseline Detection ({cBAD})},
  publisher = {Zenodo},
  year = {2019},
  doi = {10.5281/zenodo.3568023},
}""",
    variants={
        "": (
            _part("train", ("train",), 755),
            _part("validation", ("eval", "val", "validation"), 755),
            _part("test", ("test",), 1_511),
        )
    },
    archives={"": (Archive("the archive of the cBAD 2019 data set"),)},
)
