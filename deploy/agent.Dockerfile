# The agent of a GPU node: the driver's library comes from the host, through NVIDIA's container
# runtime. Build from the root of the checkout:
#   docker build -f deploy/agent.Dockerfile -t megawatch-agent .
FROM python:3.13.14-slim AS build
WORKDIR /src
COPY pyproject.toml constraints.txt README.md LICENSE megawatch.py ./
COPY agents agents
COPY pipeline pipeline
COPY dashboards dashboards
COPY alerts alerts
COPY deploy deploy
RUN python -m venv /opt/megawatch \
 && /opt/megawatch/bin/pip install --no-cache-dir -c constraints.txt '.[agent]' '.[kubernetes]'

FROM python:3.13.14-slim
RUN groupadd --gid 10001 megawatch \
 && useradd --uid 10001 --gid 10001 --home-dir /var/lib/megawatch --create-home megawatch
COPY --from=build /opt/megawatch /opt/megawatch
ENV PATH=/opt/megawatch/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=utility
USER 10001:10001
VOLUME /var/lib/megawatch
EXPOSE 9465
ENTRYPOINT ["megawatch"]
CMD ["agent"]
