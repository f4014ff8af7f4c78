"""A tiny random model of every family, with statistics and heads that make every layer, level and mask matter."""

import copy
from collections.abc import Callable
from typing import Any

import torch
import transformers
from torch import nn
from transformers import PreTrainedModel

NAMES = ["bicycle", "Person", "dog"]
SIDE = 64

COMMON = {"num_queries": 7, "id2label": dict(enumerate(NAMES)), "label2id": {name: i for i, name in enumerate(NAMES)}}
LAYERS = {
    "encoder_layers": 1,
    "decoder_layers": 3,
    "encoder_ffn_dim": 24,
    "decoder_ffn_dim": 24,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
}
STAGES = ["stage2", "stage3", "stage4"]


def resnet(stages: list[str], kind: str = "ResNetConfig") -> Any:
    return getattr(transformers, kind)(
        layer_type="basic", embedding_size=4, hidden_sizes=[4, 6, 8, 10], depths=[1, 1, 1, 1], out_features=stages
    )


def detr(config: str, **extra: Any) -> Any:
    return getattr(transformers, config)(
        **COMMON, **LAYERS, **extra, use_timm_backbone=False, backbone_config=resnet(["stage4"])
    )


def deformable(**extra: Any) -> Any:
    return transformers.DeformableDetrConfig(
        **COMMON
        | LAYERS
        | {"encoder_n_points": 2, "decoder_n_points": 2, "d_model": 64, "num_feature_levels": 3}
        | extra,
        use_timm_backbone=False,
        backbone_config=resnet(STAGES),
    )


def real_time(config: str, **extra: Any) -> Any:
    return getattr(transformers, config)(
        **COMMON,
        **LAYERS,
        **{"backbone_config": resnet(STAGES, "RTDetrResNetConfig"), "encoder_in_channels": [6, 8, 10]} | extra,
        encoder_hidden_dim=16,
        decoder_in_channels=[16, 16, 16],
        d_model=16,
        decoder_n_points=2,
        hidden_expansion=0.5,
    )


def light_weight() -> Any:
    backbone = transformers.LwDetrViTConfig(
        hidden_size=16,
        num_hidden_layers=3,
        num_attention_heads=2,
        mlp_ratio=2,
        image_size=SIDE,
        pretrain_image_size=32,
        patch_size=8,
        num_windows=4,
        window_block_indices=[0],
        out_features=["stage1", "stage3"],
    )
    return transformers.LwDetrConfig(
        **COMMON,
        backbone_config=backbone,
        projector_scale_factors=[2.0, 0.5],
        d_model=16,
        decoder_layers=3,
        decoder_ffn_dim=24,
        decoder_n_points=2,
        decoder_self_attention_heads=2,
        decoder_cross_attention_heads=2,
        group_detr=3,
        c2f_num_blocks=1,
    )


def roboflow() -> Any:
    backbone = {
        "model_type": "rf_detr_dinov2",
        "hidden_size": 16,
        "num_hidden_layers": 3,
        "num_attention_heads": 2,
        "mlp_ratio": 2,
        "image_size": SIDE,
        "patch_size": 8,
        "num_windows": 2,
        "out_features": ["stage1", "stage3"],
    }
    return transformers.RfDetrConfig(
        **COMMON,
        backbone_config=backbone,
        d_model=16,
        decoder_layers=3,
        decoder_ffn_dim=24,
        decoder_n_points=2,
        decoder_self_attention_heads=2,
        decoder_cross_attention_heads=2,
        group_detr=3,
        c2f_num_blocks=1,
    )


def yolos() -> Any:
    return transformers.YolosConfig(
        **{key: value for key, value in COMMON.items() if key != "num_queries"},
        num_detection_tokens=7,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=24,
        image_size=[SIDE, 80],
        patch_size=16,
    )


def hgnet() -> Any:
    return transformers.HGNetV2Config(
        stem_channels=[3, 4, 4],
        stage_in_channels=[4, 6, 8, 8],
        stage_mid_channels=[4, 4, 4, 4],
        stage_out_channels=[6, 8, 8, 10],
        stage_num_blocks=[1, 1, 1, 1],
        stage_numb_of_layers=[1, 1, 1, 1],
        hidden_sizes=[6, 8, 8, 10],
        use_learnable_affine_block=True,
        out_features=STAGES,
    )


# case -> (family, its configuration); a case is a family or a variant of it that takes another way through the code
CONFIGS: dict[str, tuple[str, Callable[[], Any]]] = {
    "detr": ("detr", lambda: detr("DetrConfig", d_model=32)),
    "conditional_detr": ("conditional_detr", lambda: detr("ConditionalDetrConfig", d_model=32, class_cost=1)),
    "dab_detr": ("dab-detr", lambda: detr("DabDetrConfig", hidden_size=32, bbox_loss_coefficient=3)),
    "dab_detr_patterns": ("dab-detr", lambda: detr("DabDetrConfig", hidden_size=32, num_patterns=2)),
    "deformable_detr": ("deformable_detr", deformable),
    "deformable_detr_refined": ("deformable_detr", lambda: deformable(with_box_refine=True, focal_alpha=0.4)),
    "deformable_detr_two_stage": (
        "deformable_detr",
        lambda: deformable(with_box_refine=True, two_stage=True, two_stage_num_proposals=5),
    ),
    "rt_detr": ("rt_detr", lambda: real_time("RTDetrConfig", weight_loss_vfl=1.5)),
    "rt_detr_v2": (
        "rt_detr_v2",
        lambda: real_time("RTDetrV2Config", matcher_alpha=0.9, matcher_gamma=0.5, matcher_class_cost=30.0),
    ),
    "d_fine": (
        "d_fine",
        lambda: real_time("DFineConfig", backbone_config=hgnet(), encoder_in_channels=[8, 8, 10], max_num_bins=8),
    ),
    "lw_detr": ("lw_detr", light_weight),
    "rf_detr": ("rf_detr", roboflow),
    "yolos": ("yolos", yolos),
}


def build(case: str) -> PreTrainedModel:
    """The model of a case, the same at every call."""
    from faap.detectors import FAMILIES

    torch.manual_seed(sorted(CONFIGS).index(case))
    family, config = CONFIGS[case]
    model = getattr(transformers, FAMILIES[family].model)(config())
    if case in ("deformable_detr_refined", "deformable_detr_two_stage", "d_fine"):
        # a new model of the library shares one head among the layers; trained ones have one each
        for name in ("class_embed", "bbox_embed"):
            heads = nn.ModuleList(copy.deepcopy(head) for head in getattr(model, name))
            setattr(model, name, heads)
            if getattr(model.model.decoder, name) is not None:
                setattr(model.model.decoder, name, heads)
    with torch.no_grad():
        for module in model.modules():
            if "BatchNorm" in type(module).__name__:
                module.running_mean.normal_(0, 0.5)
                module.running_var.uniform_(0.3, 3)
                module.weight.uniform_(0.5, 1.5)
                module.bias.normal_(0, 0.5)
            elif isinstance(module, nn.LayerNorm | nn.GroupNorm):
                module.weight.uniform_(0.5, 1.5)
                module.bias.normal_(0, 0.5)
            elif isinstance(module, nn.Linear | nn.Conv2d):
                module.weight.normal_(0, 1.4 / module.weight[0].numel() ** 0.5)
                if module.bias is not None:
                    module.bias.normal_(0, 0.2)
            elif isinstance(module, nn.Embedding):
                module.weight.normal_(0, 0.5)
        for name, parameter in model.named_parameters():
            if name.endswith(("_tokens", "token", "position_embeddings")):
                parameter.normal_()
    return model.eval()
