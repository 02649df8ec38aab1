#!/bin/sh
# Print random secrets for compose.yaml: deploy/compose/secrets.sh > deploy/.env
set -eu
umask 077
for name in CLICKHOUSE_PASSWORD CLICKHOUSE_READER_PASSWORD METRICS_TOKEN GRAFANA_PASSWORD; do
  printf '%s=%s\n' "$name" "$(od -An -N16 -tx1 /dev/urandom | tr -d ' \n')"
done
