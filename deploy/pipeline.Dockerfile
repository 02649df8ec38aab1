# Everything but the driver: the pipeline, the schema, the operator's commands, the simulator.
# Build from the root of the checkout:
#   docker build -f deploy/pipeline.Dockerfile -t megawatch .
FROM python:3.13.14-slim AS build
WORKDIR /src
COPY pyproject.toml constraints.txt README.md LICENSE megawatch.py ./
COPY agents agents
COPY pipeline pipeline
COPY dashboards dashboards
COPY alerts alerts
COPY deploy deploy
RUN python -m venv /opt/megawatch \
 && /opt/megawatch/bin/pip install --no-cache-dir -c constraints.txt '.[pipeline]'

FROM python:3.13.14-slim
RUN groupadd --gid 10001 megawatch \
 && useradd --uid 10001 --gid 10001 --home-dir /var/lib/megawatch --create-home megawatch
COPY --from=build /opt/megawatch /opt/megawatch
ENV PATH=/opt/megawatch/bin:$PATH \
    PYTHONUNBUFFERED=1
USER 10001:10001
WORKDIR /var/lib/megawatch
VOLUME /var/lib/megawatch
EXPOSE 9466
ENTRYPOINT ["megawatch"]
CMD ["pipeline"]
