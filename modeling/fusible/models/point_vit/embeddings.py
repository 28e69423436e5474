"""
Token embeddings of point clouds: groups of near points, and a small PointNet that embeds them.

Grouping and embedding are those of Point-BERT (arXiv 2111.14819) and Point-MAE (arXiv 2203.06604), with two changes.
The small PointNet has LayerNorm where theirs has BatchNorm, so that a cloud's tokens do not depend on the
others of its batch, on the spread of a batch over devices, or on training or eval mode. And the positions
are added once, before the first block, as in ViT, so that the blocks stay the stock ones.
"""

import torch
from torch import nn

from .configuration_point_vit import PointViTConfig


def gather_points(points: torch.Tensor, indices: torch.Tensor) -> torch.Tensor:
    """`[batch, points, channels]` and `[batch, ...]` (int64) to `[batch, ..., channels]`: each cloud's own points."""
    # [batch, all indices, channels], a view: gather wants an index for each value
    rows = indices.flatten(1)[..., None].expand(-1, -1, points.shape[-1])
    return points.gather(1, rows).unflatten(1, indices.shape[1:])


@torch.no_grad()
def farthest_point_sample(coordinates: torch.Tensor, num_samples: int, start: torch.Tensor) -> torch.Tensor:
    """
    Spreads samples over each cloud: the next one is the point farthest from all that were taken before.

    Args:
        coordinates: `[batch, points, 3]`, float32 or float64.
        num_samples: at most the number of points.
        start: `[batch]` (int64), the first sample.

    Returns:
        `[batch, num_samples]` (int64), in the order in which they were taken; the first of equally far points.
    """
    samples = [start]
    distances = torch.full_like(coordinates[..., 0], torch.inf)  # of each point to the nearest sample
    for _ in range(num_samples - 1):
        # only the newest sample can bring a point nearer; squares keep the order of distances
        offsets = coordinates - gather_points(coordinates, samples[-1][:, None])
        distances = torch.minimum(distances, offsets.square().sum(-1))
        samples.append(distances.argmax(-1))
    return torch.stack(samples, 1)


@torch.no_grad()
def nearest_points(coordinates: torch.Tensor, centers: torch.Tensor, num_neighbors: int) -> torch.Tensor:
    """
    Args:
        coordinates: `[batch, points, 3]`, float32 or float64.
        centers: `[batch, groups, 3]`.
        num_neighbors: at most the number of points.

    Returns:
        `[batch, groups, num_neighbors]` (int64), in no particular order.
    """
    # products of matrices would be less exact, the more so the farther the cloud is from the origin
    distances = torch.cdist(centers, coordinates, compute_mode="donot_use_mm_for_euclid_dist")
    # unsorted, as the embedding takes a maximum over the group
    return distances.topk(num_neighbors, largest=False, sorted=False).indices


class PointLinear(nn.Linear):
    """
    A linear layer of the embedding, which starts from torch's initial weights.

    ViT's are smaller and have no bias; a LayerNorm after them would hide how far a point is from its center.
    """


class PointViTPatchEmbeddings(nn.Module):
    """PointNet on each group: an MLP per point, the maximum beside it as context, another MLP, the maximum."""

    def __init__(self, config: PointViTConfig) -> None:
        super().__init__()
        self.first = nn.Sequential(
            PointLinear(config.num_channels, 128),
            nn.LayerNorm(128, eps=config.layer_norm_eps),
            nn.ReLU(),
            PointLinear(128, 256),
        )
        self.second = nn.Sequential(
            PointLinear(512, 512),
            nn.LayerNorm(512, eps=config.layer_norm_eps),
            nn.ReLU(),
            PointLinear(512, config.hidden_size),
        )

    def forward(self, groups: torch.Tensor) -> torch.Tensor:
        """`[batch, groups, group_size, channels]` to `[batch, groups, hidden_size]`."""
        # [batch, groups, group_size, 256]
        features = self.first(groups)
        # the group's maximum beside each of its points, in Point-BERT's order
        context = features.amax(-2, keepdim=True).expand_as(features)
        return self.second(torch.cat([context, features], dim=-1)).amax(-2)


class PointViTEmbeddings(nn.Module):
    """Groups of points around sampled centers as tokens, with an MLP of the centers for position embedding."""

    def __init__(self, config: PointViTConfig) -> None:
        super().__init__()
        self.config = config
        self.cls_token = nn.Parameter(torch.zeros(1, 1, config.hidden_size))
        # its position is learned, as it has no center to compute one from
        self.cls_position = nn.Parameter(torch.zeros(1, 1, config.hidden_size))
        self.patch_embeddings = PointViTPatchEmbeddings(config)
        self.position_embeddings = nn.Sequential(PointLinear(3, 128), nn.GELU(), PointLinear(128, config.hidden_size))
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def check(self, points: torch.Tensor) -> None:
        """Raises `ValueError` for points that the model cannot take."""
        channels, fewest = self.config.num_channels, max(self.config.num_groups, self.config.group_size)
        if points.ndim != 3 or not points.is_floating_point():
            raise ValueError(
                f"points are {points.dtype} of shape {list(points.shape)}; they must be floating-point "
                f"[batch, points, {channels}]."
            )
        if points.shape[2] != channels:
            raise ValueError(f"points have {points.shape[2]} channels; config.num_channels is {channels}.")
        if points.shape[1] < fewest:
            raise ValueError(
                f"clouds have {points.shape[1]} points; they must have at least {fewest}, the larger of "
                "config.num_groups and config.group_size."
            )

    def group(self, points: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """
        Divides clouds into groups, from the first point on, or in training from a random one.

        Args:
            points: `[batch, points, channels]`.

        Returns:
            Groups `[batch, num_groups, group_size, channels]`, whose coordinates are relative to their centers, and
            centers `[batch, num_groups, 3]`; both float32, or float64 if the points are.
        """
        if points.dtype != torch.float64:
            points = points.float()  # in half precision, neighbors would be confused
        coordinates, features = points[..., :3], points[..., 3:]
        # the first point, so that results can be repeated in eval mode
        start = torch.zeros(len(points), dtype=torch.int64, device=points.device)
        if self.training:
            start = torch.randint_like(start, points.shape[1])
        # the choice of points has no gradient, but their coordinates have
        centers = gather_points(
            coordinates, farthest_point_sample(coordinates.detach(), self.config.num_groups, start)
        )
        indices = nearest_points(coordinates, centers, self.config.group_size)
        # [batch, num_groups, group_size, 3]
        relative = gather_points(coordinates, indices) - centers[:, :, None]
        return torch.cat([relative, gather_points(features, indices)], dim=-1), centers

    def forward(self, points: torch.Tensor) -> torch.Tensor:
        """`[batch, points, channels]` to `[batch, 1 + num_groups, hidden_size]`, the class token first."""
        self.check(points)
        groups, centers = self.group(points)
        dtype = self.cls_token.dtype
        # to the model's type only now: small differences to the centers survive the rounding
        tokens = self.patch_embeddings(groups.to(dtype)) + self.position_embeddings(centers.to(dtype))
        class_token = (self.cls_token + self.cls_position).expand(len(tokens), -1, -1)
        return self.dropout(torch.cat([class_token, tokens], dim=1))


__all__ = [
    "PointLinear",
    "PointViTEmbeddings",
    "PointViTPatchEmbeddings",
    "farthest_point_sample",
    "gather_points",
    "nearest_points",
]
