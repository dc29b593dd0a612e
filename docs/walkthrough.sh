#!/usr/bin/env bash
# The walk of docs/walkthrough.md, from an empty folder to an empty machine: every command of the three
# people, on a training that is too short to draw letters, and with a check of what each answers.
# It ends at the first answer that is not as expected, with status 1, and ends what it started.
#
#   docs/walkthrough.sh            in a temporary folder, which is deleted
#   docs/walkthrough.sh FOLDER     in this new folder, which stays
set -euo pipefail

project=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
export PATH="$project/.venv/bin:$PATH"
unset PREFECT_API_URL PREFECT_API_AUTH_STRING MLFLOW_TRACKING_URI RAY_ADDRESS RAY_API_SERVER_ADDRESS \
    RAY_AUTH_TOKEN
answer=$(mktemp)
if [ $# -gt 0 ]; then
    mkdir -p "$(dirname "$1")"
    mkdir "$1"
    folder=$1
else
    folder=$(mktemp -d)
fi
server=

end() {
    status=$?
    trap - EXIT
    set +e
    [ -z "$server" ] || kill "$server"
    gan-train down --force
    cd /
    rm -f "$answer"
    [ $# -gt 0 ] || rm -rf "$folder"
    exit "$status"
}
trap 'end "$@"' EXIT
trap 'exit 130' INT TERM

# expect STATUS PHRASE COMMAND...: the command ends with this status, and its answer has the phrase.
expect() {
    local wanted=$1 phrase=$2 status=0
    shift 2
    printf '\n$ %s\n' "$*"
    "$@" >"$answer" 2>&1 || status=$?
    cat "$answer"
    if [ "$status" -ne "$wanted" ] || ! grep -qF -e "$phrase" "$answer"; then
        printf '\nwalkthrough: status %s instead of %s, or no "%s"\n' "$status" "$wanted" "$phrase" >&2
        exit 1
    fi
}

# await PHRASE COMMAND...: asks again until the answer has the phrase, for five minutes at most.
await() {
    local phrase=$1
    shift
    printf '\n$ %s    # until: %s\n' "$*" "$phrase"
    for _ in $(seq 150); do
        "$@" >"$answer" 2>&1 || true
        if grep -qF -e "$phrase" "$answer"; then
            cat "$answer"
            return
        fi
        sleep 2
    done
    cat "$answer"
    printf '\nwalkthrough: no "%s" within five minutes\n' "$phrase" >&2
    exit 1
}

# picture URL FILE: the URL answers a PNG.
picture() {
    printf '\n$ curl %s --output %s\n' "$1" "$2"
    curl --fail --silent --show-error "$1" --output "$2"
    head -c 8 "$2" | grep -q PNG
}

cd "$folder"
# the demo at 4 and 8 pixels, without its long schedule: some seconds of training
short=(
    --set 'family.stable_kimg={4: 1, 8: 2}' --set family.fade_kimg=1 --set family.milestones_from=4
    --set data.resolution=8 --set 'family.channels={4: 32, 8: 16}'
    --set evaluate.images=200 --set 'evaluate.metrics=[frechet]'
)
settings=()
for word in "${short[@]}"; do
    [ "$word" = --set ] || settings+=("\"$word\"")
done
form="{\"recipe\": \"demo\", \"seed\": 1, \"settings\": [$(IFS=,; echo "${settings[*]}")]}"

# ---- all three: servers and a first run --------------------------------------------------------

expect 3 "start it with" gan-train status
expect 0 "log in with" gan-train up --cpus 2
expect 0 "healthy" gan-train status
expect 0 "stylegan2-glyphs" gan-train recipes
expect 0 "champion" gan-train run demo "${short[@]}"
expect 0 "finished" gan-train runs
expect 0 "champion" gan-train versions demo

# ---- who schedules flows -----------------------------------------------------------------------

# shellcheck source=/dev/null
. runs/stack/env.sh
expect 0 "on-demand/on-demand" \
    prefect --no-prompt deploy --prefect-file "$project/infra/prefect/prefect.yaml" --all
expect 0 "Completed" prefect deployment run on-demand/on-demand --param "training=$form" --watch
python3 -m zipfile -e "$project/sample_data/glyphs.zip" .
mkdir letters
cp -r glyphs/A glyphs/B letters
nightly=(--set name=letters --set data.source=letters "${short[@]}")
expect 0 "champion" gan-train nightly demo "${nightly[@]}"
expect 0 "nothing new" gan-train nightly demo "${nightly[@]}"

# ---- who submits to a Ray cluster --------------------------------------------------------------

longer=("${short[@]}" --set 'family.stable_kimg={4: 1, 8: 500}' --set train.checkpoint_kimg=2)
expect 0 "submitted long" gan-train submit demo --id long --detach "${longer[@]}"
expect 0 "long" gan-train jobs
await "kimg" gan-train logs long
expect 0 "go on later" gan-train stop long
run=$(sed -n 's/.*--resume \([^ ,]*\).*/\1/p' "$answer" | tail -n 1)
expect 0 "succeeded" gan-train submit demo --id rest --resume "$run" "${longer[@]}" \
    --set 'family.stable_kimg={4: 1, 8: 20}' --set 'train.allow_changed=[family.stable_kimg.8]'
expect 0 "rest is succeeded" gan-train attach rest

# ---- who browses the registry and wants pictures -----------------------------------------------

expect 0 "a.png" gan-train generate demo --seeds 0-7 --class A --out a.png "${short[@]}"
gan-train serve demo --port 0 "${short[@]}" >served 2>&1 &
server=$!
await "http://" cat served
gallery=$(grep -o 'http://[^ ]*' served | head -n 1)
await "{" curl --silent "${gallery%/}/health"
picture "${gallery%/}/image.png?seed=3&class=A" served.png
kill "$server"
wait "$server" || true
server=

expect 0 "ending ray" gan-train down
expect 3 "start it with" gan-train status
printf '\nwalkthrough: all as expected\n'
