# The image of ray_job.yaml: IntentRec with Ray and the CUDA builds of torch and fbgemm, the same on head and workers.
#
#   docker build --tag ghcr.io/intentrec/intentrec:0.1.0 .
#
# The CUDA libraries come with torch's wheels and the driver from the node (NVIDIA container toolkit), so a slim
# Python is base enough.
FROM python:3.11-slim-bookworm

# wget: KubeRay's health probes call it. gcc: Triton compiles a launcher for each kernel.
RUN apt-get update \
    && apt-get install --yes --no-install-recommends ca-certificates gcc libc6-dev wget \
    && rm -rf /var/lib/apt/lists/*

WORKDIR /app

# Dependencies first: this layer is built again only when they change. Compiled here, because the user can not write there:
# without, every process takes ten seconds longer to import torch and TorchRec.
COPY pyproject.toml ./
COPY requirements/ requirements/
RUN pip install --no-cache-dir uv \
    && uv pip install --system --no-cache --compile-bytecode --overrides requirements/overrides-cuda.txt \
       --constraints requirements/cuda.txt --requirements pyproject.toml --extra cuda

COPY README.md ./
COPY ingest/ ingest/
COPY embeddings/ embeddings/
COPY trainer/ trainer/
COPY evaluation/ evaluation/
COPY cluster/ cluster/
COPY configs/ configs/
RUN uv pip install --system --no-cache --compile-bytecode --no-deps . \
    && useradd --create-home --uid 1000 ray \
    && chown ray /app

ENV NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility \
    PYTHONUNBUFFERED=1 \
    RAY_USAGE_STATS_ENABLED=0

USER 1000

CMD ["intentrec", "--help"]
