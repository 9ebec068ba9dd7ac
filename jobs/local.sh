#!/usr/bin/env bash
# A search on this machine as a job of a Ray that stays, so that others can run beside it: jobs/local.sh my.yaml results/my
# Needs the extra `cluster` (pip install 'cabs-search[cluster]').
set -euo pipefail

spec=${1:-quickstart}
output=$(realpath -m "${2:-results/$(basename "$spec" .yaml)}")
url=http://127.0.0.1:8265

# With token authentication; without it anyone who reaches the dashboard's port can run code here.
export RAY_AUTH_MODE=token
ray get-auth-token --generate >/dev/null
ray status >/dev/null 2>&1 \
  || ray start --head --node-ip-address=127.0.0.1 --dashboard-host=127.0.0.1 --disable-usage-stats

# Every folder is one that all nodes have, as there is one node. --follow prints the log until the job ends.
cabs-search submit "$spec" --address "$url" --output "$output" --shared / --follow
cabs-search status "$output"
# ray stop    # when all is done
