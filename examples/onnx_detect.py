"""Detect by files of `sppdet export`, without sppdet and torch: FOLDER IMAGE [PROPOSALS.npz]."""

import json
import sys
from pathlib import Path

import cv2
import numpy as np
import onnxruntime


def maxima(m, n):  # of n parts along the first axis, which may share cells
    return [m[i * len(m) // n : -(-(i + 1) * len(m) // n)].max(axis=0) for i in range(n)]


_, files, photo, *stored = sys.argv if len(sys.argv) > 2 else sys.exit(__doc__)
d, image = json.loads(Path(files, "detector.json").read_bytes()), cv2.imread(photo)
size = sys.exit(f"{photo}: can't be read") if image is None else image.shape[1::-1]
layers, head = (onnxruntime.InferenceSession(Path(files, n + ".onnx")) for n in ("layers", "head"))
if stored:  # a file of `sppdet propose --out`
    boxes = np.load(stored[0])["boxes"]
else:
    search = cv2.ximgproc.segmentation.createSelectiveSearchSegmentation()
    by = min(500 / size[0], 2000 / size[1])
    search.setBaseImage(cv2.resize(image, None, fx=by, fy=by))
    search.switchToSelectiveSearchFast()
    x, y, w, h = search.process()[: d["max_boxes"]].T / by
    boxes = np.stack([x, y, x + w, y + h], axis=1).astype(np.float32)
stride, offset, b = d["stride"], d["offset"], boxes.astype(float) if len(boxes) else sys.exit()
factors = [min(s / min(size), d["max_side"] / max(size)) for s in d["scales"]]
rects, maps, bins = np.hstack([b[:, :2], b[:, 2:] - b[:, :2]]), [], []
for factor in factors:  # a feature map (rows, columns, channels) of the image at each scale
    kind = cv2.INTER_AREA if factor < 1 else getattr(cv2, d["enlarging"])
    x = cv2.resize(image[:, :, ::-1].copy(), None, fx=factor, fy=factor, interpolation=kind)
    down, right = (max(d["min_side"] - s, -s % d["multiple"]) for s in x.shape[:2])
    x = cv2.copyMakeBorder(x.astype(np.float32), 0, down, 0, right, 0, value=d["mean"])
    maps.append(layers.run(None, {"image": x})[0].astype(np.float16).astype(np.float32))
far = abs(rects[:, 2:].prod(axis=1) * np.square([factors]).T / d["canonical_size"] ** 2 - 1)
scale = (far <= far.min(axis=0) + 1e-9).argmax(axis=0)  # the one nearest to the canonical size
f = np.array(factors)[scale][:, None]
near = np.rint((b * f - offset) / stride)  # a cell's centre on the edge of a box is outside
on_edge = ((near * stride + offset) / f).astype(np.float32) == boxes
cells = np.where(on_edge, near, (b * f - offset) / stride)
low, high = np.floor(cells[:, :2]).astype(int) + 1, np.ceil(cells[:, 2:]).astype(int) - 1
last = np.array([m.shape[1::-1] for m in maps])[scale] - 1
windows = np.clip(np.where(low > high, (low + high) // 2, [low, high]), 0, last)
distinct, row = np.unique(np.column_stack([scale, *windows]), axis=0, return_inverse=True)
for s, left, top, right, bottom in distinct:  # spatial pyramid of each window of cells
    m = maps[s][top : bottom + 1, left : right + 1]
    bins.append(np.hstack([b for n in d["spp_levels"] for a in maxima(m, n) for b in maxima(a, n)]))
scores, deltas, *iou = head.run(None, {"pooled": np.stack(bins)})
for estimate in iou:  # of a window with an object; only the best ones count
    scores[np.argsort(-estimate, kind="stable")[d["max_windows"] :]] = -np.inf
for k, (name, least) in enumerate(zip(d["class_names"], d["thresholds"], strict=True)):
    for i in cv2.dnn.NMSBoxes(rects, scores[row, k] - least, 0, d["nms"])[: d["max_per_class"]]:
        centre = b[i, :2] + rects[i, 2:] * (0.5 + deltas[row[i], k, :2])
        half = rects[i, 2:] * np.exp(np.clip(deltas[row[i], k, 2:], -6.907755, 6.907755)) / 2
        box = np.clip([centre - half, centre + half], 0, size)
        box = box.ravel().tolist() if (box[1] > box[0]).all() else b[i].tolist()
        print(json.dumps({"class": name, "score": float(scores[row[i], k]), "box": box}))
