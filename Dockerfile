# CPU target. Build: docker build -t nano-llm-engine .
# One image, three roles: the server (default), `manage.py run_engines`, `manage.py migrate`.

FROM python:3.11-slim-bookworm AS build
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1
RUN python -m venv /opt/venv
ENV PATH=/opt/venv/bin:$PATH
WORKDIR /build
COPY requirements/torch.txt requirements/base.txt requirements/engine.txt requirements/
# An index of CPU builds can be given with --build-arg PIP_EXTRA_INDEX_URL=…
ARG PIP_EXTRA_INDEX_URL
RUN pip install --no-deps -r requirements/torch.txt \
    && pip install --no-deps --require-hashes -r requirements/base.txt -r requirements/engine.txt \
    && { python -c 'import torch' || pip install -r requirements/torch.txt; }

# The whole image of Python, not the slim one, has a compiler.
FROM python:3.11-bookworm AS kernels
WORKDIR /build
COPY engine_service/__init__.py engine_service/
COPY engine_service/kernels engine_service/kernels
RUN python -m engine_service.kernels.cpu.build

FROM python:3.11-slim-bookworm
RUN useradd --system --uid 10001 --home-dir /var/lib/nano-llm --create-home nano-llm
COPY --from=build /opt/venv /opt/venv
WORKDIR /app
COPY manage.py ./
COPY platform ./platform
COPY apps ./apps
COPY engine_service ./engine_service
COPY --from=kernels /build/engine_service/kernels/cpu/_build ./engine_service/kernels/cpu/_build
COPY templates ./templates
COPY static ./static
ENV PATH=/opt/venv/bin:$PATH \
    PYTHONPATH=/app:/app/platform \
    PYTHONUNBUFFERED=1 \
    DJANGO_SETTINGS_MODULE=config.settings.production \
    STATIC_ROOT=/app/staticfiles \
    VAR=/var/lib/nano-llm
# Production settings want a key and hosts before they load anything; these reach no running server.
RUN SECRET_KEY=only-while-collecting-static-files-0123456789-abcdefghijk \
    ALLOWED_HOSTS=build.invalid ALLOW_SQLITE=1 ALLOW_LOCAL_CACHE=1 \
    python manage.py collectstatic --noinput \
    && python -m compileall -q apps platform engine_service
USER 10001
VOLUME /var/lib/nano-llm
EXPOSE 8000
HEALTHCHECK --interval=10s --timeout=5s --start-period=30s \
    CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8000/healthz', timeout=4)"]
CMD ["python", "-m", "config.server", "--host", "0.0.0.0", "--port", "8000"]
