"""Foreground tokens as descriptors: the loss and the page descriptor against plain loops."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from toy import toy

from saghog_jax.configs import embed as embed_config
from saghog_jax.configs import finetune as finetune_config
from saghog_jax.embedding.encoder import recipe_of_embeddings
from saghog_jax.input_pipeline.cutting.patches import cut_page
from saghog_jax.input_pipeline.datasets.synthetic import Corpus, write_corpus
from saghog_jax.input_pipeline.pages.images import load_page
from saghog_jax.input_pipeline.pages.sources import load_manifest
from saghog_jax.input_pipeline.store.build import ensure_store
from saghog_jax.input_pipeline.store.reader import Store
from saghog_jax.models import inputs
from saghog_jax.models.build import make_writer_model
from saghog_jax.retrieval.embeddings import load_embeddings
from saghog_jax.runs.checkpoint import load_variables
from saghog_jax.stages import run_stage
from saghog_jax.training import finetuning, labels, losses
from saghog_jax.training.gradients import batch_loss

TINY = Corpus(train_writers=3, test_writers=2, pages=1, width=360, height=200, lines=3)
MIN_INK = 0.2
PLAIN = {"checkpoint": "", "min_token_ink": MIN_INK, "dropout": 0.0, "augment.erode": 0.0,
         "augment.dilate": 0.0, "total_steps": 2, "labels": "writer",
         "patches_per_class": 16}  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("foreground")
    (folder / "pages").mkdir()
    write_corpus(folder / "pages", TINY, workers=1)
    return folder


def loop_vectors(config, variables, batch):
    """The unit VLAD vector of every patch, [n, v * d], token by token in float64."""
    images, binary = inputs.decode(batch)
    model = make_writer_model(config)
    images = inputs.normalize(jnp.broadcast_to(binary, images.shape))
    tokens = jax.jit(lambda v, x: model.apply(v, x, method="encode"))(variables, images)
    tokens, ink = np.asarray(tokens, np.float64), 1 - np.asarray(binary)[..., 0]
    head = {k: np.asarray(v, np.float64) for k, v in variables["params"]["netrvlad"].items()}
    vectors = np.zeros((len(tokens), *head["centroids"].shape))
    tokens_with_ink = 0
    for patch in range(len(tokens)):
        for row in range(8):
            for column in range(8):
                share = ink[patch, 4 * row : 4 * row + 4, 4 * column : 4 * column + 4].mean()
                if share < MIN_INK:
                    continue
                x = tokens[patch, 8 * row + column]
                logits = np.exp(x @ head["kernel"] + head["bias"])
                weights = logits / logits.sum()
                vectors[patch] += weights[:, None] * (x - head["centroids"])
                tokens_with_ink += 1
    assert 0 < tokens_with_ink < 64 * len(tokens) / 2
    vectors = vectors.reshape(len(tokens), -1)
    norms = np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors / np.maximum(norms, 1e-12)


def test_the_loss_and_the_page_descriptor_are_those_of_the_tokens(folder):
    config = toy(finetune_config.get_config("descriptor=foreground"), folder, **PLAIN)
    store = Store.open(ensure_store(config.data, config.store))
    task = finetuning.Finetuning(config, store, labels.make_labels(config, store))
    variables = task.warm_start(task.init(jax.random.key(0)))
    with task.batches(0) as batches:
        batch = {k: jnp.asarray(v) for k, v in next(batches).items()}
    step = jax.jit(jax.value_and_grad(lambda v: batch_loss(task, v, batch, jax.random.key(1))[0]))
    loss, gradient = step(variables)
    vectors = loop_vectors(config, variables, batch)
    gram = jnp.asarray(vectors @ vectors.T, jnp.float32)
    expected = losses.multi_similarity(gram, batch["label"], 2.0, 40.0, config.loss.base, 0.1)
    np.testing.assert_allclose(loss, expected, rtol=1e-5)
    # The gradient reaches every parameter before NetRVLAD.
    assert all(np.abs(leaf).max() > 0 for leaf in jax.tree.leaves(gradient["params"]["encoder"]))

    run_stage(config, folder / "finetune")
    embedding_config = toy(embed_config.get_config("plain"), folder)
    run_stage(embedding_config, folder / "embed")
    embeddings = load_embeddings(folder / "embed")
    variables = load_variables(folder / "finetune", ("writer",))[0]
    manifest = load_manifest(embedding_config.data)
    assert len(embeddings) == len(manifest.pages) == 2
    rule = recipe_of_embeddings(embeddings.meta, folder / "embed").cutting_rule
    for i, page in enumerate(manifest.pages):
        image = load_page(manifest.root / page.path, page.box, embedding_config.data.max_pixels)
        cut = cut_page(image, rule)
        batch = {"patches": jnp.asarray(cut.patches), "ink": jnp.asarray(cut.ink)}
        total = loop_vectors(config, variables, batch).sum(0)
        total = np.sign(total) * np.abs(total) ** 0.4
        total /= np.linalg.norm(total)
        # The power 0.4 enlarges rounding near zero: an element off by 1e-7 of a sum near 1 comes
        # out as 1e-3.
        np.testing.assert_allclose(embeddings.descriptors[i], total, atol=2e-3)
        assert embeddings.descriptors[i] @ total > 1 - 1e-6
