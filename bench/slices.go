// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/watch"
)

const (
	churnEvery = 10 * time.Millisecond // 100 changes a second
	// sliceLimit is how long after the last change of a round the slices may be incomplete.
	sliceLimit = 2 * time.Minute
)

// workload is whose pods change.
type workload struct {
	name           string
	services, pods int  // pods of each Service
	once           bool // a round changes one of each Service
}

// workloads are a cluster in which something happens everywhere, one Deployment that is rolled out, and a node that fails or comes back: a pod of each
// Service changes, once.
var workloads = []workload{{name: "among 100 Services", services: 100, pods: 10}, {name: "of one Service", services: 1, pods: 500}, {"of a node", 100, 10, true}}

// churned is what a round of pod changes led to.
type churned struct {
	answered, asked []float64 // ms until a watch told of the slice
	writes          float64   // requests that wanted to change a slice, per change of a pod
}

// The rivals: kube-controller-manager with no other controller than this one, as its makers ship it, where its client sends 20 requests a second,
// and with that limit lifted.
const (
	manager       = "kube-controller-manager"
	managerLifted = manager + " without client limit"
)

// sliceWrites measures from the API's answer for a pod that became ready, or not ready, to an EndpointSlice that says so having been stored, as a watch tells,
// with a hundred such changes a second; and how many writes that took.
func sliceWrites(ctx context.Context, s *suite) error {
	s.forgetAll()
	names := []string{fairlead.name, manager, managerLifted}
	worlds := map[string]*world{}
	for i, name := range names {
		w, err := s.sliceWorld(ctx, name, filepath.Join(s.dir, fmt.Sprint("slices-", i)))
		if err != nil {
			return err
		}
		defer w.close()
		worlds[name] = w
	}
	for _, load := range workloads {
		churns := map[string]*churn{}
		for _, name := range names {
			progress("making %d Services with %d pods each for %s", load.services, load.pods, name)
			c, err := newChurn(ctx, worlds[name], load)
			if err != nil {
				return fmt.Errorf("%s: %w", name, err)
			}
			churns[name] = c
		}
		changes := pick(s, 500, 100)
		if load.once {
			changes = load.services
		}
		taken, err := takeTurns(ctx, pick(s, 6, 2), names, func(name string) (churned, error) {
			quiet(ctx)
			return churns[name].round(ctx, changes)
		})
		if err != nil {
			return err
		}
		s.reportSlices(load, taken[fairlead.name], manager, taken[manager], atLeast(40), atMost(1))
		s.reportSlices(load, taken[fairlead.name], managerLifted, taken[managerLifted], nil, nil)
	}
	return nil
}

// sliceWorld is a world in which the one or the other writes the slices.
func (s *suite) sliceWorld(ctx context.Context, writer, dir string) (*world, error) {
	var flags []string
	if writer != fairlead.name {
		flags = append(flags, "--controllers=false")
	}
	w, err := newWorld(ctx, s.programs, dir, flags...)
	if err != nil {
		return nil, err
	}
	err = w.register(ctx)
	if err == nil && writer != fairlead.name {
		argv := []string{s.programs.kubeControllerManager, "--kubeconfig", w.kubeconfig, "--leader-elect=false",
			"--controllers=endpointslice-controller", "--authentication-skip-lookup", "--cert-dir", dir}
		if writer == managerLifted {
			argv = append(argv, "--kube-api-qps=10000", "--kube-api-burst=10000")
		}
		w.manager, err = start(w.fabric, anyCPU, dir, manager, argv...)
	}
	if err != nil {
		w.close()
		return nil, err
	}
	return w, nil
}

func (s *suite) reportSlices(load workload, own []churned, rival string, theirs []churned, faster, fewer *goal) {
	for _, row := range []struct {
		name string
		goal *goal
		of   func(churned) []float64
	}{
		{"pod change " + load.name + " to slice stored, from answer", faster, func(r churned) []float64 { return r.answered }},
		{"pod change " + load.name + " to slice stored, from request", nil, func(r churned) []float64 { return r.asked }},
	} {
		reportTimes(s, figure{Section: "slices", Figure: row.name, Unit: "ms", Rival: rival}, own, theirs, row.of, row.goal)
	}
	writes := func(r churned) float64 { return r.writes }
	s.compare(figure{Section: "slices", Figure: "writes of slices for a pod change " + load.name}, rival, each(own, writes), each(theirs, writes), share, fewer)
}

