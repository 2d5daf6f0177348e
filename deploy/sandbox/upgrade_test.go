// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package sandbox

import (
	"context"
	"strings"
	"sync"
	"testing"
	"time"

	mdns "github.com/miekg/dns"
)

// TestUpgrade does what a DaemonSet with maxSurge does, there and back: a second pod beside the first; when its startup probe says yes, the first is ended. The
// node's DNS is asked all the time, and every question is answered at the first try.
func TestUpgrade(t *testing.T) {
	o := rendered(t, values())
	update := o.daemonSet.Spec.UpdateStrategy.RollingUpdate
	if update.MaxSurge.IntValue() != 1 || update.MaxUnavailable.IntValue() != 0 {
		t.Fatal("the chart does not update by a second pod beside the first")
	}
	if len(o.daemonSet.Spec.Template.Spec.Containers[0].Ports) > 0 {
		t.Fatal("a container port is a host port here, which no second pod beside the first could have")
	}
	c := startCluster(t, o.role)
	img := unpack(t)
	old := c.container(img, o).start()
	old.mustGetReady(o)

	pod := c.pod()
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	asked := 0
	wg.Go(func() {
		for ctx.Err() == nil {
			m, err := ask(context.Background(), pod.NS, "udp", dnsAddr, "orders.default.svc.cluster.local.")
			if err != nil || m.Rcode != mdns.RcodeSuccess {
				t.Errorf("question %d: %v, %v", asked, m, err)
				return
			}
			asked++
			time.Sleep(time.Millisecond)
		}
	})
	for range 3 {
		next := c.container(img, o).start()
		next.mustGetReady(o)
		if !strings.Contains(next.out.String(), "taking over") {
			t.Error("the next agent did not take over from the one before")
		}
		// The old pod is there, and its agent is not: it does not count as ready any more.
		if out, err := old.exec(t.Context(), "ready", "--timeout=3s"); err == nil || !strings.Contains(out, "outside of this container") {
			t.Errorf("the old pod's probe: %v, %s", err, out)
		}
		old.stop()
		old = next
	}
	cancel()
	wg.Wait()
	t.Logf("%d questions", asked)
	if asked < 10 {
		t.Errorf("only %d questions were asked", asked)
	}
}
