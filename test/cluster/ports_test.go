// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package cluster

import (
	"errors"
	"fmt"
	"net"
	"strings"
	"testing"
	"time"
)

// TestTakenPorts: where another program listens at a port of the agent's, the agent does without, and says so for as long as it lasts.
func TestTakenPorts(t *testing.T) {
	l := newLone(t)
	ports := map[string]string{"0.0.0.0:10256": "", "127.0.0.1:10249": "metrics are not served", n1Addr + ":9153": "metrics of the DNS are not served"}
	var taken []net.Listener
	for addr := range ports {
		l.n1.Do(func() error {
			other, err := net.Listen("tcp4", addr)
			l.ok(err)
			t.Cleanup(func() { other.Close() })
			taken = append(taken, other)
			return nil
		})
	}
	l.startAgent()
	l.awaitReady("agent")
	said := func() (string, error) {
		r, err := l.report()
		if err != nil {
			return "", err
		}
		return strings.Join(r.Off, "\n"), nil
	}
	eventually(t, 10*time.Second, "the reasons in the status", func() error {
		off, err := said()
		for addr, why := range ports {
			_, port, _ := net.SplitHostPort(addr)
			if err == nil && (!strings.Contains(off, why) || !strings.Contains(off, ":"+port)) {
				err = fmt.Errorf("nothing of %s in %q", addr, off)
			}
		}
		return err
	})
	for _, other := range taken {
		other.Close()
	}
	eventually(t, 30*time.Second, "the ports", func() error {
		off, err := said()
		if err == nil && strings.Contains(off, "not served") {
			err = errors.New(off)
		}
		return err
	})
}
