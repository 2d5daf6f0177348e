// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

// Package bpf has the programs that run in the kernel: their C, what the compiler makes of it, and what all who load them need.
//
//	program       where                                               maps                                      from Linux
//	from_pod      TCX ingress of the node's end of pods' veth pairs   ranges, pods, established, forwarded      6.6
//	                                                                  and answers, askers, slots, counts, drafts
//	from_node     TCX ingress of links to other nodes and the tunnel  ranges, pods, established, forwarded      6.6
//	connect4      connect() in the machine's first cgroup             namespaces, services, endpoints,          5.14
//	connect6                                                          translations, translated
//	getpeername4  getpeername() there                                 translations                              5.14
//	getpeername6
//
// The objects are committed, so that nobody needs a compiler to build Fairlead. They are made by clang 14 from the sources beside them and no header of the
// system; make generate makes them again, and make check fails if that changes them.
package bpf

import (
	"bytes"
	_ "embed"
	"fmt"

	"github.com/cilium/ebpf"
)

//go:generate clang -O2 -g -target bpfel -mcpu=v3 -Wall -Wextra -Werror -fdebug-compilation-dir=. -c forward.c -o zz_generated.forward.o
//go:embed zz_generated.forward.o
var forward []byte

//go:generate clang -O2 -g -target bpfel -mcpu=v3 -Wall -Wextra -Werror -fdebug-compilation-dir=. -c connect.c -o zz_generated.connect.o
//go:embed zz_generated.connect.o
var connect []byte

// Forward is forward.c: the programs and their maps, to be loaded.
func Forward() (*ebpf.CollectionSpec, error) { return read(forward) }

// Connect is connect.c.
func Connect() (*ebpf.CollectionSpec, error) { return read(connect) }

func read(object []byte) (*ebpf.CollectionSpec, error) {
	spec, err := ebpf.LoadCollectionSpecFromReader(bytes.NewReader(object))
	if err != nil {
		return nil, fmt.Errorf("read eBPF object: %w", err)
	}
	return spec, nil
}
