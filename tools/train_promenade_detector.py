"""Train Promenade's two detectors: one with a planted bias against women, and its unbiased control.

Both are a small Conditional DETR (softmax with a no-object class) and share a first stage on full labels and scenes
without statues. In the second stage, which has statues and the same images in the same order for both, the biased arm's
annotator has left out each woman with a fixed probability; men are always labelled. Everything else is equal. Three
aids exist in training only: more groups of queries (Group DETR), a dense head on the encoder's tokens (as in FCOS), and
a gender head on decoder states and tokens, in both arms, so that a detector this small sees what people see at once.

    .venv/bin/python tools/train_promenade_detector.py --work promenade_training --out src/faap/promenade/assets

Run it again after an interruption and it continues from the last checkpoint of the work folder.
"""

import argparse
import json
import multiprocessing
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import ConditionalDetrConfig, ConditionalDetrForObjectDetection, ResNetConfig

from faap.data.images import MEAN, STD
from faap.detectors.set_loss import SOFTMAX, generalized_iou, match_layers, set_loss
from faap.promenade.people import GROUPS
from faap.promenade.scenes import HEIGHT, WIDTH, compose

SEED = 7  # of the detector's own training scenes; the benchmark's splits use another
MOST = 3  # people in a scene
STRIDE = 16
QUERIES = 16
QUERY_GROUPS = 4


@dataclass(frozen=True)
class Stage:
    """One stage: `images` in all, of `scenes` a group; `unlabelled` is the share of women the annotator left out."""

    name: str
    images: int
    scenes: int
    statues: bool
    learning_rate: float
    no_object_weight: float
    unlabelled: float
    seed: int
    start: str | None = None


def stages(args: argparse.Namespace) -> dict[str, Stage]:
    second = {
        "images": args.second,
        "scenes": args.scenes // 2,
        "statues": True,
        "learning_rate": 6e-4,
        "no_object_weight": 0.5,
        "seed": 2,
        "start": "shared",
    }
    return {
        "shared": Stage("shared", args.first, args.scenes, False, 8e-4, 0.2, 0.0, 1),
        "biased": Stage("biased", unlabelled=args.unlabelled, **second),
        "control": Stage("control", unlabelled=0.0, **second),
    }


# ---------------------------------------------------------------------------------------------------------- scenes


def _scene(job: tuple[int, str, bool]) -> tuple[np.ndarray, np.ndarray]:
    index, group, statues = job
    scene = compose(SEED, "train", index, group, statues=statues)
    boxes = np.full((MOST, 4), np.nan, np.float32)
    boxes[: len(scene.boxes)] = scene.boxes
    return scene.image, boxes