// churn changes the readiness of pods in a world, and watches the slices.
type churn struct {
	w     *world
	load  workload
	pods  []string // those of a Service one after the other
	ready map[string]bool

	mu     sync.Mutex
	want   map[string]wish
	left   chan struct{} // told when nothing is wanted any more
	broken error         // of the watch, since the last round began
}

// wish is a pod's readiness that no slice has shown yet.
type wish struct {
	ready bool
	told  func(time.Time)
}

func newChurn(ctx context.Context, w *world, load workload) (*churn, error) {
	c := &churn{w: w, load: load, ready: map[string]bool{}, want: map[string]wish{}, left: make(chan struct{}, 1)}
	group, made := errgroup.WithContext(ctx)
	group.SetLimit(seeders)
	for i := range load.services {
		app := strings.ToLower(strings.ReplaceAll(fmt.Sprintf("%s %d", load.name, i), " ", "-"))
		group.Go(func() error {
			_, err := w.client.CoreV1().Services(metav1.NamespaceDefault).Create(made, &corev1.Service{
				ObjectMeta: metav1.ObjectMeta{Name: app},
				Spec:       corev1.ServiceSpec{Selector: map[string]string{"app": app}, Ports: []corev1.ServicePort{{Port: servicePort}}},
			}, metav1.CreateOptions{})
			if err != nil {
				return fmt.Errorf("create service %s: %w", app, err)
			}
			return nil
		})
		for j := range load.pods {
			pod := fmt.Sprint(app, "-", j)
			c.pods = append(c.pods, pod)
			c.ready[pod] = true
			group.Go(func() error { return w.addPod(made, pod, app, remoteNode, w.newEndpoint().String()) })
		}
	}
	if err := group.Wait(); err != nil {
		return nil, err
	}
	for _, pod := range c.pods {
		c.wish(pod, true, func(time.Time) {})
	}
	open := func(ctx context.Context) (watch.Interface, error) {
		return w.client.DiscoveryV1().EndpointSlices(metav1.NamespaceDefault).Watch(ctx, metav1.ListOptions{})
	}
	if err := follow(ctx, open, c.hear, c.lost); err != nil {
		return nil, fmt.Errorf("watch slices: %w", err)
	}
	return c, c.complete(ctx)
}

// addPod makes a pod that runs and is ready.
func (w *world) addPod(ctx context.Context, name, app, node, address string, edit ...func(*corev1.PodSpec)) error {
	pods := w.client.CoreV1().Pods(metav1.NamespaceDefault)
	spec := corev1.PodSpec{NodeName: node, Containers: []corev1.Container{{Name: "main", Image: "none", Command: []string{"/none"}}}}
	for _, f := range edit {
		f(&spec)
	}
	pod, err := pods.Create(ctx, &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: name, Labels: map[string]string{"app": app}}, Spec: spec}, metav1.CreateOptions{})
	if err != nil {
		return fmt.Errorf("create pod %s: %w", name, err)
	}
	pod.Status = corev1.PodStatus{
		Phase:      corev1.PodRunning,
		PodIP:      address,
		PodIPs:     []corev1.PodIP{{IP: address}},
		Conditions: []corev1.PodCondition{{Type: corev1.PodReady, Status: corev1.ConditionTrue, LastTransitionTime: metav1.Now()}},
	}
	if _, err := pods.UpdateStatus(ctx, pod, metav1.UpdateOptions{}); err != nil {
		return fmt.Errorf("update status of pod %s: %w", name, err)
	}
	return nil
}

func (c *churn) wish(pod string, ready bool, told func(time.Time)) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.want[pod] = wish{ready, told}
}

