# CPU image: the embedded prior, everything portable. Build: docker build --target cpu -t latentkiln .
# (It has not been built on the machines latentkiln is developed on; they have no container engine.)
FROM python:3.11-slim-bookworm AS build
RUN apt-get update \
    && apt-get install --yes --no-install-recommends gcc g++ \
    && rm -rf /var/lib/apt/lists/*
RUN python -m venv /opt/latentkiln
ENV PATH=/opt/latentkiln/bin:$PATH
# torch first and alone: the CPU build of PyTorch's own index.
RUN pip install --no-cache-dir torch==2.13.0 --index-url https://download.pytorch.org/whl/cpu
WORKDIR /src
COPY pyproject.toml README.md LICENSE ./
COPY pipeline ./pipeline
RUN pip install --no-cache-dir .

FROM python:3.11-slim-bookworm AS cpu
RUN useradd --create-home --uid 1000 kiln
COPY --from=build /opt/latentkiln /opt/latentkiln
ENV PATH=/opt/latentkiln/bin:$PATH \
    NUMBA_CACHE_DIR=/tmp/numba \
    PYTHONUNBUFFERED=1
USER kiln
WORKDIR /work
HEALTHCHECK --interval=5m --timeout=60s CMD ["latentkiln", "doctor"]
ENTRYPOINT ["latentkiln"]
CMD ["--help"]
