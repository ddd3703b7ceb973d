"""SynthMorph of FreeSurfer 8 in torch: affine, rigid, deformable and joint registration.

The reference is voxelmorph's TensorFlow code of 2024 (branch dev, `VxmAffineFeatureDetector` and
`HyperVxmJoint`), as `mri_synthmorph` of FreeSurfer 8 calls it: the deformable step in the affine
mid-space, its hypernetwork evaluated beforehand (`keras_files`). Every step is an elementary torch
operation in the reference's order, float32 as there. What the reference computes besides (the
inverse transform) is left out.

Methods: Hoffmann et al., SPIE 12464, 2023, doi:10.1117/12.265325 (affine); Imaging Neuroscience 2,
2024, doi:10.1162/imag_a_00197 (joint).

Arrays: B batch, C channels, V warp component (axes X, Y, Z), X Y Z space, K points, 44 affine
matrices; float32. Images lie in [0, 1] on one common grid of 1 mm. Matrices and warps lead from
the fixed grid to the moving one, in voxels counted from 0; "half" is the grid of every second
voxel.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from morphbits import stages
from morphbits.errors import UserError
from morphbits.models import matrices, spatial
from morphbits.models.synthmorph_torch import Convolution

LEVELS = 4  # of pooling in the affine network, whose kernels do not show it
MULTIPLE = 32  # of images: a half grid and four levels of pooling
Weights = Sequence[tuple[Tensor, Tensor]]  # kernel (C_out, C_in, 3, 3, 3) and bias of each layer


def _layers(weights: Weights) -> nn.ModuleList:
    """Convolutions with LeakyReLU(0.2) but for the last."""
    layers = nn.ModuleList()
    for number, (kernel, bias) in enumerate(weights, 1):
        layer = Convolution(kernel.shape[1], kernel.shape[0], activate=number < len(weights))
        layer.weight, layer.bias = nn.Parameter(kernel), nn.Parameter(bias)
        layers.append(layer)
    return layers.requires_grad_(False)


def _half(image_BCXYZ: Tensor) -> Tensor:
    """Every second voxel: what the reference's interpolation gives there, which rounds nothing."""
    return image_BCXYZ[..., ::2, ::2, ::2]


class Detector(nn.Module):
    """The affine part: two images → the affine matrix between them.

    64 features of each image, the barycentre of each, and the transform that takes the ones to the
    others, by weighted least squares.
    """

    def __init__(self, weights: Weights, rigid: bool = False) -> None:
        super().__init__()
        self.layers, self.rigid = _layers(weights), rigid

    def forward(self, moving_BCXYZ: Tensor, fixed_BCXYZ: Tensor, shape: Sequence[int]) -> Tensor:
        """Matrices (2, B, 4, 4) fixed → moving and moving → fixed, about the centres of images of
        `shape`, in their voxels; the inputs may be their halves."""
        moving = stages.run("moving-features", self.features, moving_BCXYZ, "moving")
        fixed = stages.run("fixed-features", self.features, fixed_BCXYZ, "fixed")
        matrix_B44 = stages.run("fit", self.fit, moving, fixed, shape)
        return torch.stack([matrix_B44, _inverse(matrix_B44)])

    def features(self, image_BCXYZ: Tensor, role: str) -> Tensor:
        """The feature maps, (B, C, X/16, Y/16, Z/16), zero or more."""
        features = image_BCXYZ
        for number, layer in enumerate(self.layers, 1):
            features = stages.run(f"{role}-{number}", layer, features)
            if number <= LEVELS:
                features = F.max_pool3d(features, 2)
        return F.relu(features)

    def fit(self, moving_BCXYZ: Tensor, fixed_BCXYZ: Tensor, shape: Sequence[int]) -> Tensor:
        """The matrix between two sets of feature maps, the mean of the fits in both directions."""
        weights_BK = _power(moving_BCXYZ) * _power(fixed_BCXYZ)
        moving_BKV, fixed_BKV = _barycentres(moving_BCXYZ, shape), _barycentres(fixed_BCXYZ, shape)
        forward_B44 = _fit(moving_BKV, fixed_BKV, weights_BK)
        backward_B44 = _fit(fixed_BKV, moving_BKV, weights_BK)
        matrix_B44 = _square((_inverse(backward_B44) + forward_B44)[:, :3] * 0.5)
        return matrices.rigid(matrix_B44) if self.rigid else matrix_B44


