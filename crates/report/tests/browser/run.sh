#!/usr/bin/env bash
# Opens pages in Chromium, from a file and without a network: nothing is fetched, nothing fails, every chart shows
# something, in light, dark and print, and harmful text stays text. Screenshots stay in the folder that is named last.
#
#     bash crates/report/tests/browser/run.sh [FOLDER]
#
# Wants Rust and Node 18 or later; Chromium (Debian's) is installed where it is missing, playwright-core into FOLDER.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
cd "$here/../../../.."
folder=${1:-${CARGO_TARGET_DIR:-target}/report-browser}
mkdir -p "$folder"
folder=$(cd "$folder" && pwd)

if ! command -v chromium >/dev/null; then
    root=()
    if [ "$(id -u)" != 0 ]; then root=(sudo); fi
    "${root[@]}" apt-get update -qq
    "${root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends chromium fonts-dejavu-core
fi
cp "$here/package.json" "$here/check.mjs" "$folder"
(cd "$folder" && PLAYWRIGHT_SKIP_BROWSER_DOWNLOAD=1 npm install --silent --no-audit --no-fund)

page() {
    cargo run --release --locked --quiet -p regard-report --example page -- "${@:2}" >"$folder/$1.html"
}
records=crates/report/tests/records
page sweep "$records/sweep.json"
page compare "$records/compare.json" "$records/run-exact.json" "$records/run-prune.json"
page real bench/records/2026-11-23-bench.json bench/records/2026-11-26-clustered.json bench/records/2026-11-26-nats.json
page hostile "$records/hostile.json"
cd "$folder"
CHROMIUM=$(command -v chromium) node check.mjs
