// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"encoding/json"
	"fmt"
	"io"
	"math"
	"strings"
	"testing"
)

// scaleSample is a result for every watcher and everything that happens. The agent's numbers are 1,000 times the row's, its rivals' a little more.
func scaleSample(t *testing.T) *suite {
	t.Helper()
	s := &suite{chapter: scaleChapter, out: json.NewEncoder(io.Discard)}
	nobody, taken := map[string]once{}, map[string]map[string]once{}
	for r, row := range rowsOf(s) {
		nobody[row] = once{cpuOfAPI: 0.5}
		for i, who := range watchers {
			if taken[who.name] == nil {
				taken[who.name] = map[string]once{}
			}
			v := float64(1000*(r+1) + i)
			taken[who.name][row] = once{received: v, sent: v / 10, cpuOwn: v / 1000, cpuOfAPI: 2.5}
		}
	}
	s.state(figure{Section: sectionCosts, Figure: "a Node, whole", Value: 9446, Unit: "B"})
	s.reportCosts(nobody, taken)
	return s
}

// The page has every row with every watcher's bytes, and its numbers are those of the JSON beside it.
func TestWriteScale(t *testing.T) {
	s := scaleSample(t)
	page := docsOf(t, t.TempDir(), s)
	for i, row := range rowsOf(s) {
		v := float64(1000 * (i + 1))
		want := fmt.Sprintf("| %s | %s | %s | %s | %s |", row, number(v), number(v+1), number(v+2), number(v+3))
		if strings.Count(page, want) != 1 {
			t.Errorf("no row %q, or more than one", want)
		}
	}
	if !strings.Contains(page, "| a Node, whole | 9,446 |") {
		t.Error("the size of a Node is missing")
	}
	// What the API server does without any watcher is no watcher's.
	if got := lookUp(s.figures, firstLists, proxy.name, cpuOfAPI); got != 2 {
		t.Errorf("the API server's time is %v, want 2", got)
	}
}

// rowsOf are the rows of the page.
func rowsOf(s *suite) []string {
	rows := []string{firstLists, afterRestart}
	for _, h := range (&scaleWorld{}).happenings(s) {
		rows = append(rows, h.name)
	}
	return rows
}

// TestReckon does a part of the sum by hand.
func TestReckon(t *testing.T) {
	var all []figure
	put := func(what string, bytes map[string]float64) {
		for _, who := range whoIs[1:] {
			all = append(all, figure{Section: sectionCosts, Figure: what + ": " + received, Value: bytes[fairlead.name], Rival: who, RivalValue: bytes[who]})
		}
	}
	put(nodeStatusOf, map[string]float64{fairlead.name: 9000, proxyOnly: 3})
	put(fmt.Sprintf(ofSlice, 10), map[string]float64{fairlead.name: 3000, proxy.name: 3000, coreDNS.name: 3000})
	put(fmt.Sprintf(ofSlice, 100), map[string]float64{fairlead.name: 21000, proxy.name: 21000, coreDNS.name: 21000})
	rows := reckon(all)
	find := func(what string) load5000 {
		for _, r := range rows {
			if r.What == what {
				return r
			}
		}
		t.Fatalf("no row %s", what)
		return load5000{}
	}
	near := func(what string, got, want float64) {
		t.Helper()
		if math.Abs(got-want) > want/1000 {
			t.Errorf("%s: %v, want %v", what, got, want)
		}
	}
	nodes := find("Nodes")
	near("events of Nodes", nodes.Events[0], 5000./300*5000)
	near("bytes of Nodes", nodes.Bytes[0], 5000./300*5000*9000)
	if nodes.Bytes[1] != 0 || nodes.Events[1] != 0 || nodes.Bytes[2] != 0 {
		t.Errorf("who does not watch Nodes: %v events, %v bytes", nodes.Events, nodes.Bytes)
	}
	slices := find("EndpointSlices")
	near("bytes of slices", slices.Bytes[0], 150_000/86400.*4*5000*(3000+18000*(largeCluster.beside()-10)/90))
	near("events of slices, kube-proxy", slices.Events[2], 150_000/86400.*4*5000)
	near("events of slices, CoreDNS", slices.Events[3], 150_000/86400.*4*313)
	near("sum", total(rows, 0), nodes.Bytes[0]+slices.Bytes[0])
	near("a row", bytesOf(rows, "Nodes", 0), nodes.Bytes[0])
	if got := sizeOf(append(all, figure{Figure: "a Node, whole", Value: 7}), "a Node, whole"); got != 7 || sizeOf(all, "a Node, whole") != 0 {
		t.Errorf("a Node has %v bytes", got)
	}
	if find("Leases").Events[0] != 0 {
		t.Error("Leases are watched")
	}
}

func TestCrowd(t *testing.T) {
	if c := largeCluster; c.services() != 10000 || c.endpoints() != clusterPods || c.slices() != 9000+900+600 || c.pods*c.nodes != clusterPods {
		t.Errorf("%d Services, %d endpoints, %d slices", c.services(), c.endpoints(), c.slices())
	}
	for _, tt := range []struct {
		groups []group
		want   float64
	}{
		{[]group{{3, 1}}, 1}, {[]group{{3, 100}}, 100}, {[]group{{1, 600}}, 100}, {[]group{{1, 150}}, (100*100 + 50*50) / 150.}, {[]group{{10, 1}, {1, 10}}, (10 + 100) / 20.},
	} {
		if got := (crowd{groups: tt.groups}).beside(); math.Abs(got-tt.want) > 1e-9 {
			t.Errorf("%v: %v beside, want %v", tt.groups, got, tt.want)
		}
	}
}

// The Nodes are as large as real ones: not below what the four conditions, the addresses and 30 images alone have, and each its own.
func TestNodeStatus(t *testing.T) {
	a, b := nodeStatus(1), nodeStatus(4999)
	text, err := json.Marshal(a)
	if err != nil || len(a.Images) != nodeImages || len(a.Conditions) != 4 || len(text) < 6000 {
		t.Errorf("%d bytes, %d images, %v", len(text), len(a.Images), err)
	}
	if a.Addresses[0] == b.Addresses[0] || a.NodeInfo.MachineID == b.NodeInfo.MachineID || len(a.NodeInfo.MachineID) != 32 {
		t.Errorf("%v, %v", a.Addresses, b.Addresses)
	}
	names := map[string]bool{}
	for i := range clusterNodes {
		names[nodeName(i)] = true
	}
	if len(names) != clusterNodes {
		t.Errorf("%d names of %d nodes", len(names), clusterNodes)
	}
}

func TestWatchesOpen(t *testing.T) {
	const metrics = `# TYPE apiserver_longrunning_requests gauge
apiserver_longrunning_requests{component="apiserver",group="",resource="nodes",scope="cluster",subresource="",verb="WATCH",version="v1"} 3
apiserver_longrunning_requests{component="apiserver",group="",resource="pods",scope="cluster",subresource="",verb="WATCH",version="v1"} 2
apiserver_longrunning_requests{component="apiserver",group="",resource="pods",scope="cluster",subresource="log",verb="GET",version="v1"} 7
`
	if got, err := watchesOpen([]byte(metrics)); err != nil || got != 5 {
		t.Errorf("%d, %v, want 5", got, err)
	}
	if _, err := watchesOpen([]byte(strings.Replace(metrics, "} 3", "} many", 1))); err == nil {
		t.Error("no number: want an error")
	}
}
