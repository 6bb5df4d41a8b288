"""The plan of classes compared with the published sampler."""

import numpy as np
from places import TESTS

from saghog_jax.input_pipeline.batches.plans import m_per_class_plan

GOLDEN = np.load(TESTS / "golden" / "sampler.npz")
LABELS, M, BATCH = GOLDEN["labels"], int(GOLDEN["m"]), int(GOLDEN["batch"])


def published_epochs(count):
    """The draws of `MPerClassSampler`, epoch after epoch, from one Mersenne Twister."""
    rng = np.random.RandomState(int(GOLDEN["np_seed"]))
    _, first = np.unique(LABELS, return_index=True)
    # In the order in which the labels first appear, and shuffled on from batch to batch.
    classes = LABELS[np.sort(first)]
    length = int(GOLDEN["length_before_new_iter"])
    for _ in range(count):
        drawn = []
        for _ in range(length // BATCH):
            rng.shuffle(classes)
            for label in classes[: BATCH // M]:
                members = np.flatnonzero(label == LABELS)
                drawn.append(rng.choice(members, M, replace=len(members) < M))
        yield np.concatenate(drawn)


def obeys_the_law(batch):
    """Distinct classes, m patches of each, none twice unless the class is too small."""
    rows = batch.reshape(-1, M)
    labels = LABELS[rows]
    assert (labels == labels[:, :1]).all()
    assert len(set(labels[:, 0])) == BATCH // M
    for row, label in zip(rows, labels[:, 0], strict=True):
        size = (label == LABELS).sum()
        assert len(set(row.tolist())) == M or size < M


def test_the_oracle_draws_what_the_published_sampler_drew():
    for ours, key in zip(published_epochs(2), ("epoch1", "epoch2"), strict=True):
        assert len(ours) == GOLDEN["len"]
        np.testing.assert_array_equal(ours, GOLDEN[key])
    np.testing.assert_array_equal(LABELS[GOLDEN["epoch1"]], GOLDEN["epoch1_labels"])


def test_our_batches_obey_the_same_law_and_draw_as_often():
    """The distribution is the same. The random numbers differ: our batches are independent."""
    epochs = list(published_epochs(500))
    batches = np.concatenate(epochs).reshape(-1, BATCH)
    plan = m_per_class_plan(LABELS, M, BATCH, len(batches), seed=0)
    ours = np.stack([plan[step] for step in range(len(plan))])
    for batch in (*ours[:50], *batches[:50]):
        obeys_the_law(batch)
    published, counts = (np.bincount(b.ravel(), minlength=len(LABELS)) for b in (batches, ours))
    # Patches of a class are drawn alike, those of small classes more often: 2,000 batches, so a
    # patch is drawn at least 300 times, and counts of both vary by less than a tenth.
    assert published.min() > 300
    np.testing.assert_allclose(counts, published, rtol=0.25)
    assert np.corrcoef(counts, published)[0, 1] > 0.99
