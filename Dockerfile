# One image for nodes (`serve`) and the operator (`operator`).
#
#   docker build -t contextstore .
#
# The wheel is built in BUILDER, which needs a Rust toolchain; or with WHEEL=given the one in dist/ (`make wheel`) is taken.
ARG BASE=docker.io/library/python:3.11-slim-bookworm
ARG BUILDER=docker.io/library/rust:1-slim-bookworm

FROM ${BUILDER} AS wheel
ARG WHEEL=built
WORKDIR /src
COPY . .
RUN mkdir -p /wheels \
 && if [ "$WHEEL" = given ]; then cp dist/*.whl /wheels/; else \
      apt-get update && apt-get install -y --no-install-recommends python3-dev python3-venv python3-pip \
      && python3 -m venv /build && /build/bin/pip install --no-cache-dir --require-hashes -r requirements-dev.lock \
      && /build/bin/pip wheel --no-deps --no-build-isolation --wheel-dir /wheels .; \
    fi

FROM ${BASE}
ARG VERSION=dev
LABEL org.opencontainers.image.title="Context Store" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.licenses="Apache-2.0"
# A numeric user with an entry in /etc/passwd: Kubernetes checks the number (runAsNonRoot), kopf asks for the name.
RUN useradd --uid 10001 --user-group --no-create-home --home-dir /tmp --shell /usr/sbin/nologin contextstore \
 && install -d -o 10001 -g 10001 /var/lib/contextstore
COPY requirements-operator.lock /tmp/
RUN pip install --no-cache-dir --no-compile --require-hashes -r /tmp/requirements-operator.lock && rm /tmp/requirements-operator.lock
COPY --from=wheel /wheels /tmp/wheels
RUN pip install --no-cache-dir --no-deps /tmp/wheels/*.whl && rm -rf /tmp/wheels && contextstore --version
USER 10001:10001
ENV PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1
EXPOSE 4000 4001
VOLUME /var/lib/contextstore
ENTRYPOINT ["contextstore"]
CMD ["serve"]
