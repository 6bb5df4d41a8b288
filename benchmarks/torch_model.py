"""The models of this project as an eager PyTorch program, the other side of the benchmarks.

Transformer blocks are timm's; around them are a few plain lines, as one writes them. Needs the
extra `bench`.

Axis letters: b patches, l tokens, k kept tokens, d width, v clusters.
"""

import math
from collections.abc import Callable

import torch
from timm.models.vision_transformer import Block
from torch import Tensor, nn
from torch.nn import functional

THREADS = 2
TOKEN, SIDE, BINS = 4, 8, 9


def block(width: int, heads: int) -> Block:
    """timm's pre-norm block, with biases and the epsilon of the published model."""
    return Block(width, heads, qkv_bias=True, norm_layer=nn.LayerNorm)


class Encoder(nn.Module):
    """ViT with CLS token and fixed positions; keeps the tokens it is told to."""

    def __init__(
        self, width: int = 512, depth: int = 8, heads: int = 8, dropout: float = 0.0
    ) -> None:
        super().__init__()
        self.patch_embed = nn.Conv2d(3, width, TOKEN, TOKEN)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.register_buffer("positions", torch.randn(1, SIDE * SIDE, width))
        self.drop = nn.Dropout(dropout)
        self.blocks = nn.Sequential(*(block(width, heads) for _ in range(depth)))
        self.norm = nn.LayerNorm(width)

    def forward(self, images: Tensor, ids_keep: Tensor | None = None) -> Tensor:
        """[b, 3, 32, 32] -> [b, 1 + k, d]."""
        x = self.patch_embed(images).flatten(2).transpose(1, 2) + self.positions
        if ids_keep is not None:
            x = torch.gather(x, 1, ids_keep[:, :, None].expand(-1, -1, x.shape[2]))
        x = torch.cat([self.cls_token.expand(len(x), -1, -1), x], dim=1)
        return self.norm(self.blocks(self.drop(x)))


class MaskedAutoencoder(nn.Module):
    """Encoder of kept tokens, decoder of all, mean squared error of the removed ones."""

    def __init__(self, width: int = 512, depth: int = 8, heads: int = 8) -> None:
        super().__init__()
        self.encoder = Encoder(width, depth, heads)
        self.embed = nn.Linear(width, 512)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, 512))
        self.register_buffer("positions", torch.randn(1, 1 + SIDE * SIDE, 512))
        self.decoder = block(512, 16)
        self.norm = nn.LayerNorm(512)
        self.pred = nn.Linear(512, BINS)

    def forward(self, images: Tensor, targets: Tensor, mask_ratio: float = 0.75) -> Tensor:
        """Images [b, 3, 32, 32] and targets [b, l, 9] -> loss."""
        b, length, _ = targets.shape
        ids_shuffle = torch.argsort(torch.rand(b, length), dim=1)
        ids_restore = torch.argsort(ids_shuffle, dim=1)
        k = int(length * (1 - mask_ratio))
        x = self.embed(self.encoder(images, ids_shuffle[:, :k]))
        removed = self.mask_token.expand(b, length - k, -1)
        tokens = torch.cat([x[:, 1:], removed], dim=1)
        tokens = torch.gather(tokens, 1, ids_restore[:, :, None].expand(-1, -1, x.shape[2]))
        x = torch.cat([x[:, :1], tokens], dim=1) + self.positions
        pred = self.pred(self.norm(self.decoder(x)))[:, 1:]
        mask = (ids_restore >= k).float()
        error = (pred - targets).square().mean(dim=-1)
        return (error * mask).sum() / mask.sum()


