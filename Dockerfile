# syntax=docker/dockerfile:1
# The balancer as a small image: no build tools, no root, nothing to write. See docs/operations.md. With
# `--target gpu` the same with Ollama in it, for one GPU box. See docs/deploy.md.

ARG OLLAMA_VERSION=0.33.0

FROM ollama/ollama:${OLLAMA_VERSION} AS ollama

FROM python:3.11-slim-bookworm AS build
COPY requirements.lock /tmp/requirements.lock
RUN python -m venv /opt/balancer \
 && /opt/balancer/bin/pip install --no-cache-dir --require-hashes -r /tmp/requirements.lock \
 && /opt/balancer/bin/pip uninstall -y setuptools pip
COPY balancer /opt/balancer/lib/python3.11/site-packages/balancer
COPY LICENSE /opt/balancer/LICENSE
# A start script instead of a wheel: building one would download tools that are not locked.
RUN printf '%s\n' '#!/opt/balancer/bin/python -P' 'from balancer.cli import main' 'main()' \
      > /opt/balancer/bin/balancer \
 && chmod 755 /opt/balancer/bin/balancer \
 && /opt/balancer/bin/python -m compileall -q /opt/balancer/lib

FROM python:3.11-slim-bookworm AS alone
LABEL org.opencontainers.image.title="Ollama Balancer" \
      org.opencontainers.image.licenses="Apache-2.0"
COPY --from=build /opt/balancer /opt/balancer
ENV PATH=/opt/balancer/bin:$PATH \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1
WORKDIR /
USER 65532:65532
EXPOSE 11400
HEALTHCHECK --interval=10s --timeout=5s --start-period=10s --retries=3 \
  CMD ["/opt/balancer/bin/python", "-c", "import http.client as h, sys; c = h.HTTPConnection('127.0.0.1', 11400, timeout=3); c.request('GET', '/livez'); sys.exit(c.getresponse().status != 200)"]
ENTRYPOINT ["balancer"]
# A container has to listen beyond its own loopback, and there are no keys: whoever reaches the
# published port can use the models. The admin listener stays on the container's loopback.
CMD ["serve", "--listen", "0.0.0.0:11400", "--allow-anonymous"]

FROM alone AS gpu
USER 0:0
RUN apt-get update -q \
 && apt-get install -qy --no-install-recommends ca-certificates libgomp1 \
 && rm -rf /var/lib/apt/lists/* \
 && install -d -o 65532 -g 65532 -m 700 /data
COPY --from=ollama /usr/bin/ollama /usr/bin/ollama
COPY --from=ollama /usr/lib/ollama /usr/lib/ollama
# The driver's libraries are put into the container where it is started: CUDA and NVML, nothing else.
ENV NVIDIA_DRIVER_CAPABILITIES=compute,utility \
    NVIDIA_VISIBLE_DEVICES=all \
    HOME=/data \
    XDG_STATE_HOME=/data/state \
    OLLAMA_HOST=127.0.0.1:11400
USER 65532:65532
VOLUME /data

# The default.
FROM alone