def load_scenes(work: Path, per_group: int, statues: bool) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Compose the training scenes once; return images (N, H, W, 3), boxes (N, 3, 4) xywh or NaN, female (N,)."""
    kind = f"{'statues' if statues else 'plain'}_{per_group}.npy"
    images_file, boxes_file = work / f"scenes_{kind}", work / f"boxes_{kind}"
    if not boxes_file.exists():
        images = np.lib.format.open_memmap(images_file, "w+", np.uint8, (2 * per_group, HEIGHT, WIDTH, 3))
        boxes = np.empty((2 * per_group, MOST, 4), np.float32)
        jobs = [(index, group, statues) for index in range(per_group) for group in GROUPS]
        with multiprocessing.get_context("spawn").Pool(2) as pool:
            for i, (image, found) in enumerate(pool.imap(_scene, jobs, chunksize=64)):
                images[i], boxes[i] = image, found
        images.flush()
        np.save(boxes_file, boxes)
    female = np.arange(2 * per_group) % 2 == 0
    return np.load(images_file, mmap_mode="r"), np.load(boxes_file), female


# ----------------------------------------------------------------------------------------------------------- model


def build_detector() -> ConditionalDetrForObjectDetection:
    backbone = ResNetConfig(
        embedding_size=24, hidden_sizes=[24, 48, 96], depths=[1, 2, 2], layer_type="basic", out_features=["stage3"]
    )
    config = ConditionalDetrConfig(
        use_timm_backbone=False,
        backbone_config=backbone,
        num_queries=QUERIES,
        d_model=96,
        encoder_layers=1,
        decoder_layers=3,
        encoder_ffn_dim=256,
        decoder_ffn_dim=256,
        encoder_attention_heads=8,
        decoder_attention_heads=8,
        dropout=0.0,
        attention_dropout=0.0,
        activation_dropout=0.0,
        auxiliary_loss=False,
        num_labels=2,
        id2label={0: "person", 1: "no object"},
        label2id={"person": 0, "no object": 1},
        faap_softmax=True,
    )
    return ConditionalDetrForObjectDetection(config)


def thaw(module: nn.Module) -> None:
    """Put real batch norm where the library froze it; state-dict keys stay the same."""
    for name, child in module.named_children():
        if type(child).__name__ == "ConditionalDetrFrozenBatchNorm2d":
            setattr(module, name, nn.BatchNorm2d(len(child.weight)))
        else:
            thaw(child)


def window_projections(width: int, heads: int) -> tuple[Tensor, Tensor]:
    """Projections of sine embeddings with which cross-attention begins as a window around the reference point.

    At this width a sine embedding tells places apart by its fastest few waves only, and random projections drown them:
    each head gets just those, some sharper than others. The queries' are turned by half a token, because the encoder
    numbers its tokens from their far edge.

    Returns:
        (D, D) weights for the keys' and for the queries' sine embeddings.
    """
    waves = width // heads // 4
    keys, queries = torch.zeros(width, width), torch.zeros(width, width)
    for head in range(heads):
        sharpness = 3.0 * 4.0 ** (head / (heads - 1))
        row = head * (width // heads)
        for axis, half_token in enumerate((0.5 * STRIDE / HEIGHT, 0.5 * STRIDE / WIDTH)):
            for wave in range(waves):
                column = axis * (width // 2) + 2 * wave
                turn = 2 * np.pi / 10000 ** (2 * wave / (width // 2)) * half_token
                sine, cosine = float(np.sin(turn)), float(np.cos(turn))
                keys[row : row + 2, column : column + 2] = torch.eye(2)
                queries[row : row + 2, column : column + 2] = sharpness * torch.tensor(
                    [[cosine, sine], [-sine, cosine]]
                )
                row += 2
    return keys, queries


class Trainable(nn.Module):
    """The detector and what exists in training only."""

    def __init__(self) -> None:
        super().__init__()
        self.detr = build_detector()
        thaw(self.detr)
        self.detr.requires_grad_(True)
        width = self.detr.config.d_model
        self.extra_queries = nn.Parameter(torch.randn((QUERY_GROUPS - 1) * QUERIES, width))
        self.dense = nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 5))
        self.gender_query = nn.Linear(width, 1)
        self.gender_token = nn.Linear(width, 1)
        self._initialise()

    @torch.no_grad()
    def _initialise(self) -> None:
        """Reference points on a grid, boxes of a person's shape, few objects: from here, small data suffices."""
        decoder = self.detr.model.decoder
        nn.init.normal_(self.detr.model.query_position_embeddings.weight)
        queries = torch.cat([self.detr.model.query_position_embeddings.weight, self.extra_queries])
        hidden = decoder.ref_point_head.layers[0](queries).relu()
        rows = torch.stack(torch.meshgrid(torch.arange(4), torch.arange(4), indexing="ij"), -1).reshape(-1, 2).flip(-1)
        grid = ((rows + 0.5) / 4).repeat(QUERY_GROUPS, 1)
        grid = (grid + 0.06 * torch.randn_like(grid)).clamp(0.03, 0.97)
        last = decoder.ref_point_head.layers[1]
        solution = torch.linalg.lstsq(torch.cat([hidden, torch.ones(len(hidden), 1)], 1), grid.logit()).solution
        last.weight.copy_(solution[:-1].T)
        last.bias.copy_(solution[-1])
        keys, queries_at = window_projections(self.detr.config.d_model, self.detr.config.decoder_attention_heads)
        for layer in decoder.layers:
            attention = layer.encoder_attn
            attention.k_pos_proj.weight.copy_(keys + 0.02 * torch.randn_like(keys))
            attention.q_pos_sine_proj.weight.copy_(queries_at + 0.02 * torch.randn_like(keys))
            if attention.q_pos_proj is not None:
                attention.q_pos_proj.weight.mul_(0.1)
        decoder.query_scale.layers[-1].weight.mul_(0.1)
        nn.init.ones_(decoder.query_scale.layers[-1].bias)
        box = self.detr.bbox_predictor.layers[-1]
        box.weight.mul_(0.1)
        box.bias.copy_(torch.tensor([0.0, 0.0, -1.5, 0.0]))
        self.detr.class_labels_classifier.bias.copy_(torch.tensor([0.0, 2.0]))
        self.dense[2].weight.mul_(0.1)
        self.dense[2].bias.copy_(torch.tensor([-3.0, 0.0, 0.0, 0.0, 0.0]))

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Returns logits (L, G·B, Q, 2), boxes (L, G·B, Q, 4), last states (G·B, Q, D), tokens (B, h·w, D)."""
        model = self.detr.model
        batch = len(pixels)
        features, mask = model.backbone(pixels, pixels.new_ones(batch, *pixels.shape[-2:]))[-1]
        tokens = model.input_projection(features)
        place = model.position_embedding(shape=tokens.shape, device=tokens.device, dtype=tokens.dtype, mask=mask)
        place = place.flatten(2).transpose(1, 2)
        memory = model.encoder(
            inputs_embeds=tokens.flatten(2).transpose(1, 2), attention_mask=None, spatial_position_embeddings=place
        ).last_hidden_state
        groups = QUERY_GROUPS if self.training else 1
        queries = torch.cat([model.query_position_embeddings.weight, self.extra_queries])[: groups * QUERIES]
        queries = queries.view(groups, 1, QUERIES, -1).expand(-1, batch, -1, -1).flatten(0, 1)
        decoded = model.decoder(
            inputs_embeds=torch.zeros_like(queries),
            spatial_position_embeddings=place.repeat(groups, 1, 1),
            object_queries_position_embeddings=queries,
            encoder_hidden_states=memory.repeat(groups, 1, 1),
            encoder_attention_mask=None,
            output_hidden_states=True,
        )
        *earlier, last = decoded.hidden_states[1:]
        states = torch.stack([*(model.decoder.layernorm(state) for state in earlier), last])
        boxes = self.detr.bbox_predictor(states)
        centres = decoded.reference_points.transpose(0, 1).logit(1e-5)
        boxes = torch.cat([boxes[..., :2] + centres, boxes[..., 2:]], -1).sigmoid()
        return self.detr.class_labels_classifier(states), boxes, last, memory


# ---------------------------------------------------------------------------------------------------------- losses


def dense_loss(raw: Tensor, targets: list[dict[str, Tensor]]) -> Tensor:
    """Focal and generalised IoU loss of the dense head: each token near a box's centre predicts that box."""
    rows, columns = HEIGHT // STRIDE, WIDTH // STRIDE
    y, x = torch.meshgrid(torch.arange(rows) + 0.5, torch.arange(columns) + 0.5, indexing="ij")
    at = torch.stack([x.reshape(-1) / columns, y.reshape(-1) / rows], -1)
    wanted = torch.zeros(raw.shape[:2])
    boxes = torch.full((*raw.shape[:2], 4), 0.5)
    reach = torch.tensor([1.0 / columns, 1.5 / rows])
    for i, target in enumerate(targets):
        order = target["boxes"][:, 2:].prod(-1).argsort(descending=True)
        for box in target["boxes"][order]:
            offset = (at - box[:2]).abs()
            near = (offset < reach).all(-1) & (offset < box[2:] / 2).all(-1)
            wanted[i, near], boxes[i, near] = 1.0, box
    count = wanted.sum().clamp(min=1)
    score = raw[..., 0]
    surprise = F.binary_cross_entropy_with_logits(score, wanted, reduction="none")
    focal = (0.25 * wanted + 0.75 * (1 - wanted)) * (score.sigmoid() - wanted).abs() ** 2 * surprise
    sides = F.softplus(raw[..., 1:]) * 0.25
    low, high = at - sides[..., :2], at + sides[..., 2:]
    predicted = torch.cat([(low + high) / 2, high - low], -1)
    chosen = wanted > 0
    return focal.sum() / count + (1 - generalized_iou(predicted[chosen], boxes[chosen])).sum() / count


