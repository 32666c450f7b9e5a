"""Readers and writers of pictures and annotations: VOC, COCO, plain folders."""
