#!/bin/sh
# Copyright The Fairlead Authors
# SPDX-License-Identifier: Apache-2.0

# Fails when a Go file is not formatted, or when generated code differs from
# what its generator makes now.
set -eu

generated() { git ls-files | grep -E '(^|/)zz_generated' || true; }

bad=$(gofmt -l $(git ls-files '*.go' | while read -r f; do [ ! -f "$f" ] || echo "$f"; done))
if [ -n "$bad" ]; then
	echo "check: not formatted (make fmt):" >&2
	echo "$bad" >&2
	exit 1
fi

[ -n "$(generated)" ] || exit 0
old=$(mktemp -d)
trap 'rm -rf "$old"' EXIT
generated | tar -cf - -T - | tar -xf - -C "$old"
go generate ./...
status=0
for f in $(generated); do
	cmp -s "$f" "$old/$f" || { echo "check: $f is not what its generator makes; run make generate and commit" >&2; status=1; }
done
exit $status
