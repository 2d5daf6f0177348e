// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"compress/gzip"
	"context"
	_ "embed" // of the page
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"text/template"
	"time"
)

//go:embed scale.md.tmpl
var scaleTemplate string

var scaleChapter = &chapter{
	page: "scale", numbers: "scale", target: "bench-scale",
	experiments: []experiment{{sectionCosts, scaleCosts}},
	needs:       func(p programs) []string { return []string{p.fairlead, p.fairleadServer, p.kubeProxy, p.coreDNS} },
	versions: func(p programs) map[string]string {
		out := versionsOf(p)
		out["CoreDNS"], out["kube-proxy"] = coreDNSVersion(p), firstLine(p.kubeProxy, "--version")
		return out
	},
	template: scaleTemplate,
	plots:    func([]figure) map[string]string { return nil },
	funcs: func(all []figure) template.FuncMap {
		return template.FuncMap{
			"ledger": func() []entry { return ledger(all) },
			"reckon": func() []load5000 { return reckon(all) },
			"total":  func(who int) float64 { return total(reckon(all), who) },
			"start":  func(who int) float64 { return lookUp(all, firstLists, whoIs[who], received) * clusterNodes / 1e9 },
			"slots":  func() []string { return whoIs },
			"bytes":  func(what string, who int) float64 { return bytesOf(reckon(all), what, who) },
			// A day of rollouts against one of 20 pods a second.
			"burst": func(what string, who int) float64 {
				return bytesOf(reckon(all), what, who) / 1e6 * 20 / (clusterPods / podLives)
			},
			"mb":     func(bytes float64) float64 { return bytes / 1e6 },
			"kb":     func(bytes, of float64) float64 { return bytes / of / 1e3 },
			"apiCPU": func(what, who string) float64 { return lookUp(all, what, who, cpuOfAPI) },
			// All agents list all Nodes, compressed, once in so many seconds.
			"poll": func(every float64) float64 {
				return sizeOf(all, "a Node, in a compressed list") * clusterNodes * clusterNodes / every
			},
			"add": func(a, b float64) float64 { return a + b },
		}
	},
}

// sectionCosts has what happened, and how large objects are.
const sectionCosts = "costs"

// What is measured of each thing that happens.
const (
	received = "to the node"
	sent     = "from the node"
	cpuOwn   = "CPU of the node's program"
	cpuOfAPI = "CPU of the API server"
)

// watcher is a program that watches the API server from a node.
type watcher struct {
	name   string
	as     string // the node, as the API server knows it
	number int
	argv   func(r *rig, dir string) ([]string, error)
}

const proxyOnly = "fairlead, proxy only"

// watchers are those that are measured. The agent's watches do not depend on whether it has the pod network, but on whether it has anything beside the proxy.
var watchers = []watcher{
	{fairlead.name, fairlead.name, fairlead.number, func(r *rig, dir string) ([]string, error) {
		argv, err := fairleadCommand(r, dir, true)
		return append(argv, "--upstream", upstreamAt), err
	}},
	{proxyOnly, fairlead.name, fairlead.number, func(r *rig, dir string) ([]string, error) {
		return []string{r.w.programs.fairlead, "agent", "--node", r.name, "--kubeconfig", r.w.kubeconfig, "--state", filepath.Join(dir, "state"),
			"--service-cidr", serviceCIDR, "--pod-cidr", podCIDR}, nil
	}},
	{proxy.name, proxy.name, proxy.number, func(r *rig, dir string) ([]string, error) { return proxyCommand(r, dir, false) }},
	{coreDNS.name, coreDNS.name, coreDNS.number, coreDNSOn},
}

// cost is what something took: bytes over the node's link to the API server, and processor time.
type cost struct {
	in, out      uint64
	own, servers time.Duration
}

func (c cost) less(o cost) cost {
	return cost{c.in - o.in, c.out - o.out, c.own - o.own, c.servers - o.servers}
}

// watching is a watcher on its node; nobody, without a program.
type watching struct {
	watcher
	*rig
	w       *scaleWorld
	process *process
}

// firstBytes is what a watcher must have got for it to have begun.
const firstBytes = 1 << 16

func (s *suite) watch(ctx context.Context, who watcher, w *scaleWorld) (_ *watching, err error) {
	x := &watching{watcher: who, w: w}
	defer func() {
		if err != nil {
			x.close()
		}
	}()
	dir, err := os.MkdirTemp(s.dir, "watcher-")
	if err != nil {
		return nil, fmt.Errorf("make directory of a watcher: %w", err)
	}
	if x.rig, err = newRig(s.programs, dir, w.world, who.as, who.number); err != nil {
		return nil, err
	}
	argv, err := who.argv(x.rig, dir)
	if err != nil {
		return nil, err
	}
	x.process, err = start(x.node, anyCPU, dir, filepath.Base(argv[0]), argv...)
	return x, err
}