def _power(features_BCXYZ: Tensor) -> Tensor:
    """The share of each feature in all of an image's, (B, K)."""
    power_BK = features_BCXYZ.sum((2, 3, 4))
    return power_BK / power_BK.sum(1, keepdim=True)


def _barycentres(features_BCXYZ: Tensor, shape: Sequence[int]) -> Tensor:
    """Of each feature, (B, K, V), in voxels of `shape` from its centre; of an empty one 0."""
    grid = [
        (torch.arange(n, dtype=features_BCXYZ.dtype) - (n - 1) / 2) / n
        for n in features_BCXYZ.shape[2:]
    ]
    grid_VXYZ = torch.stack(torch.meshgrid(*grid, indexing="ij"))
    moment_BKV = (features_BCXYZ[:, :, None] * grid_VXYZ).sum((3, 4, 5))
    mass_BK1 = features_BCXYZ.sum((2, 3, 4))[..., None]
    centre_BKV = torch.where(mass_BK1 == 0, 0, moment_BKV / mass_BK1)
    return centre_BKV * torch.tensor(shape, dtype=moment_BKV.dtype)


def _fit(source_BKV: Tensor, target_BKV: Tensor, weights_BK: Tensor) -> Tensor:
    """The matrix that takes target points to source points with the least weighted squares."""
    x_BK4 = torch.cat([target_BKV, torch.ones_like(target_BKV[..., :1])], -1)
    weighted_B4K = x_BK4.mT * weights_BK[:, None]
    normal_B44 = weighted_B4K @ x_BK4
    try:
        beta_B4V = torch.linalg.inv(normal_B44) @ weighted_B4K @ source_BKV
    except torch.linalg.LinAlgError:
        raise UserError(
            "the features that the affine network finds in an image lie in one plane, so no "
            "transform can be fitted: is one of the images empty, or its extent too small?"
        ) from None
    return _square(beta_B4V.mT)


def _square(matrix_B34: Tensor) -> Tensor:
    """The same with the last row of an affine matrix, which nothing has rounded."""
    last = torch.tensor([0.0, 0, 0, 1], dtype=matrix_B34.dtype)
    return torch.cat([matrix_B34, last.expand(len(matrix_B34), 1, 4)], 1)


def _inverse(matrix_B44: Tensor) -> Tensor:
    return _square(torch.linalg.inv(matrix_B44)[:, :3])


def _product(a_B44: Tensor, b_B44: Tensor) -> Tensor:
    return _square((a_B44 @ b_B44)[:, :3])


def _scaling(factor: float, like: Tensor) -> Tensor:
    scales = torch.tensor([factor, factor, factor, 1.0], dtype=like.dtype)
    return torch.diag(scales).expand(len(like), 4, 4)


def _from_corner(matrix_B44: Tensor, shape: Sequence[int]) -> Tensor:
    """A matrix about the centre of a grid as one on its voxels' indices."""
    centre, corner = torch.eye(4, dtype=matrix_B44.dtype), torch.eye(4, dtype=matrix_B44.dtype)
    middle = torch.tensor([(n - 1) / 2 for n in shape], dtype=matrix_B44.dtype)
    centre[:3, 3], corner[:3, 3] = -middle, middle
    return _product(
        corner.expand_as(matrix_B44), _product(matrix_B44, centre.expand_as(matrix_B44))
    )


