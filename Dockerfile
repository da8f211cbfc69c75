# The API (and `optipfair-service migrate`): no torch, no model. Serves whatever workers report.
FROM python:3.11.14-slim-bookworm AS build
WORKDIR /src
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY api api
COPY jobs jobs
COPY migrations migrations
COPY optipfair_engine optipfair_engine
COPY service service
COPY worker worker
RUN python -m venv /venv \
 && /venv/bin/pip install --no-cache-dir -c constraints.txt '.[api]'

FROM python:3.11.14-slim-bookworm
RUN useradd --uid 10001 --create-home optipfair && install -d -o optipfair /data
COPY --from=build /venv /venv
ENV PATH=/venv/bin:$PATH PYTHONUNBUFFERED=1 OPTIPFAIR_DATA_DIR=/data OPTIPFAIR_HOST=0.0.0.0 OPTIPFAIR_PORT=8000
# By number, so that Kubernetes sees that it is not root.
USER 10001
VOLUME /data
EXPOSE 8000
HEALTHCHECK --interval=10s --timeout=3s --start-period=20s \
  CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8000/livez', timeout=2)"]
CMD ["optipfair-service", "api"]