// hear takes note of what a slice says of pods.
func (c *churn) hear(event watch.Event) {
	now := time.Now()
	slice, ok := event.Object.(*discoveryv1.EndpointSlice)
	if !ok || event.Type == watch.Deleted {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, e := range slice.Endpoints {
		if e.TargetRef == nil {
			continue
		}
		if wish, ok := c.want[e.TargetRef.Name]; ok && e.Conditions.Ready != nil && *e.Conditions.Ready == wish.ready {
			wish.told(now)
			delete(c.want, e.TargetRef.Name)
		}
	}
	if len(c.want) == 0 {
		select {
		case c.left <- struct{}{}:
		default:
		}
	}
}

// lost is told when the watch was not one for a while.
func (c *churn) lost(err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.broken = err
}

// complete waits until slices have shown everything that is wanted.
func (c *churn) complete(ctx context.Context) error {
	deadline := time.After(sliceLimit)
	for {
		c.mu.Lock()
		n := len(c.want)
		c.mu.Unlock()
		if n == 0 {
			return nil
		}
		select {
		case <-c.left:
		case <-ctx.Done():
			return ctx.Err()
		case <-deadline:
			return fmt.Errorf("after %v slices still do not show the state of %d pods", sliceLimit, n)
		}
	}
}

// draw chooses n pods at random, no two of one Service if the workload is to change each once.
func (c *churn) draw(n int) []string {
	each := 1 // pods that one is drawn from
	if c.load.once {
		each = c.load.pods
	}
	pods := make([]string, n)
	for k, i := range rand.Perm(len(c.pods) / each)[:n] {
		pods[k] = c.pods[i*each+rand.IntN(each)]
	}
	return pods
}

// round flips the readiness of n pods, one after the other at the rate, whatever the slices do.
func (c *churn) round(ctx context.Context, n int) (out churned, err error) {
	c.mu.Lock()
	c.broken = nil
	c.mu.Unlock()
	before, err := c.w.sliceRequests(ctx)
	if err != nil {
		return out, err
	}
	var mu sync.Mutex // of out, while the requests run
	group, ctx := errgroup.WithContext(ctx)
	ticks := time.NewTicker(churnEvery)
	defer ticks.Stop()
	for _, pod := range c.draw(n) {
		select {
		case <-ticks.C:
		case <-ctx.Done():
			return out, errors.Join(ctx.Err(), group.Wait())
		}
		c.ready[pod] = !c.ready[pod]
		ready := c.ready[pod]
		group.Go(func() error {
			told := make(chan time.Time, 1)
			c.wish(pod, ready, func(at time.Time) { told <- at })
			asked := time.Now()
			if err := c.w.setReady(ctx, pod, ready); err != nil {
				return err
			}
			answered := time.Now()
			select {
			case at := <-told:
				mu.Lock()
				defer mu.Unlock()
				out.answered = append(out.answered, ms(at.Sub(answered)))
				out.asked = append(out.asked, ms(at.Sub(asked)))
				return nil
			case <-time.After(sliceLimit):
				return fmt.Errorf("after %v no slice shows that %s changed", sliceLimit, pod)
			case <-ctx.Done():
				return ctx.Err()
			}
		})
	}
	if err := group.Wait(); err != nil {
		return out, err
	}
	after, err := c.w.sliceRequests(context.WithoutCancel(ctx))
	out.writes = (after - before) / float64(n)
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.broken != nil {
		return out, fmt.Errorf("watch slices: %w", c.broken)
	}
	return out, err
}

func (w *world) setReady(ctx context.Context, pod string, ready bool) error {
	status := corev1.ConditionFalse
	if ready {
		status = corev1.ConditionTrue
	}
	patch := fmt.Sprintf(`{"status":{"conditions":[{"type":"Ready","status":%q}]}}`, status)
	_, err := w.client.CoreV1().Pods(metav1.NamespaceDefault).Patch(ctx, pod, types.StrategicMergePatchType, []byte(patch), metav1.PatchOptions{}, "status")
	if err != nil {
		return fmt.Errorf("change readiness of pod %s: %w", pod, err)
	}
	return nil
}

// sliceRequests is how many requests to change a slice the server has had, by its own metrics, those that failed too.
func (w *world) sliceRequests(ctx context.Context) (float64, error) {
	text, err := w.client.Discovery().RESTClient().Get().AbsPath("/metrics").DoRaw(ctx)
	if err != nil {
		return 0, fmt.Errorf("read metrics: %w", err)
	}
	return sumRequests(text, "endpointslices")
}

// sumRequests adds up apiserver_request_total over the requests that change a resource.
func sumRequests(metrics []byte, resource string) (sum float64, err error) {
	for lines := bufio.NewScanner(bytes.NewReader(metrics)); lines.Scan(); {
		labels, ok := strings.CutPrefix(lines.Text(), "apiserver_request_total{")
		if !ok || !strings.Contains(labels, `resource="`+resource+`"`) {
			continue
		}
		for _, verb := range []string{"POST", "PUT", "PATCH", "APPLY", "DELETE", "DELETECOLLECTION"} {
			if strings.Contains(labels, `verb="`+verb+`"`) {
				n, err := strconv.ParseFloat(labels[strings.LastIndexByte(labels, ' ')+1:], 64)
				if err != nil {
					return 0, fmt.Errorf("parse metric %q: %w", lines.Text(), err)
				}
				sum += n
			}
		}
	}
	return sum, nil
}
