// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package kubernetes

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net/netip"
	"os/exec"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// How much goes on while the pod network is switched: streams of iperf3, a half of which goes from the first node to the second and the other from the
// second to the third, in Mbit/s each; and new connections a second by a Service's address, from the three nodes together.
const (
	bulkStreams = 20
	bulkRate    = 10
	bulkPort    = "5201"
	connections = 2000
)

// switched: from plain routes to tunnels, to another version of the agent, back to plain routes and to the first version, then through
// tunnels on the pods' fast path, and off both again, under streams and new connections. None of them breaks.
func switched(t *testing.T, w *world) {
	first := w.image()
	load := drive(t, w, false, connections)
	list, err := w.Kube.CoreV1().Pods(namespace).List(interrupted, metav1.ListOptions{})
	if err != nil {
		t.Fatal(err)
	}
	at := map[string]netip.Addr{}
	for _, p := range list.Items {
		at[p.Name] = netip.MustParseAddr(p.Status.PodIP)
	}
	var all []*bulk
	for i := range 2 {
		from, to := "client-"+w.Nodes[i].Name, "server-"+w.Nodes[i+1].Name
		all = append(all, transfer(t, from, to, at[to], bulkStreams/2))
	}
	for _, step := range []struct {
		name          string
		how           func() []string
		tunnels, fast bool
	}{
		{"to tunnels", func() []string { return w.patch([]string{"--tunnel=always"}) }, true, false},
		{"to another version", func() []string { return []string{"set", "image", "daemonset/fairlead", "agent=" + next} }, true, false},
		{"to plain routes", func() []string { return w.patch([]string{"--tunnel=auto"}) }, false, false},
		{"to the first version", func() []string { return []string{"set", "image", "daemonset/fairlead", "agent=" + first} }, false, false},
		{"to tunnels and the fast path", func() []string { return w.patch([]string{"--tunnel=always", "--pod-fast-path=true"}, "BPF", "PERFMON") }, true, true},
		{"to plain routes on the fast path", func() []string { return w.patch([]string{"--tunnel=auto"}) }, false, true},
		{"off the fast path", func() []string { return w.patch([]string{"--pod-fast-path=false"}) }, false, false},
	} {
		begin := time.Now()
		w.kubectl(append([]string{"-n", "kube-system"}, step.how()...)...)
		w.rolledOut()
		for _, b := range all {
			b.goesOn(t)
		}
		t.Logf("%s: %.1f s", step.name, time.Since(begin).Seconds())
		sent, past := w.tunnelled(), w.past(step.fast)
		for _, b := range all {
			b.goesOn(t)
		}
		if through := w.tunnelled() > sent; through != step.tunnels {
			t.Errorf("%s: packets go through the tunnel: %t", step.name, through)
		}
		if n := w.past(step.fast) - past; step.fast && n < bulkStreams {
			t.Errorf("%s: %d packets went past netfilter", step.name, n)
		}
	}
	for _, b := range all {
		t.Logf("%s: %d streams in %d s, %.0f Mbit/s", b.what, b.streams, b.seconds(), b.rate())
	}
	load.stop()
}

// patch is kubectl's arguments to give the agents flags with other values, and further capabilities.
func (w *world) patch(flags []string, capabilities ...corev1.Capability) []string {
	w.t.Helper()
	ds, err := w.Kube.AppsV1().DaemonSets("kube-system").Get(interrupted, "fairlead", metav1.GetOptions{})
	if err != nil {
		w.t.Fatal(err)
	}
	const at = "/spec/template/spec/containers/0/"
	c := ds.Spec.Template.Spec.Containers[0]
	args := c.Args
	for _, f := range flags {
		name, _, _ := strings.Cut(f, "=")
		args = append(slices.DeleteFunc(args, func(a string) bool { return strings.HasPrefix(a, name+"=") }), f)
	}
	patch, err := json.Marshal([]map[string]any{
		{"op": "replace", "path": at + "args", "value": args},
		{"op": "replace", "path": at + "securityContext/capabilities/add", "value": append(c.SecurityContext.Capabilities.Add, capabilities...)},
	})
	if err != nil {
		w.t.Fatal(err)
	}
	return []string{"patch", "daemonset", "fairlead", "--type=json", "-p", string(patch)}
}

