// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"context"
	"errors"
	"fmt"
	"os"
	"runtime"
	"strconv"
	"strings"
	"time"

	"k8s.io/utils/cpuset"

	"github.com/fairlead/fairlead/config"
	"github.com/fairlead/fairlead/linux"
	"github.com/fairlead/fairlead/model"
)

// limit sets the kernel's limits of connection tracking when the first rules are there: it is they that have the kernel load it, and before there are
// no limits to set.
func (n *Node) limit(ctx context.Context) error {
	if n.cfg.Left.Has(model.Proxy) || n.state.Wait(ctx, func(*model.Snapshot) bool { return true }) != nil {
		return nil
	}
	err := limitConnections(n.cfg.Conntrack)
	if err != nil {
		n.log.Warn("connections are tracked within the kernel's own limits", "err", err)
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	n.limits = err
	return nil
}

// limitConnections brings the kernel's limits of connection tracking to what is configured, as kube-proxy does: the number of connections is raised and
// never lowered, the times are set. Everything is tried; the error is about all that failed. The number is one for the whole machine, and only its first
// network namespace can write it.
func limitConnections(c config.Conntrack) error {
	var errs []error
	if most := c.Max(processors()); most > 0 {
		errs = append(errs, raise("net/netfilter/nf_conntrack_max", most), growHash(most/4))
	}
	set := func(name string, d time.Duration) {
		if d > 0 {
			errs = append(errs, linux.WriteSysctl("net/netfilter/nf_conntrack_"+name, strconv.Itoa(int(d/time.Second))))
		}
	}
	set("tcp_timeout_established", c.Established)
	set("tcp_timeout_close_wait", c.CloseWait)
	set("udp_timeout", c.UDP)
	set("udp_timeout_stream", c.UDPStream)
	if c.Liberal {
		errs = append(errs, linux.WriteSysctl("net/netfilter/nf_conntrack_tcp_be_liberal", "1"))
	}
	return errors.Join(errs...)
}

// processors are the machine's, whichever of them this process may use.
func processors() int {
	if n, err := cpuset.NumCPU(); err == nil && n > 0 {
		return n
	}
	return runtime.NumCPU()
}

func raise(sysctl string, to int) error {
	text, err := linux.ReadSysctl(sysctl)
	if err != nil {
		return err
	}
	if now, err := strconv.Atoi(text); err == nil && now >= to {
		return nil
	}
	return linux.WriteSysctl(sysctl, strconv.Itoa(to))
}

// growHash gives the connections enough places to be found at.
func growHash(to int) error {
	const path = "/sys/module/nf_conntrack/parameters/hashsize"
	text, err := os.ReadFile(path)
	if err != nil {
		return fmt.Errorf("read size of conntrack's hash table: %w", err)
	}
	if now, err := strconv.Atoi(strings.TrimSpace(string(text))); err == nil && now >= to {
		return nil
	}
	if err := os.WriteFile(path, []byte(strconv.Itoa(to)), 0o644); err != nil {
		return fmt.Errorf("set size of conntrack's hash table: %w", err)
	}
	return nil
}
