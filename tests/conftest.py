"""Shared fixtures: tiny random detectors with batch-norm statistics that matter, and a tiny Promenade."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import (
    ConditionalDetrConfig,
    ConditionalDetrForObjectDetection,
    DetrConfig,
    DetrForObjectDetection,
    PreTrainedModel,
    ResNetConfig,
)

from faap.data.images import Preprocessing
from faap.detectors.hugging_face import HuggingFaceDetector
from faap.promenade import build_promenade

KINDS = ("detr", "conditional_sigmoid", "conditional_softmax")


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    """A picture of another size than Promenade's, whose name has a blank."""
    path = tmp_path / "my photo.png"
    pixels = np.random.default_rng(0).integers(0, 256, (9, 11, 3), dtype=np.uint8)
    Image.fromarray(pixels).resize((220, 150), Image.Resampling.BICUBIC).save(path)
    return path


@pytest.fixture(scope="module", autouse=True)
def undrawn(request: pytest.FixtureRequest) -> Iterator[None]:
    """Pages without their pictures, which take half the time of a small training; the tests of reports draw them."""
    with pytest.MonkeyPatch.context() as patch:
        if "report" not in request.path.parts and request.path.stem not in ("test_docs", "test_bench"):
            patch.setattr("faap.report.charts.embed", lambda figure: "data:,")
        yield


def _tiny(kind: str, layer_type: str = "basic") -> PreTrainedModel:
    torch.manual_seed(KINDS.index(kind))
    backbone = ResNetConfig(
        layer_type=layer_type, embedding_size=8, hidden_sizes=[8, 16], depths=[1, 2], out_features=["stage2"]
    )
    names = ["bicycle", "Person"] if kind != "conditional_softmax" else ["person", "no-object"]
    shape: dict[str, Any] = {
        "use_timm_backbone": False,
        "backbone_config": backbone,
        "d_model": 32,
        "encoder_layers": 1,
        "decoder_layers": 3,
        "encoder_ffn_dim": 48,
        "decoder_ffn_dim": 48,
        "encoder_attention_heads": 4,
        "decoder_attention_heads": 4,
        "num_queries": 6,
        "id2label": dict(enumerate(names)),
        "label2id": {name: index for index, name in enumerate(names)},
    }
    if kind == "detr":
        model: PreTrainedModel = DetrForObjectDetection(DetrConfig(**shape))
    else:
        extra = {"faap_softmax": True} if kind == "conditional_softmax" else {}
        model = ConditionalDetrForObjectDetection(ConditionalDetrConfig(**shape, **extra))
    with torch.no_grad():
        for module in model.modules():
            if "BatchNorm" in type(module).__name__:
                module.running_mean.normal_(0, 0.5)
                module.running_var.uniform_(0.3, 3)
                module.weight.uniform_(0.5, 1.5)
                module.bias.normal_(0, 0.5)
            if isinstance(module, torch.nn.LayerNorm):
                module.weight.uniform_(0.5, 1.5)
                module.bias.normal_(0, 0.5)
            # Larger weights than at initialisation, so that layers and queries differ visibly and padding matters.
            if isinstance(module, torch.nn.Linear):
                module.weight.normal_(0, 1.5 / module.in_features**0.5)
            if isinstance(module, torch.nn.Embedding):
                module.weight.normal_()
    return model.eval()


@pytest.fixture(scope="session")
def tiny() -> Callable[..., PreTrainedModel]:
    """A factory of tiny random models, the same at every call: `tiny(kind, layer_type="basic")`."""
    return _tiny


@pytest.fixture(scope="session")
def wrap() -> Callable[[PreTrainedModel], HuggingFaceDetector]:
    """A factory of detectors around a model that is not prepared."""

    def build(model: PreTrainedModel) -> HuggingFaceDetector:
        preprocessing = Preprocessing(shortest_edge=None, longest_edge=None)
        return HuggingFaceDetector(model, name="tiny", preprocessing=preprocessing, file_sha256="")

    return build


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def detector(kind, tiny, wrap) -> HuggingFaceDetector:
    return wrap(tiny(kind))


@pytest.fixture(scope="session")
def batch() -> tuple[torch.Tensor, torch.Tensor]:
    """Two images, of which the second is smaller: pixels (2, 3, 48, 64) and their mask."""
    mask = torch.ones(2, 48, 64, dtype=torch.bool)
    mask[1, 37:] = False
    mask[1, :, 45:] = False
    pixels = torch.randn(2, 3, 48, 64, generator=torch.Generator().manual_seed(5)) * mask[:, None]
    return pixels, mask


@pytest.fixture(scope="session")
def save() -> Callable[[PreTrainedModel, Path], Path]:
    """Write a model as a detector directory."""

    def write(model: PreTrainedModel, directory: Path) -> Path:
        model.save_pretrained(directory)
        size = {"shortest_edge": 48, "longest_edge": 80}
        content = {"size": size, "image_mean": [0.5, 0.4, 0.3], "image_std": [0.2, 0.3, 0.4]}
        (directory / "preprocessor_config.json").write_text(json.dumps(content))
        return directory

    return write


@pytest.fixture(scope="session")
def tiny_promenade(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data set in the split-folder layout: 8 training scenes a group, 3 and 4 twins in val and test."""
    return build_promenade(tmp_path_factory.mktemp("data"), {"train": 8, "val": 3, "test": 4})


@pytest.fixture(scope="session")
def tiny_detector(tiny, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random softmax Conditional DETR on disk that keeps images at their size."""
    directory = tmp_path_factory.mktemp("detector")
    tiny("conditional_softmax").save_pretrained(directory)
    content = {"do_resize": False, "image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}
    (directory / "preprocessor_config.json").write_text(json.dumps(content))
    return directory
