"""Published augmentations by method, for large and small images."""

from __future__ import annotations

from datamodules.transforms.views import MultiCrop, TwoViews, View

# ------------------------------------------------------------------------------------------------------------
# Recipes from the papers. "small" is the variant for images of 64 pixels or less, chosen by size unless
# given.
# ------------------------------------------------------------------------------------------------------------


def _is_small(size: int, small: bool | None) -> bool:
    return size <= 64 if small is None else small


def _tenth(size: int) -> int:
    """Blur kernel of SimCLR and BYOL: a tenth of the side, made odd (23 at 224 pixels)."""
    return 2 * (size // 20) + 1


class SimCLRViews(TwoViews):
    """SimCLR (Chen et al. 2020, https://arxiv.org/abs/2002.05709; google-research/simclr data_util.py).

    Crop (.08, 1), flip, color jitter (.8, .8, .8, .2) with p .8, grayscale .2, blur p .5 with sigma (.1, 2)
    and a kernel of a tenth of the side. Small: color strength halved to (.4, .4, .4, .1) and no blur, as in
    the official README for CIFAR-10.

    Args:
        size: side of the views, pixels.
        small: the small variant; None = when size <= 64.
    """

    def __init__(self, size: int, small: bool | None = None) -> None:
        small = _is_small(size, small)
        strength = 0.5 if small else 1.0
        view = View(
            size,
            brightness=0.8 * strength,
            contrast=0.8 * strength,
            saturation=0.8 * strength,
            hue=0.2 * strength,
            grayscale_p=0.2,
            blur_p=0.0 if small else 0.5,
            blur_kernel=_tenth(size),
        )
        super().__init__(view, view)


class MoCoViews(TwoViews):
    """MoCo v2 and SimSiam (Chen et al. 2020, https://arxiv.org/abs/2003.04297; facebookresearch/moco).

    Crop (.2, 1), color jitter (.4, .4, .4, .1) with p .8, grayscale .2, blur p .5 with sigma (.1, 2), flip.
    Small: no blur, as in SimSiam's CIFAR-10 experiments (Chen & He 2021, https://arxiv.org/abs/2011.10566).

    Args:
        size: side of the views, pixels.
        small: the small variant; None = when size <= 64.
    """

    def __init__(self, size: int, small: bool | None = None) -> None:
        view = View(
            size,
            crop_scale=(0.2, 1.0),
            brightness=0.4,
            contrast=0.4,
            saturation=0.4,
            hue=0.1,
            grayscale_p=0.2,
            blur_p=0.0 if _is_small(size, small) else 0.5,
        )
        super().__init__(view, view)


class BYOLViews(TwoViews):
    """BYOL, Barlow Twins and VICReg (Grill et al. 2020, https://arxiv.org/abs/2006.07733).

    Crop (.08, 1) bicubic, flip, color jitter (.4, .4, .2, .1) with p .8, grayscale .2; blur with p 1 and .1,
    solarization with p 0 and .2 in the first and second view. Small: no blur, as solo-learn's CIFAR recipe.

    Args:
        size: side of the views, pixels.
        small: the small variant; None = when size <= 64.
    """

    def __init__(self, size: int, small: bool | None = None) -> None:
        small = _is_small(size, small)
        views = [
            View(
                size,
                interpolation="bicubic",
                brightness=0.4,
                contrast=0.4,
                saturation=0.2,
                hue=0.1,
                grayscale_p=0.2,
                blur_p=0.0 if small else blur_p,
                blur_kernel=_tenth(size),
                solarize_p=solarize_p,
            )
            for blur_p, solarize_p in ((1.0, 0.0), (0.1, 0.2))
        ]
        super().__init__(*views)


class SwAVViews(MultiCrop):
    """SwAV (Caron et al. 2020, https://arxiv.org/abs/2006.09882; facebookresearch/swav).
    Two crops (.14, 1) and six of 3/7 of the side (96 at 224 pixels) with (.05, .14); flip, color jitter
    (.8, .8, .8, .2) with p .8, grayscale .2, blur p .5. Small: no local crops and no blur.

    Args:
        size: side of the global views, pixels.
        small: the small variant; None = when size <= 64.
        num_local: number of local views; None = 6, or 0 in the small variant.
    """

    def __init__(self, size: int, small: bool | None = None, num_local: int | None = None) -> None:
        small = _is_small(size, small)
        large, local = (
            View(
                side,
                crop_scale=scale,
                brightness=0.8,
                contrast=0.8,
                saturation=0.8,
                hue=0.2,
                grayscale_p=0.2,
                blur_p=0.0 if small else 0.5,
            )
            for side, scale in ((size, (0.14, 1.0)), (_local_size(size), (0.05, 0.14)))
        )
        super().__init__(large, large, local, _num_local(num_local, small, 6))


class DINOViews(MultiCrop):
    """DINO (Caron et al. 2021, https://arxiv.org/abs/2104.14294; facebookresearch/dino main_dino.py).

    Two crops (.4, 1) and eight of 3/7 of the side (96 at 224 pixels) with (.05, .4), bicubic; flip, color
    jitter (.4, .4, .2, .1) with p .8, grayscale .2; blur with p 1, .1 and .5 in the first, second and local
    views, solarization with p .2 in the second. Small: no local crops, global crops (.14, 1), as main_dino.py
    recommends in that case, and no blur.

    Args:
        size: side of the global views, pixels.
        small: the small variant; None = when size <= 64.
        num_local: number of local views; None = 8, or 0 in the small variant.
    """

    def __init__(self, size: int, small: bool | None = None, num_local: int | None = None) -> None:
        small = _is_small(size, small)
        num_local = _num_local(num_local, small, 8)
        global_scale = (0.4, 1.0) if num_local else (0.14, 1.0)
        view1, view2, local = (
            View(
                side,
                crop_scale=scale,
                interpolation="bicubic",
                brightness=0.4,
                contrast=0.4,
                saturation=0.2,
                hue=0.1,
                grayscale_p=0.2,
                blur_p=0.0 if small else blur_p,
                solarize_p=solarize_p,
            )
            for side, scale, blur_p, solarize_p in (
                (size, global_scale, 1.0, 0.0),
                (size, global_scale, 0.1, 0.2),
                (_local_size(size), (0.05, 0.4), 0.5, 0.0),
            )
        )
        super().__init__(view1, view2, local, num_local)


def _local_size(size: int) -> int:
    """Side of the local crops: 96 for 224, the proportion of SwAV and DINO."""
    return max(1, round(size * 96 / 224))


def _num_local(num_local: int | None, small: bool, published: int) -> int:
    if num_local is not None:
        return num_local
    return 0 if small else published
