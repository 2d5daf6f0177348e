// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/fairlead/fairlead/cluster"
	"github.com/fairlead/fairlead/explain"
	"github.com/fairlead/fairlead/model"
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

func runProbe(ctx context.Context, arg string, out io.Writer) error {
	target, err := explain.ParseTarget(arg)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, probeTimeout)
	defer cancel()
	start := time.Now()
	addrs, err := net.DefaultResolver.LookupNetIP(ctx, "ip", target.Host)
	if err != nil {
		return fmt.Errorf("resolve %s: %w", target.Host, err)
	}
	resolved := time.Since(start)
	to := netip.AddrPortFrom(addrs[0].Unmap(), target.Port)
	start = time.Now()
	what, from, err := connect(ctx, target.Protocol, to)
	if err != nil {
		return fmt.Errorf("connect to %s: %w", to, err)
	}
	fmt.Fprintf(out, "%s %s from %s in %s, name resolved in %s", what, to, from,
		time.Since(start).Round(time.Microsecond), resolved.Round(time.Microsecond))
	return nil
}

// connect makes the connection. An answer to an empty datagram is more than UDP promises: silence is not an error, a refusal is.
func connect(ctx context.Context, proto model.Protocol, to netip.AddrPort) (what, from string, err error) {
	network := strings.ToLower(proto.String())
	var d net.Dialer
	c, err := d.DialContext(ctx, network, to.String())
	if err != nil {
		return "", "", err
	}
	defer c.Close()
	from = c.LocalAddr().String()
	if proto == model.TCP {
		return "connected to", from, nil
	}
	if _, err := c.Write(nil); err != nil {
		return "", "", err
	}
	_ = c.SetReadDeadline(time.Now().Add(200 * time.Millisecond))
	_, err = c.Read(make([]byte, 2048))
	switch {
	case err == nil:
		return "answered by", from, nil
	case errors.Is(err, os.ErrDeadlineExceeded):
		return "sent (no refusal, no answer) to", from, nil
	}
	return "", "", err
}

// probeFrom runs the probe in a pod and puts what it said into the walk.
func probeFrom(ctx context.Context, state, namespace, pod, target string, walk *explain.Walk) error {
	self, err := os.Executable()
	if err != nil {
		return fmt.Errorf("find own program: %w", err)
	}
	dir, err := cluster.Open(state)
	if err != nil {
		return err
	}
	if t, err := explain.ParseTarget(target); err == nil && t.Port == 0 && len(walk.Ways) > 0 {
		t.PortName, t.Port = "", walk.Ways[0].Address.Port()
		target = t.String()
	}
	r, w, err := os.Pipe()
	if err != nil {
		return fmt.Errorf("make pipe: %w", err)
	}
	defer r.Close()
	null, err := os.Open(os.DevNull)
	if err != nil {
		return fmt.Errorf("open %s: %w", os.DevNull, err)
	}
	defer null.Close()
	said := make(chan string, 1)
	go func() {
		text, _ := io.ReadAll(r)
		said <- string(bytes.TrimSpace(text))
	}()
	code, err := dir.Client().Exec(ctx, cluster.ExecRequest{
		Namespace: namespace, Pod: pod, Command: []string{self, "probe", target},
	}, [3]*os.File{null, w, w}, nil)
	w.Close()
	if err != nil {
		return fmt.Errorf("probe from pod %s/%s: %w", namespace, pod, err)
	}
	walk.Probe = strings.TrimPrefix(<-said, "fairlead: ")
	if code != 0 {
		walk.Findings = append(walk.Findings, "the probe failed (exit code "+strconv.Itoa(code)+"): "+walk.Probe)
	}
	return nil
}
