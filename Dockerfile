# A server of the demo pair, see "A container" in docs/serving.md. `.ci/clean_root` runs these steps
# without Docker.
FROM debian:bookworm-slim
RUN apt-get update && \
  apt-get install --yes --no-install-recommends ca-certificates python3-venv && \
  rm -rf /var/lib/apt/lists/*
RUN python3 -m venv /venv
ENV PATH=/venv/bin:$PATH PYTHONUNBUFFERED=1 JAX_PLATFORMS=cpu
WORKDIR /app
COPY LICENSE README.md pyproject.toml ./
COPY pallas_kernels pallas_kernels
COPY interaction interaction
COPY experiments experiments
RUN pip install --no-cache-dir --disable-pip-version-check --editable '.[serve]'
# Sessions, and compiled programs in .cache, outlive the container.
RUN useradd --create-home --home-dir /data server
USER server
VOLUME /data
EXPOSE 8123
HEALTHCHECK --start-period=300s --interval=10s --timeout=5s \
  CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8123/healthz')"]
CMD ["python", "-m", "experiments.serve", "--host=0.0.0.0", "--tokens=/run/secrets/tokens", "--folder=/data/sessions", "--rows=4"]
