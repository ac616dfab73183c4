# The images of ray_job.yaml and ray_job_cpu.yaml: IntentRec with Ray and the CUDA or CPU builds of torch and fbgemm, the
# same on head and workers.
#
#   docker build --tag ghcr.io/intentrec/intentrec:0.1.0 .
#   docker build --tag ghcr.io/intentrec/intentrec:0.1.0-cpu --build-arg ACCELERATOR=cpu .
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
ARG ACCELERATOR=cuda
COPY pyproject.toml ./
COPY requirements/ requirements/
RUN pip install --no-cache-dir uv \
    && if [ "$ACCELERATOR" = cpu ]; then \
         export UV_INDEX=https://download.pytorch.org/whl/cpu UV_INDEX_STRATEGY=unsafe-best-match; \
       fi \
    && uv pip install --system --no-cache --compile-bytecode --overrides requirements/overrides-$ACCELERATOR.txt \
       --constraints requirements/$ACCELERATOR.txt --requirements pyproject.toml --extra $ACCELERATOR

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
