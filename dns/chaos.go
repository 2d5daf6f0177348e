// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package dns

import "strings"

// chaos answers a TXT question of class CHAOS about the server itself: which software it is (version.bind and, by its newer name, version.server) and on which
// node it runs (id.server of RFC 4892, and hostname.bind), because every node has its own and which one answered is
// the first thing to know. name is fully qualified, in any case; ok is false for every other name, which has no such answer.
func chaos(name, version, node string) (txt string, ok bool) {
	switch strings.ToLower(name) {
	case "version.bind.", "version.server.":
		txt = strings.TrimSpace("fairlead " + version)
	case "id.server.", "hostname.bind.":
		txt = node
	}
	// One character string of a TXT record holds this much.
	return txt[:min(len(txt), 255)], txt != ""
}
