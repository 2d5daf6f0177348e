// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"encoding/json"
	"fmt"
	"math"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

const mib = 1 << 20

// held is the memory of a server around a relist, in bytes.
type held struct {
	steady memory
	peak   float64 // the most that was resident while everything was listed again
}

// dnsMemory measures what the agent and CoreDNS hold, with as many endpoints in fewer and in more Services, and the most they hold while they list everything again.
func dnsMemory(ctx context.Context, s *suite) error {
	for _, h := range pick(s, []shape{{1000, 100, 0, 0}, {10000, 10, 0, 0}}, []shape{{100, 10, 0, 0}}) {
		taken := map[string][]held{}
		var parts []float64 // of the agent's memory that are DNS's
		var heap int64
		for _, r := range []resolver{fairleadDNS, coreDNS} {
			w, err := s.namedWorld(ctx, r.name, h)
			if err != nil {
				return err
			}
			taken[r.name], err = s.relists(ctx, r, w)
			if err == nil && r.name == fairlead.name && h.services >= pick(s, 10000, 0) {
				if parts, err = s.partOfDNS(ctx, w); err == nil {
					heap, err = s.heapOfDNS(ctx, h)
				}
			}
			w.close()
			if err != nil {
				return fmt.Errorf("%s with %s: %w", r.name, h, err)
			}
		}
		s.reportMemory(h, taken[fairlead.name], taken[coreDNS.name], parts, float64(heap))
	}
	return nil
}

func (s *suite) reportMemory(h shape, own, theirs []held, parts []float64, heap float64) {
	at := fmt.Sprintf(" at %s Services, %s endpoints", number(float64(h.services)), number(float64(h.services*h.endpoints)))
	steady := func(r held) float64 { return r.steady.RSS / mib }
	peak := func(r held) float64 { return r.peak / mib }
	for _, row := range []struct {
		name string
		of   func(held) float64
	}{
		{"resident memory", steady},
		{"proportional memory", func(r held) float64 { return r.steady.PSS / mib }},
		{"most memory during a relist", peak},
	} {
		s.compare(figure{Section: "memory", Figure: row.name + at, Unit: "MiB", X: h.services}, coreDNS.name, each(own, row.of), each(theirs, row.of), share, nil)
	}
	s.compare(figure{Section: "memory", Figure: "most memory during a relist over that before" + at, Unit: "MiB"}, "fairlead before", each(own, peak), each(own, steady),
		share, atMost(1.15))
	growth := func(r held) float64 { return r.peak / r.steady.RSS }
	s.compare(figure{Section: "memory", Figure: "growth during a relist" + at}, coreDNS.name, each(own, growth), each(theirs, growth), share, nil)
	if parts != nil {
		s.compare(figure{Section: "memory", Figure: "agent less one without DNS" + at, Unit: "MiB"}, coreDNS.name, parts, each(theirs, steady), share, atMost(0.1))
		s.contrast(figure{Section: "memory", Figure: "heap of the package dns" + at, Unit: "MiB", Value: heap / mib}, coreDNS.name, median(each(theirs, steady)), share, atMost(0.1))
	}
}

// relists starts a server, has every name asked for once, and makes it list everything again; a few times anew, because memory that a relist
// took may be given back much later.
func (s *suite) relists(ctx context.Context, r resolver, w *dnsWorld) (out []held, err error) {
	n, err := s.newDNSNode(ctx, r, w)
	if err != nil {
		return nil, err
	}
	defer n.close()
	for i := range pick(s, 3, 1) {
		progress("starting %s", r.name)
		if err := n.run(ctx, s, anyCPU); err != nil {
			return nil, err
		}
		if err := n.askAll(ctx, s); err != nil {
			return nil, err
		}
		var h held
		if h.steady, err = settled(ctx, n.process.pid()); err != nil {
			return nil, err
		}
		progress("%s holds %.0f MiB; making it list everything again", r.name, h.steady.RSS/mib)
		if err := forgetPeak(n.process.pid()); err != nil {
			return nil, err
		}
		if err := w.restart(ctx); err != nil {
			return nil, err
		}
		objects := len(w.questions) // slices, as there is one of each Service
		// It has listed everything when it knows what was made afterwards.
		q, err := w.addHeadless(ctx, fmt.Sprint("afterwards-", i), 1)
		if err != nil {
			return nil, err
		}
		bounded, cancel := context.WithTimeout(ctx, awaitLimit)
		err = awaitAnswers(bounded, n.client, n.addr, []question{q}, false, n.process.gone)
		if err == nil {
			_, err = cpuWhenIdle(bounded, n.process.pid())
		}
		cancel()
		if err != nil {
			return nil, err
		}
		// The API server's own controllers have listed everything once; the other time must be this server's.
		if told, err := w.slicesTold(ctx); err != nil || told < 2*objects {
			return nil, fmt.Errorf("the API server told of %d slices, want %d: the watch just went on (%w)", told, 2*objects, err)
		}
		after, err := memoryOf(n.process.pid())
		if err != nil {
			return nil, err
		}
		h.peak = after.Peak
		out = append(out, h)
	}
	return out, nil
}

// askAll has every name asked for once, and answered right.
func (n *dnsNode) askAll(ctx context.Context, s *suite) error {
	_, err := runDNSLoad(ctx, s, n, "-questions", n.all, "-n", strconv.Itoa(len(n.questions)), "-warm", "0s", "-count", "1m")
	if err != nil {
		return fmt.Errorf("ask %s for every name: %w", n.resolver.name, err)
	}
	return nil
}

