# syntax=docker/dockerfile:1
# The REST API, the migrations and the command line: everything that runs without a tensor library.
#
#   docker build -f docker/api.Dockerfile -t amalgam-api .
#   docker run --rm amalgam-api config

FROM python:3.11-slim-bookworm AS build
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1
RUN python -m venv /opt/amalgam
WORKDIR /source
COPY . .
RUN /opt/amalgam/bin/pip install --constraint constraints.txt ".[api]"

FROM python:3.11-slim-bookworm
# The numeric user lets Kubernetes verify that the container is not root.
RUN groupadd --gid 10001 amalgam \
    && useradd --uid 10001 --gid amalgam --no-create-home --home-dir /var/lib/amalgam amalgam \
    && install --directory --owner amalgam --group amalgam /var/lib/amalgam
COPY --from=build /opt/amalgam /opt/amalgam
ENV PATH=/opt/amalgam/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    AMALGAM_HOME=/var/lib/amalgam \
    AMALGAM_LOG_FORMAT=json
USER 10001:10001
WORKDIR /var/lib/amalgam
EXPOSE 8000
HEALTHCHECK --interval=10s --timeout=3s --start-period=20s --retries=3 \
    CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8000/healthz', timeout=2)"]
ENTRYPOINT ["amalgam"]
CMD ["api", "--host", "0.0.0.0", "--port", "8000"]
