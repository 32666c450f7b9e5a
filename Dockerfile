# sppdet on a CPU.
#
#   docker build -t sppdet .
#   docker run --rm -v "$PWD:/data" sppdet detect model.sppdet holiday/ --out found
#   docker run --rm -p 8000:8000 -v "$PWD/model.sppdet:/model.sppdet:ro" \
#       sppdet serve /model.sppdet --host 0.0.0.0
FROM python:3.12-slim-bookworm

# what OpenCV links to
RUN apt-get update \
    && apt-get install -y --no-install-recommends libgl1 libglib2.0-0 \
    && rm -rf /var/lib/apt/lists/*

# torch first and without CUDA: the largest layer, which changes least
RUN pip install --no-cache-dir torch torchvision --index-url https://download.pytorch.org/whl/cpu

COPY pyproject.toml setup.py README.md LICENSE /src/
COPY sppdet /src/sppdet
COPY configs /src/configs
RUN pip install --no-cache-dir "/src[timm,onnx,serve]" && rm -rf /src

# compiled loops are kept where any user may write, so that `docker run --user "$(id -u)"` works;
# those of the search and of pooling are compiled now
ENV NUMBA_CACHE_DIR=/var/cache/numba MPLCONFIGDIR=/tmp/matplotlib
RUN useradd --create-home --uid 1000 sppdet \
    && mkdir --mode 777 /data "$NUMBA_CACHE_DIR" \
    && python -c 'import numpy, torch, sppdet; image = numpy.zeros((64, 80, 3), numpy.uint8); \
image[20:40, 20:60] = 200; sppdet.selective_search(image, min_size=8); \
sppdet.spp_windows(torch.rand(4, 9, 9), numpy.array([[0, 0, 8, 8]] * 40), [3, 1])' \
    && chmod -R a+rwX "$NUMBA_CACHE_DIR"
USER sppdet
WORKDIR /data
EXPOSE 8000
ENTRYPOINT ["sppdet"]
CMD ["--help"]