// restart ends the API server and starts it again on what it has stored. What was written last is about a kind that nobody here watches, so
// every watcher has seen less than the new server has listed, and must list again itself.
func (w *world) restart(ctx context.Context) error {
	maps := w.client.CoreV1().ConfigMaps(metav1.NamespaceDefault)
	for i := range 5 {
		name := fmt.Sprintf("unwatched-%d-%d", time.Now().UnixNano(), i)
		if _, err := maps.Create(ctx, &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: name}}, metav1.CreateOptions{}); err != nil {
			return fmt.Errorf("create config map: %w", err)
		}
	}
	w.api.stop()
	return w.serveAPI(ctx)
}

// slicesTold is of how many slices the API server has told those who watch, since it was started.
func (w *world) slicesTold(ctx context.Context) (int, error) {
	text, err := w.metrics(ctx)
	if err != nil {
		return 0, err
	}
	return eventsTold(text, "endpointslices")
}

// metrics are what the API server says of itself.
func (w *world) metrics(ctx context.Context) ([]byte, error) {
	text, err := w.client.Discovery().RESTClient().Get().AbsPath("/metrics").DoRaw(ctx)
	if err != nil {
		return nil, fmt.Errorf("read metrics: %w", err)
	}
	return text, nil
}

// eventsTold reads apiserver_watch_events_total of a resource.
func eventsTold(metrics []byte, resource string) (int, error) {
	n, series, err := metric(metrics, "apiserver_watch_events_total", `resource="`+resource+`"`)
	if err == nil && series == 0 {
		err = fmt.Errorf("parse metrics: no events of %s", resource)
	}
	return n, err
}

// metric adds up those series of a metric that have a label, and says how many they are.
func metric(metrics []byte, name, label string) (sum, series int, err error) {
	for line := range strings.Lines(string(metrics)) {
		if strings.HasPrefix(line, name+"{") && strings.Contains(line, label) {
			value, err := strconv.ParseFloat(strings.TrimSpace(line[strings.LastIndexByte(line, ' ')+1:]), 64)
			if err != nil {
				return 0, 0, fmt.Errorf("parse metric %q: %w", line, err)
			}
			sum, series = sum+int(value), series+1
		}
	}
	return sum, series, nil
}

// heapOfDNS is what the package dns holds, measured in a process of its own. The difference of two agents does not show what both hold,
// such as answers that are made before anybody can ask for them; this does.
func (s *suite) heapOfDNS(ctx context.Context, h shape) (size int64, err error) {
	out, err := exec.CommandContext(ctx, s.programs.bench, "dnsheap", "-services", strconv.Itoa(h.services), "-endpoints", strconv.Itoa(h.endpoints)).Output()
	if err != nil {
		return 0, fmt.Errorf("measure the heap of DNS: %w", err)
	}
	if err := json.Unmarshal(out, &size); err != nil {
		return 0, fmt.Errorf("parse the heap of DNS: %w", err)
	}
	return size, nil
}

const (
	settleEvery = time.Second
	// settleFor is how often in a row memory must be the same, but for 1 %, and settleMost how often it is looked at at most.
	settleFor, settleMost = 5, 60
)

// settled waits until a process no longer gives memory back: the runtime of Go does that little by little.
func settled(ctx context.Context, pid int) (memory, error) {
	base, same := math.Inf(1), 0
	for range settleMost {
		m, err := memoryOf(pid)
		if err != nil {
			return m, err
		}
		if math.Abs(m.RSS-base) > base/100 || math.IsInf(base, 1) {
			base, same = m.RSS, 0
		} else if same++; same == settleFor {
			return m, nil
		}
		select {
		case <-ctx.Done():
			return m, ctx.Err()
		case <-time.After(settleEvery):
		}
	}
	return memoryOf(pid)
}

// forgetPeak lets the most that a process and those it has started ever had begin anew with what it has now, proc_pid_clear_refs(5).
func forgetPeak(pid int) error {
	return ofFamily(pid, func(member int) error {
		if err := os.WriteFile(fmt.Sprintf("/proc/%d/clear_refs", member), []byte("5"), 0); err != nil {
			return fmt.Errorf("reset peak memory of %d: %w", member, err)
		}
		return nil
	})
}

// partOfDNS is what an agent that answers, and was asked for every name, holds more than one whose Node does not exist, which programs every Service
// and opens no DNS socket; in MiB, of several pairs. One without --dns-ip would do too; these two have the same flags but for
// the Node. The garbage collector runs ten times as often as usual, so that what is compared is what is held and not what waits for it.
func (s *suite) partOfDNS(ctx context.Context, w *dnsWorld) (out []float64, err error) {
	n, err := s.newDNSNode(ctx, fairleadDNS, w)
	if err != nil {
		return nil, err
	}
	defer n.close()
	n.frugal = true
	for range pick(s, 3, 1) {
		var rss [2]float64
		for i, flags := range [][]string{nil, {"--node", "nowhere"}} {
			n.command, n.mute = agentCommand(flags...), flags != nil
			if err := n.run(ctx, s, anyCPU); err != nil {
				return nil, err
			}
			if _, err := awaitForwarding(ctx, n.client, w.vips(probes), n.process.gone); err != nil {
				return nil, err
			}
			if !n.mute {
				if err := n.askAll(ctx, s); err != nil {
					return nil, err
				}
			}
			m, err := settled(ctx, n.process.pid())
			if err != nil {
				return nil, err
			}
			rss[i] = m.RSS / mib
		}
		progress("with DNS %.1f MiB, without %.1f", rss[0], rss[1])
		out = append(out, rss[0]-rss[1])
	}
	return out, nil
}