func (x *watching) close() {
	if x != nil {
		x.process.stop()
		x.rig.close()
	}
}

// spent is everything so far. What the API server did before it was started again does not count.
func (x *watching) spent() (c cost, err error) {
	if c.servers, err = cpuTime(x.w.api.pid()); err != nil || x.process == nil {
		return c, err
	}
	if c.own, err = cpuTime(x.process.pid()); err != nil {
		return c, err
	}
	link, err := x.node.netlink.LinkByName("fabric0")
	if err != nil {
		return c, fmt.Errorf("find the node's link: %w", err)
	}
	c.in, c.out = link.Attrs().Statistics.RxBytes, link.Attrs().Statistics.TxBytes
	return c, nil
}

// settle waits until the watcher, and without one the API server, has nothing more to do.
func (x *watching) settle(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Minute)
	defer cancel()
	if x.process == nil {
		_, err := cpuWhenIdle(ctx, x.w.api.pid())
		return err
	}
	_, err := cpuWhenIdle(ctx, x.process.pid())
	return err
}

// took is what something cost until the watcher was idle again.
func (x *watching) took(ctx context.Context, do func() error) (cost, error) {
	before, err := x.spent()
	if err != nil {
		return cost{}, err
	}
	if err := do(); err != nil {
		return cost{}, err
	}
	if err := x.settle(ctx); err != nil {
		return cost{}, err
	}
	if x.process != nil && x.process.gone() != nil {
		return cost{}, x.process.gone()
	}
	after, err := x.spent()
	return after.less(before), err
}

// awaitLists waits until the watcher has begun to list and is idle again.
func (x *watching) awaitLists(ctx context.Context, least uint64) error {
	err := x.process.until(ctx, 5*time.Minute, 20*time.Millisecond, func() error {
		c, err := x.spent()
		if err == nil && c.in < least {
			err = fmt.Errorf("%s has got %d bytes, want at least %d", x.watcher.name, c.in, least)
		}
		return err
	})
	if err != nil {
		return err
	}
	return x.settle(ctx)
}

// resume cuts the watcher's connections, at the far end as a restarted load balancer would, so that its watches go on as they do after their first minutes. Those that a list began with are compressed, by
// API servers of v1.37 and later, and others are not.
func (x *watching) resume(ctx context.Context) error {
	// client-go lists everything again where a watch ends within a second, without an event.
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(2 * time.Second):
	}
	before, err := x.w.watches(ctx)
	if err != nil {
		return err
	}
	if _, err := output(ctx, x.w.fabric, anyCPU, "ss", "--kill", "dst", nodeAddr(x.watcher.number)); err != nil {
		return err
	}
	since := time.Now()
	err = x.process.until(ctx, 2*time.Minute, 100*time.Millisecond, func() error {
		now, err := x.w.watches(ctx)
		if now != before {
			since = time.Now()
		}
		if err == nil && time.Since(since) < resumed {
			err = fmt.Errorf("%s has %d watches of the %d that were cut", x.watcher.name, now, before)
		}
		return err
	})
	if err != nil {
		return err
	}
	return x.settle(ctx)
}

// resumed is for how long a watcher must have had all its watches for them to be back, and not still there.
const resumed = 3 * time.Second

// watches is how many watches the API server has open.
func (w *scaleWorld) watches(ctx context.Context) (int, error) {
	text, err := w.metrics(ctx)
	if err != nil {
		return 0, err
	}
	return watchesOpen(text)
}

// watchesOpen adds up apiserver_longrunning_requests of watches.
func watchesOpen(metrics []byte) (int, error) {
	n, _, err := metric(metrics, "apiserver_longrunning_requests", `verb="WATCH"`)
	return n, err
}

// happening is something that a watcher may have to hear of.
type happening struct {
	name  string
	times int
	do    func(ctx context.Context, i int) error
}

// The rows of the page.
const (
	firstLists   = "first lists"
	ofSlice      = "an endpoint of a slice of %d is replaced"
	serviceMade  = "a Service and its slice are made"
	serviceGone  = "a Service and its slice are deleted"
	nodeStatusOf = "a Node's status is written, nothing but times changed"
	nodeLease    = "a Node's Lease is renewed"
	podHere      = "a pod of this node changes"
	podElsewhere = "a pod of another node changes"
	idleMinute   = "a minute in which nothing happens"
	afterRestart = "the API server is started again, and has forgotten where everybody was"
)

// sliceSizes are of the slices that change.
var sliceSizes = []int{1, 10, 100}

