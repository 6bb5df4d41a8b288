"""NetRVLAD and NetVLAD: stored passes and gradients, and the shortcuts against the plain form."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from places import TESTS

from saghog_jax.models.netrvlad import (
    NetRVLAD,
    bag_gram,
    cosine_gram,
    generalized_max_pool,
    inner_products,
    l2_normalize,
    page_sum,
    vlad,
    with_centroids,
)

GOLDEN = np.load(TESTS / "golden" / "netrvlad.npz")


def load(prefix):
    return {
        "centroids": jnp.asarray(GOLDEN[f"{prefix}_w/centroids"]),
        "kernel": jnp.asarray(GOLDEN[f"{prefix}_w/conv.weight"][:, :, 0, 0].T),
        "bias": jnp.asarray(GOLDEN[f"{prefix}_w/conv.bias"]),
    }


@pytest.mark.parametrize("kind", ["rvlad", "vlad"])
@pytest.mark.parametrize("grid", ["1x1", "4x4"])
def test_passes_and_gradients_are_the_published_ones(kind, grid):
    normalized = kind == "vlad"
    model = NetRVLAD(10, normalized)
    golden = lambda key: GOLDEN[f"{kind}_{grid}_{key}"]  # noqa: E731
    x = jnp.asarray(golden("in").reshape(5, 16, -1).swapaxes(1, 2))
    cotangent = jnp.asarray(golden("cot"))

    @jax.jit
    def run(params, x):
        def objective(params, x):
            assignment = model.apply({"params": params}, x)
            y = vlad(assignment, x, params["centroids"], normalized).reshape(5, -1)
            unit = l2_normalize(y)
            return jnp.sum(unit * cotangent), (assignment, y, unit)

        return jax.value_and_grad(objective, (0, 1), has_aux=True)(params, x)

    (_, (assignment, y, unit)), (g_params, g_x) = run(load(kind), x)
    # NetVLAD's logits reach 100 at alpha = 100, where float32 rounds by 8e-6.
    tolerance = 1e-5 if normalized else 1e-6
    np.testing.assert_allclose(assignment.swapaxes(1, 2), golden("assign"), atol=tolerance)
    # The published NetVLAD normalises its output, NetRVLAD leaves that to its caller.
    np.testing.assert_allclose(unit if normalized else y, golden("out"), atol=2 * tolerance)
    np.testing.assert_allclose(unit, golden("norm_out"), atol=tolerance)
    ours = {
        "gin": g_x.swapaxes(1, 2).reshape(golden("in").shape),
        "g/centroids": g_params["centroids"],
        "g/conv.weight": g_params["kernel"].T[:, :, None, None],
        "g/conv.bias": g_params["bias"],
    }
    for key, value in ours.items():
        atol = 5 * tolerance * np.abs(golden(key)).max()
        np.testing.assert_allclose(value, golden(key), atol=atol, err_msg=key)


def test_sharper_assignment():
    x = jnp.asarray(GOLDEN["vlad_a2_in"].reshape(5, 16, 16).swapaxes(1, 2))
    params = load("vlad_a2")
    assignment = NetRVLAD(10, normalized=True).apply({"params": params}, x)
    np.testing.assert_allclose(assignment.swapaxes(1, 2), GOLDEN["vlad_a2_assign"], atol=1e-6)
    y = l2_normalize(vlad(assignment, x, params["centroids"], True).reshape(5, -1))
    np.testing.assert_allclose(y, GOLDEN["vlad_a2_out"], atol=1e-6)
    # alpha shapes nothing but the initial parameters, which are these at alpha = 2.
    derived = with_centroids(params, params["centroids"], normalized=True, alpha=2.0)
    for key in params:
        np.testing.assert_allclose(derived[key], params[key], rtol=1e-6, atol=1e-7)


def test_initial_parameters():
    x = jnp.zeros((2, 64))
    init = lambda **fields: jax.jit(NetRVLAD(50, **fields).init)(jax.random.key(0), x)["params"]  # noqa: E731
    plain = init()
    np.testing.assert_allclose(jnp.linalg.norm(plain["centroids"], axis=1), 1, rtol=1e-6)
    assert float(plain["centroids"].min()) >= 0
    for key in ("kernel", "bias"):
        # PyTorch's default of a convolution with 64 inputs: uniform within 1/8.
        largest = float(jnp.abs(plain[key]).max())
        assert 0.11 < largest <= 0.125
    sharp = init(normalized=True, alpha=3.0)
    np.testing.assert_allclose(sharp["kernel"], 6 * sharp["centroids"].T, rtol=1e-6)
    np.testing.assert_allclose(sharp["bias"], np.full(50, -3.0), rtol=1e-6)


def test_centroids_from_k_means():
    centres = jnp.asarray(GOLDEN["init_clusters"])
    for kind in ("rvlad", "vlad"):
        start = load("rvlad")
        start = {**start, "kernel": jnp.asarray(GOLDEN[f"init_{kind}_convw"][:, :, 0, 0].T)}
        start["bias"] = jnp.asarray(GOLDEN[f"init_{kind}_convb"])
        params = with_centroids(start, centres, normalized=kind == "vlad")
        np.testing.assert_array_equal(params["centroids"], GOLDEN[f"init_{kind}_centroids"])
        convolution = GOLDEN[f"init_{kind}_convw"][:, :, 0, 0].T
        np.testing.assert_allclose(params["kernel"], convolution, rtol=1e-6, atol=1e-7)
        np.testing.assert_allclose(params["bias"], GOLDEN[f"init_{kind}_convb"], rtol=1e-6)
    assert params["centroids"] is not load("rvlad")["centroids"]
    with pytest.raises(ValueError, match=r"\(9, 16\) do not fit centroids \(10, 16\)"):
        with_centroids(load("rvlad"), centres[:9])


def random_case(dtype, descriptors=None, b=6, v=5, d=8):
    """Assignments, descriptors far from the origin, and centroids among them."""
    rng = np.random.default_rng(0)
    shape = (b,) if descriptors is None else (b, descriptors)
    offset = 3 * rng.normal(size=d)
    x = offset + rng.normal(size=(*shape, d))
    centroids = offset + rng.normal(size=(v, d))
    a = rng.dirichlet(np.ones(v), size=shape)
    if descriptors:
        a[1, 2:] = 0  # tokens that do not count
    return tuple(jnp.asarray(array, dtype) for array in (a, x, centroids))


def unit_vectors(a, x, centroids, intra_normalize):
    """The definition: one residual after another."""
    a, x = (t[:, None] if t.ndim == 2 else t for t in (a, x))
    y = jnp.sum(a[:, :, :, None] * (x[:, :, None, :] - centroids), axis=1)
    if intra_normalize:
        y = y / jnp.linalg.norm(y, axis=-1, keepdims=True)
    y = y.reshape(len(y), -1)
    return y / jnp.linalg.norm(y, axis=-1, keepdims=True)


@pytest.mark.parametrize("intra_normalize", [False, True])
@pytest.mark.parametrize("descriptors", [None, 4])
@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-5), ("float64", 1e-12)])
def test_gram_and_page_sum_equal_the_plain_form(dtype, tolerance, descriptors, intra_normalize):
    with jax.enable_x64(dtype == "float64"):
        a, x, centroids = random_case(dtype, descriptors)
        segments = jnp.asarray([[1, 1, 0, 0, 0, 0], [0, 0, 2, 1, 1, 0]], dtype)
        weight = jnp.asarray(np.random.default_rng(1).normal(size=(6, 6)), dtype)

        def plain(a, x, centroids):
            y = unit_vectors(a, x, centroids, intra_normalize)
            return y @ y.T, segments @ y

        def ours(a, x, centroids):
            gram = cosine_gram(a, x, centroids, intra_normalize)
            sums = page_sum(a, x, centroids, segments, intra_normalize)
            return gram, sums.reshape(2, -1)

        def run(function):
            def objective(a, x, centroids):
                gram, sums = function(a, x, centroids)
                return jnp.sum(gram * weight) + jnp.sum(jnp.sin(7 * sums)), (gram, sums)

            return jax.jit(jax.value_and_grad(objective, (0, 1, 2), has_aux=True))(a, x, centroids)

        (_, expected), expected_gradients = run(plain)
        (_, values), gradients = run(ours)
        for value, reference in zip(values, expected):
            np.testing.assert_allclose(value, reference, atol=tolerance)
        # Of NetVLAD with one descriptor assignments have no gradient but rounding, which a small
        # assignment magnifies: compared as logits see it, on the scale of the largest gradient.
        scale = max(np.abs(np.asarray(g)).max() for g in expected_gradients)
        for gradient, reference, factor in zip(gradients, expected_gradients, (a, 1, 1)):
            np.testing.assert_allclose(
                gradient * factor, reference * factor, atol=tolerance * scale
            )


@pytest.mark.parametrize("descriptors", [None, 4])
@pytest.mark.parametrize("bag", [1, 2, 3])
def test_bags_are_sums_of_unit_vectors(bag, descriptors):
    with jax.enable_x64(True):
        a, x, centroids = random_case("float64", descriptors)
        sums = unit_vectors(a, x, centroids, False).reshape(6 // bag, bag, -1).sum(1)
        sums /= jnp.linalg.norm(sums, axis=1, keepdims=True)
        gram = jax.jit(bag_gram, static_argnums=3)(a, x, centroids, bag)
        np.testing.assert_allclose(gram, sums @ sums.T, atol=1e-12)


def case_near_centroids(distance, kind):
    """16 patches at a relative distance from one of 5 centroids each; float32 arrays."""
    rng = np.random.default_rng(3)
    word = np.arange(16) % 5
    centroids = rng.normal(size=(5, 8)).astype(np.float32)
    step = rng.normal(size=(16, 8)) / np.sqrt(8)
    x = (centroids[word] * (1 + distance * step)).astype(np.float32)
    logits = {"one-hot": 1e6, "saturated": 40.0, "soft": 3.0}[kind] * np.eye(5)[word]
    logits = logits + rng.normal(size=(16, 5))
    a = np.exp(logits - logits.max(1, keepdims=True))
    return (a / a.sum(1, keepdims=True)).astype(np.float32), x, centroids


def everything(a, x, centroids, intra_normalize):
    """All sums and products of a batch, each a mean over at most 4 patches."""
    segments = jnp.repeat(jnp.eye(4), 4, axis=1).astype(x.dtype)
    directions = jnp.asarray(np.random.default_rng(4).normal(size=(2, 5, 8)) / 6, x.dtype)
    return {
        "page_sum": page_sum(a, x, centroids, segments, intra_normalize) / 4,
        "unit": page_sum(a, x, centroids, jnp.eye(16, dtype=x.dtype), intra_normalize),
        "inner_products": inner_products(a, x, centroids, directions, intra_normalize),
        "cosine_gram": cosine_gram(a, x, centroids, intra_normalize),
        "bag_gram": bag_gram(a, x, centroids, 4, intra_normalize),
    }


def defined(a, x, centroids, intra_normalize):
    """`everything` by the definition; a zero vector stays zero."""
    y = a[:, :, None] * (x[:, None] - centroids)
    if intra_normalize:
        y = y / jnp.maximum(jnp.sqrt(jnp.sum(y * y, 2, keepdims=True) + 1e-300), 1e-12)
    y = y.reshape(16, -1)
    y = y / jnp.maximum(jnp.sqrt(jnp.sum(y * y, 1, keepdims=True) + 1e-300), 1e-12)
    bags = y.reshape(4, 4, -1).sum(1)
    unit = bags / jnp.sqrt(jnp.sum(bags * bags, 1, keepdims=True) + 1e-300)
    directions = jnp.asarray(np.random.default_rng(4).normal(size=(2, 5, 8)) / 6, x.dtype)
    return {
        "page_sum": bags.reshape(4, 5, 8) / 4,
        "unit": y.reshape(16, 5, 8),
        "inner_products": y @ directions.reshape(2, -1).T,
        "cosine_gram": y @ y.T,
        "bag_gram": unit @ unit.T,
    }


@pytest.mark.parametrize("intra_normalize", [False, True])
@pytest.mark.parametrize("kind", ["one-hot", "saturated", "soft"])
def test_errors_are_bounded_at_every_distance_from_a_centroid(kind, intra_normalize):
    def objective(function):
        def total(a, x, centroids):
            values = function(a, x, centroids, intra_normalize)
            return sum(jnp.sum(jnp.sin(3 * y)) for y in values.values()), values

        return jax.jit(jax.value_and_grad(total, (0, 1, 2), has_aux=True))

    ours, plain = objective(everything), objective(defined)
    for distance in (1.0, 0.2, 0.1, 0.05, 1e-2, 1e-3, 1e-4, 1e-5, 1e-6):
        arrays = case_near_centroids(distance, kind)
        (_, values), gradients = ours(*arrays)
        with jax.enable_x64(True):
            exact = tuple(jnp.asarray(array, jnp.float64) for array in arrays)
            (_, expected), expected_gradients = plain(*exact)
        for name, reference in expected.items():
            np.testing.assert_allclose(
                values[name], reference, rtol=0, atol=1e-4, err_msg=f"{name} at {distance}"
            )
        # Assignments as logits see them: NetVLAD divides by a small assignment.
        factors = (arrays[0], 1, 1)
        found, exact = (
            [np.asarray(g, np.float64) * f for g, f in zip(gradients, factors)]
            for gradients in (gradients, expected_gradients)
        )
        largest = max(np.abs(gradient).max() for gradient in exact)
        for gradient, reference in zip(found, exact):
            np.testing.assert_allclose(gradient, reference, rtol=0, atol=1e-3 * largest)


@pytest.mark.parametrize("distance", [1.0, 1e-4])
def test_patches_on_several_devices(distance):
    arrays = case_near_centroids(distance, "saturated")
    mesh = jax.sharding.Mesh(np.array(jax.devices()), ("data",))
    rows, whole = (
        jax.NamedSharding(mesh, jax.sharding.PartitionSpec(*axes)) for axes in (("data",), ())
    )

    def total(a, x, centroids):
        return jnp.sum(jnp.sin(3 * bag_gram(a, x, centroids, 2)))

    run = jax.jit(jax.value_and_grad(total, (0, 1, 2)))
    alone = run(*arrays)
    shared = run(*jax.device_put(arrays, (rows, rows, whole)))
    for one, other in zip(jax.tree.leaves(alone), jax.tree.leaves(shared)):
        scale = np.abs(np.asarray(one)).max()
        np.testing.assert_allclose(one, other, rtol=0, atol=1e-4 * scale)


@pytest.mark.parametrize("intra_normalize", [False, True])
def test_a_descriptor_that_is_its_centroid_is_the_zero_vector(intra_normalize):
    a, x, centroids = case_near_centroids(0.5, "one-hot")
    x[3] = centroids[3]

    def total(a, x, centroids):
        values = everything(a, x, centroids, intra_normalize)
        return sum(jnp.sum(jnp.sin(3 * y)) for y in values.values()), values

    (_, values), gradients = jax.jit(jax.value_and_grad(total, (0, 1, 2), has_aux=True))(
        a, x, centroids
    )
    assert not np.asarray(values["unit"][3]).any()
    assert not np.asarray(values["cosine_gram"][3]).any()
    np.testing.assert_allclose(
        np.linalg.norm(np.delete(values["unit"], 3, 0), axis=(1, 2)), 1, 1e-5
    )
    assert not np.asarray(gradients[1][3]).any()
    for gradient in gradients:
        assert np.abs(np.asarray(gradient)).max() < 1e4


def test_the_gram_never_forms_the_vectors():
    b, v, d = 32, 100, 512
    shapes = [jax.ShapeDtypeStruct(s, jnp.float32) for s in [(b, v), (b, d), (v, d)]]
    memory = jax.jit(jax.grad(lambda *t: cosine_gram(*t).sum())).lower(*shapes).compile()
    assert memory.memory_analysis().temp_size_in_bytes < b * v * d * 4 / 2


def test_a_patch_without_descriptors_is_the_zero_vector():
    a, x, centroids = random_case("float32", 4)
    a = a.at[0].set(0)

    def run(a, x, centroids):
        gram = cosine_gram(a, x, centroids)
        return gram.sum() + page_sum(a, x, centroids, jnp.ones((1, 6))).sum(), gram

    gradients, gram = jax.jit(jax.grad(run, (0, 1, 2), has_aux=True))(a, x, centroids)
    assert not np.asarray(gram[0]).any()
    assert all(np.isfinite(np.asarray(g)).all() for g in gradients)


def test_weights_leave_descriptors_out():
    params = load("rvlad")
    x = jnp.asarray(GOLDEN["rvlad_4x4_in"].reshape(5, 16, 16).swapaxes(1, 2))
    weights = jnp.concatenate([jnp.ones((5, 3)), jnp.zeros((5, 13))], axis=1)
    model = NetRVLAD(10)
    part = vlad(model.apply({"params": params}, x, weights), x, params["centroids"])
    first = vlad(model.apply({"params": params}, x[:, :3]), x[:, :3], params["centroids"])
    np.testing.assert_allclose(part, first, atol=1e-5)


def test_generalized_max_pooling():
    x, ridge = jnp.asarray(GOLDEN["gmp_in"]), jnp.asarray(GOLDEN["gmp_lamb"])
    pool = jax.jit(generalized_max_pool)
    np.testing.assert_allclose(pool(x, ridge), GOLDEN["gmp_out"], rtol=1e-5,
                               atol=1e-7)  # fmt: skip
    # With a small ridge every descriptor has similarity 1 with the result: that is its meaning.
    few = x[:, :5]
    pooled = pool(few, jnp.float32(1e-4))
    np.testing.assert_allclose(jnp.einsum("bld,bd->bl", few, pooled), np.ones((3, 5)), atol=1e-3)