def hog(binary: Tensor) -> Tensor:
    """HOG of [b, 1, 32, 32] -> [b, l, 9]: Sobel by convolution, hard bins by scatter, cell sums."""
    kernel = torch.tensor([[1.0, 0.0, -1.0], [2.0, 0.0, -2.0], [1.0, 0.0, -1.0]])
    kernels = torch.stack([kernel, kernel.T])[:, None]
    gradient = functional.conv2d(functional.pad(binary, (1, 1, 1, 1), mode="reflect"), kernels)
    phase = torch.atan2(gradient[:, :1], gradient[:, 1:]) / math.pi * BINS
    votes = binary.new_zeros(len(binary), BINS, *binary.shape[2:])
    votes.scatter_add_(1, phase.floor().long() % BINS, gradient.norm(dim=1, keepdim=True))
    cells = functional.avg_pool2d(votes, TOKEN) * TOKEN**2
    return functional.normalize(cells, dim=1).flatten(2).transpose(1, 2)


class NetRVLAD(nn.Module):
    """One vector [v * d] a patch: assignment times residual, L2-normalised."""

    def __init__(self, clusters: int = 100, width: int = 512) -> None:
        super().__init__()
        self.assign = nn.Linear(width, clusters)
        self.centroids = nn.Parameter(functional.normalize(torch.rand(clusters, width)))

    def forward(self, x: Tensor) -> Tensor:
        """[b, d] -> [b, v * d]."""
        weights = torch.softmax(self.assign(x), dim=1)
        residuals = x[:, None] - self.centroids
        return functional.normalize((weights[:, :, None] * residuals).flatten(1))


def multi_similarity(
    vectors: Tensor,
    labels: Tensor,
    alpha: float = 2.0,
    beta: float = 40.0,
    base: float = 0.2,
    epsilon: float = 0.1,
) -> Tensor:
    """Multi-similarity loss with its miner, of unit vectors [b, n]."""
    similarity = vectors @ vectors.T
    same = labels[:, None] == labels
    positive, negative = same & ~torch.eye(len(labels), dtype=torch.bool), ~same
    with torch.no_grad():
        nearest = similarity.masked_fill(~negative, -math.inf).amax(1, keepdim=True)
        farthest = similarity.masked_fill(~positive, math.inf).amin(1, keepdim=True)
        positive &= similarity - epsilon < nearest
        negative &= similarity + epsilon > farthest

    def term(exponents: Tensor, mask: Tensor) -> Tensor:
        exponents = exponents.masked_fill(~mask, -math.inf)
        zero = exponents.new_zeros(len(exponents), 1)
        return torch.logsumexp(torch.cat([exponents, zero], dim=1), dim=1)

    loss = term(-alpha * (similarity - base), positive) / alpha
    return (loss + term(beta * (similarity - base), negative) / beta).mean()


class WriterModel(nn.Module):
    """Encoder with dropout on its tokens, its CLS feature, NetRVLAD."""

    def __init__(self, clusters: int = 100) -> None:
        super().__init__()
        self.encoder = Encoder(dropout=0.1)
        self.head = NetRVLAD(clusters)

    def forward(self, images: Tensor) -> Tensor:
        """[b, 3, 32, 32] -> [b, v * d]."""
        return self.head(self.encoder(images)[:, 0])


def page_descriptor(model: WriterModel, images: Tensor, batch: int = 256) -> Tensor:
    """All patches of a page [n, 3, 32, 32] -> [v * d], as a published evaluation does it:

    the vectors of all patches, then their sum, power normalisation and L2 norm.
    """
    with torch.inference_mode():
        vectors = torch.cat([model(part) for part in images.split(batch)])
        total = vectors.sum(dim=0)
        return functional.normalize(total.sign() * total.abs().pow(0.4), dim=0)


def updates(
    model: nn.Module,
    loss_of: Callable[[], Tensor],
    clip_norm: float,
    autocast: bool = False,
) -> Callable[[], float]:
    """A function that updates all parameters by AdamW with clipping and returns the loss."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, weight_decay=0.05)

    def step() -> float:
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            loss = loss_of()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), clip_norm)
        optimizer.step()
        return loss.item()

    return step
