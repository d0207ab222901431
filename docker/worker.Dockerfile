# syntax=docker/dockerfile:1
# The worker: runs the merges, fine-tunings and evaluations.
#
#   docker build -f docker/worker.Dockerfile -t amalgam-worker .
#
# For NVIDIA GPUs take torch's CUDA wheels (they bring the CUDA libraries along; the host needs the driver and the NVIDIA
# container toolkit), and give the container its GPUs (docker run --gpus all, or `deploy.resources` in docker-compose.yml):
#
#   docker build -f docker/worker.Dockerfile --build-arg TORCH_INDEX_URL=https://download.pytorch.org/whl/cu130 \
#     -t amalgam-worker:cuda .

FROM python:3.11-slim-bookworm AS build
ARG TORCH_INDEX_URL=https://download.pytorch.org/whl/cpu
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1
RUN python -m venv /opt/amalgam
# torch in a layer of its own: it is most of the image and changes seldom.
# hadolint ignore=DL3059
RUN /opt/amalgam/bin/pip install --index-url "${TORCH_INDEX_URL}" torch==2.13.0
WORKDIR /source
COPY . .
RUN /opt/amalgam/bin/pip install --constraint constraints.txt ".[worker,parquet]"

FROM python:3.11-slim-bookworm
RUN groupadd --gid 10001 amalgam \
    && useradd --uid 10001 --gid amalgam --no-create-home --home-dir /var/lib/amalgam amalgam \
    && install --directory --owner amalgam --group amalgam /var/lib/amalgam
COPY --from=build /opt/amalgam /opt/amalgam
COPY docker/worker_health.py /opt/amalgam/
ENV PATH=/opt/amalgam/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    AMALGAM_HOME=/var/lib/amalgam \
    AMALGAM_LOG_FORMAT=json
USER 10001:10001
WORKDIR /var/lib/amalgam
HEALTHCHECK --interval=30s --timeout=10s --start-period=30s --retries=3 \
    CMD ["python", "/opt/amalgam/worker_health.py"]
ENTRYPOINT ["amalgam"]
CMD ["worker"]
