#!/bin/sh
# Print the commands that let each part do what it needs on a cluster with an authorizer, and no more:
#
#   deploy/kafka/acls.sh | sh                       after reading them
#
# KAFKA_ACLS: the tool with its connection (kafka-acls.sh --bootstrap-server localhost:9092
# --command-config admin.properties). PREFIX and GROUP: as [kafka] topic_prefix and group.
set -eu

: "${KAFKA_ACLS:=kafka-acls.sh --bootstrap-server localhost:9092 --command-config admin.properties}"
: "${PREFIX:=megawatch.}" "${GROUP:=megawatch}"
: "${AGENT:=User:megawatch-agent}" "${FEED:=User:megawatch-feed}" "${PIPELINE:=User:megawatch-pipeline}"

allow() { # allow PRINCIPAL OPERATION TOPIC...
  principal=$1 operation=$2
  shift 2
  for topic in "$@"; do
    echo "$KAFKA_ACLS --add --allow-principal '$principal'" \
      "--operation $operation --topic '$PREFIX$topic'"
  done
}

# Nodes write what they measure. What tenants are billed by, they do not: a node that fell into
# wrong hands cannot say who held which GPU.
allow "$AGENT" Write samples backfill inventory events

# Unless nodes are the only ones who know what runs on them: pods of a kubelet ([kubernetes]), jobs of
# a prolog ([slurm] on nodes). Leases still decide the tenant wherever there is one.
[ "${NODES_ALLOCATE:-no}" = no ] || allow "$AGENT" Write allocations

# Leases, schedulers and the site's own power meters.
allow "$FEED" Write allocations meters

allow "$PIPELINE" Read samples backfill inventory allocations meters events
allow "$PIPELINE" Write deadletters
echo "$KAFKA_ACLS --add --allow-principal '$PIPELINE' --operation Read --group '$GROUP'"
