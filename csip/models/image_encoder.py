"""Visual encoder V: a timm ViT that returns every token and its projection to the shared width.

Shapes: N_img images, H W pixels, N tokens an image (CLS first, then registers, then patches), D token width,
C shared width.
"""

from __future__ import annotations

import hashlib
import logging
import math
import pickle
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import timm
import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load_file
from timm.layers.activations import QuickGELU as TimmQuickGELU
from timm.layers.mlp import Mlp as TimmMlp
from timm.models import VisionTransformer
from torch import Tensor, nn

from csip.errors import WeightsError
from csip.models.mlp import Mlp, QuickGELU
from csip.weights import cached_weights, local_weights

log = logging.getLogger(__name__)

# The named model's classifier. CLIP's is the projection into the shared space, any other has no place here.
_HEADS = ("head.", "head_dist.")


class ImageEncoder(nn.Module):
    """A ViT with a class token, at any image size its patches divide (method.md section 2).

    Its weights are random until `load_image_weights`.

    Args:
        name: a timm ViT.
        image_size: (H, W) in pixels.
        width: C.
        depth: transformer blocks, 0 for the named model's own.
        token_width: D, 0 for the named model's own.
        heads: attention heads, 0 for the named model's own.
        num_cameras: rows of the camera table; 0 for no table, camera ids are then ignored.
        camera_scale: factor of the camera vectors.

    Attributes:
        token_width: D.
        num_tokens: N.

    Raises:
        ValueError: timm has no such ViT, it has no class token, or its patches do not divide the image.
    """

    def __init__(
        self,
        *,
        name: str,
        image_size: tuple[int, int],
        width: int,
        depth: int = 0,
        token_width: int = 0,
        heads: int = 0,
        num_cameras: int = 0,
        camera_scale: float = 1.0,
    ) -> None:
        super().__init__()
        self.name = name
        self.image_size = (int(image_size[0]), int(image_size[1]))
        self.camera_scale = camera_scale
        self.trunk = _build_trunk(name, self.image_size, depth=depth, token_width=token_width, heads=heads)
        self.token_width = int(self.trunk.embed_dim)
        self.num_tokens = int(self.trunk.patch_embed.num_patches + self.trunk.num_prefix_tokens)

        # A CLIP model's own head is the projection its training compared with text; fine-tuned variants ("_ft_")
        # carry a classifier in its place.
        head = self.trunk.get_classifier()
        own_width = head.out_features if isinstance(head, nn.Linear) else 0
        self.uses_own_projection = "clip" in name and "_ft_" not in name and own_width == width
        self.trunk.reset_classifier(0)
        # Bias-free, as in CLIP itself: the bias of timm's head is zero and an artefact of its conversion.
        self.projection = nn.Linear(self.token_width, width, bias=False)
        nn.init.normal_(self.projection.weight, std=self.token_width**-0.5)

        self.camera_table: nn.Parameter | None = None
        if num_cameras:
            self.camera_table = nn.Parameter(torch.empty(num_cameras, self.token_width))
            nn.init.trunc_normal_(self.camera_table, std=0.02)

    def forward(self, crops: Tensor, camid: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Encode images.

        Args:
            crops: (N_img, 3, H, W) float32, normalised RGB.
            camid: (N_img,) int64; -1 for a camera the model does not know, which gets the cameras' mean vector.
                None leaves cameras out altogether (stage 1, prototypes).

        Returns:
            Tokens after the final norm (N_img, N, D), and their projections (N_img, N, C).

        Raises:
            ValueError: the crops are not of this encoder's size, or a camera id is outside the table.
        """
        if crops.ndim != 4 or tuple(crops.shape[1:]) != (3, *self.image_size):
            raise ValueError(f"ImageEncoder: got crops {tuple(crops.shape)}, expected (N, 3, {self._size_text()}).")
        x = self.trunk._pos_embed(self.trunk.patch_embed(crops))  # (N_img, N, D)
        if camid is not None and self.camera_table is not None:
            # Adding to the CLS token after its position embedding is the same sum as adding before it.
            cls = x[:, :1] + self._camera(self.camera_table, camid)[:, None].to(x.dtype)
            x = torch.cat([cls, x[:, 1:]], dim=1)
        x = self.trunk.norm_pre(self.trunk.patch_drop(x))
        x = self.trunk.norm(self.trunk.blocks(x))
        return x, self.projection(x)

    def _camera(self, table: Tensor, camid: Tensor) -> Tensor:
        count = len(table)
        if camid.numel() and not (int(camid.min()) >= -1 and int(camid.max()) < count):
            raise ValueError(
                f"ImageEncoder: got camera ids {int(camid.min())} to {int(camid.max())}, expected 0 to {count - 1}, "
                "or -1 for a camera the model does not know."
            )
        # Index -1 reads the last row, where the mean stands.
        with_mean = torch.cat([table, table.mean(dim=0, keepdim=True)])
        return self.camera_scale * with_mean[camid]

    def _size_text(self) -> str:
        return f"{self.image_size[0]}, {self.image_size[1]}"


def _build_trunk(
    name: str, image_size: tuple[int, int], *, depth: int, token_width: int, heads: int
) -> VisionTransformer:
    changes = {"depth": depth, "embed_dim": token_width, "num_heads": heads}
    settings: dict[str, Any] = {key: value for key, value in changes.items() if value}
    try:
        trunk = timm.create_model(name, pretrained=False, img_size=image_size, **settings)
    except (AssertionError, RuntimeError, TypeError) as error:
        raise ValueError(
            f"image encoder {name!r}: timm cannot build it at {image_size} with {changes} (0: its own): {error} "
            "`timm.list_models('vit*')` lists names; the token width must be a multiple of the heads."
        ) from error
    if not isinstance(trunk, VisionTransformer) or not trunk.has_class_token:
        raise ValueError(
            f"image encoder {name!r}: got {type(trunk).__name__}, class token "
            f"{'yes' if getattr(trunk, 'has_class_token', False) else 'no'}; expected a timm VisionTransformer with "
            "one, for example vit_tiny_patch16_224."
        )
    patch = tuple(trunk.patch_embed.patch_size)
    if image_size[0] % patch[0] or image_size[1] % patch[1]:
        raise ValueError(
            f"image encoder {name!r}: got images of {image_size[0]}x{image_size[1]}, expected height and width to be "
            f"multiples of its patches, {patch[0]}x{patch[1]}."
        )
    if isinstance(trunk.norm, nn.Identity) and not isinstance(trunk.fc_norm, nn.Identity):
        raise ValueError(
            f"image encoder {name!r}: it pools patches before its final norm, so its tokens leave un-normalised; "
            "expected a model that pools the class token."
        )
    for block in trunk.blocks:
        if type(getattr(block, "mlp", None)) is TimmMlp:
            block.mlp = _lean(block.get_submodule("mlp"))
    return trunk


def _lean(mlp: nn.Module) -> nn.Module:
    """Take a plain MLP of timm's over into ours, its weights under their names; leave any other as it is."""
    parts = dict(mlp.named_children())
    norm, activation = parts.pop("norm"), parts["act"]
    if type(activation) is TimmQuickGELU:
        parts["act"] = QuickGELU()
    elif type(activation) is not nn.GELU or activation.approximate != "none":
        return mlp
    return Mlp(OrderedDict(parts)) if isinstance(norm, nn.Identity) else mlp


def load_image_weights(encoder: ImageEncoder, source: str) -> dict[str, str]:
    """Fill an image encoder with pretrained weights, all of them or none.

    The camera table, and the projection where it is not the model's own, stay as initialised.

    Args:
        encoder: as built; nothing in it changes when this raises.
        source: a local .safetensors, .pt, .pth or .bin file with timm's tensor names; "timm" for the file
            NAME.safetensors in the user's cache or this package, else timm's own download (and cache); "none" to do
            nothing.

    Returns:
        Where the weights came from, and their SHA-256; empty for "none".

    Raises:
        WeightsError: no such file, no connection, or the tensors are not exactly the encoder's.
    """
    if source == "none":
        return {}
    here, _ = local_weights(f"{encoder.name}.safetensors")
    if source == "timm" and here is None:
        weights, where = _download(encoder.name), f"timm's weights of {encoder.name}"
    else:
        path = here if source == "timm" and here is not None else Path(source)
        weights, where = _read_file(path), str(path)
    state = _fit(encoder, weights, where)
    _require_exact(encoder, state, where)
    encoder.load_state_dict(state, strict=False)
    log.info("Image encoder %s: %d tensors from %s.", encoder.name, len(state), where)
    return {where: _digest(weights)}


def _digest(weights: Mapping[str, Tensor]) -> str:
    """Digest tensors by name and content: the same for a file and for a download of it."""
    state = hashlib.sha256()
    for name, value in sorted(weights.items()):
        state.update(name.encode())
        state.update(value.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes() if value.dim() else b"")
    return state.hexdigest()


def _download(name: str) -> dict[str, Tensor]:
    try:
        return dict(timm.create_model(name, pretrained=True).state_dict())
    except (OSError, RuntimeError, ValueError) as error:
        raise WeightsError(
            f"Weights of {name}: found none in {', '.join(local_weights(f'{name}.safetensors')[1])}, nor "
            f"through timm's download (Hugging Face hub and its cache): {str(error)[:300]} Connect once, copy the "
            f"model's model.safetensors to {cached_weights(f'{name}.safetensors')}, or name it as model.image_weights; "
            "model.image_weights=none starts from random weights."
        ) from error


def _read_file(path: Path) -> dict[str, Tensor]:
    if not path.is_file():
        raise WeightsError(
            f"Image weights: no file at {path.absolute()}. Expected a .safetensors, .pt, .pth or .bin file of the "
            'model in timm\'s naming, or the word "timm" or "none".'
        )
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        weights = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, ValueError, EOFError, pickle.UnpicklingError, SafetensorError) as error:
        raise WeightsError(f"Image weights {path}: found a file that cannot be read as weights: {error}") from error
    if not isinstance(weights, Mapping) or not all(isinstance(v, Tensor) for v in weights.values()):
        raise WeightsError(f"Image weights {path}: found {type(weights).__name__}, expected tensors by name.")
    return dict(weights)