class Affine(nn.Module):
    """`mri_synthmorph -m affine` and `-m rigid`: (moving, fixed) → (moved, warp).

    Its stages: `affine`, which holds `moving-features` (with `moving-1` …), `fixed-features` and
    `fit`; `composition`; `sampling`.
    """

    def __init__(self, weights: Weights, rigid: bool = False) -> None:
        super().__init__()
        self.detector = Detector(weights, rigid)

    def matrix(self, moving_BCXYZ: Tensor, fixed_BCXYZ: Tensor) -> Tensor:
        """The affine matrix, (B, 4, 4), between voxels of the two images."""
        shape = _checked(moving_BCXYZ, fixed_BCXYZ)
        halves = _half(moving_BCXYZ), _half(fixed_BCXYZ)
        forward_B44, _ = stages.run("affine", self.detector, *halves, shape)
        return _from_corner(forward_B44, shape)

    def forward(self, moving_BCXYZ: Tensor, fixed_BCXYZ: Tensor) -> tuple[Tensor, Tensor]:
        """Moved image (B, 1, X, Y, Z), 0 outside the moving one, and warp (B, V, X, Y, Z)."""
        matrix_B44 = self.matrix(moving_BCXYZ, fixed_BCXYZ)
        warp = stages.run("composition", spatial.dense, matrix_B44, moving_BCXYZ.shape[2:])
        return stages.run("sampling", spatial.transform, moving_BCXYZ, warp, 0.0), warp


