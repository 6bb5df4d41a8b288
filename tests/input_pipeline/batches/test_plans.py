"""Plans: every patch is drawn, classes and bags are complete, batches depend on the step alone."""

import itertools
import threading

import numpy as np
import pytest

from saghog_jax.input_pipeline.batches import plans
from saghog_jax.input_pipeline.batches.plans import (
    SubsetPlan,
    bag_plan,
    m_per_class_plan,
    uniform_plan,
)
from saghog_jax.input_pipeline.errors import UserError


def steps(plan):
    return np.stack([plan[step] for step in range(len(plan))])


class TestUniformPlan:
    def test_every_epoch_holds_every_patch_once(self):
        # 7 does not divide 25: batches span epochs.
        stream = steps(uniform_plan(25, 7, 50, seed=3)).reshape(-1)
        epochs = stream[: 14 * 25].reshape(14, 25)
        np.testing.assert_array_equal(np.sort(epochs, axis=1), np.tile(np.arange(25), (14, 1)))
        assert len({tuple(epoch) for epoch in epochs}) == 14

    def test_it_is_a_pure_function_of_its_arguments_and_the_step(self):
        forward = steps(uniform_plan(25, 7, 50, seed=3))
        plan = uniform_plan(25, 7, 50, seed=3)
        for step in np.random.default_rng(0).permutation(50):
            np.testing.assert_array_equal(plan[int(step)], forward[step])
        np.testing.assert_array_equal(steps(uniform_plan(25, 7, 20, seed=3)), forward[:20])
        assert (steps(uniform_plan(25, 7, 50, seed=4)) != forward).any()

    def test_threads_far_apart_see_the_same(self):
        expected = steps(uniform_plan(25, 7, 200, seed=3))
        plan, wrong = uniform_plan(25, 7, 200, seed=3), []

        def read(order):
            wrong.extend(s for s in order if not np.array_equal(plan[int(s)], expected[s]))

        orders = [np.random.default_rng(i).permutation(200) for i in range(4)]
        threads = [threading.Thread(target=read, args=(order,)) for order in orders]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not wrong

    def test_only_two_epochs_are_kept_in_memory(self):
        plan = uniform_plan(25, 7, 200, seed=3)
        steps(plan)
        assert len(plan._orders) == 2

    def test_a_batch_of_all_patches(self):
        plan = uniform_plan(7, 7, 3, seed=0)
        np.testing.assert_array_equal(np.sort(steps(plan)), np.tile(np.arange(7), (3, 1)))

    def test_fewer_patches_than_a_batch(self):
        with pytest.raises(UserError, match=r"6 patches.*batch of 7.*global_batch_size to 6"):
            uniform_plan(6, 7, 3, seed=0)

    @pytest.mark.parametrize("step", [-1, 3])
    def test_steps_outside_are_refused(self, step):
        with pytest.raises(IndexError):
            uniform_plan(7, 7, 3, seed=0)[step]


def test_a_subset_plan_draws_the_chosen_alone():
    chosen = np.array([3, 5, 8, 20, 21, 30, 31, 40])
    plan = SubsetPlan(uniform_plan(8, 4, 6, seed=1), chosen)
    assert (len(plan), plan.global_batch_size) == (6, 4)
    np.testing.assert_array_equal(steps(plan), chosen[steps(uniform_plan(8, 4, 6, seed=1))])


class TestMPerClassPlan:
    # Class sizes 2 (smaller than m), 4, 5, ..., 30, and patches without a class.
    labels = np.random.default_rng(0).permutation(
        np.repeat(np.arange(-1, 29), [40, 2, *range(3, 31)])
    )

    def plan(self, total_steps=300, seed=1, labels=labels):
        return m_per_class_plan(labels, 4, 20, total_steps, seed)

    def test_distinct_classes_with_m_distinct_patches_each(self):
        sizes = np.bincount(self.labels[self.labels >= 0])
        for batch in steps(self.plan()):
            groups = self.labels[batch].reshape(5, 4)
            assert (groups >= 0).all()
            assert (groups == groups[:, :1]).all()
            assert len(set(groups[:, 0])) == 5
            for label, members in zip(groups[:, 0], batch.reshape(5, 4), strict=True):
                assert len(set(members)) == 4 or sizes[label] < 4

    def test_patches_of_a_class_are_equally_likely(self):
        # Two classes always drawn: 4 of 10 patches, 4,000 times, 1,600 expected each. Standard
        # deviation sqrt(4000 * .4 * .6) = 31; five of them, for 20 patches.
        labels = np.repeat([0, 1], 10)
        counts = np.bincount(steps(m_per_class_plan(labels, 4, 8, 4000, 0)).reshape(-1))
        assert np.abs(counts - 1600).max() < 155
        # Pairs too: every pair of one class together 4000 * (4*3)/(10*9) = 533 times, sd 21.5.
        batch = steps(m_per_class_plan(labels, 4, 8, 4000, 0))[:, :8]
        together = np.zeros((20, 20), int)
        for i, j in itertools.combinations(range(8), 2):
            np.add.at(together, (batch[:, i], batch[:, j]), 1)
        pairs = together + together.T
        pairs = pairs[:10, :10][~np.eye(10, dtype=bool)]
        assert np.abs(pairs - 533).max() < 108

    def test_classes_are_equally_likely(self):
        # 5 of 29 classes, 6,000 times: 1034 expected, sd 29.
        drawn = self.labels[steps(self.plan(6000))[:, ::4]]
        assert np.abs(np.bincount(drawn.reshape(-1)) - 6000 * 5 / 29).max() < 145

    def test_it_is_a_pure_function_of_its_arguments_and_the_step(self):
        forward = steps(self.plan(50))
        plan = self.plan(50)
        for step in np.random.default_rng(0).permutation(50):
            np.testing.assert_array_equal(plan[int(step)], forward[step])
        assert (steps(self.plan(50, seed=2)) != forward).any()
        assert len({tuple(batch) for batch in forward}) == 50

    def test_too_few_classes(self):
        labels = np.repeat([-1, 0, 1, 2, 3], 10)
        with pytest.raises(
            UserError,
            match=r"needs 5 classes, the labels have 4; lower .*size to 16.*patches_per_class",
        ):
            self.plan(labels=labels)

    def test_batch_not_a_whole_number_of_classes(self):
        with pytest.raises(UserError, match="batch of 20 is not a whole number of classes with 3"):
            m_per_class_plan(self.labels, 3, 20, 10, 0)


