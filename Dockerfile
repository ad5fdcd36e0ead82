ARG BASE_IMAGE=docker.io/library/debian:bookworm-slim

FROM ${BASE_IMAGE} AS build
# cpu or gpu: which TensorFlow (extras of setup.cfg)
ARG TENSORFLOW=cpu
RUN apt-get update \
    && apt-get install -y --no-install-recommends python3 python3-venv \
    && rm -rf /var/lib/apt/lists/*
RUN python3 -m venv /opt/epvs && /opt/epvs/bin/pip install --no-cache-dir --upgrade pip
WORKDIR /src
# dependencies first: they change less often than the code
COPY setup.cfg pyproject.toml ./
RUN touch README.md LICENSE NOTICE && mkdir bids_epvs && echo '__version__ = "0"' > bids_epvs/__init__.py \
    && /opt/epvs/bin/pip install --no-cache-dir ".[${TENSORFLOW},dask]" \
    && /opt/epvs/bin/pip uninstall -y bids_epvs && rm -rf bids_epvs build *.egg-info
COPY README.md LICENSE NOTICE ./
COPY bids_epvs bids_epvs
# compiled here, because the root file system is read-only when it runs
RUN /opt/epvs/bin/pip install --no-cache-dir --no-deps . \
    && /opt/epvs/bin/python -m compileall -q /opt/epvs/lib || true

FROM ${BASE_IMAGE}
ARG VERSION=0.1.0
ARG REVISION=unknown
LABEL org.opencontainers.image.title="bids_epvs" \
      org.opencontainers.image.description="Enlarged perivascular spaces on brain MRI: a BIDS-App. For research use." \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}" \
      org.bids.app="true"
RUN apt-get update \
    && apt-get install -y --no-install-recommends python3 libgomp1 \
    && rm -rf /var/lib/apt/lists/*
COPY --from=build /opt/epvs /opt/epvs
ENV PATH=/opt/epvs/bin:$PATH \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    LC_ALL=C.UTF-8 \
    MPLCONFIGDIR=/tmp/matplotlib \
    KERAS_BACKEND=tensorflow \
    KERAS_HOME=/tmp/keras \
    TF_CPP_MIN_LOG_LEVEL=2
ENTRYPOINT ["bids_epvs"]