class Joint(nn.Module):
    """`mri_synthmorph -m joint`, and `-m deform` where `affine` is left out: (moving, fixed) →
    (moved, warp).

    A U-Net at half resolution sees both images in the affine mid-space, in both orders; half the
    difference of what it gives is the velocity field, whose integral is composed with the half-way
    affine transforms on both sides.

    Its stages: `affine` (see `Affine`) and `mid-space`; `network`, which holds `forward` and
    `swapped`, and these `encoder-1` …, `decoder-1` …, `flow` (`encoder-1-swapped` …);
    `integration` with `squaring-1` …; `composition`; `rescaling`; `sampling`.
    """

    STEPS = 7  # squarings

    def __init__(self, deform: Weights, affine: Weights | None = None) -> None:
        super().__init__()
        self.layers = _layers(deform)
        self.detector = Detector(affine) if affine else None
        shapes = [kernel.shape[:2] for kernel, _ in deform]
        #: convolutions of the encoder, each before a pooling; as many of the decoder follow
        self.levels = sum(taken != given for (given, _), (_, taken) in pairwise(shapes))

    def forward(self, moving_BCXYZ: Tensor, fixed_BCXYZ: Tensor) -> tuple[Tensor, Tensor]:
        """Moved image (B, 1, X, Y, Z), 0 outside the moving one, and warp (B, V, X, Y, Z)."""
        shape = _checked(moving_BCXYZ, fixed_BCXYZ)
        half = [n // 2 for n in shape]
        if self.detector is None:
            to_moving_B44 = _scaling(2, moving_BCXYZ)
            halves = _half(moving_BCXYZ), _half(fixed_BCXYZ)
        else:
            images = _half(moving_BCXYZ), _half(fixed_BCXYZ)
            both_2B44 = stages.run("affine", self.detector, *images, half)
            to_moving_B44, to_fixed_B44 = stages.run("mid-space", _mid_space, both_2B44, half)
            halves = (
                stages.run("moving-halfway", _sampled, moving_BCXYZ, to_moving_B44, half),
                stages.run("fixed-halfway", _sampled, fixed_BCXYZ, to_fixed_B44, half),
            )
        svf_BVXYZ = stages.run("network", self.svf, *halves)
        warp_BVXYZ = stages.run("integration", spatial.integrate, svf_BVXYZ, self.STEPS)
        warp_BVXYZ = stages.run("composition", self._composed, warp_BVXYZ, to_moving_B44)
        warp_BVXYZ = stages.run("rescaling", _to_full, warp_BVXYZ, shape)
        return stages.run("sampling", spatial.transform, moving_BCXYZ, warp_BVXYZ, 0.0), warp_BVXYZ

    def svf(self, one_BCXYZ: Tensor, other_BCXYZ: Tensor) -> Tensor:
        """Velocity field (B, V, X/2, Y/2, Z/2), in voxels of its own grid; exchanging the images
        changes its sign."""
        forward = stages.run("forward", self._network, one_BCXYZ, other_BCXYZ, "")
        swapped = stages.run("swapped", self._network, other_BCXYZ, one_BCXYZ, "-swapped")
        return (forward - swapped) * 0.5

    def _network(self, one_BCXYZ: Tensor, other_BCXYZ: Tensor, suffix: str) -> Tensor:
        features = torch.cat([one_BCXYZ, other_BCXYZ], 1)
        skips: list[Tensor] = []
        for number, layer in enumerate(self.layers, 1):
            if number <= self.levels:
                name = f"encoder-{number}"
            else:
                name = "flow" if number == len(self.layers) else f"decoder-{number - self.levels}"
            features = stages.run(name + suffix, layer, features)
            if number <= self.levels:
                skips.append(features)
                features = F.max_pool3d(features, 2)
            elif skips:
                features = F.interpolate(features, scale_factor=2, mode="nearest")
                features = torch.cat([features, skips.pop()], 1)
        return features

    def _composed(self, warp_BVXYZ: Tensor, to_moving_B44: Tensor) -> Tensor:
        """The warp in the mid-space between its two affine halves: from the half grid of the fixed
        image to voxels of the moving one, as displacements from the half grid's indices."""
        half = warp_BVXYZ.shape[2:]
        if self.detector is None:
            return spatial.dense(to_moving_B44, half, warp_BVXYZ)
        before_B44 = _product(_scaling(0.5, to_moving_B44), to_moving_B44)
        warp_BVXYZ = spatial.compose(spatial.dense(before_B44, half), warp_BVXYZ)
        return spatial.dense(to_moving_B44, half, warp_BVXYZ)


def _mid_space(both_2B44: Tensor, half: Sequence[int]) -> Tensor:
    """From the half grid in the mid-space to the voxels of the moving and the fixed image, both
    matrices of `both`: their square roots, and twice as many voxels."""
    found = []
    for matrices_B44 in both_2B44:
        roots_B44 = torch.stack([matrices.square_root(matrix) for matrix in matrices_B44])
        roots_B44 = _from_corner(_square(roots_B44[:, :3]), half)
        found.append(_product(_scaling(2, roots_B44), roots_B44))
    return torch.stack(found)


def _sampled(image_BCXYZ: Tensor, matrix_B44: Tensor, shape: Sequence[int]) -> Tensor:
    return spatial.transform(image_BCXYZ, spatial.dense(matrix_B44, shape), 0.0)


def _to_full(warp_BVXYZ: Tensor, shape: Sequence[int]) -> Tensor:
    """A warp from the half grid's indices as one from those of the whole grid."""
    down_BVXYZ = spatial.dense(_scaling(0.5, warp_BVXYZ), shape)
    return spatial.compose(down_BVXYZ, warp_BVXYZ)


def _checked(moving_BCXYZ: Tensor, fixed_BCXYZ: Tensor) -> list[int]:
    """The shape of both images; UserError where it is none that the networks take."""
    shape = list(fixed_BCXYZ.shape[2:])
    if list(moving_BCXYZ.shape[2:]) != shape or any(n % MULTIPLE for n in shape):
        raise UserError(
            f"moving {tuple(moving_BCXYZ.shape[2:])} and fixed {tuple(shape)} must have one size, "
            f"a multiple of {MULTIPLE} along each axis"
        )
    return shape
