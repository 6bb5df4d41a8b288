"""Tiny fakes of the unpacked archives of public collections."""

import numpy as np
from PIL import Image

from saghog_jax.input_pipeline.datasets import catalog
from saghog_jax.input_pipeline.datasets.layout import read_rows

# File names as in the real archives.
FAKES = {
    "historical_wi/binarized": [
        *(f"icdar2017-training-binary/1008-IMG_MAX_30974{n}.png" for n in range(3)),
        *(f"icdar2017-training-binary/990-IMG_MAX_8{n}.png" for n in range(3)),
        *(f"ScriptNet-HistoricalWI-2017-binarized/1-IMG_MAX_1000{n}.jpg" for n in range(5)),
    ],
    "historical_wi/color": [
        "icdar2017-training-color/1008-IMG_MAX_309740.jpg",
        "ScriptNet-HistoricalWI-2017-color/1-IMG_MAX_10002.jpg",
    ],
    "hisfrag20": [
        "hisfrag20/12_1_0.jpg",
        "hisfrag20/12_1_1.jpg",
        "hisfrag20/7_1_0.jpg",
        "hisfrag20_test/12_3_0.jpg",
        "hisfrag20_test/900_1_10.jpg",
        "hisfrag20_test/900_1_9.jpg",
    ],
    "grk_papyri": [
        "GRK-Papyri/Abraamios_1.jpg",
        "GRK-Papyri/Abraamios_12.jpg",
        "GRK-Papyri/Apa_Rhasios_1.jpg",
        "GRK-Papyri/Apa_Rhasios_2.jpg",
        "GRK-Papyri/Kyros3_1.jpg",
    ],
    "hisir19": [
        *(f"wi_comp_19_validation/{n}.jpg" for n in range(4)),
        *(f"wi_comp_19_test/{n}.jpg" for n in range(3)),
    ],
    "icdar2013": [
        *(f"experimental_dataset_2013/{w}_{p}.tif" for w in ("027", "028") for p in (1, 2, 3, 4)),
        *(f"icdar2013_benchmarking_dataset/{w}_{p}.tif" for w in ("001", "027") for p in (1, 3)),
    ],
    "cvl/cropped": [
        *(f"cvl-database-cropped-1-1/0001-{p}-cropped.tif" for p in (1, 2, 3, 4, 6, 7, 8)),
        *(f"cvl-database-cropped-1-1/0052-{p}-cropped.tif" for p in (1, 2, 3, 4, 6)),
        *(f"cvl-database-cropped-1-1/0431-{p}-cropped.tif" for p in (1, 2, 3, 4, 6)),
    ],
    "cvl/pages": [
        *(f"cvl-database-1-1/trainset/pages/0050-{p}.tif" for p in (1, 8)),
        *(f"cvl-database-1-1/testset/pages/0431-{p}.tif" for p in (1, 3)),
        "cvl-database-1-1/testset/words/0431/0431-1-0-0-Imagine.tif",
    ],
    "clamm16": [
        "CLaMM_Training_Data_Set/315556101_MS0187_0005_1.tif",
        "CLaMM_Training_Data_Set/IRHT_P_000004.tif",
        "CLaMM_task1/IRHT_P_000009.tif",
        "CLaMM_task2/IRHT_P_000010.tif",
        "CLaMM_task2/IRHT_P_000011.tif",
    ],
    "clamm17": [
        "ICDAR2017_CLaMM_Training/IRHT_P_000001.tif",
        "ICDAR2017_CLaMM_task1_task3/btv1b8423829s_f11.tif",
        "ICDAR2017_CLaMM_task2_task4/CMDF_1_74b.jpg",
    ],
    "cbad2019": [
        "ICDAR-2019-cBAD-dataset/train/0001 a.jpg",
        "ICDAR-2019-cBAD-dataset/eval/0002.JPG",
        "ICDAR-2019-cBAD-dataset/test/0003.png",
        "train/other_collection.jpg",
    ],
}
TABLES = {
    "hisir19": {
        "wi_comp_19val_ground_truth.csv": "FILENEMA,ID\n0.jpg,5\n1.jpg,5\n2.jpg,9\n3.jpg,5\n",
        "wi_comp19_test_ground_truth.csv": (
            "FILENAME,ID,CATEGORY\n0.jpg,5,letters\n1.jpg,6,charters\n2.jpg,6,charters\n"
        ),
    },
    "clamm16": {
        "CLaMM_Training_Data_Set/@CLaMM-filelist.csv": (
            "FILENAME;SCRIPT_TYPE\n315556101_MS0187_0005_1.tif;1\nIRHT_P_000004.tif;Half_Uncial\n"
        ),
        "CLaMM_task1/@CLaMM_task1.csv": "FileName;Script_Type\nIRHT_P_000009.tif;12\n",
        "CLaMM_task2/@CLaMM_task2.csv": (
            "FILENAME;SCRIPT_TYPE;\nIRHT_P_000010.tif;4;5\nIRHT_P_000011.tif;11;\n"
        ),
    },
    "clamm17": {
        "ICDAR2017_CLaMM_Training/@ICDAR2017_CLaMM_Training.csv": (
            "FILENAME;SCRIPT_TYPE;DATE_TYPE\nIRHT_P_000001.tif;10;2\n"
        ),
        "ICDAR2017_CLaMM_task1_task3/@ICDAR2017_CLaMM_task1_task3.csv": (
            "ICDAR_CLAMM;FILE_NAME;Script_type_ICDAR2017;DATE_ICDAR\n"
            "Task_1_3;btv1b8423829s_f11.tif;5;11\nTask_1_3;IRHT_P_009783.tif;5;11\n"
        ),
        "ICDAR2017_CLaMM_task2_task4/@ICDAR2017_CLaMM_task2_task4.csv": (
            "ICDAR_CLAMM;FILE_NAME;Script_type_ICDAR2017;DATE_ICDAR\nTask_2_4;CMDF_1_74b.jpg;3;15\n"
        ),
    },
}
MODES = {".png": "1", ".tif": "1", ".jpg": "L"}


def fake(root, name, empty=False):
    """Writes the fake of `NAME/VARIANT` below `root`; image modes as in the archives."""
    for number, path in enumerate(FAKES[name]):
        file = root / path
        file.parent.mkdir(parents=True, exist_ok=True)
        if empty:
            file.touch()
        else:
            mode = MODES.get(file.suffix.lower(), "RGB")
            grey = np.full((6, 5), 255, np.uint8)
            grey[: number % 5 + 1, 0] = 0
            Image.fromarray(grey).convert(mode).save(file)
    for path, text in TABLES.get(name.split("/")[0], {}).items():
        (root / path).write_text(text)
    return root


def rows_of(root, name, split="", check_counts=False):
    collection, variant = catalog.find(name)
    return read_rows(collection, variant, root, split, check_counts)


def touch(root, names):
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
