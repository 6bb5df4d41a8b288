"""ResNet-20 and ResNet-56 for 32 x 32 images: baselines without pretraining.

He et al. 2016, section 4.2: a 3x3 convolution to 16 channels, three stages of 16, 32 and 64
channels with strides 1, 2 and 2, shortcuts without parameters (option A), batch normalisation,
global average pooling to 64 features.

Axis letters: b patches, l positions of the last feature map, s = 1 + l, d = 64; h w c image axes;
y x e axes of a feature map.

Batch normalisation keeps running means and variances in the collection `batch_stats`. With
`train=True` call `apply` with `mutable=["batch_stats"]` and store the returned collection; without
it the running statistics are used. Under jit the statistics of a sharded batch are those of the
global batch.
"""

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Key

from saghog_jax.input_pipeline.errors import check_choice
from saghog_jax.models.arrays import AnyArray
from saghog_jax.models.inputs import three_channels
from saghog_jax.models.layers import precision_of

WIDTHS = (16, 32, 64)
DEPTHS = {"resnet20": 3, "resnet56": 9}  # n blocks per stage give 6 n + 2 layers.


class _ConvNorm(nn.Module):
    """3x3 convolution without bias, then batch normalisation; float32 result."""

    features: int
    stride: int
    dtype: DTypeLike

    @nn.compact
    def __call__(self, x: Float[AnyArray, "b h w c"], train: bool) -> Float[Array, "b y x e"]:
        x = nn.Conv(
            self.features,
            (3, 3),
            (self.stride, self.stride),
            # Equal padding on both sides, also with stride 2.
            padding=((1, 1), (1, 1)),
            use_bias=False,
            kernel_init=nn.initializers.kaiming_normal(),
            dtype=self.dtype,
            precision=precision_of(self.dtype),
            name="conv",
        )(x).astype(jnp.float32)
        return nn.BatchNorm(use_running_average=not train, momentum=0.9, epsilon=1e-5, name="norm")(
            x
        )


class _Block(nn.Module):
    """Two convolutions and a shortcut; zeros fill the new channels of the shortcut."""

    features: int
    stride: int
    dtype: DTypeLike

    @nn.compact
    def __call__(self, x: Float[AnyArray, "b h w c"], train: bool) -> Float[Array, "b y x e"]:
        y = nn.relu(_ConvNorm(self.features, self.stride, self.dtype, name="first")(x, train))
        y = _ConvNorm(self.features, 1, self.dtype, name="second")(y, train)
        x = x[:, :: self.stride, :: self.stride]
        new = self.features - x.shape[-1]
        x = jnp.pad(x, ((0, 0), (0, 0), (0, 0), (new // 2, new - new // 2)))
        return nn.relu(x + y)


class ResNet(nn.Module):
    """Encoder with the interface of `vit.Encoder`.

    Attributes:
      size: `resnet20` or `resnet56`.
      dtype: type of the operands of the convolutions.
    """

    size: str = "resnet20"
    dtype: DTypeLike = jnp.float32

    @property
    def width(self) -> int:
        """Features d."""
        return WIDTHS[-1]

    @property
    def token_size(self) -> int:
        """Pixels per position of the last feature map, along a side."""
        return 4

    @nn.compact
    def tokens(
        self,
        images: Float[AnyArray, "b h w c"],
        train: bool = False,
        dropout_keys: Key[Array, " b"] | None = None,
    ) -> Float[Array, "b s d"]:
        """[b, h, w, c] -> [b, 1 + l, d]: the pooled features, then the last map, row-major.

        There is no dropout; `dropout_keys` is ignored.

        Raises:
          ValueError: the size is unknown.
        """
        del dropout_keys
        check_choice("ResNet", self.size, DEPTHS)
        x = nn.relu(_ConvNorm(WIDTHS[0], 1, self.dtype, name="stem")(three_channels(images), train))
        for stage, features in enumerate(WIDTHS):
            for i in range(DEPTHS[self.size]):
                stride = 2 if stage and not i else 1
                x = _Block(features, stride, self.dtype, name=f"stage_{stage}_block_{i}")(x, train)
        x = x.reshape(x.shape[0], -1, x.shape[-1])
        return jnp.concatenate([jnp.mean(x, axis=1, keepdims=True), x], axis=1)

    def features(
        self,
        images: Float[AnyArray, "b h w c"],
        train: bool = False,
        dropout_keys: Key[Array, " b"] | None = None,
    ) -> Float[Array, "b d"]:
        """Pooled features: [b, h, w, c] -> [b, d]."""
        return self.tokens(images, train, dropout_keys)[:, 0]

    def __call__(self, images: Float[AnyArray, "b h w c"]) -> Float[Array, "b s d"]:
        """`tokens` with `train=False`."""
        return self.tokens(images)