// happenings are in an order in which each leaves the world as it was.
func (w *scaleWorld) happenings(s *suite) (all []happening) {
	many := pick(s, 100, 10)
	for _, size := range sliceSizes {
		all = append(all, happening{fmt.Sprintf(ofSlice, size), many, func(ctx context.Context, i int) error {
			_, _, err := w.replaceEndpoint(ctx, w.changing[size], i%size)
			return err
		}})
	}
	made := make([]virtual, many)
	return append(all,
		happening{serviceMade, many, func(ctx context.Context, i int) (err error) {
			made[i], err = w.addLarge(ctx, fmt.Sprintf("passing-%d-%d", i, time.Now().UnixNano()), 3)
			return err
		}},
		happening{serviceGone, many, func(ctx context.Context, i int) error { return w.drop(ctx, made[i]) }},
		happening{nodeStatusOf, many, w.beat},
		happening{nodeLease, many, w.renew},
		happening{podHere, many, func(ctx context.Context, i int) error { return w.turn(ctx, &w.own[i%len(w.own)]) }},
		happening{podElsewhere, many, func(ctx context.Context, _ int) error { return w.turn(ctx, &w.other) }},
		happening{idleMinute, 1, func(ctx context.Context, _ int) error {
			select {
			case <-ctx.Done():
				return ctx.Err()
			case <-time.After(pick(s, time.Minute, time.Second)):
				return nil
			}
		}},
	)
}

// all does everything to one watcher, and returns what each thing cost, once.
func (x *watching) all(ctx context.Context, s *suite) (map[string]once, error) {
	costs := map[string]once{}
	for _, h := range x.w.happenings(s) {
		c, err := x.took(ctx, func() error {
			for i := range h.times {
				if err := h.do(ctx, i); err != nil {
					return err
				}
			}
			return nil
		})
		if err != nil {
			return nil, fmt.Errorf("%s: %w", h.name, err)
		}
		costs[h.name] = c.per(h.times)
		progress("%s: %.0f B, %.2f ms, %.2f ms of the API server", h.name, costs[h.name][received], costs[h.name][cpuOwn], costs[h.name][cpuOfAPI])
	}
	return costs, nil
}

// once is what one event cost: bytes and milliseconds.
type once map[string]float64

func (c cost) per(times int) once {
	n := float64(times)
	return once{received: float64(c.in) / n, sent: float64(c.out) / n, cpuOwn: ms(c.own) / n, cpuOfAPI: ms(c.servers) / n}
}

// scaleCosts measures what each watcher costs the API server, one after the other in the same world.
func scaleCosts(ctx context.Context, s *suite) error {
	w, err := s.newScaleWorld(ctx, pick(s, largeCluster, crowd{groups: []group{{90, 5}, {9, 50}, {1, 600}}, nodes: 50, pods: 30}))
	if err != nil {
		return err
	}
	defer w.close()
	if err := s.objectSizes(ctx, w); err != nil {
		return err
	}
	nobody, err := (&watching{w: w}).all(ctx, s)
	if err != nil {
		return fmt.Errorf("nobody watches: %w", err)
	}
	taken := map[string]map[string]once{}
	for _, who := range watchers {
		if taken[who.name], err = s.costsOf(ctx, who, w); err != nil {
			return fmt.Errorf("%s: %w", who.name, err)
		}
	}
	s.reportCosts(nobody, taken)
	return nil
}

func (s *suite) costsOf(ctx context.Context, who watcher, w *scaleWorld) (map[string]once, error) {
	progress("%s lists everything", who.name)
	if _, err := cpuWhenIdle(ctx, w.api.pid()); err != nil {
		return nil, err
	}
	idle := &watching{w: w}
	before, err := idle.spent()
	if err != nil {
		return nil, err
	}
	x, err := s.watch(ctx, who, w)
	if err != nil {
		return nil, err
	}
	defer x.close()
	if err := x.awaitLists(ctx, firstBytes); err != nil {
		return nil, err
	}
	listed, err := x.spent()
	if err != nil {
		return nil, err
	}
	listed.servers -= before.servers
	progress("%s has got %.1f MB; now what happens", who.name, float64(listed.in)/1e6)
	if err := x.resume(ctx); err != nil {
		return nil, err
	}
	costs, err := x.all(ctx, s)
	if err != nil {
		return nil, err
	}
	costs[firstLists] = listed.per(1)
	atRestart, err := x.spent()
	if err != nil {
		return nil, err
	}
	if err := w.restart(ctx); err != nil {
		return nil, err
	}
	// A watcher may rest between one list and the next; the second lists may be smaller than the first.
	if err := x.awaitLists(ctx, atRestart.in+listed.in*3/4); err != nil {
		return nil, fmt.Errorf("%s: %w", afterRestart, err)
	}
	after, err := x.spent()
	if err != nil {
		return nil, err
	}
	again := after.less(atRestart)
	again.servers = 0 // another process, which also reads everything itself
	costs[afterRestart] = again.per(1)
	return costs, nil
}

