#!/bin/sh
# Copyright The Fairlead Authors
# SPDX-License-Identifier: Apache-2.0

# demo.sh up     starts a 3-node cluster, deploys the shop, follows one request;
#                then waits for Ctrl-C at a terminal, and removes everything
# demo.sh down   removes everything that up left
#
# STATE is the state directory. One that was there before is kept, one that the
# demo made is removed.
set -eu

cd "$(dirname "$0")/.."
STATE=${STATE:-/var/lib/fairlead}
MINE=$STATE/.demo
export KUBECONFIG="$STATE/kubeconfig"

say() { printf '\n\033[1m%s\033[0m\n' "$*"; }
kubectl() { bin/fairlead-server kubectl "$@"; }
pods() { kubectl -n shop get pods -l "$1" -o jsonpath='{range .items[*]}{.metadata.name} {.spec.nodeName}{"\n"}{end}'; }

down() {
	[ -e "$STATE" ] || return 0
	if [ -e "$MINE" ]; then
		bin/fairlead down --state "$STATE" --purge
	else
		bin/fairlead down --state "$STATE"
	fi
}

if [ "${1:-up}" = down ]; then
	down
	exit
fi

# Whatever happens from here on, nothing is left behind.
finish() {
	code=$?
	trap - EXIT INT TERM
	[ $code = 0 ] || say "demo: failed (exit code $code); removing what was started"
	down || code=1
	exit $code
}
trap finish EXIT
trap 'exit 0' INT TERM

[ "$(id -u)" = 0 ] || { echo "demo: needs root, to make network namespaces; try: sudo make demo" >&2; trap - EXIT; exit 1; }
begin=$(date +%s.%N)
new=yes
[ ! -e "$STATE" ] || new=no
say "A cluster of three nodes on this machine"
bin/fairlead up --nodes 3 --state "$STATE" --detach
[ $new = no ] || touch "$MINE"

say "The shop: front asks orders (v1 and v2), orders asks catalog"
kubectl apply -f examples/shop
for d in catalog orders-v1 orders-v2 front ticker client; do
	kubectl -n shop rollout status deployment "$d" --timeout=60s
done

client=$(pods app=client | awk '$2 == "n1" { print $1; exit }')
[ -n "$client" ] || { echo "demo: no client pod on n1" >&2; exit 1; }
say "One request by name, from pod $client on node n1: http://front/"
bin/fairlead exec --state "$STATE" "shop/$client" -- shop get http://front/
end=$(date +%s.%N)
awk -v a="$begin" -v b="$end" 'BEGIN { printf "%.1f seconds from nothing to this answer\n", b - a }'

say "200 requests to http://orders/, a new connection each: who answered"
many=$(bin/fairlead exec --state "$STATE" "shop/$client" -- shop get -n 200 -c 4 --fresh-conn http://orders/)
echo "$many"
case $many in *'"n2":'* | *'"n3":'*) ;; *) echo "demo: no pod on another node answered" >&2; exit 1 ;; esac
kubectl -n shop get pods -o wide

say "The way one of them takes"
bin/fairlead explain --state "$STATE" "shop/$client" orders:80 --probe

flag=""
[ "$STATE" = /var/lib/fairlead ] || flag=" --state $STATE"
if [ -t 0 ] && [ -t 1 ]; then
	say "It runs. In another terminal:"
	cat <<-END
	  export KUBECONFIG=$KUBECONFIG
	  bin/fairlead-server kubectl -n shop get svc,endpointslices,pods -o wide
	  bin/fairlead exec$flag shop/$client -- shop get http://orders/
	  bin/fairlead explain$flag shop/$client ticker:7000/udp
	  bin/fairlead status$flag
	  bin/fairlead-server kubectl -n shop scale deployment orders-v2 --replicas 3
	Ctrl-C here, or make demo-down, removes everything.
	END
	while [ -S "$STATE/run/cluster.sock" ]; do sleep 1; done
else
	say "No terminal: removing everything"
fi
