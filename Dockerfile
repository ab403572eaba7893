# Two images. None has been built on the machines latentkiln is developed on: they have no container engine.
#
#   docker build --target cpu -t latentkiln:cpu .                       the embedded prior, everything portable
#   docker build --target cuda -t latentkiln:cuda .                     Stable Diffusion on NVIDIA GPUs
#   docker build --target cuda --build-arg WITH_NVDIFFRAST=yes ...      with nvdiffrast: research and evaluation only;
#       its licence forbids commercial use, and the image built with it must not be passed on without that licence.
#
# torch 2.9.1 has wheels for both CUDA versions named here; the tests run with the newer release that the Makefile names.
#
# ARCHITECTURES names what tiny-cuda-nn and nvdiffrast are compiled for, by compute capability: A100 80, A10 and
# RTX 30 86, L4/L40 and RTX 40 89, H100 and H200 90. V100 (70) needs the last CUDA that knows it:
#       --build-arg CUDA_VERSION=12.6.3 --build-arg TORCH_INDEX=cu126 --build-arg ARCHITECTURES=70
ARG CUDA_VERSION=12.8.1
ARG UBUNTU=24.04
ARG PYTHON_IMAGE=python:3.12.11-slim-bookworm

# ---------------------------------------------------------------- cuda: compile, then keep what runs
FROM nvidia/cuda:${CUDA_VERSION}-devel-ubuntu${UBUNTU} AS cuda-build
ARG TORCH_VERSION=2.9.1
ARG TORCH_INDEX=cu128
ARG ARCHITECTURES="80 86 89 90"
ARG WITH_NVDIFFRAST=no
ARG TINYCUDANN=6ee3546bda615f51abe684ce9edefeb414689135
ARG NVDIFFRAST=v0.4.0
SHELL ["/bin/bash", "-o", "pipefail", "-c"]
# Ubuntu keeps one version of a package at a time: pinning it would only break the build.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends ca-certificates g++ git python3.12-dev python3.12-venv \
    && rm -rf /var/lib/apt/lists/*
RUN python3.12 -m venv /opt/latentkiln
ENV PATH=/opt/latentkiln/bin:$PATH
# torch first and alone, so that nothing else chooses its build. setuptools below 81: tiny-cuda-nn imports pkg_resources.
RUN pip install --no-cache-dir torch==${TORCH_VERSION} --index-url https://download.pytorch.org/whl/${TORCH_INDEX} \
    && pip install --no-cache-dir setuptools==80.9.0 wheel==0.45.1 ninja==1.13.0
# The link asks for libcuda, which only the machine that runs the image has: the toolkit brings a stub of it.
ENV LIBRARY_PATH=/usr/local/cuda/lib64/stubs
RUN TCNN_CUDA_ARCHITECTURES="$(printf '%s' "${ARCHITECTURES}" | tr ' ' ',')" pip install --no-cache-dir --no-build-isolation --no-deps \
        "git+https://github.com/NVlabs/tiny-cuda-nn@${TINYCUDANN}#subdirectory=bindings/torch"
RUN if [ "${WITH_NVDIFFRAST}" = yes ]; then \
        TORCH_CUDA_ARCH_LIST="$(printf '%s' "${ARCHITECTURES}" | sed -E 's/([0-9]+)([0-9])/\1.\2/g; s/ /;/g')" \
        pip install --no-cache-dir --no-build-isolation --no-deps \
            "git+https://github.com/NVlabs/nvdiffrast@${NVDIFFRAST}"; \
    fi
WORKDIR /src
COPY pyproject.toml README.md LICENSE ./
COPY pipeline ./pipeline
# The package itself, from this folder; its dependencies are bounded in pyproject.toml.
# hadolint ignore=DL3013
RUN pip install --no-cache-dir '.[gpu,s3,cluster]' \
    && pip uninstall --yes ninja wheel

# The base image holds CUDA's runtime and the driver's hooks; torch's wheels bring all they need.
FROM nvidia/cuda:${CUDA_VERSION}-base-ubuntu${UBUNTU} AS cuda
# libgomp: numba's threads. wget: KubeRay before 1.6 asks with it whether a pod lives.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends python3.12 libgomp1 wget \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --create-home --uid 10001 kiln \
    && install --directory --owner=10001 /work /home/kiln/.cache
COPY --from=cuda-build /opt/latentkiln /opt/latentkiln
# tiny-cuda-nn is linked against NVRTC, which lies among torch's libraries. The other two places are the base image's own:
# there some clusters mount the driver.
ENV PATH=/opt/latentkiln/bin:$PATH \
    LD_LIBRARY_PATH=/opt/latentkiln/lib/python3.12/site-packages/nvidia/cuda_nvrtc/lib:/usr/local/nvidia/lib:/usr/local/nvidia/lib64 \
    NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility \
    PYTHONUNBUFFERED=1
USER 10001
WORKDIR /work
HEALTHCHECK --interval=5m --timeout=60s --start-period=30s CMD ["latentkiln", "doctor"]
ENTRYPOINT ["latentkiln"]
CMD ["--help"]

# ---------------------------------------------------------------- cpu: the embedded prior, everything portable
FROM ${PYTHON_IMAGE} AS cpu-build
ARG TORCH_VERSION=2.9.1
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends gcc g++ \
    && rm -rf /var/lib/apt/lists/*
RUN python -m venv /opt/latentkiln
ENV PATH=/opt/latentkiln/bin:$PATH
RUN pip install --no-cache-dir torch==${TORCH_VERSION} --index-url https://download.pytorch.org/whl/cpu
WORKDIR /src
COPY pyproject.toml README.md LICENSE ./
COPY pipeline ./pipeline
# hadolint ignore=DL3013
RUN pip install --no-cache-dir '.[s3,cluster]'

FROM ${PYTHON_IMAGE} AS cpu
# As above.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends libgomp1 wget \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --create-home --uid 10001 kiln \
    && install --directory --owner=10001 /work /home/kiln/.cache
COPY --from=cpu-build /opt/latentkiln /opt/latentkiln
ENV PATH=/opt/latentkiln/bin:$PATH \
    PYTHONUNBUFFERED=1
USER 10001
WORKDIR /work
HEALTHCHECK --interval=5m --timeout=60s --start-period=30s CMD ["latentkiln", "doctor"]
ENTRYPOINT ["latentkiln"]
CMD ["--help"]
