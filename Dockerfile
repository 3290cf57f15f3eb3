# The sensor's image: one static binary, the policies that come with it, and the well-known certificate authorities.
#
#   docker build -t pathwatch .                                  compiles in a container, in about 10 minutes
#   make image                                                   packs a binary that is there, without a Docker engine
ARG FILES=compiled
ARG BUILDER=docker.io/library/rust:1.95.0-bookworm

FROM ${BUILDER} AS compiled
WORKDIR /src
COPY . .
RUN make release && \
    mkdir -p /out && cp target/*-unknown-linux-gnu/release/pathwatch /out/ && strip /out/pathwatch && \
    cp /etc/ssl/certs/ca-certificates.crt /out/ && e2e/sbom.py Cargo.toml Cargo.lock >/out/sbom.cdx.json && \
    e2e/notices.py >/out/THIRD-PARTY.txt

FROM scratch AS prebuilt
COPY target/image/pathwatch target/image/ca-certificates.crt target/image/sbom.cdx.json target/image/THIRD-PARTY.txt /out/

FROM ${FILES} AS files

FROM scratch
ARG VERSION=0.1.0
ARG REVISION=unknown
LABEL org.opencontainers.image.title="pathwatch" \
      org.opencontainers.image.description="Watches file opens on Kubernetes nodes by policy, and ships alerts to Kafka" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"
COPY --from=files /out/pathwatch /pathwatch
COPY --from=files /out/ca-certificates.crt /etc/ssl/certs/ca-certificates.crt
COPY --from=files /out/sbom.cdx.json /out/THIRD-PARTY.txt /
COPY policies /policies
# Root, with the capabilities that the chart leaves it; the controller runs as another user.
USER 0:0
ENTRYPOINT ["/pathwatch"]
CMD ["run"]
