# The command line and the page.  docker build -t ttf .      docker run --rm -p 7860:7860 ttf app host=0.0.0.0
# With CUDA:  docker build --build-arg BASE=nvidia/cuda:12.8.1-runtime-ubuntu24.04 -t ttf:cuda .   (docker run --gpus all)
# Data:       docker run --rm -v /data/imagenet:/data/imagenet ttf eval model=deit_s ratio=0.7 paths.imagenet=/data/imagenet
ARG BASE=python:3.11-slim-bookworm
FROM ${BASE}

# a compiler for the CPU operators, git for the commit that rows name
RUN apt-get update \
    && apt-get install --yes --no-install-recommends g++ git make python3 python3-venv \
    && rm -rf /var/lib/apt/lists/*

# PIP_ARGS: an index with torch for the CPU alone makes the image some gigabytes smaller
ARG PIP_ARGS=""
ARG EXTRAS=hf,app,onnx
WORKDIR /ttf
COPY pyproject.toml hatch_build.py hubconf.py README.md LICENSE ./
COPY ttf ttf
COPY configs configs
COPY scripts scripts
COPY results/rows results/rows
RUN python3 -m venv /opt/ttf \
    && /opt/ttf/bin/pip install --no-cache-dir ${PIP_ARGS} -e ".[${EXTRAS}]" \
    && useradd --create-home ttf \
    && chown -R ttf:ttf /ttf

USER ttf
ENV PATH=/opt/ttf/bin:$PATH
RUN python -m ttf.ops.native
EXPOSE 7860
ENTRYPOINT ["ttf"]
CMD ["--help"]