// reportCosts records all figures, those of the agent with its rivals' beside them. What the API server does without any watcher is not a watcher's cost.
func (s *suite) reportCosts(nobody map[string]once, taken map[string]map[string]once) {
	units := []struct{ what, unit string }{{received, "B"}, {sent, "B"}, {cpuOwn, "ms"}, {cpuOfAPI, "ms"}}
	rows := []string{firstLists}
	for _, h := range (&scaleWorld{}).happenings(s) {
		rows = append(rows, h.name)
	}
	for _, row := range append(rows, afterRestart) {
		for _, u := range units {
			of := func(who string) float64 {
				v := taken[who][row][u.what]
				if u.what == cpuOfAPI {
					v = max(v-nobody[row][u.what], 0)
				}
				return v
			}
			for _, who := range watchers[1:] {
				s.contrast(figure{Section: sectionCosts, Figure: row + ": " + u.what, Unit: u.unit, Value: of(fairlead.name)}, who.name, of(who.name), share, nil)
			}
		}
	}
}

// objectSizes records how large the kinds are on the wire, in the ways in which one can ask for them.
func (s *suite) objectSizes(ctx context.Context, w *scaleWorld) error {
	for _, kind := range []struct {
		article, name, path string
	}{
		{"a", "Service", "/api/v1/services"}, {"an", "EndpointSlice", "/apis/discovery.k8s.io/v1/endpointslices"}, {"a", "Node", "/api/v1/nodes"},
	} {
		const protobuf = "application/vnd.kubernetes.protobuf"
		list := func(accept string) ([]byte, error) {
			text, err := w.client.Discovery().RESTClient().Get().AbsPath(kind.path).Param("resourceVersion", "0").SetHeader("Accept", accept).DoRaw(ctx)
			if err != nil {
				err = fmt.Errorf("list %s: %w", kind.path, err)
			}
			return text, err
		}
		count := map[string]int{"Service": w.crowd.services(), "EndpointSlice": w.crowd.slices(), "Node": len(w.nodes)}[kind.name]
		whole, err := list(protobuf)
		if err != nil {
			return err
		}
		metadata, err := list(protobuf + ";as=PartialObjectMetadataList;g=meta.k8s.io;v=v1")
		if err != nil {
			return err
		}
		zipped, err := gzipped(whole)
		if err != nil {
			return err
		}
		for _, of := range []struct {
			how   string
			bytes int
		}{{"whole", len(whole)}, {"metadata only", len(metadata)}, {"in a compressed list", zipped}} {
			s.state(figure{Section: sectionCosts, Figure: kind.article + " " + kind.name + ", " + of.how, Unit: "B", Value: float64(of.bytes) / float64(count), X: count})
		}
	}
	return nil
}

// gzipped is how many bytes the API server would send of a list that it compresses.
func gzipped(text []byte) (int, error) {
	var b bytes.Buffer
	z, err := gzip.NewWriterLevel(&b, gzip.BestSpeed)
	if err != nil {
		return 0, fmt.Errorf("compress: %w", err)
	}
	if _, err := z.Write(text); err != nil {
		return 0, fmt.Errorf("compress: %w", err)
	}
	if err := z.Close(); err != nil {
		return 0, fmt.Errorf("compress: %w", err)
	}
	return b.Len(), nil
}

// whoIs are the columns of the page's tables.
var whoIs = func() (names []string) {
	for _, who := range watchers {
		names = append(names, who.name)
	}
	return names
}()

// entry is a row of the page: what happened, and the cells of what is measured, one for each watcher.
type entry struct {
	What  string
	Cells [][]float64 // by what is measured, then by watcher
}

// ledger turns figures into rows.
func ledger(all []figure) (rows []entry) {
	seen := map[string]bool{}
	for _, f := range all {
		what, _, _ := strings.Cut(f.Figure, ": ")
		if f.Rival == "" || seen[what] {
			continue
		}
		seen[what] = true
		row := entry{What: what}
		for _, measure := range []string{received, sent, cpuOwn, cpuOfAPI} {
			var cells []float64
			for _, who := range whoIs {
				cells = append(cells, lookUp(all, what, who, measure))
			}
			row.Cells = append(row.Cells, cells)
		}
		rows = append(rows, row)
	}
	return rows
}

// sizeOf finds how large an object is.
func sizeOf(all []figure, what string) float64 {
	for _, f := range all {
		if f.Figure == what && f.Rival == "" {
			return f.Value
		}
	}
	return 0
}

// lookUp finds what something cost a watcher.
func lookUp(all []figure, what, who, measure string) float64 {
	for _, f := range all {
		if f.Figure == what+": "+measure {
			if who == fairlead.name {
				return f.Value
			}
			if f.Rival == who {
				return f.RivalValue
			}
		}
	}
	return 0
}
