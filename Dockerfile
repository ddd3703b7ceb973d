# The suite with Verrou: `make docker` builds it, scripts/in_container.sh runs a command in it.
#   verrou    Valgrind with the tool Verrou, built from its publishers' sources (verrou/versions says which)
#   packages  the suite with its locked environment and compiled kernels
#   runtime   both, and nothing that only building needs: runs as any user, read-only, without a network
#   test      runtime, the tests and what they need: `make docker-test`
ARG BASE=debian:bookworm-slim

FROM ${BASE} AS base

FROM base AS verrou
SHELL ["/bin/bash", "-euo", "pipefail", "-c"]
# Debian keeps one version of a package, so naming versions here would break the next build.
# hadolint ignore=DL3008
RUN apt-get update \
 && apt-get install -y --no-install-recommends automake build-essential ca-certificates git python3 \
 && rm -rf /var/lib/apt/lists/*
# current, or the pair that the study ran: study
ARG VERROU=current
COPY verrou/versions /versions
WORKDIR /source
# A tag can be moved; the commit id that is asked for here cannot.
RUN . "/versions/$VERROU.env" \
 && git clone --quiet --depth 1 --branch "$VALGRIND_TAG" "$VALGRIND_REPOSITORY" . \
 && git clone --quiet --depth 1 --branch "$VERROU_REF" "$VERROU_REPOSITORY" verrou
RUN . "/versions/$VERROU.env" \
 && test "$(git rev-parse HEAD)" = "$VALGRIND_COMMIT" \
 && test "$(git -C verrou rev-parse HEAD)" = "$VERROU_COMMIT" \
 && git diff --quiet HEAD && git -C verrou diff --quiet HEAD
# Interlibmath 2.6 and 2.7 define sincosf by sin and cos of a float, which gcc turns into a call of sincosf: an endless
# recursion in whatever calls it (TensorFlow does). sinf and cosf, which are Interlibmath's own, it leaves alone.
RUN cat verrou/valgrind*diff | patch -p1 \
 && sed -i '/^void sincosf(/,/^}/{s/=sin(x)/=sinf(x)/;s/=cos(x)/=cosf(x)/}' verrou/Interlibmath/interlibmath.cxx \
 && ./autogen.sh \
 && ./configure --enable-only64bit --prefix=/opt/verrou \
 && make -j "$(nproc)" && make install \
 && if [ ! -e verrou/libVerrouTask ]; then \
      make -C verrou/Interlibmath && install verrou/Interlibmath/interlibmath.so /opt/verrou/lib/; fi
COPY verrou/markers.c .
RUN cc -shared -fPIC -O1 -I /opt/verrou/include -o /opt/verrou/lib/morphbits-markers.so markers.c \
 && rm -rf /opt/verrou/share /opt/verrou/lib/pkgconfig \
 && find /opt/verrou -name '*.a' -delete \
 && find /opt/verrou/libexec -name '*-amd64-linux' ! -name '*verrou*' ! -name 'none-*' -delete

FROM base AS packages
# hadolint ignore=DL3008
RUN apt-get update \
 && apt-get install -y --no-install-recommends ca-certificates gcc git libc6-dev python3 python3-venv \
 && rm -rf /var/lib/apt/lists/*
WORKDIR /opt/morphbits
COPY python/requirements.lock python/torch.lock python/
COPY scripts/setup.sh scripts/
# What compiles the kernels, and nothing else: a change elsewhere installs no package again. A test runs this step on
# these files alone (tests/container/test_dockerfile.py).
COPY python/morphbits/__init__.py python/morphbits/errors.py python/morphbits/files.py python/morphbits/machine.py \
     python/morphbits/
COPY python/morphbits/engines/native/kernels/build.py python/morphbits/engines/native/kernels/
COPY python/morphbits/engines/native/kernels/csrc python/morphbits/engines/native/kernels/csrc
RUN scripts/setup.sh && rm -f .cache/setup.log
# The image is read-only, so what is not compiled now is compiled at every start, at Valgrind's speed. Some packages hold
# templates that are no Python: compileall says so by its status.
RUN .venv/bin/python -m compileall -q -j 0 .venv/lib/python3*/site-packages || true
COPY scripts scripts
COPY verrou verrou
COPY python python
RUN .venv/bin/python -m compileall -q python/morphbits

FROM base AS runtime
# libc6-dbg: Valgrind looks up what it replaces by symbols that the stripped library lacks
# hadolint ignore=DL3008
RUN apt-get update \
 && apt-get install -y --no-install-recommends libc6-dbg libgomp1 libquadmath0 python3 \
 && rm -rf /var/lib/apt/lists/*
COPY --from=verrou /opt/verrou /opt/verrou
COPY --from=packages /opt/morphbits /opt/morphbits
WORKDIR /opt/morphbits
ENV PATH=/opt/morphbits/.venv/bin:/opt/verrou/bin:/usr/local/bin:/usr/bin:/bin \
    PYTHONPATH=/opt/morphbits/python VERROU_PREFIX=/opt/verrou \
    HOME=/tmp USER=morphbits PYTHONDONTWRITEBYTECODE=1
ARG VERSION=unknown
ARG REVISION=unknown
ENV MORPHBITS_REVISION=${REVISION}
LABEL org.opencontainers.image.title="morphbits" \
      org.opencontainers.image.description="How many bits of SynthMorph's output are significant: with Verrou" \
      org.opencontainers.image.licenses="MIT AND GPL-2.0-or-later AND GPL-3.0-or-later" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"
USER 1000:1000
CMD ["python", "-m", "morphbits", "verrou-sanity"]

FROM runtime AS test
USER 0
# hadolint ignore=DL3008
RUN apt-get update \
 && apt-get install -y --no-install-recommends gcc git libc6-dev make \
 && rm -rf /var/lib/apt/lists/*
COPY tests tests
COPY notes notes
COPY Makefile Dockerfile .dockerignore ./
ENV HYPOTHESIS_STORAGE_DIRECTORY=/tmp/hypothesis
USER 1000:1000
WORKDIR /opt/morphbits/python
# twice, as `make test` does: TensorFlow and torch's compiler share no process. pytest ends with 5 where it selects nothing.
CMD ["bash", "-c", "for marks in 'not slow and not network and not tensorflow' 'not slow and not network and tensorflow'; do python -m pytest -c pyproject.toml -q -p no:cacheprovider -m \"$marks\" ../tests/engines ../tests/samples ../tests/studies ../tests/container || [ $? = 5 ] || exit 1; done"]