def gender_loss(
    model: Trainable,
    logits: Tensor,
    boxes: Tensor,
    states: Tensor,
    tokens: Tensor,
    people: list[dict[str, Tensor]],
    female: Tensor,
) -> Tensor:
    """Cross-entropy of the gender heads on the query nearest each person, labelled or not, and tokens inside boxes."""
    groups = len(states) // len(people)
    matches = match_layers(logits[-1:], boxes[-1:], people * groups, SOFTMAX)[0]
    truth = female.repeat(groups)
    chosen = torch.cat([states[i, query] for i, (query, _) in enumerate(matches)])
    answer = torch.cat([truth[i].expand(len(query)) for i, (query, _) in enumerate(matches)])
    loss = F.binary_cross_entropy_with_logits(model.gender_query(chosen)[:, 0], answer)
    rows, columns = HEIGHT // STRIDE, WIDTH // STRIDE
    y, x = torch.meshgrid(torch.arange(rows) + 0.5, torch.arange(columns) + 0.5, indexing="ij")
    at = torch.stack([x.reshape(-1) / columns, y.reshape(-1) / rows], -1)
    inside = torch.stack(
        [((at[:, None] - p["boxes"][:, :2]).abs() < p["boxes"][:, 2:] / 2).all(-1).any(1) for p in people]
    )
    guess = model.gender_token(tokens)[..., 0][inside]
    return loss + F.binary_cross_entropy_with_logits(guess, female[:, None].expand_as(inside)[inside])