// past is how many packets went past netfilter, if they are to.
func (w *world) past(expected bool) (sum uint64) {
	w.t.Helper()
	if !expected {
		return 0
	}
	for node, pod := range w.settled() {
		text, err := w.Kubectl(interrupted, "", "-n", "kube-system", "exec", pod.Name, "--", "fairlead", "status", "--json")
		if err != nil {
			w.t.Fatal(err)
		}
		fast, err := fastPath(text)
		if err != nil {
			w.t.Errorf("%s: %v", node, err)
		}
		sum += fast.Packets
	}
	return sum
}

// tunnelled is how many packets the nodes have sent through tunnels.
func (w *world) tunnelled() (sum int) {
	for _, n := range w.Nodes {
		sum += tunnelPackets(n)
	}
	return sum
}

// bulk are streams of iperf3 from a pod to another one, which go on until the test ends.
type bulk struct {
	what    string
	streams int
	ended   chan error

	mu  sync.Mutex
	out bytes.Buffer
}

func (b *bulk) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.out.Write(p)
}

// transfer starts them, in the pods' network namespaces.
func transfer(t *testing.T, from, to string, addr netip.Addr, streams int) *bulk {
	t.Helper()
	iperf(t, to, nil, "-s", "-p", bulkPort)
	eventually(t, bound, "start of iperf3 in "+to, func() error {
		ns := podNS(t, to)
		defer ns.Close()
		conn, err := ns.Dial(interrupted, "tcp", "[::1]:"+bulkPort)
		if err == nil {
			conn.Close()
		}
		return err
	})
	b := &bulk{what: from + " to " + to, streams: streams}
	b.ended = iperf(t, from, b, "-c", addr.String(), "-p", bulkPort, "-P", fmt.Sprint(streams), "-b", fmt.Sprintf("%dM", bulkRate), "-t", "840", "-i", "1", "--forceflush", "-f", "m")
	b.goesOn(t)
	return b
}

// iperf starts iperf3 in a pod until the test ends. What it prints goes to out, if that is not nil, and how it ends to the channel.
func iperf(t *testing.T, pod string, out io.Writer, args ...string) (ended chan error) {
	t.Helper()
	ns := podNS(t, pod)
	defer ns.Close()
	cmd := exec.Command("iperf3", args...)
	cmd.Stdout, cmd.Stderr = out, out
	if err := ns.Do(cmd.Start); err != nil {
		t.Fatalf("start iperf3 in %s: %v", pod, err)
	}
	ended = make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		<-ended
	})
	return ended
}

// interval is a line about one stream in one second.
var interval = regexp.MustCompile(`(?m)^\[ *(\d+)\] +(\d+)\.\d+-\d+\.\d+ +sec +([0-9.]+) (.?)Bytes`)

// carried are the last seconds in which something of each stream arrived.
func (b *bulk) carried() map[string]int {
	b.mu.Lock()
	defer b.mu.Unlock()
	last := map[string]int{}
	for _, m := range interval.FindAllStringSubmatch(b.out.String(), -1) {
		if strings.Trim(m[3], "0.") != "" {
			last[m[1]], _ = strconv.Atoi(m[2])
		}
	}
	return last
}

func (b *bulk) seconds() (most int) {
	for _, s := range b.carried() {
		most = max(most, s)
	}
	return most
}

// rate is what all of them carry, in Mbit/s, of the last second that iperf3 tells of.
func (b *bulk) rate() (rate float64) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, m := range regexp.MustCompile(`(?m)^\[SUM\].* ([0-9.]+) Mbits/sec`).FindAllStringSubmatch(b.out.String(), -1) {
		fmt.Sscan(m[1], &rate)
	}
	return rate
}

// goesOn waits until every stream has carried something in a second that is yet to come.
func (b *bulk) goesOn(t *testing.T) {
	t.Helper()
	now := b.seconds()
	eventually(t, bound, "iperf3 from "+b.what, func() error {
		select {
		case err := <-b.ended:
			b.ended <- err
			t.Fatalf("iperf3 from %s ended: %v\n%s", b.what, err, b.tail())
		default:
		}
		on := b.carried()
		for id, second := range on {
			if second <= now {
				return fmt.Errorf("stream %s carries nothing since second %d", id, second)
			}
		}
		if len(on) != b.streams {
			return fmt.Errorf("%d of %d streams", len(on), b.streams)
		}
		return nil
	})
}

func (b *bulk) tail() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	lines := strings.Split(b.out.String(), "\n")
	return strings.Join(lines[max(0, len(lines)-20):], "\n")
}
