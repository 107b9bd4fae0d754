# The web page on a CPU, as a user without a home:
#
#     docker build --tag dsolo .
#     docker run --rm --read-only --tmpfs /tmp --publish 127.0.0.1:7860:7860 dsolo
#
# It starts with the preset "miniature", which needs no network. Another one downloads its weights to
# /cache: ... --volume dsolo:/cache --publish 127.0.0.1:7860:7860 dsolo --preset=appearance_b16
FROM python:3.12-slim AS build
WORKDIR /source
COPY pyproject.toml README.md LICENSE ./
COPY dsolo_jax dsolo_jax
RUN pip wheel --no-cache-dir --no-deps --wheel-dir=/wheels .

FROM python:3.12-slim
COPY --from=build /wheels /wheels
RUN pip install --no-cache-dir "$(echo /wheels/dsolo_jax-*.whl)[web]"
# Weights, compiled programs and text embeddings: all that is ever written but for /tmp.
RUN mkdir /cache && chown 65534:65534 /cache
VOLUME /cache
ENV DSOLO_CACHE=/cache/dsolo HF_HOME=/cache/huggingface MPLCONFIGDIR=/cache/matplotlib
USER 65534:65534
WORKDIR /tmp
EXPOSE 7860
# In a container all interfaces are listened at; --publish says who outside may come.
ENTRYPOINT ["dsolo", "web", "--host=0.0.0.0", "--port=7860"]
CMD ["--preset=miniature"]
HEALTHCHECK --start-period=60s --interval=30s --timeout=10s \
    CMD ["python", "-c", "import urllib.request as u; u.urlopen('http://127.0.0.1:7860/', timeout=5)"]