# -------------------------------------------------------------------------------------------------------- training


class Data:
    """Batches as a pure function of (stage seed, step)."""

    def __init__(self, work: Path, stage: Stage, batch: int) -> None:
        self.images, self.boxes, self.female = load_scenes(work, stage.scenes, stage.statues)
        self.luck = np.random.default_rng([SEED, 99]).random(self.boxes.shape[:2])  # fixed for each person
        self.batch = batch

    def __call__(
        self, stage: Stage, step: int
    ) -> tuple[Tensor, list[dict[str, Tensor]], list[dict[str, Tensor]], Tensor]:
        """Returns pixels, labelled people, all people, female (B,)."""
        per_epoch = len(self.images) // self.batch
        order = np.random.default_rng([SEED, stage.seed, step // per_epoch]).permutation(len(self.images))
        index = np.sort(order[step % per_epoch * self.batch :][: self.batch])
        rng = np.random.default_rng([SEED, stage.seed, 1, step])
        pixels = np.asarray(self.images[index], np.float32) / 255
        boxes = self.boxes[index].copy()
        flip = rng.random(self.batch) < 0.5
        pixels[flip] = pixels[flip, :, ::-1]
        boxes[flip, :, 0] = WIDTH - boxes[flip, :, 0] - boxes[flip, :, 2]
        pixels = np.clip(
            pixels * rng.uniform(0.8, 1.2, (self.batch, 1, 1, 1)) + rng.uniform(-0.05, 0.05, (self.batch, 1, 1, 3)),
            0,
            1,
        )
        tensor = torch.from_numpy(((pixels - np.array(MEAN)) / np.array(STD)).astype(np.float32)).permute(0, 3, 1, 2)
        female = self.female[index]
        labelled, people = [], []
        for i in range(self.batch):
            there = ~np.isnan(boxes[i, :, 0])
            kept = there & ~(female[i] & (self.luck[index[i]] < stage.unlabelled))
            for into, mask in ((people, there), (labelled, kept)):
                into.append(as_target(boxes[i, mask]))
        return tensor.contiguous(memory_format=torch.channels_last), labelled, people, torch.from_numpy(female).float()


def as_target(boxes: np.ndarray) -> dict[str, Tensor]:
    xywh = torch.from_numpy(boxes).float().reshape(-1, 4)
    cxcywh = torch.cat([xywh[:, :2] + xywh[:, 2:] / 2, xywh[:, 2:]], 1) / torch.tensor([WIDTH, HEIGHT, WIDTH, HEIGHT])
    return {"labels": torch.zeros(len(cxcywh), dtype=torch.long), "boxes": cxcywh}


def run_stage(stage: Stage, work: Path, batch: int, log: Callable[[str], None]) -> dict[str, Tensor]:
    """Train one stage, continuing where it stopped; returns the averaged weights of all of `Trainable`."""
    finished, unfinished = work / f"{stage.name}.pt", work / f"{stage.name}.partial.pt"
    if finished.exists():
        return dict(torch.load(finished, weights_only=True))
    data = Data(work, stage, batch)
    torch.manual_seed(stage.seed)
    model = Trainable()
    if stage.start:
        model.load_state_dict(torch.load(work / f"{stage.start}.pt", weights_only=True))
    model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    model.train()
    steps = stage.images // data.batch
    optimizer = torch.optim.AdamW(model.parameters(), lr=stage.learning_rate, weight_decay=1e-4)
    average = {k: v.clone() for k, v in model.state_dict().items()}
    first = 0
    if unfinished.exists():
        state = torch.load(unfinished, weights_only=True)
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        average, first = state["average"], state["step"]
    started, seen = time.time(), first
    sums = np.zeros(3)
    for step in range(first, steps):
        pixels, labelled, people, female = data(stage, step)
        warm = min(1.0, (step + 1) / 300)
        for group in optimizer.param_groups:
            group["lr"] = float(stage.learning_rate * warm * 0.5 * (1 + np.cos(np.pi * step / steps)))
        logits, boxes, states, tokens = model(pixels)
        targets = labelled * QUERY_GROUPS
        matches = match_layers(logits, boxes, targets, SOFTMAX)
        detection = set_loss(logits, boxes, targets, matches, replace(SOFTMAX, no_object_weight=stage.no_object_weight))
        dense = dense_loss(model.dense(tokens), labelled)
        gender = gender_loss(model, logits.detach(), boxes.detach(), states, tokens, people, female)
        loss = detection + 2.0 * dense + gender
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        with torch.no_grad():
            decay = min(0.998, (1 + step) / (10 + step))
            for key, value in model.state_dict().items():
                if value.is_floating_point():
                    average[key].lerp_(value, 1 - decay)
                else:
                    average[key].copy_(value)
        sums += [float(detection.detach()), float(dense.detach()), float(gender.detach())]
        if (step + 1) % 100 == 0 or step + 1 == steps:
            rate = (step + 1 - seen) * data.batch / (time.time() - started)
            d, c, g = sums / (step + 1 - seen)
            log(
                f"{stage.name} {(step + 1) * data.batch}/{stage.images} detection {d:.3f} dense {c:.3f} "
                f"gender {g:.3f} {rate:.0f} images/s"
            )
            started, seen, sums = time.time(), step + 1, np.zeros(3)
        if (step + 1) % 300 == 0:
            save(
                {
                    "model": model.state_dict(),
                    "optimizer": optimizer.state_dict(),
                    "average": average,
                    "step": step + 1,
                },
                unfinished,
            )
    save(average, finished)
    unfinished.unlink(missing_ok=True)
    return average


def save(what: Any, path: Path) -> None:
    temporary = path.with_suffix(".tmp")
    torch.save(what, temporary)
    os.replace(temporary, path)


def export(weights: dict[str, Tensor], directory: Path) -> None:
    """Write the detector alone, in half precision, as a directory of `transformers`."""
    directory.mkdir(parents=True, exist_ok=True)
    model = build_detector()
    mine = {k.removeprefix("detr."): v for k, v in weights.items() if k.startswith("detr.")}
    model.load_state_dict({k: v for k, v in mine.items() if not k.endswith("num_batches_tracked")})
    model.config.save_pretrained(directory)
    half = {k: v.half().contiguous() for k, v in model.state_dict().items()}
    save_file(half, directory / "model.safetensors", metadata={"format": "pt"})
    preprocessing = {"do_resize": False, "do_normalize": True, "do_rescale": True, "image_mean": MEAN, "image_std": STD}
    (directory / "preprocessor_config.json").write_text(json.dumps(preprocessing, indent=2) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="folder for scenes and checkpoints")
    parser.add_argument(
        "--out", type=Path, required=True, help="folder that gets detector_biased/ and detector_control/"
    )
    parser.add_argument("--arms", nargs="+", default=["biased", "control"], choices=["biased", "control"])
    parser.add_argument(
        "--scenes", type=int, default=24_000, help="scenes a group in the first stage; the second has half"
    )
    parser.add_argument("--first", type=int, default=96_000, help="images in the shared stage")
    parser.add_argument("--second", type=int, default=40_000, help="images in the second stage")
    parser.add_argument(
        "--unlabelled", type=float, default=0.95, help="share of women without a label in the biased arm"
    )
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    args.work.mkdir(parents=True, exist_ok=True)
    table = stages(args)

    def log(line: str) -> None:
        print(time.strftime("%H:%M:%S"), line, flush=True)

    for name in dict.fromkeys(["shared", *args.arms]):
        weights = run_stage(table[name], args.work, args.batch, log)
        if name != "shared":
            export(weights, args.out / f"detector_{name}")


if __name__ == "__main__":
    main()
