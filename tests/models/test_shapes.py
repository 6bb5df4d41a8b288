"""The annotated shapes and types of arrays are checked while tests run."""

import jax.numpy as jnp
import numpy as np
import pytest
from jaxtyping import TypeCheckError

from saghog_jax.models.netrvlad import vlad
from saghog_jax.models.resnet import ResNet
from saghog_jax.retrieval.search import search
from saghog_jax.training.losses import contrastive


def test_a_wrong_rank_is_caught():
    with pytest.raises(TypeCheckError, match="gram"):
        contrastive(jnp.zeros((4, 4, 1)), jnp.zeros(4, jnp.int32))


def test_axes_of_one_letter_are_equally_long():
    with pytest.raises(TypeCheckError, match="labels"):
        contrastive(jnp.zeros((4, 4)), jnp.zeros(5, jnp.int32))
    with pytest.raises(TypeCheckError, match="centroids"):
        vlad(jnp.zeros((2, 3)), jnp.zeros((2, 8)), jnp.zeros((4, 8)))
    with pytest.raises(TypeCheckError, match="own"):
        search(np.zeros((2, 8)), np.zeros((3, 8)), 1, own=np.zeros(3, np.int64))


def test_a_wrong_type_is_caught():
    with pytest.raises(TypeCheckError, match="labels"):
        contrastive(jnp.zeros((4, 4)), jnp.zeros(4))


def test_methods_of_modules_are_checked():
    with pytest.raises(TypeCheckError, match="images"):
        ResNet().apply({}, jnp.zeros((2, 8, 8)))
