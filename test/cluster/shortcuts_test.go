// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package cluster

import (
	"fmt"
	"strings"
	"testing"
	"time"
)

// TestShortcuts: a cluster is started with the switches of both short cuts, has them again at the next start without a word, and not when that says so. Each
// time a pod asks another node's pod by the Service's name, over connections of its own, and status and explain say which way they went.
func TestShortcuts(t *testing.T) {
	w := newWorld(t, "shortcuts")
	t.Cleanup(func() { w.run(t, "", "fairlead", "down", "--state", string(w.dir), "--purge") })
	for i, start := range []struct {
		flags []string
		on    bool
	}{
		{[]string{"--nodes", "2", "--pod-fast-path", "--pod-socket-lb"}, true},
		{nil, true},
		{[]string{"--pod-fast-path=false", "--pod-socket-lb=false"}, false},
	} {
		if r := w.up(t, start.flags...); r.code != 0 {
			t.Fatalf("up %v: %s", start.flags, r)
		}
		if i == 0 {
			if err := w.connect(); err != nil {
				t.Fatal(err)
			}
			w.kubectl(t, "create", "namespace", namespace)
			w.apply(t, shopPod("client", "n1", "")+shopPod("server", "n2", "{containerPort: 8080, name: http}"))
			w.kubectl(t, "-n", namespace, "label", "pod", "server", "app=server")
			w.kubectl(t, "-n", namespace, "expose", "pod", "server", "--port=80", "--target-port=http")
		}
		w.await(t, "client", "server")
		ask := func() error {
			if r := w.inPod(t, "client")("get", "--fresh-conn", "-n", "20", "http://server/self"); !strings.Contains(r.stdout, `"ok":20`) {
				return fmt.Errorf("%s", r)
			}
			return nil
		}
		eventually(t, 10*time.Second, "the Service", ask)
		eventually(t, 10*time.Second, "the way", func() error {
			if err := ask(); err != nil {
				return err
			}
			network := w.report(t, "n1").PodNetwork
			fast, led := network.FastPath, network.SocketLB
			switch {
			case !start.on && (fast != nil || led != nil):
				t.Fatalf("start %d: %+v, %+v", i, fast, led)
			case start.on && (fast == nil || led == nil):
				t.Fatalf("start %d: not there: %v, %v", i, fast, led)
			case start.on && (fast.Packets == 0 || fast.Answers == 0 || led.Connections == 0):
				return fmt.Errorf("start %d: %+v, %+v", i, *fast, *led)
			}
			return nil
		})
		walk := w.must(t, "fairlead", "explain", "--state", string(w.dir), namespace+"/client", "server:80", "--probe")
		if strings.Contains(walk, "socket") != start.on || strings.Contains(walk, "finding") {
			t.Errorf("start %d:\n%s", i, walk)
		}
		w.must(t, "fairlead", "down", "--state", string(w.dir))
	}
}
