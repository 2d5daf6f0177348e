// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"github.com/fairlead/fairlead/dns"
	"github.com/fairlead/fairlead/dns/client"
	"github.com/fairlead/fairlead/dns/corefile"
	"github.com/fairlead/fairlead/model"
)

// newNames is the DNS as it is configured: by the flags, or by a Corefile, which must be right at the start.
func (n *Node) newNames() (*dns.Server, error) {
	cfg := n.cfg
	o := dns.Options{
		Blocks:  []dns.Block{cfg.Block},
		Reverse: slices.Concat(cfg.ServiceCIDRs, cfg.PodCIDRs),
		Clients: client.Options{Pods: cfg.PodCIDRs, Extra: cfg.Clients, Domain: cfg.ClusterDomains[0], NodeSearch: cfg.NodeSearch},
		Asking:  cfg.Asking,
		Version: n.version,
		Node:    cfg.Node,
		Logger:  n.log,
	}
	if cfg.FastPath {
		o.Shortcut = n.answers
	}
	for _, a := range cfg.DNS {
		o.Self = append(o.Self, netip.AddrPortFrom(a, model.DNSPort))
	}
	if cfg.Corefile != "" {
		read, err := corefile.Load(cfg.Corefile, n.corefileEnv())
		if err != nil {
			return nil, fmt.Errorf("--dns-corefile: %w", err)
		}
		o.Blocks = read.Blocks
	}
	return dns.New(o)
}

func (n *Node) corefileEnv() corefile.Env {
	env := corefile.OS()
	env.ClusterDNS = n.cfg.DNS
	return env
}

// followCorefile takes in what the Corefile says whenever it says something else. What is wrong changes nothing, and is said in the log and in the
// status until it is right again.
func (n *Node) followCorefile(ctx context.Context) error {
	return corefile.Watch(ctx, n.cfg.Corefile, n.corefileEnv(), func(read *corefile.Config, err error) {
		if err == nil {
			err = n.names.Reload(read.Blocks)
		}
		n.mu.Lock()
		defer n.mu.Unlock()
		n.dnsStale = ""
		if err != nil {
			n.dnsStale = fmt.Sprintf("DNS goes on as it was, because %s cannot be used: %v", n.cfg.Corefile, err)
			n.log.Error("DNS configuration is not usable, the one before goes on", "file", n.cfg.Corefile, "err", err)
			return
		}
		n.log.Info("DNS configuration read", "file", n.cfg.Corefile, "blocks", len(read.Blocks))
	})
}

// giveBackLimit bounds how long an agent that ends for good waits for TCP clients to close their connections, and for upstreams.
const giveBackLimit = time.Second

// serveDNS answers on sockets until ctx ends. When no agent follows, the questions go first to whoever has them then: the Service's other endpoints.
func (n *Node) serveDNS(ctx context.Context, sockets *dns.Sockets) error {
	serving, stop := context.WithCancel(context.WithoutCancel(ctx))
	defer stop()
	served := make(chan error, 1)
	go func() { served <- n.names.ServeSockets(serving, sockets) }()
	select {
	case err := <-served:
		return err
	case <-ctx.Done():
	}
	n.answers.Unload() // nobody tells the kernel of changes any more
	if len(n.cfg.DNS) > 0 && n.held.Last() {
		limited, cancel := context.WithTimeout(serving, giveBackLimit)
		defer cancel()
		err := n.plane.AnswerDNS(false)
		if err == nil {
			err = n.names.GiveBack(limited, sockets)
		}
		if err != nil {
			n.log.Warn("questions that come just now may be lost", "err", err)
		}
	}
	stop()
	return <-served
}
