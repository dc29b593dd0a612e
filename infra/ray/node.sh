#!/bin/sh
# A worker node of a Ray cluster that leaves in an orderly way: before its Ray ends, the cluster is told
# that the node will be taken away. Trainings then save a checkpoint and go on elsewhere, no image is lost,
# and it counts as no failure.
#
#   node.sh ray start --block --address=HEAD:6379     starts a node; SIGTERM to this script takes it away
#   node.sh drain                                     takes away the node of this container (preStop)
#
# Only this script may get the SIGTERM, not Ray's processes beside it: `docker stop` does so, and systemd
# with KillMode=mixed. Whoever sends it waits longer than DRAIN_S: 120 s everywhere in infra/. The head is
# not drained: it ends all trainings when it goes.
set -eu

DRAIN_S=100 # for a checkpoint; what is left of 120 s is for Ray's own end

# The process of the raylet that process $1 has started, or of any raylet without $1. No `ps` in the image.
raylet() {
    for stat in /proc/[0-9]*/stat; do
        { read -r pid name _ parent _ <"$stat"; } 2>/dev/null || continue # it has ended meanwhile
        if [ "$name" = "(raylet)" ] && [ "${1:-$parent}" = "$parent" ]; then
            echo "$pid"
            return
        fi
    done
    return 1
}

# The value of option $2 in the command line of process $1.
option() {
    tr '\0' '\n' <"/proc/$1/cmdline" | sed -n "s/^--$2=//p"
}

# Announce by the program $1 that the node of raylet $2 goes, and wait until nobody uses it: then its
# raylet ends by itself.
drain() {
    left=$DRAIN_S
    timeout "$DRAIN_S" "$1" drain-node --address="$(option "$2" gcs-address)" \
        --node-id="$(option "$2" node_id)" --reason=DRAIN_NODE_REASON_PREEMPTION \
        --reason-message="the node was told to end" --deadline-remaining-seconds="$DRAIN_S" || return 0
    while [ -d "/proc/$2" ] && [ "$left" -gt 0 ]; do
        sleep 1
        left=$((left - 1))
    done
}

# End the node: what the SIGTERM of a started node does.
leave() {
    trap '' TERM
    if found=$(raylet "$ray"); then
        drain "$program" "$found"
    fi
    kill -TERM "$ray" 2>/dev/null || true
    wait "$ray" || true
    exit 0
}

if [ "$*" = drain ]; then
    found=$(raylet) || exit 0
    drain ray "$found"
    exit 0
fi

program=$1
"$@" &
ray=$!
trap leave TERM
wait "$ray"
