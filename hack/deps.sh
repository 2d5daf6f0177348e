#!/bin/sh
# Copyright The Fairlead Authors
# SPDX-License-Identifier: Apache-2.0

# Installs what the demo and the tests call and this machine lacks. Fairlead
# itself needs none of it: it speaks to the kernel directly. With bench-dns,
# also what make bench-dns measures beside it. No server is started by it.
set -eu

command -v go >/dev/null || { echo "deps: Go is missing; see https://go.dev/doc/install (version: go.mod)" >&2; exit 1; }

missing=""
need() { command -v "$1" >/dev/null || missing="$missing $2"; }
need nft nftables
need ip iproute2
need dig dnsutils
need conntrack conntrack
need iptables-save iptables
need curl curl
need getent libc-bin
need git git
need gcc gcc
need clang clang
need musl-gcc musl-tools
need node nodejs
need containerd containerd
need runc runc
need mount mount
need strace strace
need iperf3 iperf3
[ -e /usr/include/resolv.h ] || missing="$missing libc6-dev"
[ -e /usr/lib/cni/bridge ] || missing="$missing containernetworking-plugins"
if [ "${1-}" = bench-dns ]; then
	PATH=$PATH:/usr/sbin
	need dnsperf dnsperf
	need gdnsd gdnsd
	need knotd knot
	need nsd nsd
	need unbound unbound
fi
[ -n "$missing" ] || exit 0

if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then
	echo "deps: missing:$missing; install them (as root), then try again" >&2
	exit 1
fi
echo "deps: installing$missing"
export DEBIAN_FRONTEND=noninteractive
apt-get update -q >/dev/null
# A package's server is not to be started by its installation, nor by the next boot.
policy=/usr/sbin/policy-rc.d
if [ ! -e $policy ]; then
	trap 'rm -f $policy' EXIT
	printf '#!/bin/sh\nexit 101\n' >$policy
	chmod +x $policy
fi
# shellcheck disable=SC2086 # a list of words is meant
apt-get install -q -y --no-install-recommends $missing >/dev/null
for server in containerd gdnsd iperf3 knot nsd unbound; do
	case " $missing " in *" $server "*)
		! command -v systemctl >/dev/null || systemctl disable --quiet "$server" || true ;;
	esac
done
