# The wallet and the few libraries that it is linked with: no shell, no package manager, no root.
FROM rust:1.94-slim-bookworm AS build
WORKDIR /build
COPY . .
RUN cargo build --release --locked
# What the program needs at run time, at the places where it looks for it. Providers' certificates are checked against
# authorities that are part of it.
RUN mkdir -p /image/usr/local/bin /image/etc /image/tmp /image/var/lib/token-wallet \
    && cp target/release/token-wallet /image/usr/local/bin/ \
    && ldd target/release/token-wallet | grep -o '/[^ ]*' | xargs cp --parents --dereference --target-directory /image \
    && echo 'hosts: files dns' >/image/etc/nsswitch.conf \
    && echo 'token-wallet:x:65532:65532::/var/lib/token-wallet:/nonexistent' >/image/etc/passwd \
    && chmod 1777 /image/tmp && chown 65532:65532 /image/var/lib/token-wallet && chmod 0700 /image/var/lib/token-wallet

FROM scratch
COPY --from=build /image/ /
USER 65532:65532
# The spool and, without PostgreSQL, the store: give it a volume.
WORKDIR /var/lib/token-wallet
VOLUME /var/lib/token-wallet
EXPOSE 50051 8080 9464
HEALTHCHECK --interval=5s --timeout=5s --start-period=60s CMD ["/usr/local/bin/token-wallet", "health"]
STOPSIGNAL SIGTERM
ENTRYPOINT ["/usr/local/bin/token-wallet"]
CMD ["serve"]
