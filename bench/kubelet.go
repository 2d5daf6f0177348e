// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"sync"
	"syscall"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/utils/ptr"
)

// kubelet is what matters of one here: it starts servers as pods of its node, watches its pods, gives SIGTERM to one the moment it sees that it is being
// deleted, and takes the pod away when its program has ended.
type kubelet struct {
	w      *world
	name   string
	number int
	node   *host
	stop   context.CancelFunc

	mu   sync.Mutex
	pods map[string]*runningPod
	next int
	all  sync.WaitGroup
	err  error
}

type runningPod struct {
	host    *host
	process *process
	once    sync.Once
}

// newKubelet makes a node on the fabric.
func newKubelet(ctx context.Context, w *world, name string, number int) (_ *kubelet, err error) {
	k := &kubelet{w: w, name: name, number: number, pods: map[string]*runningPod{}, next: 10}
	if k.node, err = newHost(); err != nil {
		return nil, err
	}
	err = w.join(k.node, number)
	if err == nil {
		err = errors.Join(k.node.sysctls("net/ipv4/ip_forward", "1"), w.addNode(ctx, name, nodeAddr(number), nodeCIDR(number)))
	}
	watching, stop := context.WithCancel(ctx)
	k.stop = stop
	if err == nil {
		mine := metav1.ListOptions{FieldSelector: fields.OneTermEqualSelector("spec.nodeName", name).String()}
		open := func(ctx context.Context) (watch.Interface, error) {
			return w.client.CoreV1().Pods(metav1.NamespaceDefault).Watch(ctx, mine)
		}
		err = follow(watching, open, func(e watch.Event) { k.hear(ctx, e) }, func(err error) {
			progress("%s: %v; watching again", name, err) // what it missed, it is told now
		})
	}
	if err != nil {
		stop()
		k.node.close()
		return nil, fmt.Errorf("make node %s: %w", name, err)
	}
	return k, nil
}

// reach leads to the pods of another node.
func (k *kubelet) reach(other *kubelet) error {
	return k.node.route(nodeCIDR(other.number), nodeAddr(other.number), "fabric0")
}

// attach makes a pod's namespace with an address of the node.
func (k *kubelet) attach() (h *host, address string, err error) {
	k.mu.Lock()
	n := k.next
	k.next++
	k.mu.Unlock()
	if n > 250 {
		return nil, "", fmt.Errorf("node %s has no addresses left", k.name)
	}
	if h, err = newHost(); err != nil {
		return nil, "", err
	}
	address, dev := fmt.Sprintf("10.128.%d.%d", k.number, n), "pod"+strconv.Itoa(n)
	if err := k.node.attach(dev, h, address); err != nil {
		h.close()
		return nil, "", fmt.Errorf("attach a pod to %s: %w", k.name, err)
	}
	return h, address, nil
}

// run starts a server as a pod, and returns when it listens and the API has it as ready.
func (k *kubelet) run(ctx context.Context, name, app string) error {
	h, address, err := k.attach()
	if err != nil {
		return err
	}
	on := fmt.Sprint(address, ":", servicePort)
	p, err := start(h, anyCPU, k.w.dir, name, k.w.programs.bench, "answer", "-on", on)
	if err != nil {
		h.close()
		return err
	}
	pod := &runningPod{host: h, process: p}
	k.mu.Lock()
	k.pods[name] = pod
	k.mu.Unlock()
	err = p.until(ctx, 10*time.Second, time.Millisecond, func() error {
		return h.Do(func() error { _, err := ask(on, 0); return err })
	})
	if err != nil {
		return fmt.Errorf("wait for %s to listen: %w", name, err)
	}
	return k.w.addPod(ctx, name, app, k.name, address)
}

// hear is told of the node's pods.
func (k *kubelet) hear(ctx context.Context, event watch.Event) {
	pod, ok := event.Object.(*corev1.Pod)
	if !ok || event.Type == watch.Deleted || pod.DeletionTimestamp == nil {
		return
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	running := k.pods[pod.Name]
	if running == nil {
		return
	}
	running.once.Do(func() {
		_ = running.process.cmd.Process.Signal(syscall.SIGTERM)
		k.all.Go(func() { k.bury(ctx, pod.Name, running) })
	})
}

// bury waits for a pod's end and takes it away.
func (k *kubelet) bury(ctx context.Context, name string, pod *runningPod) {
	<-pod.process.done
	pod.host.close()
	err := k.w.client.CoreV1().Pods(metav1.NamespaceDefault).Delete(ctx, name, metav1.DeleteOptions{GracePeriodSeconds: ptr.To[int64](0)})
	k.mu.Lock()
	defer k.mu.Unlock()
	delete(k.pods, name)
	if err != nil && ctx.Err() == nil {
		k.err = errors.Join(k.err, fmt.Errorf("delete pod %s: %w", name, err))
	}
}

// close ends all pods and the node.
func (k *kubelet) close() error {
	if k == nil {
		return nil
	}
	k.stop()
	k.mu.Lock()
	left := k.pods
	k.pods = map[string]*runningPod{}
	k.mu.Unlock()
	for _, pod := range left {
		pod.once.Do(func() {
			pod.process.stop()
			pod.host.close()
		})
	}
	k.all.Wait()
	k.node.close()
	return k.err
}
