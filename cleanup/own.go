// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package cleanup

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/google/nftables"

	"github.com/fairlead/fairlead/nft"
	"github.com/fairlead/fairlead/nodenet"
)

// agentHere reports whether an agent lives in this namespace, whatever its socket is: it is seen by the table that its DNS sockets need
// and that the kernel removes with it.
func agentHere() (bool, error) {
	tables, err := listTables(nftables.TableFamilyINet)
	for _, t := range tables {
		if isDNSTable(t) && isOwned(t) {
			return true, err
		}
	}
	return false, err
}

func isDNSTable(t *nftables.Table) bool { return strings.HasPrefix(t.Name, nft.DNSTables) }

// isOwned reports whether the process that made the table lives. The netlink library gives the flags in the byte order of the network,
// whatever the machine's is; no other flag has the bit that this is in the other order.
func isOwned(t *nftables.Table) bool { return t.Flags&(nft.TableOwner|nft.TableOwner<<24) != 0 }

func listTables(family nftables.TableFamily) ([]*nftables.Table, error) {
	c, err := nftables.New()
	if err != nil {
		return nil, fmt.Errorf("open netfilter socket: %w", err)
	}
	tables, err := c.ListTablesOfFamily(family)
	if err != nil {
		return nil, fmt.Errorf("list nftables tables: %w", err)
	}
	return tables, nil
}

// deleteTable removes one table with all that is in it.
func deleteTable(t *nftables.Table) error {
	c, err := nftables.New()
	if err != nil {
		return fmt.Errorf("open netfilter socket: %w", err)
	}
	c.DelTable(t)
	if err := c.Flush(); err != nil {
		return fmt.Errorf("remove table %s: %w", t.Name, err)
	}
	return nil
}

// own removes what agents have left here.
func own(r *Report) error { return errors.Join(ownTables(r), ownRoutes(r)) }

func ownTables(r *Report) error {
	tables, err := listTables(nftables.TableFamilyINet)
	if err != nil {
		return err
	}
	for _, t := range tables {
		switch {
		case t.Name == nft.Table:
			if !r.DryRun {
				if err := nft.Cleanup(nft.Options{}); err != nil {
					return err
				}
			}
		case isDNSTable(t) && isOwned(t):
			r.note("table inet %s belongs to an agent that is running, and goes with it", t.Name)
			continue
		case isDNSTable(t):
			if !r.DryRun {
				if err := deleteTable(t); err != nil {
					return err
				}
			}
		default:
			continue
		}
		r.removed(Table, "", "inet "+t.Name)
	}
	return nil
}

// ownRoutes removes the ways to other nodes: routes, and the tunnel with its routing rules and its table.
func ownRoutes(r *Report) error {
	found, pods, err := listRoutes()
	if err != nil {
		return err
	}
	var left []Removal
	var failed error
	if len(found) > 0 && !r.DryRun {
		failed = nodenet.Cleanup()
		if left, _, err = listRoutes(); err != nil {
			return errors.Join(failed, err)
		}
	}
	for _, x := range found {
		if !slices.Contains(left, x) {
			r.removed(x.Kind, "", x.Name)
		}
	}
	if pods > 0 {
		r.note("%d routes to pods of this node stay; they go with the pods", pods)
	}
	return failed
}

// listRoutes returns what cleaning up removes, and how many routes are pods'.
func listRoutes() (found []Removal, pods int, err error) {
	text, err := nodenet.Dump()
	if err != nil {
		return nil, 0, err
	}
	for line := range strings.Lines(text) {
		switch word, rest, _ := strings.Cut(strings.TrimSpace(line), " "); word {
		case "pod":
			pods++
		case "node", "local", "unreachable", "for":
			found = append(found, Removal{Kind: Route, Name: strings.TrimSpace(line)})
		case "rule":
			found = append(found, Removal{Kind: RoutingRule, Name: rest})
		case "tunnel":
			name, _, _ := strings.Cut(rest, " ")
			found = append(found, Removal{Kind: Device, Name: name})
		}
	}
	tables, err := listTables(nftables.TableFamilyINet)
	if err != nil {
		return nil, 0, err
	}
	if slices.ContainsFunc(tables, func(t *nftables.Table) bool { return t.Name == nodenet.Table }) {
		found = append(found, Removal{Kind: Table, Name: "inet " + nodenet.Table})
	}
	return found, pods, nil
}
