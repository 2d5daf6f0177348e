// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"net/url"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/fairlead/fairlead/cluster"
	"github.com/fairlead/fairlead/explain"
	"github.com/fairlead/fairlead/model"
	"github.com/fairlead/fairlead/status"
)

const probeTimeout = 5 * time.Second

// newProbeCommand is what explain --probe runs inside the pod.
func newProbeCommand() *cobra.Command {
	return &cobra.Command{
		Use:    "probe NAME:PORT",
		Short:  "Resolve a name and connect to it, as any program in this network namespace would",
		Hidden: true,
		Args:   cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			return runProbe(c.Context(), args[0], c.OutOrStdout())
		},
	}
}

// runProbe prints a [explain.Probe]. What goes wrong with the connection is part of it, and no error of the program.
func runProbe(ctx context.Context, arg string, out io.Writer) error {
	target, err := explain.ParseTarget(arg)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, probeTimeout)
	defer cancel()
	p := new(explain.Probe)
	if err := makeProbe(ctx, target, p); err != nil {
		p.Error = err.Error()
	}
	return printJSON(out, p)
}

func makeProbe(ctx context.Context, target explain.Target, p *explain.Probe) error {
	start := time.Now()
	addrs, err := net.DefaultResolver.LookupNetIP(ctx, "ip", target.Host)
	if err != nil {
		return fmt.Errorf("resolve %s: %w", target.Host, err)
	}
	p.Resolved = millis(time.Since(start))
	p.To = netip.AddrPortFrom(addrs[0].Unmap(), target.Port)
	start = time.Now()
	var d net.Dialer
	c, err := d.DialContext(ctx, strings.ToLower(target.Protocol.String()), p.To.String())
	if err != nil {
		return fmt.Errorf("connect to %s: %w", p.To, err)
	}
	defer c.Close()
	p.From, _ = netip.ParseAddrPort(c.LocalAddr().String())
	if target.Protocol == model.UDP {
		p.Silent, err = sendEmpty(c)
	}
	p.Connected = millis(time.Since(start))
	if err != nil {
		return fmt.Errorf("send to %s: %w", p.To, err)
	}
	return nil
}

// sendEmpty sends an empty datagram. An answer to it is more than UDP promises: silence is not an error, a refusal is.
func sendEmpty(c net.Conn) (silent bool, err error) {
	if _, err := c.Write(nil); err != nil {
		return false, err
	}
	if err := c.SetReadDeadline(time.Now().Add(200 * time.Millisecond)); err != nil {
		return false, err
	}
	_, err = c.Read(make([]byte, 2048))
	if errors.Is(err, os.ErrDeadlineExceeded) {
		return true, nil
	}
	return false, err
}

func millis(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }

// probeFrom makes the connection from inside the pod, looks up in its node's kernel where it went, and puts both into the walk.
func probeFrom(ctx context.Context, state, namespace, pod string, target explain.Target, on *status.Client, walk *explain.Walk) error {
	if target.Port == 0 && len(walk.Ways) > 0 {
		target.PortName, target.Port = "", walk.Ways[0].Address.Port()
	}
	said, err := runInPod(ctx, state, namespace, pod, "probe", target.String())
	if err != nil {
		return fmt.Errorf("probe from pod %s/%s: %w", namespace, pod, err)
	}
	var p explain.Probe
	if err := json.Unmarshal(said, &p); err != nil {
		return fmt.Errorf("probe from pod %s/%s: %s", namespace, pod, bytes.TrimSpace(said))
	}
	if p.Error == "" {
		var t status.Translation
		query := url.Values{"proto": {target.Protocol.String()}, "from": {p.From.String()}, "to": {p.To.String()}}
		if err := on.Get(ctx, "/v1/tracked", query, &t); err == nil {
			p.Server, p.Client = t.Server, t.Client
		}
	}
	walk.AddProbe(p)
	return nil
}

// runInPod runs this program in a pod of the one-machine cluster and returns what it writes.
func runInPod(ctx context.Context, state, namespace, pod string, args ...string) ([]byte, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, fmt.Errorf("find own program: %w", err)
	}
	dir, err := cluster.Open(state)
	if err != nil {
		return nil, err
	}
	r, w, err := os.Pipe()
	if err != nil {
		return nil, fmt.Errorf("make pipe: %w", err)
	}
	defer r.Close()
	null, err := os.Open(os.DevNull)
	if err != nil {
		w.Close()
		return nil, fmt.Errorf("open %s: %w", os.DevNull, err)
	}
	defer null.Close()
	said := make(chan []byte, 1)
	go func() {
		text, _ := io.ReadAll(r)
		said <- text
	}()
	_, err = dir.Client().Exec(ctx, cluster.ExecRequest{
		Namespace: namespace, Pod: pod, Command: append([]string{self}, args...),
	}, [3]*os.File{null, w, w}, nil)
	w.Close()
	return <-said, err
}
