// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

// Asks the resolver of Go's standard library, without the C library's. Lines come and go as for resolve.c.
package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"slices"
	"strings"
)

func main() {
	in := bufio.NewScanner(os.Stdin)
	for in.Scan() {
		kind, name, _ := strings.Cut(in.Text(), " ")
		found, err := ask(kind, name)
		for i, f := range found {
			found[i] = strings.TrimSuffix(f, ".")
		}
		slices.Sort(found)
		var dnsErr *net.DNSError
		switch {
		case err == nil && len(found) > 0:
			fmt.Println(strings.Join(slices.Compact(found), " "))
		case err == nil || errors.As(err, &dnsErr) && dnsErr.IsNotFound:
			fmt.Println("none")
		default:
			fmt.Println("failed")
			fmt.Fprintf(os.Stderr, "%s %s: %v\n", kind, name, err)
		}
	}
}

func ask(kind, name string) (found []string, err error) {
	ctx, r := context.Background(), &net.Resolver{PreferGo: true}
	switch kind {
	case "host", "a", "aaaa":
		network := map[string]string{"host": "ip", "a": "ip4", "aaaa": "ip6"}[kind]
		addrs, err := r.LookupNetIP(ctx, network, name)
		for _, a := range addrs {
			found = append(found, a.Unmap().String())
		}
		return found, err
	case "srv":
		_, records, err := r.LookupSRV(ctx, "", "", name)
		for _, s := range records {
			found = append(found, fmt.Sprintf("%d,%d,%d,%s", s.Priority, s.Weight, s.Port, s.Target))
		}
		return found, err
	case "ptr":
		return r.LookupAddr(ctx, name)
	case "txt":
		return r.LookupTXT(ctx, name)
	}
	return nil, fmt.Errorf("kind %q", kind)
}