def _fit(encoder: ImageEncoder, weights: Mapping[str, Tensor], where: str) -> dict[str, Tensor]:
    """Rename timm's tensors to the encoder's, and resize the position embedding."""
    state = {f"trunk.{key}": value for key, value in weights.items() if not key.startswith(_HEADS)}
    if encoder.uses_own_projection:
        bias = weights.get("head.bias")
        if bias is not None and bool(bias.count_nonzero()):
            raise WeightsError(f"{where}: found a head with a bias; CLIP's projection has none. Is it a classifier?")
        if "head.weight" in weights:
            state["projection.weight"] = weights["head.weight"]
    if "trunk.pos_embed" in state and encoder.trunk.pos_embed is not None:
        prefix = 0 if encoder.trunk.no_embed_class else encoder.trunk.num_prefix_tokens
        grid = tuple(encoder.trunk.patch_embed.grid_size)
        state["trunk.pos_embed"] = resize_positions(state["trunk.pos_embed"], (grid[0], grid[1]), prefix, where)
    return state


def resize_positions(positions: Tensor, grid: tuple[int, int], prefix: int, where: str) -> Tensor:
    """Interpolate a square grid of position embeddings to another, as CLIP-based re-identification does.

    Bilinear without antialiasing; timm's own default is bicubic with it.

    Args:
        positions: (1, prefix + n, D) with n a square number, or n already that of `grid`.
        grid: rows and columns wanted.
        prefix: leading embeddings that belong to no patch; they are kept.
        where: named in errors.

    Returns:
        (1, prefix + rows * columns, D).

    Raises:
        WeightsError: n is neither a square nor the grid's.
    """
    head, body = positions[:, :prefix], positions[:, prefix:]
    count, side = body.shape[1], math.isqrt(body.shape[1])
    if side * side != count:
        if count == grid[0] * grid[1]:
            return positions  # saved at this image size
        raise WeightsError(f"{where}: found {count} patch positions, expected a square or {grid[0]}x{grid[1]}.")
    if (side, side) == grid:
        return positions
    image = body.float().reshape(1, side, side, -1).permute(0, 3, 1, 2)  # (1, D, side, side)
    image = F.interpolate(image, size=grid, mode="bilinear", align_corners=False)
    body = image.flatten(2).transpose(1, 2).to(positions.dtype)  # (1, rows * columns, D)
    return torch.cat([head, body], dim=1)


def _require_exact(encoder: ImageEncoder, state: Mapping[str, Tensor], where: str) -> None:
    own = encoder.state_dict()
    optional = {"camera_table"} if encoder.uses_own_projection else {"camera_table", "projection.weight"}
    missing = sorted(own.keys() - state.keys() - optional)
    unexpected = sorted(state.keys() - own.keys())
    reshaped = [
        f"{key} {tuple(state[key].shape)} for {tuple(own[key].shape)}"
        for key in sorted(own.keys() & state.keys())
        if state[key].shape != own[key].shape
    ]
    problems = (("missing", missing), ("unexpected", unexpected), ("of another shape", reshaped))
    text = "; ".join(f"{len(keys)} {what}: {', '.join(keys[:8])}" for what, keys in problems if keys)
    if text:
        raise WeightsError(
            f"{where}: found tensors that are not those of {encoder.name} at {encoder.image_size} with width "
            f"{encoder.projection.out_features}: {text}. Expected every one, in timm's naming; nothing was loaded."
        )