class TestBagPlan:
    # 19 classes of two pages of 9 to 20 patches, one class of a page of 3, two pages without class.
    pages = np.repeat(np.arange(40), 9 + np.arange(40) % 12)
    pages = np.r_[pages, [100] * 3]
    labels = np.where(pages == 100, 50, np.where(pages < 2, -1, pages // 2))
    mixed = np.random.default_rng(0).permutation(len(pages))
    pages, labels = pages[mixed], labels[mixed]

    def plan(self, bag=4, bags=2, batch=40, total_steps=200, seed=1, labels=labels):
        return bag_plan(labels, self.pages, bag, bags, batch, total_steps, seed)

    def test_bags_are_of_one_page_and_classes_of_several(self):
        for batch in steps(self.plan()):
            labels, pages = (a[batch].reshape(5, 2, 4) for a in (self.labels, self.pages))
            assert (labels == labels[:, :1, :1]).all()
            assert (labels >= 0).all()
            assert len(set(labels[:, 0, 0])) == 5
            assert (pages == pages[:, :, :1]).all()
            whole = pages[:, 0, 0] != 100
            assert (pages[whole, 0, 0] != pages[whole, 1, 0]).all()
            for rows, enough in zip(batch.reshape(5, 8), whole, strict=True):
                assert len(set(rows)) == 8 or not enough

    def test_bags_of_one_page_have_no_patch_in_common(self):
        plan = self.plan(labels=self.pages)
        for batch in steps(plan):
            for rows in batch.reshape(5, 8):
                assert len(set(self.pages[rows])) == 1
                assert len(set(rows)) == 8 or self.pages[rows[0]] == 100

    def test_every_page_of_a_class_has_its_turn(self):
        # With one bag a class, each page of a pair is drawn half the time: 19 of 20 classes have
        # two, 8 of 20 are drawn in each of 400 steps.
        plan = self.plan(bags=1, batch=32, total_steps=400)
        counts = np.bincount(self.pages[steps(plan)[:, ::4]].reshape(-1), minlength=40)[2:40]
        assert np.abs(counts - 80).max() < 45

    def test_it_is_a_pure_function_of_its_arguments_and_the_step(self):
        forward = steps(self.plan(total_steps=30))
        plan = self.plan(total_steps=30)
        for step in np.random.default_rng(0).permutation(30):
            np.testing.assert_array_equal(plan[int(step)], forward[step])
        assert (steps(self.plan(total_steps=30, seed=2)) != forward).any()

    def test_mistakes(self):
        with pytest.raises(UserError, match="batch of 40 is not a whole number of classes with 6 "):
            self.plan(bag=3)
        with pytest.raises(
            UserError, match="labels have 1 classes, but training needs at least two"
        ):
            self.plan(labels=np.where(self.labels == 5, 5, -1))

    def test_few_classes_are_drawn_over_again(self):
        """50 draws of 20 classes of two bags: each two or three times, no patch of one twice."""
        for batch in steps(self.plan(batch=400, total_steps=20)):
            labels, pages = (a[batch].reshape(-1, 4) for a in (self.labels, self.pages))
            assert (labels == labels[:, :1]).all()
            assert (pages == pages[:, :1]).all()
            counts = np.unique(labels[:, 0], return_counts=True)[1]
            assert sorted(set(counts)) == [4, 6]
            assert len(counts) == 20
            for page in set(pages[:, 0]):
                rows = batch[self.pages[batch] == page]
                assert len(set(rows)) == len(rows) or len(rows) > (self.pages == page).sum()
        third = steps(self.plan(batch=400, total_steps=400))[:, ::4]
        counts = np.bincount(self.labels[third].reshape(-1), minlength=51)
        assert counts[counts > 0].min() > 0.9 * counts.max()


def test_subsets_are_subsets():
    rng = np.random.default_rng(0)
    for m in (1, 2, 5):
        sizes = rng.integers(1, 9, 200)
        for size, drawn in zip(sizes, plans._subsets(rng, sizes, m), strict=True):
            assert ((drawn >= 0) & (drawn < size)).all()
            assert len(set(drawn)) == m or size < m
